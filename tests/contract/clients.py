"""Those who use a store in the contract suites: a node that knows where it stands, and what it puts into records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from cachebus.core.ports import (
    About,
    Caller,
    Change,
    FillLeaseOutcome,
    FillLeaseReply,
    Invalidated,
    Largest,
    ProbeReply,
    Store,
)
from cachebus.core.requests import FallbackKind, FillLeaseRequest, FillRequest, GuardRequest, WriteRequest
from cachebus.keys.key import Key, Keyspace, bucket_of, tag_scope
from cachebus.wire import event as events
from cachebus.wire.record import Record
from tests.contract.rig import SHARDS

TENANT = "acme"
"""One whose shard, of the two there are, is 0."""
NEIGHBOUR = "globex"
"""Another one of shard 0, in a bucket of its own."""
BUCKET = bucket_of(TENANT)
NEXT_DOOR = bucket_of(NEIGHBOUR)
NOBODY = Caller("", 0, b"")
"""A producer: no node."""
SAYS_NOTHING = About()
LONG_MS = 60_000
SHORT_MS = 20

space = Keyspace(SHARDS)


def key(resource_id: str = "r", data_type: str = "doc", tenant: str = TENANT, **contexts: str) -> Key:
    """A key in shard 0."""
    made = space.key(data_type, resource_id, tenant, **contexts)
    assert made.shard == 0
    return made


def scope(data_type: str | None = None, tenant: str = TENANT, **contexts: str) -> str:
    """The name of a scope in shard 0."""
    shard, name = space.scope(tenant, data_type, **contexts)
    assert shard == 0
    return name


def tag(name: str) -> str:
    """The name of a tag's mark."""
    return tag_scope(TENANT, name)


def body(keys: Sequence[Key] = (), scopes: Sequence[str] = (), origin: str = "") -> bytes:
    """An event's body."""
    return events.encode_body([events.WritePart([k.l1 for k in keys], list(scopes), origin)])


def joined(invalidated: Invalidated | None) -> dict[str, int]:
    """The marks of all buckets."""
    assert invalidated is not None
    return {name: seq for of_bucket in invalidated.by_bucket.values() for name, seq in of_bucket.items()}


def where(change: Change) -> tuple[bytes, int, bool]:
    """A change's place in the history, and whether it stored anything."""
    return change.epoch, change.seq, change.done


def raised(change: Change) -> tuple[str, int]:
    """The bucket of marks whose low watermark a change has raised, and that, as its event's header says."""
    return change.event_header[36:38].decode(), int.from_bytes(change.event_header[38:46], "big")


def leaves_out(change: Change) -> bool:
    """Whether a change's event says in its header that ids were left out of the marks."""
    return bool(change.event_header[3] & events.LEFT_OUT)


class Client:
    """A node with a store of its own."""

    def __init__(
        self, store: Store, name: str, about: About = SAYS_NOTHING, *, bound_ms: int = 0, guard_ms: int = 0
    ) -> None:
        """`bound_ms`, `guard_ms`: the largest of the fleet that it has heard of."""
        self.store = store
        self.caller = Caller(name, 0, b"", about, Largest(bound_ms, guard_ms))
        self.now_ms = 0

    async def attach(self) -> Self:
        """Learn where the shard is, as a node that starts does."""
        await self.probe()
        return self

    async def probe(self) -> ProbeReply:
        """Ask where the shard is, with its marks, and stand there from now on."""
        reply = await self.store.probe(0, self.caller, with_invalidated=True)
        self.caller = self.caller._replace(applied=reply.seq, epoch=reply.epoch)
        self.now_ms = reply.server_us // 1000
        return reply

    async def invalidated(self) -> dict[str, int]:
        """The marks of all buckets, by a probe."""
        return joined((await self.probe()).invalidated)

    async def low(self) -> dict[str, int]:
        """The low watermarks by bucket, by a probe."""
        invalidated = (await self.probe()).invalidated
        assert invalidated is not None
        return dict(invalidated.low)

    def record(
        self,
        payload: bytes,
        lease: FillLeaseReply | None = None,
        *,
        lives_ms: int | None = None,
        tags: Sequence[str] = (),
    ) -> Record:
        """A record, under a lease or of where this node stands; `lives_ms` from its latest probe, None for ever."""
        return Record(
            0,
            0,
            payload,
            created_ms=self.now_ms,
            expires_ms=0 if lives_ms is None else self.now_ms + lives_ms,
            tags=tags,
            epoch=lease.epoch if lease else self.caller.epoch,
            seq=lease.seq if lease else self.caller.applied,
        )

    async def fill_lease(
        self,
        what: Key,
        token: str = "t",
        px_ms: int = LONG_MS,
        *,
        refresh: bool = False,
        fallback: FallbackKind = FallbackKind.NONE,
        tags: Sequence[str] = (),
        unreadable: bytes = b"",
    ) -> FillLeaseReply:
        """Ask to fill a key."""
        request = FillLeaseRequest(token, px_ms, refresh, fallback, tags, unreadable)
        return await self.store.fill_lease(what, self.caller, request)

    async def guard(
        self, *keys: Key, scopes: Sequence[str] = (), token: str = "g" * 16, px_ms: int = LONG_MS
    ) -> Change:
        """Put a guard up; with `px_ms` 0 take it away."""
        told = body(keys, scopes, self.caller.node)
        return await self.store.guard(0, self.caller, GuardRequest(keys, scopes, token, px_ms), told)

    async def granted(
        self, what: Key, token: str = "t", px_ms: int = LONG_MS, *, refresh: bool = False
    ) -> FillLeaseReply:
        """The lease on a key, which must be free."""
        reply = await self.fill_lease(what, token, px_ms, refresh=refresh)
        assert reply.outcome is FillLeaseOutcome.GRANTED
        return reply

    async def fill(self, what: Key, record: Record, token: str = "t", *, px_ms: int = 0, over: bytes = b"") -> Change:
        """Offer a record."""
        return await self.store.fill(what, self.caller, FillRequest(token, record, px_ms, over))

    async def loaded(
        self, what: Key, payload: bytes = b"v", *, lives_ms: int | None = None, tags: Sequence[str] = (), flags: int = 0
    ) -> Record:
        """Lease and fill a key."""
        lease = await self.granted(what, f"load of {what.l2}", refresh=True)
        record = self.record(payload, lease, lives_ms=lives_ms, tags=tags)
        record.flags = flags
        assert (await self.fill(what, record, f"load of {what.l2}")).done
        return record

    async def write(
        self,
        what: Key,
        payload: bytes = b"w",
        *,
        others: Sequence[Key] = (),
        scopes: Sequence[str] = (),
        if_absent: bool = False,
        over: bytes = b"",
        px_ms: int = 0,
        lives_ms: int | None = None,
        tags: Sequence[str] = (),
    ) -> Change:
        """Store a value."""
        record, told = (
            self.record(payload, lives_ms=lives_ms, tags=tags),
            body([what, *others], scopes, self.caller.node),
        )
        return await self.store.write(
            what, self.caller, WriteRequest(record, px_ms, told, others, scopes, if_absent, over)
        )

    async def invalidate(self, *keys: Key, scopes: Sequence[str] = ()) -> Change:
        """Replace keys, scopes and tags."""
        return await self.store.invalidate(0, self.caller, keys, scopes, body(keys, scopes, self.caller.node))

    async def read(self, *keys: Key) -> list[bytes | None]:
        """What the store itself believes."""
        return (await self.store.read(0, self.caller, keys)).records
