"""What the library asks of a shared store (L2) and of a bus. Everything above knows only these protocols.

Every store operation is one atomic step. Each names its caller, and each first makes sure that the store is still the
one that its own meta speaks of: if not (restart, failover, flush, lost meta), the operation begins a new epoch in that
same step, and everything older is void. A store that cannot answer raises `L2Unavailable`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from cachebus.keys import Key
from cachebus.record import Record

PROTOCOL = 1
"""Number of the layout in L2 and of the wire format; nodes with another one refuse to start."""


class Caller(NamedTuple):
    """Who asks: the node's id ("" for a producer, which is no node), and how far it has applied which epoch."""

    node: str
    applied: int
    epoch: bytes


class Place(NamedTuple):
    """A point in a shard's history."""

    epoch: bytes
    seq: int


class ProbeReply(NamedTuple):
    """The shard as it stands; `server_us` is the store's clock, `marks` are there if they were asked for."""

    epoch: bytes
    seq: int
    floor: int
    server_us: int
    marks: dict[str, int] | None
    register: bytes = b""
    """The name of the shard's register of nodes; another one whenever lines may have been lost."""
    born_us: int = 0
    """When the epoch began, on the store's clock; 0: unknown."""


class ReadReply(NamedTuple):
    """Records by the keys asked, validated against floor and marks by the store itself; None = no hit."""

    epoch: bytes
    seq: int
    records: list[bytes | None]


class Register(NamedTuple):
    """The nodes' lines as they stand: for each id how far it has applied this epoch (0: nothing), and when by the
    store's clock (µs) it last asked something, which tells one line from the next."""

    epoch: bytes
    name: bytes
    lines: dict[str, tuple[int, int]]


class Leased(Enum):
    """How a request for a fill lease ended."""

    HIT = "hit"
    GRANTED = "granted"
    WAIT = "wait"
    GUARDED = "guarded"


class LeaseReply(NamedTuple):
    """A hit's record; or the lease, granted at `seq` (with the expired record, if one is kept for fail-safe); or how
    long (`wait_ms`) another's lease lasts at most; or for how long the guard stands at least that ends first."""

    epoch: bytes
    seq: int
    outcome: Leased
    record: bytes | None
    wait_ms: int


class Change(NamedTuple):
    """Where a write stands in the history, whether it stored anything, and the shard's floor after it."""

    epoch: bytes
    seq: int
    stored: bool
    floor: int
    expires_ms: int = 0
    """When what was stored expires on the store's clock, where that is earlier than asked for."""


class LogEntry(NamedTuple):
    """One entry of the shard's log: the seq in its id, and the event's bytes."""

    seq: int
    message: bytes


class Store(Protocol):
    """L2. `key.shard` and `key.l2` say where a record lies, `key.names` which scopes it lies in."""

    checked: list[bool]
    """By shard: whether the server behind its present connection has answered a probe of ours for it since then."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection at all."""
        ...

    async def connect(self) -> None:
        """Connect if need be; `L2Unavailable`."""
        ...

    async def close(self) -> None:
        """Give the connection back; what is pending fails."""
        ...

    async def probe(self, shard: int, caller: Caller, *, marks: bool) -> ProbeReply:
        """The shard's place, floor and clock; leaves the caller's line among the nodes."""
        ...

    async def register(self, shard: int, caller: Caller) -> Register:
        """Every node's line, the caller's own brought up to date first. A node silent for a minute is left out some
        time after."""
        ...

    async def leave(self, shard: int, caller: Caller) -> None:
        """Take the caller's line away."""
        ...

    def get(self, key: Key) -> Awaitable[bytes | None]:
        """A record's bytes, *not* validated; many in one loop tick are one round trip."""
        ...

    async def read(self, shard: int, caller: Caller, keys: Sequence[Key]) -> ReadReply:
        """Records validated by the store itself; for a node whose own marks may be old."""
        ...

    async def lease(
        self, key: Key, caller: Caller, token: str, px_ms: int, *, refresh: bool = False, tags: Sequence[str] = ()
    ) -> LeaseReply:  # fmt: skip
        """A valid unexpired record, or the right to fill; with `refresh` the right even over a valid record. `tags`:
        those that the load will give its record. Where a guard stands on any of it, neither."""
        ...

    def extend(self, key: Key, token: str, px_ms: int) -> None:
        """Hold a lease for `px_ms` more. Does not wait; a lease that is not the token's is left alone."""
        ...

    def release(self, key: Key, token: str) -> None:
        """Give a lease back and wake those who wait for it. Does not wait."""
        ...

    async def fill(self, key: Key, caller: Caller, token: str, record: Record, px_ms: int, over: bytes) -> Change:
        """Store a loaded record if its lease still stands and nothing replaced it; `over`: only over that version."""
        ...

    async def invalidate(
        self, shard: int, caller: Caller, keys: Sequence[Key], names: Sequence[str], body: bytes
    ) -> Change:
        """Remove records and leases, move the marks of scopes and tags, log and publish: one step, one seq."""
        ...

    async def guard(
        self, shard: int, caller: Caller, keys: Sequence[Key], names: Sequence[str], token: str, px_ms: int, body: bytes
    ) -> Change:
        """Invalidate, and put a token (16 characters) on all of these for at most `px_ms`; with 0 take it away. While
        any token stands on a key or on what covers it, no record of it is stored and no lease granted."""
        ...

    async def write(
        self, key: Key, caller: Caller, record: Record, px_ms: int, body: bytes, *, others: Sequence[Key] = (),
        names: Sequence[str] = (), if_absent: bool = False,
    ) -> Change:  # fmt: skip
        """Store a record (`if_absent`: only where there is no valid one) and invalidate all else, in one step. Under a
        guard it only invalidates; with `if_absent` not even that."""
        ...

    async def counter(self, key: Key, caller: Caller, amount: int, request: str, expires_ms: int) -> int:
        """Add to a counter and give its value. Repeated with the same `request` within 60 s it adds once."""
        ...

    async def log(self, shard: int, after: int, count: int) -> list[LogEntry]:
        """Up to `count` entries of the log that follow seq `after`."""
        ...


class Bus(Protocol):
    """Carries events to every node; may lose, double, delay and reorder them."""

    in_store: bool
    """Whether the store itself publishes, in the step that gives an event its seq."""

    @property
    def connected(self) -> bool:
        """Whether events can arrive now."""
        ...

    async def connect(self) -> None:
        """Subscribe to every shard; returns when events from now on will arrive; `BusUnavailable`."""
        ...

    async def close(self) -> None:
        """Stop listening."""
        ...

    async def publish(self, shard: int, message: bytes) -> None:
        """Send an event on; not called where `in_store` says that the store did it in the step that made the event."""
        ...


Listener = Callable[[int, bytes], None]
"""Called by a bus with shard and message, in the order of arrival."""
