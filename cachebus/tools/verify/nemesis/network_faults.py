"""Faults of the network between one node and the server."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from cachebus.tools.harness.frames import garbled, garbled_head, is_message
from cachebus.tools.harness.stream import Direction, Spoil
from cachebus.tools.verify.fleet.setup import l2_timeout_s
from cachebus.tools.verify.target.node_proxies import NodeProxies, NodeProxy
from cachebus.tools.verify.target.testbed import Act, Fault, Occurrence, Testbed, pause

SHARE: Final = 0.3
"""The share of messages that faults of single messages affect."""
DELAY_S: Final = (0.01, 0.2)


ProxyChange = Callable[[NodeProxy, Occurrence, Testbed], None]


def _through(change: ProxyChange) -> Act:
    async def act(testbed: Testbed, occurrence: Occurrence) -> None:
        proxy = testbed.proxies[occurrence.node]
        try:
            change(proxy, occurrence, testbed)
            await pause(occurrence.lasts_s)
        finally:
            proxy.restore()

    return act


def _delay(occurrence: Occurrence) -> Callable[[], float]:
    dice = occurrence.dice()
    return lambda: dice.uniform(*DELAY_S)


async def _late(testbed: Testbed, occurrence: Occurrence) -> None:
    """Replies arrive after their callers have given up."""
    proxy = testbed.proxies[occurrence.node]
    try:
        proxy.hold(("data",), ("down",))
        await pause(l2_timeout_s(testbed.bound_s) * 1.2)
    finally:
        proxy.restore()


async def _torn(testbed: Testbed, occurrence: Occurrence) -> None:
    proxy = testbed.proxies[occurrence.node]
    try:
        for _ in range(3):
            proxy.tear()
            await pause(occurrence.lasts_s / 3)
    finally:
        proxy.restore()


def _messages(spoil: Callable[[Random, bytes], list[bytes]]) -> ProxyChange:
    def change(proxy: NodeProxy, occurrence: Occurrence, _: Testbed) -> None:
        dice = occurrence.dice()
        proxy.spoil(lambda frame: spoil(dice, frame) if is_message(frame) else [frame])

    return change


def _reordered(proxy: NodeProxy, occurrence: Occurrence, _: Testbed) -> None:
    proxy.spoil(reordering(occurrence.dice()))


def reordering(dice: Random) -> Spoil:
    """Holds some messages back until others have overtaken them."""
    kept: list[bytes] = []

    def spoil(frame: bytes) -> list[bytes]:
        if not is_message(frame):
            return [frame]
        if len(kept) < 3 and dice.random() < SHARE:
            kept.append(frame)
            return []
        given = [frame, *kept]
        kept.clear()
        return given

    return spoil


def _sometimes(dice: Random, frame: bytes, other: list[bytes]) -> list[bytes]:
    return other if dice.random() < SHARE else [frame]


def _fault(name: str, what: str, lasts: tuple[float, float], change: ProxyChange) -> Fault:
    return Fault(name, "network", what, lasts, _through(change))


def _from_one(*directions: Direction) -> Act:
    """No byte passes between a node and one primary of several, in both directions or in one."""

    async def act(testbed: Testbed, occurrence: Occurrence) -> frozenset[int]:
        roads, group = testbed.proxies[occurrence.node], testbed.server.group
        if group is None or not isinstance(roads, NodeProxies):
            return frozenset()
        names = group.some_shard(occurrence.dice())
        primary = await group.primary(names)
        if primary is None:
            return frozenset()
        shards = await group.shards_beside(names, primary)
        road = roads.to(group.place(primary))
        try:
            road.hold(directions=directions)
            await pause(occurrence.lasts_s)
        finally:
            road.restore()
        return shards

    return act


NETWORK_FAULTS: Final = (
    _fault("cut", "all connections break, and new ones are refused", (0.2, 2.0), lambda p, *_: p.cut()),
    _fault("reset", "all connections break once", (0.0, 0.0), lambda p, *_: p.reset()),
    Fault("torn", "network", "the data connection breaks in the middle of a reply", (0.2, 0.5), _torn),
    _fault("hang", "no byte passes either way, connections stay (half-open)", (0.3, 2.5), lambda p, *_: p.hold()),
    _fault(
        "hang-up",
        "no byte of a command passes, replies and messages do",
        (0.3, 1.5),
        lambda p, *_: p.hold(("data",), ("up",)),
    ),
    _fault(
        "hang-down",
        "commands pass and are carried out, no byte of a reply comes back",
        (0.3, 1.5),
        lambda p, *_: p.hold(("data",), ("down",)),
    ),
    Fault("late", "network", "commands are carried out, and answered after their time-out", (0.0, 0.0), _late),
    _fault(
        "hang-events",
        "no byte of the subscription passes either way, commands work",
        (0.3, 2.5),
        lambda p, *_: p.hold(("events",)),
    ),
    _fault(
        "deaf",
        "no message arrives, pings are answered and commands work",
        (0.5, 3.0),
        _messages(lambda dice, frame: []),
    ),
    _fault("delay", "all bytes come 10 to 200 ms late", (0.3, 1.5), lambda p, b, _: p.delay(_delay(b))),
    _fault(
        "delay-replies",
        "replies come 10 to 200 ms late, so that messages overtake them",
        (0.5, 2.0),
        lambda p, b, _: p.delay(_delay(b), ("data",), ("down",)),
    ),
    _fault(
        "delay-events",
        "messages come 10 to 200 ms late",
        (0.5, 2.0),
        lambda p, b, _: p.delay(_delay(b), ("events",), ("down",)),
    ),
    _fault("drop", "some messages are lost", (0.5, 2.0), _messages(lambda d, f: _sometimes(d, f, []))),
    _fault("double", "some messages come twice", (0.5, 2.0), _messages(lambda d, f: _sometimes(d, f, [f, f]))),
    _fault("reorder", "some messages come after later ones", (0.5, 2.0), _reordered),
    _fault(
        "garble", "some messages have a wrong byte", (0.5, 2.0), _messages(lambda d, f: _sometimes(d, f, [garbled(f)]))
    ),
    _fault(
        "garble-head",
        "some events have a wrong bit where they say which ones they are",
        (0.5, 2.0),
        _messages(lambda d, f: _sometimes(d, f, [garbled_head(f, d)])),
    ),
    Fault(
        "lost-primary",
        "network",
        "no byte passes between a node and one primary of several",
        (0.3, 2.5),
        _from_one("up", "down"),
    ),
    Fault(
        "half-lost-primary",
        "network",
        "commands reach one primary of several, no byte comes back from there",
        (0.3, 2.0),
        _from_one("down"),
    ),
)
