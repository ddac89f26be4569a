"""Faults of the Kafka broker that carries the events, and of the network between it and one node (`--bus kafka`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cachebus.tools.harness.proxy import Proxy
from cachebus.tools.harness.stream import Direction
from cachebus.tools.verify.fleet import messages
from cachebus.tools.verify.fleet.setup import PARTITIONS
from cachebus.tools.verify.nemesis.network_faults import DELAY_S
from cachebus.tools.verify.target.testbed import Act, Fault, Occurrence, Testbed, pause

MUTE_S: Final = 0.1
RATE: Final = (500, 20_000)
"""Bytes a second over a slow way: from hardly one event to all that a node publishes."""
PARTITIONS_MAX: Final = 8


async def _pause(testbed: Testbed, occurrence: Occurrence) -> None:
    await testbed.required_broker.pause()
    try:
        await pause(occurrence.lasts_s)
    finally:
        await testbed.required_broker.resume()


def _crash(*, loses: bool) -> Act:
    async def act(testbed: Testbed, occurrence: Occurrence) -> None:
        await testbed.required_broker.kill()
        try:
            if loses:
                await testbed.required_broker.empty()
            await pause(occurrence.lasts_s)
        finally:
            await testbed.required_broker.start()

    return act


async def _delete_topic(testbed: Testbed, _: Occurrence) -> None:
    await testbed.required_broker.delete_topic()


async def _widen_topic(testbed: Testbed, occurrence: Occurrence) -> None:
    await testbed.required_broker.widen_topic(occurrence.dice().randint(PARTITIONS + 1, PARTITIONS_MAX))


def _through(change: Callable[[Proxy, Occurrence], None]) -> Act:
    async def act(testbed: Testbed, occurrence: Occurrence) -> None:
        proxy = testbed.required_broker.proxies[occurrence.node]
        try:
            change(proxy, occurrence)
            await pause(occurrence.lasts_s)
        finally:
            proxy.restore()

    return act


def _delay(proxy: Proxy, occurrence: Occurrence) -> None:
    dice = occurrence.dice()
    proxy.delay(lambda: dice.uniform(*DELAY_S))


def _slow(*directions: Direction) -> Callable[[Proxy, Occurrence], None]:
    def change(proxy: Proxy, occurrence: Occurrence) -> None:
        proxy.slow(_rate(occurrence), directions=directions)

    return change


def _rate(occurrence: Occurrence) -> float:
    least, most = RATE
    return float(least * (most / least) ** occurrence.dice().random())


async def _slow_for_all(testbed: Testbed, occurrence: Occurrence) -> None:
    proxies = testbed.required_broker.proxies.values()
    try:
        for proxy in proxies:
            proxy.slow(_rate(occurrence), directions=("up",))
        await pause(occurrence.lasts_s)
    finally:
        for proxy in proxies:
            proxy.slow(None)


async def _forget(testbed: Testbed, occurrence: Occurrence) -> None:
    """The node receives nothing. When it does again, the messages that it has missed are deleted."""
    proxy = testbed.required_broker.proxies[occurrence.node]
    try:
        proxy.hold(directions=("down",))
        await pause(occurrence.lasts_s)
        await testbed.required_broker.forget()
    finally:
        proxy.restore()


def _publishing(how: str) -> Act:
    async def act(testbed: Testbed, occurrence: Occurrence) -> None:
        testbed.fleet.order(occurrence.node, how, occurrence.lasts_s)
        await pause(occurrence.lasts_s)

    return act


async def _killed(testbed: Testbed, occurrence: Occurrence) -> None:
    """What the node writes in its last moments reaches L2, and never Kafka."""
    testbed.fleet.order(occurrence.node, messages.MUTE, 60.0)
    await pause(MUTE_S)
    await testbed.fleet.kill(occurrence.node)
    await pause(occurrence.lasts_s)
    await testbed.fleet.start(occurrence.node)


def _fault(name: str, what: str, lasts: tuple[float, float], act: Act) -> Fault:
    return Fault(name, "bus", what, lasts, act)


BROKER_FAULTS: Final = (
    Fault("broker-pause", "broker", "SIGSTOP, later SIGCONT", (0.2, 4.0), _pause),
    Fault(
        "broker-crash",
        "broker",
        "SIGKILL, and a restart with what it had acknowledged",
        (0.2, 2.0),
        _crash(loses=False),
    ),
    Fault("broker-empty", "broker", "SIGKILL, and a restart with an empty disk", (0.2, 1.0), _crash(loses=True)),
    Fault("broker-slow", "broker", "0.5 to 20 kB a second reach Kafka from each node", (0.5, 4.0), _slow_for_all),
    Fault("topic-deleted", "broker", "the topic is deleted", (0.0, 0.0), _delete_topic),
    Fault("topic-widened", "broker", "the topic is given more partitions", (0.0, 0.0), _widen_topic),
    _fault(
        "bus-cut",
        "all its connections to Kafka break, and new ones are refused",
        (0.2, 2.0),
        _through(lambda proxy, _: proxy.cut()),
    ),
    _fault("bus-reset", "its connections to Kafka break once", (0.0, 0.0), _through(lambda proxy, _: proxy.reset())),
    _fault(
        "bus-hang",
        "no byte passes between it and Kafka, connections stay",
        (0.3, 4.0),
        _through(lambda proxy, _: proxy.hold()),
    ),
    _fault(
        "bus-hang-up",
        "its requests to Kafka don't pass, answers do",
        (0.3, 2.0),
        _through(lambda proxy, _: proxy.hold(directions=("up",))),
    ),
    _fault(
        "bus-hang-down",
        "its requests reach Kafka, no answer comes back",
        (0.3, 2.0),
        _through(lambda proxy, _: proxy.hold(directions=("down",))),
    ),
    _fault("bus-slow-up", "0.5 to 20 kB a second pass from it to Kafka", (0.5, 4.0), _through(_slow("up"))),
    _fault("bus-slow-down", "0.5 to 20 kB a second pass from Kafka to it", (0.5, 4.0), _through(_slow("down"))),
    _fault("bus-delay", "all bytes between it and Kafka come 10 to 200 ms late", (0.3, 1.5), _through(_delay)),
    _fault("bus-forget", "it hears nothing, and what it missed has left the topic", (0.2, 3.0), _forget),
    _fault("bus-double", "it publishes every event twice", (0.5, 2.0), _publishing(messages.TWICE)),
    _fault(
        "bus-swap",
        "it publishes events in the wrong order, or much later than others do",
        (0.5, 2.0),
        _publishing(messages.SWAP),
    ),
    _fault("bus-mute", "it publishes nothing of what L2 has taken", (0.5, 2.0), _publishing(messages.MUTE)),
    _fault("bus-killed", "SIGKILL between L2 and Kafka, and a new node in its place", (0.0, 1.0), _killed),
)
