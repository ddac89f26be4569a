"""What the library asks of a shared store (L2) and of a bus. Everything above knows only these protocols.

Every store operation is one atomic step, of one of three kinds:

1. `get` and `log` bring what is there. Whether it is valid is for the caller to judge.
2. `extend`, `release` and `cool_down` change a fill lease. Nobody waits for them, and there is no answer.
3. All others name their caller, and look first whether the store is still the one that its own meta speaks of. Where it
   is not (restart, failover, flush, lost meta) they do nothing; a new epoch is begun, everything older is void,
   and they are done again, all within the time of one call.

A store that cannot answer raises `L2Unavailable`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

from cachebus.base.losses import Losses
from cachebus.core.hearing import Hearing
from cachebus.core.requests import FillLeaseRequest, FillRequest, GuardRequest, WriteRequest
from cachebus.keys.key import Key

PROTOCOL = 2
"""Number of the layout in L2 and of the wire format; nodes with another one refuse to start."""


class Largest(NamedTuple):
    """What was heard of the nodes of a namespace: the largest staleness bound and the longest guard that any has had,
    in ms, and whether any keeps, or has kept, what it loads alone."""

    bound_ms: int = 0
    guard_ms: int = 0
    keeps_without_l2: bool = False

    @classmethod
    def of(cls, about: About) -> Largest:
        """Those of one node."""
        return cls(about.bound_ms, about.guard_ms, about.keeps_without_l2)


class About(NamedTuple):
    """What a node says of itself in its row: its staleness bound and longest guard, in ms, what else it tells, and
    whether it keeps what it loads while L2 is out of reach (for its bound)."""

    bound_ms: int = 0
    guard_ms: int = 0
    more: tuple[tuple[str, Any], ...] = ()
    keeps_without_l2: bool = True


SILENT_S: Final = 60.0
"""Who has not reached L2 for so long, in seconds, has no row any more, and is waited for by nobody."""


class Caller(NamedTuple):
    """Who asks: the node's id ("" for a producer, which is no node), and how far it has applied which epoch; what it
    says of itself, and what it has heard of the fleet. An epoch of `former_epochs` is over, whatever a server says:
    where `probe`, `nodes`, `read` or `fill_lease` finds the shard in one, it begins another, and then asks."""

    node: str
    applied: int
    epoch: bytes
    about: About = About()
    largest: Largest = Largest()
    former_epochs: Collection[bytes] = ()


class Position(NamedTuple):
    """A point in a shard's history."""

    epoch: bytes
    seq: int


class Invalidated(NamedTuple):
    """What a shard remembers of scopes and tags: for each bucket of tenants the seq of each name's last invalidation,
    the oldest first; and its low watermark, where older ones had to be forgotten: no older record is believed."""

    by_bucket: Mapping[str, Mapping[str, int]]
    low: Mapping[str, int]


class ProbeReply(NamedTuple):
    """The shard as it stands; `server_us` is the store's clock, `invalidated` is there if it was asked for."""

    epoch: bytes
    seq: int
    server_us: int
    invalidated: Invalidated | None = None
    nodes_name: bytes = b""
    """The name of the present set of nodes' rows; another one whenever rows may have been lost."""
    bound_ms: int = 0
    """The largest staleness bound that any node of the fleet has had."""
    guard_ms: int = 0
    """The longest guard that any node of the fleet may have put up."""
    born_us: int = 0
    """When this epoch began, by the store's clock."""
    keeps_without_l2: bool = False
    """Whether any node of the fleet has ever kept what it loads alone."""
    loose_replicas: int = 0
    """How many replicas follow a primary, and acknowledge, that goes on writing when it is cut off from them: its
    min-replicas-to-write is 0. -1 for one that waits for some. Not told with the invalidated scopes."""


class ReadReply(NamedTuple):
    """Records by the keys asked, validated against invalidated scopes and low watermarks by the store itself; None = no
    hit."""

    epoch: bytes
    seq: int
    records: list[bytes | None]


class NodeRow(NamedTuple):
    """A node's row: how far it has applied which epoch, when by the store's clock (µs) it last asked something, and
    what it says of itself."""

    applied: int
    epoch: bytes
    at_us: int
    about: About = About()


class NodesReply(NamedTuple):
    """The nodes' rows as they stand, by their ids; the name of the set; the fleet's largest staleness bound, in ms;
    whether any node of it has ever kept what it loads alone."""

    epoch: bytes
    name: bytes
    bound_ms: int
    rows: Mapping[str, NodeRow]
    keeps_without_l2: bool = False


class FillLeaseOutcome(Enum):
    """How a request for a fill lease ended."""

    HIT = "hit"
    GRANTED = "granted"
    WAIT = "wait"
    GUARDED = "guarded"
    COOLING_DOWN = "resting"


