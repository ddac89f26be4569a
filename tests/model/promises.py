"""What must hold in every state: the promises to callers (G1, G2, G3, G5), and what keeps them (I1, I2, I8, I9)."""

from __future__ import annotations

from collections.abc import Iterator

from cachebus.ports import Place
from tests.model.frozen import NodeState
from tests.model.world import State, World

BROKEN = tuple[str, str]
"""A promise, and what breaks it."""


def broken(world: World, state: State) -> Iterator[BROKEN]:
    """The promises that a state breaks."""
    yield from _in_l1(world, state)
    yield from _in_flight(world, state)
    yield from _in_l2(world, state)
    yield from _by_reading(world, state)
    if world.setup.heals:
        yield from _healing(world, state)


def _expected(state: State) -> Iterator[tuple[str, Place | None, tuple[int, ...]]]:
    """What each kind of read must show at least: promise, session token, changes of each key."""
    truth = state.truth
    yield "G1", None, truth.due()
    yield "G2", None, truth.own
    for token in truth.tokens:
        yield "G3", token.place, token.seen


def _in_l1(world: World, state: State) -> Iterator[BROKEN]:
    nodes, node = world.nodes, world.nodes.states.things[state.node]
    if node.held == (None, None):
        return
    hits = nodes.hits(state.node)
    for promise, after, least in _expected(state):
        for what, found in (("L1", nodes.serves(state.node, after)), ("the fast path", hits)):
            if what == "L1" or after is None:
                yield from _too_old(promise, what, found, least)
    served = nodes.serves(state.node, None)
    for key, held in enumerate(node.held):
        if held is None or (hits[key] is None and served[key] is None):
            continue
        live = held.leased and node.view.valid > 0
        if not (held.expires > 0 and (live or held.read_until > 0)):
            yield "I8", f"key {key} is served past its lease and its bound"
        if held.seq < _mark(world, node, key):
            yield "I9", f"key {key} is served, though the scope's mark is beyond it"
    epoch, seq, _ = world.l2.believed(state.l2, world.setup.keys)
    if epoch == node.view.epoch and seq == node.view.applied:
        yield from _too_old("I2", "the L1 of an up-to-date node", nodes.trusts(state.node), state.truth.now)


def _mark(world: World, node: NodeState, key: int) -> int:
    names = (*world.setup.keys[key].names, *world.setup.tags)
    return max(node.view.floor, *(mark for name, mark in (("", 0), *node.view.marks) if not name or name in names))


def _too_old(promise: str, what: str, found: tuple[int | None, ...], least: tuple[int, ...]) -> Iterator[BROKEN]:
    for key, value in enumerate(found):
        if value is not None and value < least[key]:
            yield promise, f"{what} gives version {value} of key {key}, not {least[key]}"


def _in_flight(world: World, state: State) -> Iterator[BROKEN]:
    flight = world.nodes.states.things[state.node].flight
    if flight is None:
        return
    for promise, after, least in _expected(state):
        value = world.nodes.joins(state.node, after)
        if value is not None and value < least[flight.key]:
            yield promise, f"who joins the flight gets version {value} of key {flight.key}, not {least[flight.key]}"


def _in_l2(world: World, state: State) -> Iterator[BROKEN]:
    """What L2's own scripts give is never older than the last invalidation, whatever was lost: a fill or a failover
    that brought it back would be seen here."""
    found = world.l2.believed(state.l2, world.setup.keys)[2]
    yield from _too_old("I1/G5", "L2", found, state.truth.now)


def _by_reading(world: World, state: State) -> Iterator[BROKEN]:
    """What reads of L2 give that are answered at once: a later answer gives no older value."""
    bare = world.nodes.bare(state.node)
    for promise, after, least in _expected(state):
        for key in range(len(least)):
            if not least[key]:
                continue
            request = world.nodes.asks(bare, "read", key, after, checked=state.checked)
            reply = world.l2.do(state.l2, request)[1]
            value = world.nodes.reads(bare, state.checked, key, after, reply)
            if value is not None and value < least[key]:
                yield promise, f"a {request[0]} of key {key} gives version {value}, not {least[key]}"


def _healing(world: World, state: State) -> Iterator[BROKEN]:
    """Two turns of the heartbeat, with nothing in the way, bring a lease and leave no hole."""
    bare = state._replace(node=world.nodes.bare(state.node))
    for _ in range(2):
        bare = world.tend(bare)
    view = world.nodes.states.things[bare.node].view
    if view.valid <= 0 or view.head > view.applied:
        yield "heals", "two probes leave the node without a lease, or with a hole"
