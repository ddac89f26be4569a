"""Checks of Kafka, where it is the bus: whether the topic of events is there, and can be heard and written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final

from cachebus.assembly.backends import route_of
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import KafkaAccess, kafka_access, quietly
from cachebus.bus.kafka.connection import BrokerAddress, KafkaConnection
from cachebus.bus.kafka.refusals import allowing
from cachebus.bus.kafka.topic import (
    TopicLayout,
    check_configuration,
    configuration,
    hidden,
    making,
    read_layout,
    unmakeable,
)
from cachebus.errors import BusUnavailable, ConfigError, L2Unavailable
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.finding import Finding, Severity, ok, unknown
from cachebus.tools.doctor.namespace import shards_of
from cachebus.tools.doctor.rows import nodes_of
from cachebus.tools.doctor.some import SEVERAL, some

CHECK: Final = "kafka"
ALONE: Final = (
    "Nodes hear of invalidations by their probes alone: D holds, and what one invalidates others serve until then. "
)

LACKED: Final = {
    "Read": "A node of this user that starts is refused.",
    "Write": "Kafka takes no event of a node of this user.",
}
"""What it means where an operation is not allowed."""


async def findings_of(settings: Settings) -> list[Finding]:
    """What is to be said of the bus; nothing where it is the server itself."""
    if settings.bus != "kafka":
        return []
    with quietly():
        access = kafka_access(settings)
        brokers = Brokers(access)
        try:
            layout = await read_layout(access, brokers)
            if not layout.leaders:
                return [await _gone(settings, access, brokers, layout)]
            return await _found(access, brokers, layout) or [_well(access)]
        except BusUnavailable as error:
            return [
                _problem(
                    str(error), f"{ALONE}A node that starts is refused.", "look at the brokers, and at CACHEBUS_KAFKA_*"
                )
            ]
        except ConfigError as error:
            return [_problem(str(error), f"{ALONE}A node that starts is refused.", "as it says")]
        finally:
            await brokers.forget()


async def _gone(settings: Settings, access: KafkaAccess, brokers: Brokers, layout: TopicLayout) -> Finding:
    """What is to be said where there is no topic."""
    says = f"the topic {access.topic} is not there"
    why = await unmakeable(access, brokers, layout)
    if why:
        says += f", and Kafka does not let this user make it: {why}"
    if named := await _hearing_there(settings):
        says += f"; these nodes hear events by it, so it is gone: {some(named, SEVERAL)}"
    if why or named:
        helps = f"look at CACHEBUS_KAFKA_TOPIC; or {making(access)}"
        return _problem(says, f"{ALONE}A node that starts is refused where it may not make the topic.", helps)
    means = "The first node that starts makes it, where it may. Those that run look for it every few seconds."
    return Finding(CHECK, Severity.ADVICE, says, means, otherwise="look at CACHEBUS_KAFKA_TOPIC; or start a node")


async def _hearing_there(settings: Settings) -> list[str]:
    """The living nodes that hear events by the topic, as their rows in the first shard tell; none where these can't be
    read."""
    route = route_of(settings, monotonic)
    try:
        await route.refresh(monotonic())
        at = route.known[0]
        if at is None:
            return []
        async with await Asker.open(at, settings.connect_timeout_s) as asker:
            (shard,) = await shards_of(asker, settings, [0])
    except L2Unavailable:  # which others tell
        return []
    finally:
        await route.close()
    topics = {node.name: node.hearing.topic for node in nodes_of(shard) if node.alive and node.hearing}
    return [name for name, topic in topics.items() if topic == settings.kafka_topic]


async def _found(access: KafkaAccess, brokers: Brokers, layout: TopicLayout) -> list[Finding]:
    configured = await configuration(access, brokers)
    found = [*await _allowed(access, brokers), *_set_up(access, configured)]
    found += [*_shared(access, layout), *_led_by_nobody(access, layout)]
    for leader, why in (await _unreached(brokers, layout)).items():
        led = [number for number, one in enumerate(layout.leaders) if one == leader]
        says = f"{leader}, which leads {_partitions(led)} of {access.topic}, can't be reached: {why}"
        helps = "look whether it runs, and whether it is reached by the name that it announces (advertised.listeners)"
        found.append(_problem(says, f"{ALONE}So it is for their shards.", helps))
    return found


async def _allowed(access: KafkaAccess, brokers: Brokers) -> list[Finding]:
    """Whether this user may hear and publish as a node does."""
    from cachebus.bus.kafka.rights import lacking  # which needs the driver

    lacks = await lacking(access.topic, brokers)
    if lacks is None:
        why = f"no broker tells this user's rights to the topic {access.topic}, as before Kafka 2.3"
        return [unknown(CHECK, why, otherwise="see that it may Read and Write")]
    return [
        _problem(
            f"this user may not {operation} the topic {access.topic}", f"{ALONE}{means}", allowing(access, operation)
        )
        for operation, means in LACKED.items()
        if operation in lacks
    ]


def _set_up(access: KafkaAccess, configured: Mapping[str, str | None] | None) -> Iterator[Finding]:
    """What a node logs of the topic when it starts, with the command that mends it."""
    if configured is None:
        yield unknown(CHECK, hidden(access), otherwise=allowing(access, "DescribeConfigs"))
        return
    for fault in check_configuration(access.topic, configured, access.retention_ms, access.servers):
        if fault.is_grave:
            yield _problem(fault.says, f"{ALONE}Kafka drops all events, or nearly all.", fault.mend)
        else:
            means = "The log in L2 has what a node missed: D holds."
            yield Finding(CHECK, Severity.ADVICE, fault.says, means, otherwise=fault.mend)


def _shared(access: KafkaAccess, layout: TopicLayout) -> Iterator[Finding]:
    if len(layout.leaders) < access.partitions:
        yield Finding(
            CHECK,
            Severity.ADVICE,
            f"the topic {access.topic} has {len(layout.leaders)} partitions, and {access.partitions} are wanted",
            "Shards share them: what befalls one befalls all of its shards.",
            otherwise=f"kafka-topics.sh --bootstrap-server {access.servers} --alter --topic {access.topic} "
            f"--partitions {access.partitions}",
        )


def _led_by_nobody(access: KafkaAccess, layout: TopicLayout) -> Iterator[Finding]:
    lost = [number for number, leader in enumerate(layout.leaders) if leader is None]
    if lost:
        says = f"{_partitions(lost)} of {access.topic} {'has' if len(lost) == 1 else 'have'} no leader"
        helps = "bring the brokers back that have their replicas: kafka-topics.sh --describe tells which"
        yield _problem(says, f"{ALONE}So it is for their shards.", helps)


async def _unreached(brokers: Brokers, layout: TopicLayout) -> dict[BrokerAddress, str]:
    """The leaders that can't be connected to, and why."""
    leaders = [*dict.fromkeys(leader for leader in layout.leaders if leader is not None)]
    opened = await asyncio.gather(*(brokers.connected(one) for one in leaders), return_exceptions=True)
    found = {}
    for leader, connection in zip(leaders, opened, strict=True):
        if isinstance(connection, KafkaConnection):
            await connection.close()
        elif isinstance(connection, Exception):
            found[leader] = str(connection) or type(connection).__name__
        else:
            raise connection
    return found


def _partitions(numbers: list[int]) -> str:
    several = len(numbers) > 1
    return f"partition{'s' * several} {some(numbers, SEVERAL)}"


def _well(access: KafkaAccess) -> Finding:
    return ok(CHECK, f"the topic {access.topic} at {access.servers}: each partition has a leader that is reached")


def _problem(says: str, means: str, otherwise: str) -> Finding:
    return Finding(CHECK, Severity.PROBLEM, says, means, otherwise=otherwise)
