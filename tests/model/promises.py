"""What must hold in every state: the promises to callers (G1, G2, G3, G5), and what keeps them (I1, I2, I8, I9)."""

from __future__ import annotations

from collections.abc import Iterator

from cachebus.core.ports import Position
from cachebus.keys.key import ALL_TENANTS
from tests.model.frozen import Core
from tests.model.world import State, World

Broken = tuple[str, str]
"""A promise, and what breaks it."""


class Promises:
    """Looks at each distinct part of a state once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[tuple[object, ...], tuple[Broken, ...]] = {}

    def broken(self, state: State) -> tuple[Broken, ...]:
        """The promises that a state breaks."""
        part = (state.core, state.l2, state.truth, state.checked)
        found = self._seen.get(part)
        if found is None:
            found = self._seen[part] = tuple(_at_rest(self._world, state))
        if not state.flight:
            return found
        part = (state.core, state.flight, state.truth)
        joined = self._seen.get(part)
        if joined is None:
            joined = self._seen[part] = tuple(_in_flight(self._world, state))
        return found + joined


def _at_rest(world: World, state: State) -> Iterator[Broken]:
    yield from _in_l1(world, state)
    yield from _in_l2(world, state)
    yield from _by_reading(world, state)
    if world.setup.heals:
        yield from _healing(world, state)


def _expected(world: World, state: State) -> Iterator[tuple[str, Position | None, tuple[int, ...]]]:
    """What each kind of read must show at least: promise, session token, changes of each key."""
    truth = world.truths.things[state.truth]
    yield "G1", None, truth.due()
    yield "G2", None, truth.own
    yield "G4", None, truth.strong
    for token in truth.tokens:
        yield "G3", token.place, token.seen


def _in_l1(world: World, state: State) -> Iterator[Broken]:
    nodes, core = world.nodes, world.nodes.cores.things[state.core]
    if core.held == (None, None):
        return
    hits = nodes.hits(state.core)
    for promise, after, least in _expected(world, state):
        yield from _too_old(promise, "L1", nodes.serves(state.core, after), least)
        if after is None:
            yield from _too_old(promise, "the fast path", hits, least)
    served = nodes.serves(state.core, None)
    for key, held in enumerate(core.held):
        if held is None or (hits[key] is None and served[key] is None):
            continue
        live = held.fenced and core.view.valid > 0
        if not (held.expires_s > 0 and (live or held.read_until_s > 0)):
            yield "I8", f"key {key} is served past its lease and its bound"
        if held.seq < _mark(world, core, key):
            yield "I9", f"key {key} is served, though the scope's mark is beyond it"
    epoch, seq, _ = world.l2.believed(state.l2, world.setup.keys)
    if epoch == core.view.epoch and seq == core.view.applied:
        now = world.truths.things[state.truth].now
        yield from _too_old("I2", "the L1 of an up-to-date node", nodes.trusts(state.core), now)


def _mark(world: World, node: Core, key: int) -> int:
    scopes = (*world.setup.keys[key].scopes, *world.setup.tags)
    bucket, low = world.setup.keys[key].family.bucket, dict(node.view.low)
    invalidated = [seq for _, its in node.view.invalidated for name, seq in its if name in scopes]
    return max(low.get(bucket, 0), low.get(ALL_TENANTS, 0), *invalidated, 0)


def _too_old(promise: str, what: str, found: tuple[int | None, ...], least: tuple[int, ...]) -> Iterator[Broken]:
    for key, value in enumerate(found):
        if value is not None and value < least[key]:
            yield promise, f"{what} gives version {value} of key {key}, not {least[key]}"


def _in_flight(world: World, state: State) -> Iterator[Broken]:
    key = world.nodes.flights.things[state.flight].key
    for promise, after, least in _expected(world, state):
        value = world.nodes.joins(state.core, state.flight, after)
        if value is not None and value < least[key]:
            yield promise, f"who joins the flight gets version {value} of key {key}, not {least[key]}"


def _in_l2(world: World, state: State) -> Iterator[Broken]:
    """What L2's own scripts give is never older than the last invalidation, whatever was lost: a fill or a failover
    that brought it back would be seen here."""
    found = world.l2.believed(state.l2, world.setup.keys)[2]
    yield from _too_old("I1/G5", "L2", found, world.truths.things[state.truth].now)


def _by_reading(world: World, state: State) -> Iterator[Broken]:
    """What reads of L2 give that are answered at once: a later answer gives no older value."""
    for promise, after, least in _expected(world, state):
        for key in range(len(least)):
            if not least[key]:
                continue
            request = world.nodes.asks(state.core, "read", key, after, checked=state.checked)
            reply = world.l2.do(state.l2, request)[1]
            value = world.nodes.reads(state.core, state.checked, key, after, reply)
            if value is not None and value < least[key]:
                yield promise, f"a {request[0]} of key {key} gives version {value}, not {least[key]}"


def _healing(world: World, state: State) -> Iterator[Broken]:
    """Two turns of the heartbeat, with nothing in the way, bring a lease and leave no gap."""
    bare = state._replace(flight=0, write=0, tending=0)
    for _ in range(2):
        bare = world.tend(bare)
    view = world.nodes.cores.things[bare.core].view
    if view.valid <= 0 or view.highest_seq > view.applied:
        yield "heals", "two probes leave the node without a lease, or with a gap"
