"""Faults of the server, if it is a process of the run's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.l2.names import ShardNames
from cachebus.tools.verify.fleet import messages
from cachebus.tools.verify.target.server import ServerProcess
from cachebus.tools.verify.target.testbed import Act, Fault, Occurrence, Testbed, pause

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
    async def act(testbed: Testbed, _: Occurrence) -> None:
        for command in commands:
            await testbed.machine.command(*command)

    return act


def _del_own(which: Callable[[ShardNames], Sequence[str]]) -> Act:
    async def act(testbed: Testbed, _: Occurrence) -> None:
        await testbed.machine.command("UNLINK", *which(testbed.machine.names))

    return act


def _del_some(prefix: Callable[[ServerProcess], str], every: int) -> Act:
    async def act(testbed: Testbed, _: Occurrence) -> None:
        await testbed.machine.command("EVAL", _DEL, "0", f"{prefix(testbed.machine)}*", str(every))

    return act


async def _trim(testbed: Testbed, _: Occurrence) -> None:
    await testbed.machine.command("XTRIM", testbed.machine.names.log, "MAXLEN", "2")


def _meanwhile(config: tuple[str, str], normal: str) -> Act:
    """Change a setting of the server for a while."""

    async def act(testbed: Testbed, occurrence: Occurrence) -> None:
        try:
            await testbed.machine.command("CONFIG", "SET", *config)
            await pause(occurrence.lasts_s)
        finally:
            await testbed.machine.command("CONFIG", "SET", config[0], normal)

    return act


async def _lose_guard(testbed: Testbed, occurrence: Occurrence) -> None:
    """A standing guard is lost. A node then reads behind it, commits, and abandons it: no level may keep what it
    read."""
    testbed.fleet.order(1 + occurrence.seed % len(testbed.fleet.numbers), messages.GUARD, LOST_FOR_S + GUARDED_FOR_S)
    await pause(GUARDED_FOR_S)
    await testbed.machine.command("UNLINK", testbed.machine.names.meta)
    await pause(LOST_FOR_S)


async def _busy(testbed: Testbed, occurrence: Occurrence) -> None:
    # The reply comes when the script ends. That the command times out before does not matter.
    await testbed.machine.command("EVAL", _BUSY, "0", str(int(occurrence.lasts_s * 1e6)))


async def _pause(testbed: Testbed, occurrence: Occurrence) -> None:
    await testbed.machine.pause()
    paused_s = monotonic()
    try:
        await pause(occurrence.lasts_s)
    finally:
        testbed.away.append((paused_s, monotonic()))
        await testbed.machine.resume()


def _restart(
    before: Callable[[Testbed, Occurrence], Awaitable[None]], after: Callable[[ServerProcess], Awaitable[None]]
) -> Act:
    async def act(testbed: Testbed, occurrence: Occurrence) -> None:
        await before(testbed, occurrence)
        await testbed.machine.kill()
        gone_s = monotonic()
        try:
            await after(testbed.machine)
            await pause(occurrence.lasts_s / 4)
        finally:
            testbed.away.append((gone_s, monotonic()))
            await testbed.machine.start()

    return act


async def _nothing(_: Testbed, __: Occurrence) -> None:
    return None


async def _keep(testbed: Testbed, _: Occurrence) -> None:
    await testbed.machine.keep()


async def _keep_old(testbed: Testbed, occurrence: Occurrence) -> None:
    await testbed.machine.keep(OLD)
    await pause(occurrence.lasts_s)  # what is written meanwhile is lost


async def _as_it_is(_: ServerProcess) -> None:
    return None


async def _back_up(testbed: Testbed, _: Occurrence) -> None:
    """Ask for all data as a replica does. The server takes another replication id, and one more when it drops the
    backlog that it kept for that replica."""
    await testbed.machine.command("CONFIG", "SET", "repl-backlog-ttl", "1")
    await testbed.machine.command("PSYNC", "?", "-1")


async def _of_the_log(testbed: Testbed, occurrence: Occurrence) -> None:
    await testbed.machine.enable_aof()
    await pause(occurrence.lasts_s)
    try:
        await _restart(_nothing, lambda machine: machine.truncate_aof(occurrence.dice()))(testbed, occurrence)
    finally:
        await testbed.machine.disable_aof()


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
    _fault("del-leases", "all fill leases are evicted", _del_some(lambda m: m.names.fill_lease_prefix, 1)),
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
    _fault("crash", "SIGKILL, and a restart without data", _restart(_nothing, ServerProcess.forget), (0.5, 4.0)),
    _fault("restart", "SIGKILL after SAVE, and a restart with all data", _restart(_keep, _as_it_is), (0.5, 4.0)),
    _fault(
        "restart-old",
        "SIGKILL, and a restart with data of some seconds before",
        _restart(_keep_old, lambda machine: machine.restore_dump(OLD)),
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
