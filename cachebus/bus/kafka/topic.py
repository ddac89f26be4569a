"""A topic of ours, of events or of commands: made where it is missing, looked at where it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from cachebus.base.log import logger
from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import BACKOFF_MS, KafkaAccess, quietly
from cachebus.bus.kafka.connection import Address, unavailable
from cachebus.errors import ConfigError

REPLICAS: Final = 3
UNKNOWN_TOPIC: Final = 3
EXISTS: Final = 36
NOT_ALLOWED: Final = 29
NOT_CONTROLLER: Final = 41
FINAL: Final = {17, 29, 31, 35, 37, 40, 42, 44}
"""Errors after which a topic will not be made next time either: its name or configuration can't be, or may not. All
others pass, as when the controller moves, or fewer brokers are there than replicas."""
A_TOPIC: Final = 2
"""What configurations are of, as a number."""
LOOKS_WHEN_NEW: Final = 20
"""So often a topic is looked at that was made just now, until each of its partitions has a leader."""


class Layout(NamedTuple):
    """A topic as a broker tells of it."""

    leaders: tuple[Address | None, ...]
    """Where each partition is written and read, by its number. None: it has no leader now."""
    brokers: tuple[Address, ...]
    controller: Address | None


async def topic_there(access: KafkaAccess) -> None:
    """Make the topic if it is missing; `BusUnavailable`, `ConfigError` where it can't carry messages."""
    with quietly():
        brokers = Brokers(access)
        try:
            await ensure(access, brokers)
        finally:
            await brokers.forget()


async def ensure(access: KafkaAccess, brokers: Brokers) -> Layout:
    """Make the topic if it is missing, and tell of it; `BusUnavailable`, `ConfigError` where it can't carry messages, a
    warning where it hardly can. Within `connect_timeout_s`."""
    try:
        async with asyncio.timeout(access.connect_timeout_s):
            layout = await look(access, brokers)
            if not layout.leaders:
                return await _made(access, brokers, layout)
            _check_partitions(access, len(layout.leaders))
            await check_topic(access, brokers)
            return layout
    except TimeoutError:
        why = f"the topic {access.topic} could not be looked at in {access.connect_timeout_s:g} s"
        raise unavailable(access, why) from None


async def look(access: KafkaAccess, brokers: Brokers) -> Layout:
    """The topic as it stands, without leaders where there is none; `BusUnavailable`, `ConfigError`."""
    from aiokafka.errors import for_code
    from aiokafka.protocol.metadata import MetadataRequest

    answer = await brokers.ask(MetadataRequest([access.topic], allow_auto_topic_creation=False))
    if not brokers.are_of(getattr(answer, "cluster_id", None)):
        await brokers.forget()
        raise unavailable(access, "a broker of another Kafka cluster answers, and is passed over")
    try:
        there = {number: Address(host, port) for number, host, port, _ in answer.brokers}
        ((code, _, _, partitions),) = answer.topics
        leaders = {number: there.get(leader) for _, number, leader, *_ in partitions}
        by_number = tuple(leaders[number] for number in range(len(leaders)))
    except (ValueError, TypeError, LookupError) as error:
        await brokers.forget()  # another one may do better
        raise unavailable(access, f"a broker says of the topic what can't be: {error!r}") from error
    brokers.know(there.values())
    if code == NOT_ALLOWED:
        raise ConfigError(
            f"Kafka does not let this user see the topic {access.topic}: allow it by "
            f"kafka-acls.sh --add --allow-principal User:NAME --operation Read --operation Write "
            f"--operation Describe --operation DescribeConfigs --topic {access.topic}"
        )
    if code not in (0, UNKNOWN_TOPIC):
        raise unavailable(access, f"the topic {access.topic}: {for_code(code).__name__}")
    return Layout(by_number, tuple(there.values()), there.get(answer.controller_id))


