"""Checks of Kafka, where it is the bus: whether the topic of events is there, and can be heard and written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import KafkaAccess, kafka_access, quietly
from cachebus.bus.kafka.connection import Address, KafkaConnection
from cachebus.bus.kafka.topic import Layout, check_topic, look
from cachebus.errors import BusUnavailable, ConfigError
from cachebus.settings import Settings
from cachebus.tools.doctor.finding import Finding, Level, ok

CHECK: Final = "kafka"
ALONE: Final = (
    "Nodes hear of invalidations by their probes alone: D holds, and what one invalidates others serve until then. "
)


async def findings_of(settings: Settings) -> list[Finding]:
    """What is to be said of the bus; nothing where it is the server itself."""
    if settings.bus != "kafka":
        return []
    with quietly():
        access = kafka_access(settings)
        brokers = Brokers(access)
        try:
            return await _found(access, brokers) or [_well(access)]
        except BusUnavailable as error:
            return [
                _problem(str(error), f"{ALONE}A node that starts is refused.", "look at the brokers, and at KAFKA_*")
            ]
        except ConfigError as error:
            return [_problem(str(error), f"{ALONE}A node that starts is refused.", "as it says")]
        finally:
            await brokers.forget()


async def _found(access: KafkaAccess, brokers: Brokers) -> list[Finding]:
    layout = await look(access, brokers)
    if not layout.leaders:
        return [
            Finding(
                CHECK,
                Level.ADVICE,
                f"the topic {access.topic} is not there",
                "The first node that starts makes it, where it may. Those that run look for it every few seconds.",
                otherwise="look at CACHEBUS_KAFKA_TOPIC; or start a node",
            )
        ]
    await check_topic(access, brokers)
    found = [*_shared(access, layout), *_led_by_nobody(access, layout)]
    for leader, why in (await _unreached(access, layout)).items():
        led = [number for number, one in enumerate(layout.leaders) if one == leader]
        says = f"{leader}, which leads {_partitions(led)} of {access.topic}, can't be reached: {why}"
        helps = "look whether it runs, and whether it is reached by the name that it announces (advertised.listeners)"
        found.append(_problem(says, f"{ALONE}So it is for their shards.", helps))
    return found


def _shared(access: KafkaAccess, layout: Layout) -> Iterator[Finding]:
    if len(layout.leaders) < access.partitions:
        yield Finding(
            CHECK,
            Level.ADVICE,
            f"the topic {access.topic} has {len(layout.leaders)} partitions, and {access.partitions} are wanted",
            "Shards share them: what befalls one befalls all of its shards.",
            otherwise=f"kafka-topics.sh --alter --topic {access.topic} --partitions {access.partitions}",
        )


def _led_by_nobody(access: KafkaAccess, layout: Layout) -> Iterator[Finding]:
    lost = [number for number, leader in enumerate(layout.leaders) if leader is None]
    if lost:
        says = f"{_partitions(lost)} of {access.topic} {'has' if len(lost) == 1 else 'have'} no leader"
        helps = "bring the brokers back that have their replicas: kafka-topics.sh --describe"
        yield _problem(says, f"{ALONE}So it is for their shards.", helps)


async def _unreached(access: KafkaAccess, layout: Layout) -> dict[Address, str]:
    """The leaders that can't be connected to, and why."""
    leaders = [*dict.fromkeys(leader for leader in layout.leaders if leader is not None)]
    opened = await asyncio.gather(*(KafkaConnection.open(access, one) for one in leaders), return_exceptions=True)
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
    return f"partition{'s' * several} {', '.join(map(str, numbers[:10]))}{' ...' * (len(numbers) > 10)}"


def _well(access: KafkaAccess) -> Finding:
    return ok(CHECK, f"the topic {access.topic} at {access.servers}: each partition has a leader that is reached")


def _problem(says: str, means: str, otherwise: str) -> Finding:
    return Finding(CHECK, Level.PROBLEM, says, means, otherwise=otherwise)
