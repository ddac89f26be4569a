"""Faults of the server, if it is a process of the run's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.l2.names import ShardNames
from cachebus.tools.verify.fleet import messages
from cachebus.tools.verify.target.server import Machine
from cachebus.tools.verify.target.stage import Act, Fault, Stage, Strike, rest

OLD: Final = "old.rdb"
GUARDED_FOR_S, LOST_FOR_S = 0.05, 0.25
"""How long a guard stands before it is lost, and how much later something is read and committed behind it."""
_DEL: Final = """
local found = redis.call('KEYS', ARGV[1])
for i, key in ipairs(found) do if i % tonumber(ARGV[2]) == 0 then redis.call('DEL', key) end end
"""
_BUSY: Final = """
local function now() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end
local until_us = now() + tonumber(ARGV[1])
while now() < until_us do end
"""
_BUFFER_AS_IT_COMES: Final = "pubsub 33554432 8388608 60"


def _commands(*commands: Sequence[str]) -> Act:
    async def act(stage: Stage, _: Strike) -> None:
        for command in commands:
            await stage.machine.command(*command)

    return act


def _del_own(which: Callable[[ShardNames], Sequence[str]]) -> Act:
    async def act(stage: Stage, _: Strike) -> None:
        await stage.machine.command("UNLINK", *which(stage.machine.names))

    return act


def _del_some(prefix: Callable[[Machine], str], every: int) -> Act:
    async def act(stage: Stage, _: Strike) -> None:
        await stage.machine.command("EVAL", _DEL, "0", f"{prefix(stage.machine)}*", str(every))

    return act


async def _trim(stage: Stage, _: Strike) -> None:
    await stage.machine.command("XTRIM", stage.machine.names.log, "MAXLEN", "2")


def _meanwhile(config: tuple[str, str], normal: str) -> Act:
    """Change a setting of the server for a while."""

    async def act(stage: Stage, blow: Strike) -> None:
        try:
            await stage.machine.command("CONFIG", "SET", *config)
            await rest(blow.lasts_s)
        finally:
            await stage.machine.command("CONFIG", "SET", config[0], normal)

    return act


async def _lose_guard(stage: Stage, blow: Strike) -> None:
    """A standing guard is lost. A node then reads behind it, commits, and abandons it: no level may keep what it
    read."""
    stage.crew.order(1 + blow.seed % len(stage.crew.numbers), messages.GUARD, LOST_FOR_S + GUARDED_FOR_S)
    await rest(GUARDED_FOR_S)
    await stage.machine.command("UNLINK", stage.machine.names.meta)
    await rest(LOST_FOR_S)


async def _busy(stage: Stage, blow: Strike) -> None:
    # The reply comes when the script ends. That the command times out before does not matter.
    await stage.machine.command("EVAL", _BUSY, "0", str(int(blow.lasts_s * 1e6)))


async def _pause(stage: Stage, blow: Strike) -> None:
    await stage.machine.pause()
    paused_s = monotonic()
    try:
        await rest(blow.lasts_s)
    finally:
        stage.away.append((paused_s, monotonic()))
        await stage.machine.resume()


def _restart(before: Callable[[Stage, Strike], Awaitable[None]], after: Callable[[Machine], Awaitable[None]]) -> Act:
    async def act(stage: Stage, blow: Strike) -> None:
        await before(stage, blow)
        await stage.machine.kill()
        gone_s = monotonic()
        try:
            await after(stage.machine)
            await rest(blow.lasts_s / 4)
        finally:
            stage.away.append((gone_s, monotonic()))
            await stage.machine.start()

    return act


async def _nothing(_: Stage, __: Strike) -> None:
    return None


async def _keep(stage: Stage, _: Strike) -> None:
    await stage.machine.keep()


async def _keep_old(stage: Stage, blow: Strike) -> None:
    await stage.machine.keep(OLD)
    await rest(blow.lasts_s)  # what is written meanwhile is lost


async def _as_it_is(_: Machine) -> None:
    return None


async def _back_up(stage: Stage, _: Strike) -> None:
    """Ask for all data as a replica does. The server takes another replication id, and one more when it drops the
    backlog that it kept for that replica."""
    await stage.machine.command("CONFIG", "SET", "repl-backlog-ttl", "1")
    await stage.machine.command("PSYNC", "?", "-1")


async def _of_the_log(stage: Stage, blow: Strike) -> None:
    await stage.machine.log_writes()
    await rest(blow.lasts_s)
    try:
        await _restart(_nothing, lambda machine: machine.tear_the_log(blow.dice()))(stage, blow)
    finally:
        await stage.machine.log_no_more()


def _fault(name: str, what: str, act: Act, lasts: tuple[float, float] = (0.0, 0.0), *, mild: bool = False) -> Fault:
    return Fault(name, "server", what, lasts, act, own=True, ends_leases=not mild)


SERVER_FAULTS: Final = (
    _fault("flushall", "FLUSHALL", _commands(("FLUSHALL",))),
    _fault("del-meta", "the shard's meta is evicted", _del_own(lambda names: [names.meta])),
    _fault("del-guards", "the guards are evicted", _del_own(lambda names: [names.guards])),
    _fault("lose-guard", "a guard is lost while it stands, and left after its commit", _lose_guard),
    _fault("del-marks", "the marks of scopes and tags are evicted", _del_own(lambda names: names.all_marks)),
    _fault("del-log", "the log is evicted", _del_own(lambda names: [names.log]), mild=True),
    _fault("del-nodes", "the list of nodes is evicted", _del_own(lambda names: [names.nodes]), mild=True),
    _fault("del-leases", "all leases of loads are evicted", _del_some(lambda m: m.names.lease_prefix, 1)),
    _fault("del-records", "half of all records are evicted", _del_some(lambda m: m.names.record_prefix, 2), mild=True),
    _fault("xtrim", "the log is trimmed to its last two entries", _trim, mild=True),
    _fault("script-flush", "SCRIPT FLUSH", _commands(("SCRIPT", "FLUSH")), mild=True),
    _fault("kill-pubsub", "CLIENT KILL TYPE pubsub", _commands(("CLIENT", "KILL", "TYPE", "pubsub")), mild=True),
    _fault("kill-normal", "CLIENT KILL TYPE normal", _commands(("CLIENT", "KILL", "TYPE", "normal"))),
    _fault(
        "buffer-kill",
        "subscribers are disconnected by an output buffer limit of one byte",
        _meanwhile(("client-output-buffer-limit", "pubsub 1 0 0"), _BUFFER_AS_IT_COMES),
        (0.1, 0.5),
        mild=True,
    ),
    _fault("noreplicas", "writes are refused: NOREPLICAS", _meanwhile(("min-replicas-to-write", "1"), "0"), (0.2, 1.5)),
    _fault("full", "writes are refused: OOM", _meanwhile(("maxmemory", "1"), "0"), (0.2, 1.5)),
    _fault("busy", "a Lua script that holds the server: -BUSY", _busy, (0.2, 1.0)),
    _fault("reload", "DEBUG RELOAD", _commands(("DEBUG", "RELOAD"))),
    _fault("pause", "SIGSTOP, later SIGCONT", _pause, (0.2, 2.5)),
    _fault("crash", "SIGKILL, and a restart without data", _restart(_nothing, Machine.forget), (0.5, 4.0)),
    _fault("restart", "SIGKILL after SAVE, and a restart with all data", _restart(_keep, _as_it_is), (0.5, 4.0)),
    _fault(
        "restart-old",
        "SIGKILL, and a restart with data of some seconds before",
        _restart(_keep_old, lambda machine: machine.put_back(OLD)),
        (0.5, 2.0),
    ),
    _fault(
        "restart-aof",
        "SIGKILL, and a restart with an append-only file that lacks its last writes",
        _of_the_log,
        (0.5, 2.0),
    ),
    _fault("backup", "a backup that asks for all data as a replica does (redis-cli --rdb)", _back_up),
)
