"""What the model's states are made of: the state of real objects, as tuples that can be compared and kept.

Times are whole ticks relative to now, so that two states that differ only in their age are one. What can no longer
matter is left out the same way: times that have passed, and how far apart the positions in a shard's journal lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cachebus.core.invalidated import InvalidatedScopes

NOW = 100.0
"""What the clock shows whenever real code runs, in seconds; a tick is a second."""
INF = float("inf")
NEVER = float("-inf")
BOUND = 2.0
"""D, in ticks."""


Marked = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
"""Marks by bucket."""


def frozen_marks(invalidated: Mapping[str, Mapping[str, int]]) -> Marked:
    """The same, to be compared; in the order in which they would be forgotten."""
    return tuple(
        (bucket, tuple(sorted(its.items(), key=lambda item: (item[1], item[0]))))
        for bucket, its in sorted(invalidated.items())
    )


def thawed_marks(invalidated: Marked) -> dict[str, dict[str, int]]:
    """And back."""
    return {bucket: dict(its) for bucket, its in invalidated}


def bucket_marks(invalidated: Marked) -> dict[str, InvalidatedScopes]:
    """As a node has them."""
    return {bucket: InvalidatedScopes(its) for bucket, its in invalidated}


class Vault(NamedTuple):
    """L2: one `MemoryShard`. `epochs` counts those ever begun, which no failover takes back."""

    server: str
    meta_server: str
    epoch: bytes
    seq: int
    epochs: int
    invalidated: Marked = ()
    low: tuple[tuple[str, int], ...] = ()
    counted: tuple[tuple[str, int], ...] = ()
    messages: tuple[tuple[int, bytes], ...] = ()
    records: tuple[tuple[str, bytes], ...] = ()
    fill_leases: tuple[tuple[str, bytes, str], ...] = ()
    in_contexts: tuple[str, ...] = ()
    rows: tuple[tuple[str, int, bytes, int], ...] = ()
    """Of each node how far it has applied which epoch, and how many ticks ago it has said so."""
    nodes_name: bytes = b""
    bound_ms: int = 0


class View(NamedTuple):
    """One `Shard` of the node."""

    epoch: bytes
    applied: int
    highest_seq: int
    low: tuple[tuple[str, int], ...]
    invalidated: Marked
    valid: float
    foreign: tuple[tuple[bytes, int], ...]
    """Only of epochs that may yet be entered: those before are no more than noise."""
    ahead: tuple[int, ...]
    owed: tuple[tuple[int, float], ...]
    count: int
    recent_drops: tuple[tuple[str, tuple[int, int, int]], ...]
    recent_drops_low: int
    doubts: tuple[tuple[str, int, float], ...] = ()
    """Names, the drop that each came with, and when."""
    tags_dropped: tuple[tuple[str, int], ...] = ()
    """By bucket, the latest drop of any tag in it."""


class Held(NamedTuple):
    """One `Entry` of L1. `place`: 0 = in the live group, 1 = in a retired one, 2 = from before a flush, 3 = as 1, and
    doubted since."""

    value: int
    seq: int
    read_until_s: float
    expires_s: float
    fast_until_s: float
    place: int
    fenced: bool
    tags: tuple[str, ...] | None


class Began(NamedTuple):
    """What a coroutine has taken with it from the moment at which it began: reservation, two times, marks, and the
    epochs that it had heard of."""

    epoch: bytes
    count: int
    applied: int
    at: float
    vouched: float | None
    """When the probe behind its coherence lease was sent; None = it had none."""
    low: tuple[tuple[str, int], ...]
    invalidated: Marked
    foreign: tuple[tuple[bytes, int], ...]


class Flight(NamedTuple):
    """A read or load under way; `what` says how far it is, `data` what it has got so far."""

    what: str
    key: int
    began: Began
    data: object


class Write(NamedTuple):
    """A write of the node's own of which the reply is under way; `version`: how often each key has changed with it."""

    kind: str
    began: Began
    version: tuple[int, ...]
    reply: object
    behind: bool
    """Whether the reply can't come before the one that the heartbeat waits for: they use one connection."""


class Tending(NamedTuple):
    """A turn of the heartbeat that waits: for a "probe", for the probe that "begin"s anew, or for the "log"."""

    what: str
    began: Began
    reply: object


class Core(NamedTuple):
    """The node without what is under way on it. `groups`: until when each live one may be served, by data type."""

    view: View
    groups: tuple[tuple[str, float], ...]
    spread: float
    with_contexts: bool
    with_tags: bool
    held: tuple[Held | None, ...]


def ahead_of_now(time_s: float) -> float:
    """A deadline, relative; one that has passed is one that never was."""
    if time_s in (INF, NEVER):
        return time_s
    return time_s - NOW if time_s > NOW else NEVER


def ago(time_s: float) -> float:
    """When something began, relative; earlier than D is all the same."""
    return max(-BOUND, time_s - NOW)


def _sooner(deadline: float) -> float:
    return deadline - 1 if deadline > 1 else NEVER


def _further(began: float) -> float:
    return max(-BOUND, began - 1)


def later(began: Began) -> Began:
    """The same a tick later."""
    vouched = None if began.vouched is None else _further(began.vouched)
    return began._replace(at=_further(began.at), vouched=vouched)


def older(core: Core) -> Core:
    """The same node a tick later."""
    view = core.view
    return core._replace(
        view=view._replace(
            valid=_sooner(view.valid),
            owed=tuple((seq, _further(sent)) for seq, sent in view.owed),
            doubts=tuple((name, count, _further(at)) for name, count, at in view.doubts),
        ),
        groups=tuple((data_type, _sooner(valid)) for data_type, valid in core.groups),
        spread=_sooner(core.spread),
        held=tuple(
            held
            and held._replace(
                read_until_s=_sooner(held.read_until_s),
                expires_s=_sooner(held.expires_s),
                fast_until_s=_sooner(held.fast_until_s),
            )
            for held in core.held
        ),
    )


def renumbered(core: Core, began: list[Began]) -> tuple[Core, list[Began]]:
    """The same node with the positions in its journal numbered by what still refers to them.

    Only the order of drops and reservations matters. A key's entry goes when no reservation is older than it, unless an
    event with a lower seq may still come for the key: its seq is then kept as real code would keep it.
    """
    view = core.view
    taken = sorted({one.count for one in began})

    def rank(position: int) -> int:
        return sum(count < position for count in taken)

    recent_drops = tuple(
        (key, (rank(position), seq, rank(forgotten)))
        for key, (position, seq, forgotten) in view.recent_drops
        if rank(position) or seq > view.applied
    )
    # A doubt matters to what is held or had begun from before it, and until the lease is of a later probe.
    vouched = view.valid - BOUND if view.valid > 0 else -BOUND
    held = any(held is not None and held.place == 3 for held in core.held)
    doubts = tuple(
        (name, rank(count), at)
        for name, count, at in view.doubts
        if held or rank(count) or (at >= vouched and at > -BOUND)
    )
    floor = rank(view.recent_drops_low)
    tags_dropped = tuple((bucket, rank(count)) for bucket, count in view.tags_dropped if rank(count))
    view = view._replace(
        count=rank(view.count),
        recent_drops=recent_drops,
        recent_drops_low=floor,
        doubts=doubts,
        tags_dropped=tags_dropped,
    )
    return core._replace(view=view), [one._replace(count=rank(one.count)) for one in began]