class FillLeaseReply(NamedTuple):
    """What a store says to who asks for a fill lease.

    | outcome | record | wait_ms |
    |---|---|---|
    | HIT | the valid one | 0 |
    | GRANTED, at `seq` | the expired one, if it is kept for fail-safe | 0 |
    | WAIT | the expired one where that would do; b"" where what the caller holds would do, and the store has a value \
        too | how long another's fill lease lasts at most |
    | COOLING_DOWN | the expired one | how long the source is left alone, since it has failed |
    | GUARDED | None | how long that guard stands at least that ends first |
    """

    epoch: bytes
    seq: int
    outcome: FillLeaseOutcome
    record: bytes | None
    wait_ms: int


class Change(NamedTuple):
    """Where a write stands in the history, whether it was done, and its event's header."""

    epoch: bytes
    seq: int
    done: bool
    """Whether the value was stored, or the guard stands; an invalidation always is."""
    event_header: bytes = b""
    """With the body behind it: the event, as it lies in the log. Empty where there is none."""
    expires_ms: int = 0
    """When what was stored expires on the store's clock, where that is earlier than asked for."""
    bound_ms: int = 0
    """The largest staleness bound that any node of the fleet has had; 0 where it was not asked for."""


class LogEntry(NamedTuple):
    """One entry of the shard's log: the seq in its id, and the event's bytes."""

    seq: int
    message: bytes


class KeyFacts(NamedTuple):
    """A shard as it stands, and what it has of one key, for who explains it: nothing is judged, or decided by it."""

    server_us: int
    """The store's clock, before all else was looked at."""
    epoch: bytes
    """b"": the shard is not laid out, or has lost its meta."""
    seq: int
    is_over: bool = False
    """Whether the next who asks begins another epoch: the store is another one than that of this history."""
    sharded: bool = False
    """Whether events go by sharded pub/sub."""
    bound_ms: int = 0
    """The largest staleness bound that any node of the fleet has had."""
    record: bytes | None = None
    nonsense: bool = False
    """Whether something that is no record lies under the record's name."""
    fill_lease: bytes = b""
    """The key's fill lease, as it lies there; a letter says whether it is held."""
    invalidated: Mapping[str, int] = {}
    """Of the key's scopes, and of the record's tags: the seq of the last invalidation."""
    low: Mapping[str, int] = {}
    """The low watermarks of the two buckets that judge the key."""
    guards: Mapping[str, Sequence[int]] = {}
    """By the name that they stand on: when each ends, µs."""
    rows: Mapping[str, NodeRow] = {}
    born_us: int = 0
    """When the epoch began; 0 where that is not known."""
    guard_ms: int = 0
    """The longest write guard that the fleet may ever have put up."""


