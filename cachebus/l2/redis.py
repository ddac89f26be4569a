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
from secrets import token_hex
from typing import Final

from cachebus.base.ignored import ignore_error
from cachebus.base.log import logger
from cachebus.base.losses import Sent
from cachebus.base.patience import Patience
from cachebus.core.ports import (
    SILENT_S,
    Caller,
    Change,
    FillLeaseReply,
    KeyFacts,
    LogEntry,
    NodesReply,
    ProbeReply,
    ReadReply,
)
from cachebus.core.requests import FillLeaseRequest, FillRequest, GuardRequest, WriteRequest
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key, guard_name
from cachebus.l2.arguments import (
    CounterArgs,
    EventArgs,
    FillArgs,
    FillLeaseArgs,
    ForgetArgs,
    GuardArgs,
    HoldArgs,
    InvalidateArgs,
    MarksArgs,
    NodesArgs,
    ProbeArgs,
    ReadArgs,
    WriteArgs,
)
from cachebus.l2.inspection import inspect_key
from cachebus.l2.layout import Layout
from cachebus.l2.names import ShardNames
from cachebus.l2.owed import OwedFillLeases
from cachebus.l2.replies import (
    counted,
    fill_lease_of,
    filled,
    invalidation_of,
    logged,
    nodes_of,
    number_of,
    probe_of,
    probe_with_invalidated,
    records_of,
    unless_none,
    written,
)
from cachebus.l2.running import Question, Running
from cachebus.resp import Address, Connection, Links, NoPrimary, NotAsked, Route, knows_no_script
from cachebus.wire.record import CHECKED_AT

PRUNE_EVERY_S: Final = 10.0
LARGE_BYTES: Final = 500_000
"""Less is no reason for a server to end a connection: its limits are 1 MB at least."""
SILENT_US: Final = int(SILENT_S * 1_000_000)