async def _made(access: KafkaAccess, brokers: Brokers, layout: Layout) -> Layout:
    """The topic, once it has leaders; where one does not come, the others have to do."""
    await _make(access, brokers, layout)
    for _ in range(LOOKS_WHEN_NEW):
        layout = await look(access, brokers)
        if layout.leaders and None not in layout.leaders:
            break
        await asyncio.sleep(BACKOFF_MS / 1000)
    if not layout.leaders:
        raise unavailable(access, f"the topic {access.topic} was made, and is not there yet")
    return layout


async def _make(access: KafkaAccess, brokers: Brokers, layout: Layout) -> None:
    from aiokafka.errors import for_code
    from aiokafka.protocol.admin import CreateTopicsRequest

    replicas = min(REPLICAS, max(len(layout.brokers), 1))
    configs = {"cleanup.policy": "delete", "retention.ms": str(access.retention_ms)}
    if access.in_sync > 1:
        configs["min.insync.replicas"] = str(min(access.in_sync, replicas))
    assigned = list[tuple[int, list[int]]]()  # by the brokers
    topic = (access.topic, access.partitions, replicas, assigned, list(configs.items()))
    request = CreateTopicsRequest([topic], int(access.timeout_s * 1000), False)
    ((_, code, *said),) = (await brokers.ask(request)).topic_errors
    if code == NOT_CONTROLLER and layout.controller is not None:
        ((_, code, *said),) = (await brokers.ask_at(layout.controller, request)).topic_errors
    if code == EXISTS:  # another node was faster
        return
    if code:
        why = (said and said[0]) or for_code(code).__name__
        if code not in FINAL:
            await brokers.forget()  # another one may do better
            raise unavailable(access, f"the topic {access.topic} can't be made now: {why}")
        raise ConfigError(
            f"Kafka has no topic {access.topic}, and does not let this user make it ({why}): kafka-topics.sh --create "
            f"--topic {access.topic} --partitions {access.partitions} --config cleanup.policy=delete "
            f"--config retention.ms={access.retention_ms}"
        )
    logger.info("made the Kafka topic {}: {} partitions, {} replicas", access.topic, access.partitions, replicas)


def _check_partitions(access: KafkaAccess, partitions: int) -> None:
    if 0 < partitions < access.partitions:
        logger.warning(
            "the Kafka topic {} has {} partitions, {} are wanted (CACHEBUS_KAFKA_PARTITIONS): kafka-topics.sh --alter "
            "--topic {} --partitions {}",
            access.topic,
            partitions,
            access.partitions,
            access.topic,
            access.partitions,
        )


async def check_topic(access: KafkaAccess, brokers: Brokers) -> None:
    """`ConfigError` where the topic can't carry messages, a warning where it hardly can."""
    from aiokafka.protocol.admin import DescribeConfigsRequest

    answer = await brokers.ask(DescribeConfigsRequest([(A_TOPIC, access.topic, None)]))
    ((code, _, _, _, entries),) = answer.resources
    if code:
        logger.warning(
            "Kafka does not let this user see how the topic {} is set up: it should have cleanup.policy=delete and "
            "retention.ms of at least {}",
            access.topic,
            access.retention_ms // 60,
        )
        return
    check_configuration(access.topic, {name: value for name, value, *_ in entries}, access.retention_ms)


def check_configuration(topic: str, configured: Mapping[str, str | None], wanted_ms: int = 3_600_000) -> None:
    """`ConfigError` where compaction would drop all but a key's last message; a warning for a short retention."""
    change = f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config"
    if "compact" in (configured.get("cleanup.policy") or ""):
        raise ConfigError(
            f"the Kafka topic {topic} is compacted, and would keep only the last message of each key: {change} "
            "cleanup.policy=delete"
        )
    with suppress(ValueError):  # a form that is not known: it is the broker's matter
        retention_ms = int(configured.get("retention.ms") or -1)
        if 0 <= retention_ms < wanted_ms // 60:
            logger.warning(
                "the Kafka topic {} keeps messages for {} s only; who is behind for longer would miss some: "
                "{} retention.ms={}",
                topic,
                retention_ms / 1000,
                change,
                wanted_ms,
            )
