"""L2 on Redis or Valkey: each operation is one Lua script, each plain read a share of one MGET.

Where the servers are is the route's business: one, a primary that Sentinels watch over, or those of a Cluster.

Nothing is retried here but what has surely not happened: an operation that failed may have happened, and its caller
knows best what that means. A script that finds another history than the one that the shard's meta speaks of does
nothing and says so; a new epoch is begun then, and it is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from cachebus.base.clock import Clock
from cachebus.core.ports import (
    PROTOCOL,
    SILENT_S,
    Caller,
    Change,
    LeaseReply,
    LogEntry,
    NodesReply,
    ProbeReply,
    ReadReply,
    Stale,
)
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key, guard_name
from cachebus.l2.names import ShardNames
from cachebus.l2.owed import OwedLeases
from cachebus.l2.replies import (
    counted,
    filled,
    invalidation_of,
    lease_of,
    logged,
    nodes_of,
    number_of,
    probe_of,
    probe_with_invalidated,
    records_of,
    row_rest,
    unless_none,
    written,
)
from cachebus.l2.running import Running, flag
from cachebus.resp import Address, Connection, Links, NoPrimary, NotAsked, Route, knows_no_script, must_be_primary
from cachebus.wire.record import CHECKED_AT, Record

PRUNE_EVERY_S: Final = 10.0
SILENT_US: Final = int(SILENT_S * 1_000_000)


class RedisStore:
    """A `Store` on Redis: one pipelined connection to each primary, shared by the shards that lie there."""

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
        max_invalidated_scopes: int,
        log_max: int,
        log_max_bytes: int = 64 * 1024 * 1024,
        database: int = 0,
        on_changed: Callable[[int], object] | None = None,
    ) -> None:
        """`on_changed`: hears of every shard whose connection was lost, or is another one, or whose primary lies
        elsewhere."""
        self._clock = clock
        self._names = [ShardNames(namespace, shard, database) for shard in range(shards)]
        self._record_prefixes = [names.record_prefix for names in self._names]
        self._facts = f"protocol={PROTOCOL} shards={shards} bus={bus}"
        self._max_invalidated_scopes = str(max_invalidated_scopes)
        self._channels = [names.channel if bus == "redis" else "" for names in self._names]
        self._events = [
            (channel, self._max_invalidated_scopes, str(log_max), str(log_max_bytes)) for channel in self._channels
        ]
        self.checked = [False] * shards
        """By shard: whether its connection's server has answered a probe of ours for it since it connected."""
        self._on_changed = on_changed
        self._links: Links[Connection] = Links(
            route, self._open, clock=clock, on_changed=self._changed, trusts_own_links=True
        )
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._by_shard = self._links.by_shard
        self._running = Running(self._links, self._names, self._facts, clock, timeout_s)
        self._run = self._running.run
        self._pruned_at = [float("-inf")] * shards
        self._owed = OwedLeases(clock)

    # -- connections --------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether every shard has a connection."""
        return self._links.connected

    @property
    def opened(self) -> int:
        """How many connections there have been."""
        return self._links.opened

    def reaches(self, shard: int) -> bool:
        """Whether the shard has a connection, to where its primary is known to be."""
        return self._links.reaches(shard)

    def lies_at(self, shard: int) -> Address | None:
        """See `Store.lies_at`."""
        return self._links.route.known[shard]

    async def connect(self) -> None:
        """Connect whatever is not; `L2Unavailable` names host and port of what can't be reached."""
        await self._links.connect()

    async def reach(self, shard: int) -> None:
        """Connect to the shard's primary if need be; `L2Unavailable`, as `connect`. Paces itself."""
        await self._links.reach(shard)

    async def _open(self, address: Address) -> Connection:
        route = self._links.route
        connection = await Connection.open(
            address,
            timeout_s=self._timeout_s,
            connect_timeout_s=self._connect_timeout_s,
            clock=self._clock,
            grouped=route.clustered,
        )
        try:
            await route.admit(connection, address)
            if route.checks_role:
                await must_be_primary(connection, address)
        except BaseException as error:
            if isinstance(error, NoPrimary):
                route.refute(address)
            connection.close()
            raise
        return connection

    def _changed(self, shards: Sequence[int]) -> None:
        for shard in shards:
            self.checked[shard] = False
            if self._on_changed is not None:
                self._on_changed(shard)

    async def close(self) -> None:
        """Give the connections back; what is pending fails."""
        self.checked[:] = [False] * len(self.checked)
        await self._links.close()

    # -- operations ---------------------------------------------------------------------------------------------

    async def probe(self, shard: int, caller: Caller, *, with_invalidated: bool) -> ProbeReply:
        """The shard's place and clock, with its marks if wanted; leaves the caller's row among the nodes."""
        connection, hops = self._links.of(shard), self._running.hops(shard)
        now = self._clock()
        prune = not with_invalidated and now - self._pruned_at[shard] > PRUNE_EVERY_S
        if prune:
            self._pruned_at[shard] = now
        silent = [] if with_invalidated else [str(SILENT_US) if prune else "0"]
        args = [*_row_of(caller), str(caller.bound_ms), str(caller.guard_ms), *silent, flag(caller.keeps_without_l2)]
        try:
            reply = (
                await self._run(probe_with_invalidated, "marks", shard, caller, (), args)
                if with_invalidated
                else (await self._run(probe_of, "probe", shard, caller, (), args))
            )
        except NotAsked:
            raise  # ours is the queue that is full: the connection is as good as before, and others' calls are on it
        except L2Unavailable as error:
            # Where nothing was heard, the connection has ended itself. One that brought a refusal is good, but what
            # refuses may be no primary any more.
            self.checked[shard] = False
            self._links.refused(shard, error, connection)
            raise
        if connection is self._by_shard[shard] and not connection.closed:
            self.checked[shard] = hops == self._running.hops(shard)  # else another server has answered
        if self._owed.of(shard):
            for lease in self._owed.taken(shard):
                self._hold(*lease)
        return reply

    async def nodes(self, shard: int, caller: Caller) -> NodesReply:
        """Every node's row, the caller's own brought up to date first."""
        args = [*_row_of(caller), str(caller.bound_ms), flag(caller.keeps_without_l2)]
        return await self._run(nodes_of, "nodes", shard, caller, (), args)

    async def forget(self, shard: int, caller: Caller, node: str, *, lives: bool) -> bool:
        """Take a node's row away; whether there was one."""
        return bool(await self._run(number_of, "forget", shard, caller, (), [node, "1" if lives else "0"]))

    def get(self, key: Key) -> Awaitable[bytes | None]:
        """A record's bytes, not validated; those of one loop tick are one MGET."""
        connection = self._by_shard[key.shard]
        if connection is None or connection.closed:
            connection = self._links.of(key.shard)
        return connection.get(self._record_prefixes[key.shard] + key.l2)

    async def read(self, shard: int, caller: Caller, keys: Sequence[Key]) -> ReadReply:
        """Records validated by the store itself; those of one bucket are one script."""
        found: dict[str, bytes | None] = {}
        groups: dict[str, list[Key]] = {}
        for key in keys:
            groups.setdefault(key.family.bucket, []).append(key)
        if not keys:
            groups[""] = []
        for bucket, some in groups.items():
            names = self._names[shard]
            args: list[Any] = [*_row_of(caller)]
            for key in some:
                args += [str(len(key.scopes)), *key.scopes]
            lie = [names.marks(bucket), *map(names.record, some)]
            reply = await self._run(partial(records_of, len(some)), "read", shard, caller, lie, args, bucket)
            found.update(zip([key.l2 for key in some], reply.records, strict=True))
        return reply._replace(records=[found[key.l2] for key in keys])

    async def lease(
        self,
        key: Key,
        caller: Caller,
        token: str,
        px_ms: int,
        *,
        refresh: bool = False,
        stale: Stale = Stale.NONE,
        tags: Sequence[str] = (),
    ) -> LeaseReply:
        """A valid unexpired record, or the right to fill."""
        names = self._names[key.shard]
        scopes = key.scopes
        args = [
            *_row_of(caller),
            token,
            str(px_ms),
            "1" if refresh else "0",
            str(int(stale)),
            key.l1,
            str(len(scopes)),
            *scopes,
            *tags,
        ]
        bucket = key.family.bucket
        lie = [names.marks(bucket), names.record(key), names.lease(key)]
        return await self._run(lease_of, "lease", key.shard, caller, lie, args, bucket)

    def extend(self, key: Key, token: str, px_ms: int) -> None:
        """Hold a lease for `px_ms` more. Does not wait."""
        self._hold(key, token, px_ms)

    def release(self, key: Key, token: str) -> None:
        """Give a lease back and wake those who wait for it. Does not wait."""
        self._hold(key, token, 0)

    def rest(self, key: Key, token: str, px_ms: int) -> None:
        """Leave the source alone for `px_ms`, after it has failed the lease's holder. Does not wait."""
        self._hold(key, token, px_ms, "1")

    def _hold(self, key: Key, token: str, px_ms: int, rests: str = "0") -> None:
        connection = self._by_shard[key.shard]
        if connection is None or connection.closed:
            self._owed.note(key, token, px_ms, rests)
            return
        names = self._names[key.shard]
        keys = names.meta, names.lease(key)
        nobody = self._facts, "0", "", ""  # ARGV 1-4, as `Running.run` puts them: it holds in whichever epoch
        own = self._channels[key.shard], token, str(px_ms), rests, key.l1  # ARGV 5-9
        args = [str(len(keys)), *keys, *nobody, *own]
        script, reads = self._running.scripts["hold"], partial(unless_none, number_of)

        def known(answer: asyncio.Future[object]) -> None:
            error = None if answer.cancelled() else answer.exception()
            # No caller waits who could send the source, so a server that does not know the script gets it from here.
            if knows_no_script(error):
                connection.call("EVAL", script.source, *args, reads=reads).add_done_callback(_heard)
            elif isinstance(error, L2Unavailable):
                self._owed.note(key, token, px_ms, rests)

        connection.call("EVALSHA", script.sha, *args, reads=reads).add_done_callback(known)

    async def fill(self, key: Key, caller: Caller, token: str, record: Record, px_ms: int, over: bytes) -> Change:
        """Store a loaded record if its lease still stands and nothing replaced it."""
        names, bucket = self._names[key.shard], key.family.bucket
        args = [
            self._channels[key.shard],
            token,
            record.encode(key.l2),
            str(px_ms),
            over,
            key.l1,
            str(caller.guard_ms),
            *key.scopes,
        ]
        lie = [names.marks(bucket), names.record(key), names.lease(key)]
        return await self._run(filled, "fill", key.shard, caller, lie, args, bucket)

    async def invalidate(
        self, shard: int, caller: Caller, keys: Sequence[Key], scopes: Sequence[str], body: bytes
    ) -> Change:
        """Remove records and leases, move marks, log and publish."""
        args = [*self._events[shard], body, *scopes]
        return await self._run(invalidation_of, "invalidate", shard, caller, self._gone(shard, keys), args)

    async def guard(
        self,
        shard: int,
        caller: Caller,
        keys: Sequence[Key],
        scopes: Sequence[str],
        token: str,
        px_ms: int,
        body: bytes,
    ) -> Change:
        """Invalidate, and put a token on what is invalidated, or take it away."""
        guarded = [*map(guard_name, keys), *scopes]
        args = [
            *self._events[shard],
            body,
            token,
            str(px_ms),
            self._max_invalidated_scopes,
            str(len(scopes)),
            *scopes,
            *guarded,
        ]
        return await self._run(invalidation_of, "guard", shard, caller, self._gone(shard, keys), args)

    async def write(
        self,
        key: Key,
        caller: Caller,
        record: Record,
        px_ms: int,
        body: bytes,
        *,
        others: Sequence[Key] = (),
        scopes: Sequence[str] = (),
        if_absent: bool = False,
    ) -> Change:
        """Store a record and invalidate all else that holds the key or depends on it."""
        data, own, bucket = record.encode(key.l2), self._names[key.shard], key.family.bucket
        keys = [own.marks(bucket), own.record(key), own.lease(key), *self._gone(key.shard, others)]
        own_scopes = key.scopes
        args = [
            *self._events[key.shard],
            body,
            "1" if if_absent else "0",
            str(len(own_scopes)),
            data[:CHECKED_AT],
            data[CHECKED_AT:],
            str(px_ms),
            key.l1,
            str(caller.guard_ms),
            *own_scopes,
            *scopes,
        ]
        return await self._run(written, "write", key.shard, caller, keys, args, bucket)

    def _gone(self, shard: int, keys: Sequence[Key]) -> list[str]:
        names = self._names[shard]
        return [*(names.record(key) for key in keys), *(names.lease(key) for key in keys)]

    async def counter(self, key: Key, caller: Caller, amount: int, request: str, expires_ms: int) -> int | None:
        """Add to a counter and give its value; None where it would leave 64 bits."""
        lies = [self._names[key.shard].counter_prefix + key.l2]
        args = [str(amount), request, str(expires_ms)]
        return (await self._run(counted, "counter", key.shard, caller, lies, args)).value

    async def log(self, shard: int, after: int, count: int) -> list[LogEntry]:
        """Up to `count` entries of the log that follow seq `after`."""
        question = "XRANGE", self._names[shard].log, f"{after + 1}-0", "+", "COUNT", str(count)
        found: list[LogEntry] = await self._running.asked(logged, shard, question)
        return found


def _row_of(caller: Caller) -> tuple[str, bytes]:
    return caller.node, row_rest(caller.about)


def _heard(answer: asyncio.Future[object]) -> None:
    """An answer that nobody waits for: a lease not extended or released ends by its px."""
    if not answer.cancelled():
        answer.exception()