class RedisStore:
    """A `Store` on Redis: one pipelined connection to each primary, shared by the shards that lie there."""

    def __init__(
        self, route: Route, layout: Layout, patience: Patience, on_changed: Callable[[int], object] | None = None
    ) -> None:
        """`on_changed`: hears of every shard whose connection was lost, or is another one, or whose primary lies
        elsewhere."""
        shards, clock = range(layout.shards), patience.clock
        self._clock = clock
        self._names = [ShardNames(layout.namespace, shard, layout.database) for shard in shards]
        self._record_prefixes = [names.record_prefix for names in self._names]
        self._max_invalidated_scopes = layout.max_invalidated_scopes
        self._channels = [names.channel if layout.bus == "redis" else "" for names in self._names]
        self._events = [
            EventArgs(channel, layout.max_invalidated_scopes, layout.log_max, layout.log_max_bytes)
            for channel in self._channels
        ]
        self.checked = [False for _ in shards]
        """By shard: whether its connection's server has answered a probe of ours for it since it connected."""
        self._on_changed = on_changed
        self._links: Links[Connection] = Links(
            route, self._open, clock=clock, on_changed=self._changed, trusts_own_links=True
        )
        self.losses = self._links.losses
        self._links.on_lost = lambda why: logger.warning("a connection to L2 was lost: {}", why)
        self._patience = patience
        self._by_shard = self._links.by_shard
        self._running = Running(self._links, self._names, layout.facts, clock, patience.timeout_s)
        self._run = self._running.run
        self._pruned_s = [float("-inf") for _ in shards]
        self._owed = OwedFillLeases(clock)

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
        connection = await Connection.open(address, self._patience, grouped=route.clustered)
        try:
            await route.verify(connection, address)
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
        """The shard's position and clock, with its marks if wanted; leaves the caller's row among the nodes."""
        connection, hops = self._links.of(shard), self._running.hops(shard)
        now = self._clock()
        prune = not with_invalidated and now - self._pruned_s[shard] > PRUNE_EVERY_S
        if prune:
            self._pruned_s[shard] = now
        bound_ms, guard_ms, keeps_without_l2 = caller.largest
        if with_invalidated:
            args = MarksArgs(bound_ms, guard_ms, keeps_without_l2=int(keeps_without_l2)).argv(caller)
            question = Question(probe_with_invalidated, "marks", shard, caller, (), args)
        else:
            own = ProbeArgs(
                bound_ms=bound_ms,
                guard_ms=guard_ms,
                silent_us=SILENT_US if prune else 0,
                keeps_without_l2=int(keeps_without_l2),
            )
            question = Question(probe_of, "probe", shard, caller, (), own.argv(caller))
        try:
            reply = await self._run(question)
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
            for lease in self._owed.take(shard):
                self._hold(lease.key, lease.token, px_ms=lease.px_ms, cools_down=lease.cools_down)
        return reply

    async def nodes(self, shard: int, caller: Caller) -> NodesReply:
        """Every node's row, the caller's own brought up to date first."""
        own = NodesArgs(caller.largest.bound_ms, int(caller.largest.keeps_without_l2))
        return await self._run(Question(nodes_of, "nodes", shard, caller, (), own.argv(caller)))

    async def forget(self, shard: int, caller: Caller, node: str, *, lives: bool) -> bool:
        """Take a node's row away; whether there was one."""
        return bool(
            await self._run(Question(number_of, "forget", shard, caller, (), ForgetArgs(node, lives=int(lives))))
        )

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
            keys_of = [names.marks(bucket), *map(names.record, some)]
            reads = partial(records_of, len(some))
            reply = await self._run(
                Question(reads, "read", shard, caller, keys_of, ReadArgs.argv(caller, some), bucket)
            )
            found.update(zip([key.l2 for key in some], reply.records, strict=True))
        return reply._replace(records=[found[key.l2] for key in keys])

    async def fill_lease(self, key: Key, caller: Caller, request: FillLeaseRequest) -> FillLeaseReply:
        """A valid unexpired record, or the right to fill."""
        own = FillLeaseArgs(
            token=request.token,
            px_ms=request.px_ms,
            refresh=int(request.refresh) or request.unreadable or 0,
            fallback=int(request.fallback),
            l1_name=key.l1,
            scope_count=len(key.scopes),
        )
        args = own.argv(caller, key.scopes, request.tags)
        return await self._run(
            Question(fill_lease_of, "fill_lease", key.shard, caller, self._filled(key), args, key.family.bucket)
        )

    def extend(self, key: Key, token: str, px_ms: int) -> None:
        """Hold a fill lease for `px_ms` more. Does not wait."""
        self._hold(key, token, px_ms=px_ms)

    def release(self, key: Key, token: str) -> None:
        """Give a fill lease back and wake those who wait for it. Does not wait."""
        self._hold(key, token, px_ms=0)

    def cool_down(self, key: Key, token: str, px_ms: int) -> None:
        """Leave the source alone for `px_ms`, after it has failed the fill lease's holder. Does not wait."""
        self._hold(key, token, px_ms=px_ms, cools_down=True)

    def _hold(self, key: Key, token: str, *, px_ms: int, cools_down: bool = False) -> None:
        connection = self._by_shard[key.shard]
        if connection is None or connection.closed:
            self._owed.note(key, token, px_ms=px_ms, cools_down=cools_down)
            return
        own = HoldArgs(self._channels[key.shard], token, px_ms=px_ms, cools_down=int(cools_down), l1_name=key.l1)
        script, reads = self._running.scripts["hold"], partial(unless_none, number_of)
        keys, args = self._running.of_nobody(key.shard, (self._names[key.shard].fill_lease(key),), own)
        sent = len(keys), *keys, *args

        def known(answer: asyncio.Future[object]) -> None:
            error = None if answer.cancelled() else answer.exception()
            # No caller waits who could send the source, so a server that does not know the script gets it from here.
            if knows_no_script(error):
                connection.call("EVAL", script.source, *sent, reads=reads).add_done_callback(ignore_error)
            elif isinstance(error, L2Unavailable):
                self._owed.note(key, token, px_ms=px_ms, cools_down=cools_down)

        connection.call("EVALSHA", script.sha, *sent, reads=reads).add_done_callback(known)

    async def fill(self, key: Key, caller: Caller, request: FillRequest) -> Change:
        """Store a loaded record if its fill lease still stands and nothing replaced it."""
        own = FillArgs(
            channel=self._channels[key.shard],
            token=request.token,
            record=request.record.encode(key.l2),
            px_ms=request.px_ms,
            over=request.over,
            l1_name=key.l1,
            guard_ms=caller.largest.guard_ms,
        )
        args = own.argv(key.scopes)
        question = Question(filled, "fill", key.shard, caller, self._filled(key), args, key.family.bucket)
        return await self._carried(key, len(own.record), question)

    async def invalidate(
        self, shard: int, caller: Caller, keys: Sequence[Key], scopes: Sequence[str], body: bytes
    ) -> Change:
        """Remove records and fill leases, move marks, log and publish."""
        args = InvalidateArgs(body).argv(self._events[shard], scopes)
        return await self._run(Question(invalidation_of, "invalidate", shard, caller, self._gone(shard, keys), args))

    async def guard(self, shard: int, caller: Caller, request: GuardRequest, body: bytes) -> Change:
        """Invalidate, and put a token on what is invalidated, or take it away."""
        keys, scopes, token, px_ms = request
        own = GuardArgs(body, token, px_ms, guarded_max=self._max_invalidated_scopes, scope_count=len(scopes))
        args = own.argv(self._events[shard], scopes, map(guard_name, keys))
        return await self._run(Question(invalidation_of, "guard", shard, caller, self._gone(shard, keys), args))

    async def write(self, key: Key, caller: Caller, request: WriteRequest) -> Change:
        """Store a record and invalidate all else that holds the key or depends on it."""
        data = request.record.encode(key.l2)
        own = WriteArgs(
            body=request.body,
            only=request.over or (b"1" if request.if_absent else b"0"),
            own_scope_count=len(key.scopes),
            record_header=data[:CHECKED_AT],
            record_tail=data[CHECKED_AT:],
            px_ms=request.px_ms,
            l1_name=key.l1,
            guard_ms=caller.largest.guard_ms,
        )
        keys = [*self._filled(key), *self._gone(key.shard, request.others)]
        args = own.argv(self._events[key.shard], key.scopes, request.scopes)
        question = Question(written, "write", key.shard, caller, keys, args, key.family.bucket)
        return await self._carried(key, len(data), question)

    async def _carried(self, key: Key, size_bytes: int, question: Question[Change]) -> Change:
        """What a script replies that carries a record. One that is too large for a server, or a proxy, costs the
        connection, and with it everybody's calls: then its type is named."""
        link = self._by_shard[key.shard]
        try:
            return await self._run(question)
        except L2Unavailable as error:
            if size_bytes >= LARGE_BYTES and link is not None and (link.closed or "Protocol error" in str(error)):
                sent = Sent(key.family.data_type, size_bytes)
                self.losses.blame(sent)
                logger.warning("a connection to L2 was lost while {} was on its way: {}", sent, error)
            raise

    def _filled(self, key: Key) -> list[str]:
        """The KEYS of who may fill a key: its bucket's marks, its record and its fill lease."""
        names = self._names[key.shard]
        return [names.marks(key.family.bucket), names.record(key), names.fill_lease(key)]

    def _gone(self, shard: int, keys: Sequence[Key]) -> list[str]:
        """The KEYS of who takes these away: their records, then their fill leases."""
        names = self._names[shard]
        return [*(names.record(key) for key in keys), *(names.fill_lease(key) for key in keys)]

    async def counter(self, key: Key, caller: Caller, amount: int, request: str, expires_ms: int) -> int | None:
        """Add to a counter and give its value; None where it would leave 64 bits."""
        keys = [self._names[key.shard].counter_prefix + key.l2]
        own = CounterArgs(amount=amount, request=request, expires_ms=expires_ms)
        return (await self._run(Question(counted, "counter", key.shard, caller, keys, own))).value

    async def log(self, shard: int, after: int, count: int) -> list[LogEntry]:
        """Up to `count` entries of the log that follow seq `after`."""
        question = "XRANGE", self._names[shard].log, f"{after + 1}-0", "+", "COUNT", str(count)
        found: list[LogEntry] = await self._running.asked(logged, shard, question)
        return found

    async def inspect(self, key: Key) -> KeyFacts:
        """What there is of a key, and what is said of it; see `l2.inspection`."""
        return await inspect_key(partial(self._running.plain, key.shard), self._names[key.shard], key)

    async def identity(self) -> str:
        """See `Store.identity`: a random text at shard 0, which failovers keep. Who asks first makes it."""
        place = self._names[0].identity
        found = await self._running.plain(0, "GET", place)
        if found is None:
            await self._running.plain(0, "SET", place, token_hex(8), "NX")
            found = await self._running.plain(0, "GET", place)
        return found.decode(errors="replace") if isinstance(found, bytes) else ""

    async def publish(self, shard: int, message: bytes, *, to: str = "", sharded: bool = False) -> None:
        """Send a message that is no event to the shard's channel, or to that of a question's answers."""
        channel = self._names[shard].answers(to) if to else self._names[shard].channel
        await self._running.plain(shard, "SPUBLISH" if sharded else "PUBLISH", channel, message)
