"""L2 on Redis or Valkey: each operation is one Lua script, each plain read a share of one MGET.

Where the servers are is the route's business: one, a primary that Sentinels watch over, or those of a Cluster.

Nothing is retried here: an operation that failed may have happened, and its caller knows best what that means.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Coroutine, Sequence
from importlib.resources import files
from typing import Any

from cachebus.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.keys import Key, guard_name
from cachebus.l2.names import ShardNames
from cachebus.l2.redirect import Follower, as_command
from cachebus.ports import (
    PROTOCOL,
    Caller,
    Change,
    Leased,
    LeaseReply,
    LogEntry,
    ProbeReply,
    ReadReply,
    Register,
)
from cachebus.record import Record
from cachebus.resp import Links, Route, Script, leads_elsewhere

PRUNE_EVERY_S = 10.0
SILENT_US = 60_000_000
_SCRIPTS = ("probe", "register", "leave", "read", "lease", "hold", "fill", "invalidate", "guard", "write", "counter")
_UNDER_GUARDS = ("lease", "fill", "write")


def load_scripts() -> dict[str, Script]:
    """The scripts by name, each with the common prologue in front."""
    folder = files("cachebus.l2") / "scripts"
    prologue, guards = (folder / "_prologue.lua").read_text(), (folder / "_guards.lua").read_text()
    return {
        name: Script(prologue + (guards if name in _UNDER_GUARDS else "") + (folder / f"{name}.lua").read_text())
        for name in _SCRIPTS
    }


class RedisStore:
    """A `Store` over one pipelined connection."""

    def __init__(
        self,
        route: Route,
        *,
        namespace: str,
        shards: int,
        bus: str,
        timeout_s: float,
        connect_timeout_s: float,
        clock: Clock,
        marks_max: int,
        log_max: int,
        guard_max_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self._scripts = load_scripts()
        self._guard_max_ms = str(int(guard_max_s * 1000))
        self._names = [ShardNames(namespace, shard) for shard in range(shards)]
        self._record_prefixes = [names.record_prefix for names in self._names]
        self._facts = f"protocol={PROTOCOL} shards={shards} bus={bus}", str(marks_max), str(log_max)
        self._publishes = bus == "redis"
        self._tails = self._made_tails("")
        self.checked = [False] * shards
        """By shard: whether its connection's server has answered a probe of ours for it since it connected."""
        self._links = Links(
            route, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, clock=clock, on_lost=self._doubt
        )
        self._by_shard = self._links.by_shard
        self._follower = Follower(self._links, clock, timeout_s) if route.clustered else None
        self._pruned_at = [float("-inf")] * shards

    # -- connections --------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether every shard has a connection."""
        return self._links.connected

    async def connect(self) -> None:
        """Connect whatever is not; `L2Unavailable` names host and port of what can't be reached."""
        await self._links.connect()
        self._tails = self._made_tails("!" if self._links.route.sharded else "")

    def _doubt(self, shards: Sequence[int]) -> None:
        for shard in shards:
            self.checked[shard] = False

    async def close(self) -> None:
        """Give the connections back; what is pending fails."""
        self._doubt(range(len(self.checked)))
        self._links.close()

    def _made_tails(self, sharded: str) -> list[tuple[str, ...]]:
        if not self._publishes:
            return [(*self._facts, "")] * len(self._names)
        return [(*self._facts, sharded + names.channel) for names in self._names]

    def _run(
        self, name: str, shard: int, caller: Caller, keys: Sequence[str], args: Sequence[Any]
    ) -> Coroutine[Any, Any, Any]:
        """Run a script: the head that all share, then its own keys and arguments."""
        who = (caller.node, str(caller.applied), caller.epoch, secrets.token_hex(8))
        script, keys, args = self._scripts[name], (*self._names[shard].own, *keys), (*who, *self._tails[shard], *args)
        if self._follower is None:
            # No coroutine of its own: each one around an answer costs its caller a frame more to be resumed through.
            return self._links.of(shard).script(script, keys, args)
        return self._follower.run(
            shard, lambda connection: connection.script(script, keys, args), as_command(script, keys, args)
        )

    # -- operations ---------------------------------------------------------------------------------------------

    async def probe(self, shard: int, caller: Caller, *, marks: bool) -> ProbeReply:
        """The shard's place, floor and clock; leaves the caller's line among the nodes."""
        connection, hops = self._links.of(shard), self._hops(shard)
        now = self._clock()
        prune = now - self._pruned_at[shard] > PRUNE_EVERY_S
        if prune:
            self._pruned_at[shard] = now
        args = ["1" if marks else "0", str(SILENT_US) if prune else "0"]
        try:
            epoch, seq, floor, server_us, flat, register, born_us = await self._run("probe", shard, caller, (), args)
        except L2Unavailable as error:
            # An unanswered probe says that nothing behind this connection is to be trusted: begin with another one.
            # (A Cluster that is moving this shard has answered.)
            self.checked[shard] = False
            if not leads_elsewhere(error):
                connection.close()
                self._doubt([other for other, its in enumerate(self._by_shard) if its is connection])
            raise
        if connection is self._by_shard[shard] and not connection.closed:
            self.checked[shard] = hops == self._hops(shard)  # else another server has answered
        found = None
        if marks:
            flat = flat or ()
            found = {name.decode(): int(float(mark)) for name, mark in zip(flat[::2], flat[1::2], strict=True)}
        return ProbeReply(epoch, seq, floor, int(server_us), found, register, int(born_us))

    async def register(self, shard: int, caller: Caller) -> Register:
        """Every node's line, the caller's own brought up to date first."""
        epoch, _, name, flat = await self._run("register", shard, caller, (), ())
        lines = {node.decode(): line.split(b":") for node, line in zip(flat[::2], flat[1::2], strict=True)}
        return Register(epoch, name, {node: (int(applied), int(at_us)) for node, (applied, at_us) in lines.items()})

    def _hops(self, shard: int) -> int:
        return 0 if self._follower is None else self._follower.hops[shard]

    async def leave(self, shard: int, caller: Caller) -> None:
        """Take the caller's line away."""
        await self._run("leave", shard, caller, (), ())

    def get(self, key: Key) -> Awaitable[bytes | None]:
        """A record's bytes, not validated; those of one loop tick are one MGET."""
        connection = self._by_shard[key.shard]
        if connection is None:
            raise L2Unavailable(f"not connected to {self._links.route}")
        return connection.get(self._record_prefixes[key.shard] + key.l2)

    async def read(self, shard: int, caller: Caller, keys: Sequence[Key]) -> ReadReply:
        """Records validated by the store itself."""
        names = self._names[shard]
        args: list[str] = []
        for key in keys:
            args += [str(len(key.names)), *key.names]
        reply = await self._run("read", shard, caller, [names.record(key) for key in keys], args)
        return ReadReply(reply[0], reply[1], reply[2:])

    async def lease(
        self, key: Key, caller: Caller, token: str, px_ms: int, *, refresh: bool = False, tags: Sequence[str] = ()
    ) -> LeaseReply:
        """A valid unexpired record, or the right to fill."""
        names = self._names[key.shard]
        args = [token, str(px_ms), "1" if refresh else "0", key.l1, str(len(key.names)), *key.names, *tags]
        epoch, seq, outcome, record, wait_ms = await self._run(
            "lease", key.shard, caller, [names.record(key), names.lease(key)], args
        )
        return LeaseReply(epoch, seq, Leased(outcome.decode()), record, wait_ms)

    def extend(self, key: Key, token: str, px_ms: int) -> None:
        """Hold a lease for `px_ms` more. Does not wait."""
        self._hold(key, token, px_ms)

    def release(self, key: Key, token: str) -> None:
        """Give a lease back and wake those who wait for it. Does not wait."""
        self._hold(key, token, 0)

    def _hold(self, key: Key, token: str, px_ms: int) -> None:
        connection = self._by_shard[key.shard]
        if connection is None or connection.closed:
            return  # the lease ends by its px
        names = self._names[key.shard]
        head = ["", "0", "", secrets.token_hex(8), *self._tails[key.shard]]
        keys = [*names.own, names.lease(key)]
        args = [str(len(keys)), *keys, *head, token, str(px_ms), key.l1]
        script = self._scripts["hold"]

        def known(answer: asyncio.Future[object]) -> None:
            # No caller waits who could send the source, so a server that does not know the script gets it from here.
            if not answer.cancelled() and str(answer.exception()).startswith("NOSCRIPT"):
                connection.call("EVAL", script.source, *args).add_done_callback(_heard)

        connection.call("EVALSHA", script.sha, *args).add_done_callback(known)

    async def fill(self, key: Key, caller: Caller, token: str, record: Record, px_ms: int, over: bytes) -> Change:
        """Store a loaded record if its lease still stands and nothing replaced it."""
        names = self._names[key.shard]
        args = [token, record.encode(), str(px_ms), over, key.l1, self._guard_max_ms, *key.names]
        epoch, seq, stored, floor, expires_ms = await self._run(
            "fill", key.shard, caller, [names.record(key), names.lease(key)], args
        )
        return Change(epoch, seq, bool(stored), floor, expires_ms)

    async def invalidate(
        self, shard: int, caller: Caller, keys: Sequence[Key], names: Sequence[str], body: bytes
    ) -> Change:
        """Remove records and leases, move marks, log and publish."""
        epoch, seq, _, floor = await self._run("invalidate", shard, caller, self._gone(shard, keys), [body, *names])
        return Change(epoch, seq, True, floor)

    async def guard(
        self, shard: int, caller: Caller, keys: Sequence[Key], names: Sequence[str], token: str, px_ms: int, body: bytes
    ) -> Change:
        """Invalidate, and put a token on what is invalidated, or take it away."""
        guarded = [*map(guard_name, keys), *names]
        args = [body, token, str(px_ms), str(len(names)), *names, *guarded]
        epoch, seq, _, floor = await self._run("guard", shard, caller, self._gone(shard, keys), args)
        return Change(epoch, seq, True, floor)

    async def write(
        self, key: Key, caller: Caller, record: Record, px_ms: int, body: bytes, *, others: Sequence[Key] = (),
        names: Sequence[str] = (), if_absent: bool = False,
    ) -> Change:  # fmt: skip
        """Store a record and invalidate all else that holds the key or depends on it."""
        data = record.encode()
        own = self._names[key.shard]
        keys = [own.record(key), own.lease(key), *self._gone(key.shard, others)]
        scopes = key.names
        args = [
            "1" if if_absent else "0", str(len(scopes)), data[:4], data[28:], str(px_ms), body, key.l1,
            self._guard_max_ms, *scopes, *names,
        ]  # fmt: skip
        epoch, seq, stored, floor, expires_ms = await self._run("write", key.shard, caller, keys, args)
        return Change(epoch, seq, bool(stored), floor, expires_ms)

    def _gone(self, shard: int, keys: Sequence[Key]) -> list[str]:
        names = self._names[shard]
        return [*(names.record(key) for key in keys), *(names.lease(key) for key in keys)]

    async def counter(self, key: Key, caller: Caller, amount: int, request: str, expires_ms: int) -> int:
        """Add to a counter and give its value."""
        names = self._names[key.shard]
        keys = [names.counter_prefix + key.l2, f"{names.request_prefix}{key.l2}:{request}"]
        args = [str(amount), "1" if request else "0", str(expires_ms)]
        return int(await self._run("counter", key.shard, caller, keys, args))

    async def log(self, shard: int, after: int, count: int) -> list[LogEntry]:
        """Up to `count` entries of the log that follow seq `after`."""
        question = "XRANGE", self._names[shard].log, f"{after + 1}-0", "+", "COUNT", str(count)
        reply: Any
        if self._follower is None:
            reply = await self._links.of(shard).call(*question)
        else:
            reply = await self._follower.run(shard, lambda connection: connection.call(*question), question)
        return [LogEntry(_seq(entry_id), _message(fields)) for entry_id, fields in reply]


def _seq(entry_id: bytes) -> int:
    """The seq in an entry's id; -1 for an id that is none of ours (no seq is negative, so it can only be a gap)."""
    seq, _, rest = entry_id.partition(b"-")
    return int(seq) if rest == b"0" else -1


def _message(fields: list[bytes] | None) -> bytes:
    return fields[1] if fields and len(fields) == 2 and fields[0] == b"e" else b""


def _heard(answer: asyncio.Future[object]) -> None:
    """An answer that nobody waits for: a lease not extended or released ends by its px."""
    if not answer.cancelled():
        answer.exception()