class Store(Protocol):
    """L2. `key.shard` and `key.l2` say where a record lies, `key.scopes` which scopes it lies in."""

    checked: list[bool]
    """By shard: whether the server behind its present connection has answered a probe of ours for it since then."""

    @property
    def connected(self) -> bool:
        """Whether every shard can be reached: for those who watch. It decides nothing for a single one."""
        ...

    losses: Losses
    """Connections that were lost lately."""

    @property
    def opened(self) -> int:
        """How many connections there have been."""
        ...

    def reaches(self, shard: int) -> bool:
        """Whether there is a connection to the shard's primary."""
        ...

    def lies_at(self, shard: int) -> Hashable:
        """What the shard's primary is told from others by; None where nobody knows it, or there is but one."""
        ...

    async def reach(self, shard: int) -> None:
        """Connect to the shard's primary if need be; `L2Unavailable`. Paces itself: it may be called again at once, and
        its caller bounds how long it waits."""
        ...

    async def connect(self) -> None:
        """Connect to all primaries; `L2Unavailable` if any can't be reached, though the others then are."""
        ...

    async def close(self) -> None:
        """Give the connection back; what is pending fails."""
        ...

    async def probe(self, shard: int, caller: Caller, *, with_invalidated: bool) -> ProbeReply:
        """The shard's position and clock, with its invalidated scopes if wanted; leaves the caller's row among the
        nodes."""
        ...

    async def nodes(self, shard: int, caller: Caller) -> NodesReply:
        """Every node's row, the caller's own brought up to date first. A node silent for a minute is left out some
        time after."""
        ...

    async def forget(self, shard: int, caller: Caller, node: str, *, lives: bool) -> bool:
        """Take a node's row away; whether there was one. `lives`: it may still serve its memory, so whoever waits for
        the nodes must wait for its lease to end."""
        ...

    def get(self, key: Key) -> Awaitable[bytes | None]:
        """A record's bytes, *not* validated; many in one loop tick are one round trip."""
        ...

    async def read(self, shard: int, caller: Caller, keys: Sequence[Key]) -> ReadReply:
        """Records validated by the store itself; for a node whose own knowledge may be old."""
        ...

    async def fill_lease(self, key: Key, caller: Caller, request: FillLeaseRequest) -> FillLeaseReply:
        """A valid unexpired record, or the right to fill; with `refresh` the right even over a valid record. Where a
        guard stands on any of it, neither. A fill lease that cools down is granted to whom no `fallback` would do."""
        ...

    def extend(self, key: Key, token: str, px_ms: int) -> None:
        """Hold a fill lease for `px_ms` more. Does not wait; one that is not the token's is left alone."""
        ...

    def release(self, key: Key, token: str) -> None:
        """Give a fill lease back and wake those who wait for it. Does not wait."""
        ...

    def cool_down(self, key: Key, token: str, px_ms: int) -> None:
        """Leave the source alone for `px_ms`, after it has failed the fill lease's holder. Does not wait."""
        ...

    async def fill(self, key: Key, caller: Caller, request: FillRequest) -> Change:
        """Store a loaded record if its fill lease still stands and nothing replaced it."""
        ...

    async def invalidate(
        self, shard: int, caller: Caller, keys: Sequence[Key], scopes: Sequence[str], body: bytes
    ) -> Change:
        """Remove records and fill leases, note the seq for scopes and tags, log and publish: one step, one seq."""
        ...

    async def guard(self, shard: int, caller: Caller, request: GuardRequest, body: bytes) -> Change:
        """Invalidate, and put a token on all of these, or take it away. While any token stands on a key or on what
        covers it, no record of it is stored and no fill lease granted. `stored` is False, and nothing is done, where
        too many keys and scopes are guarded already."""
        ...

    async def write(self, key: Key, caller: Caller, request: WriteRequest) -> Change:
        """Store a record and invalidate all else, in one step. Under a guard it only invalidates; with `if_absent` or
        `over` not even that."""
        ...

    async def counter(self, key: Key, caller: Caller, amount: int, request: str, expires_ms: int) -> int | None:
        """Add to a counter and give its value; None where it would leave 64 bits, and was not changed. Repeated with
        the same `request` within 60 s it adds once."""
        ...

    async def log(self, shard: int, after: int, count: int) -> list[LogEntry]:
        """Up to `count` entries of the log that follow seq `after`."""
        ...

    async def inspect(self, key: Key) -> KeyFacts:
        """What there is of a key, and what is said of it. It only looks, whatever the store's state."""
        ...

    async def identity(self) -> str:
        """What tells this L2 from all others, for workers, which must all be for the same one; `L2Unavailable`."""
        ...

    async def publish(self, shard: int, message: bytes, *, to: str = "", sharded: bool = False) -> None:
        """Send a message that is no event to the shard's channel, or `to` one beside it; `L2Unavailable`."""
        ...


class Bus(Protocol):
    """Carries events to every node; may lose, double, delay and reorder them."""

    store_publishes: bool
    """Whether the store itself publishes, in the step that gives an event its seq."""

    @property
    def connected(self) -> bool:
        """Whether the events of every shard can arrive now: for those who watch."""
        ...

    def trouble(self, shard: int) -> str:
        """Why the shard's events do not come or go now, or the last that were to go did not; "" where nothing is known
        against them: for those who watch."""
        ...

    losses: Losses
    """Connections that were lost lately, where nothing else tells of them."""

    @property
    def hearing(self) -> Hearing | None:
        """Where events are heard, for the node's row; None where there is only one such place."""
        ...

    @property
    def opened(self) -> int:
        """How many connections there have been."""
        ...

    async def listen(self, shard: int) -> None:
        """Hear the shard's events: returns when those from now on will arrive; `BusUnavailable`. Paces itself."""
        ...

    async def deaf(self, shard: int) -> None:
        """Returns when the shard's events may not arrive any more."""
        ...

    async def connect(self) -> None:
        """Subscribe to every shard; `BusUnavailable` if any can't, though the others then are."""
        ...

    async def close(self) -> None:
        """Stop listening."""
        ...

    async def publish(self, shard: int, message: bytes) -> None:
        """Send an event on. Not called where `store_publishes`: the store did it in the step that made the event."""
        ...

    def answers(self, shard: int, question: str, *, sharded: bool) -> AbstractAsyncContextManager[None]:
        """Hear, inside the block, what is published in answer to the question with this id; `BusUnavailable`."""
        ...


Listener = Callable[[int, bytes], None]
"""Called by a bus with shard and message, in the order of arrival."""
