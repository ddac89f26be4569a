"""A topic of ours, of events or of commands: made where it is missing, looked at where it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from cachebus.base.log import logger
from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import BACKOFF_MS, KafkaAccess
from cachebus.bus.kafka.connection import BrokerAddress, unavailable
from cachebus.bus.kafka.refusals import BATCH_BYTES, NOT_ALLOWED, allowing, setting_up
from cachebus.errors import ConfigError

REPLICAS: Final = 3
UNKNOWN_TOPIC: Final = 3
EXISTS: Final = 36
NOT_CONTROLLER: Final = 41
FINAL: Final = {17, 29, 31, 35, 37, 40, 42, 44}
"""Errors after which a topic will not be made next time either: its name or configuration can't be, or may not. All
others pass, as when the controller moves, or fewer brokers are there than replicas."""
A_TOPIC: Final = 2
"""What configurations are of, as a number."""
MESSAGE_BYTES: Final = 512 * 1024
"""So large should a message be let be: twice the largest command, and the batch of most events."""
EVENT_BYTES: Final = 4096
"""A topic that takes no message of so many bytes carries hardly any event."""
LOOKS_WHEN_NEW: Final = 20
"""So often a topic is looked at that was made just now, until each of its partitions has a leader."""


class TopicLayout(NamedTuple):
    """A topic as a broker tells of it."""

    leaders: tuple[BrokerAddress | None, ...]
    """Where each partition is written and read, by its number. None: it has no leader now."""
    brokers: tuple[BrokerAddress, ...]
    controller: BrokerAddress | None
    cluster: str
    """The id of the Kafka cluster; "" where it is not told."""


class TopicFault(NamedTuple):
    """Why a topic hardly carries messages."""

    says: str
    mend: str
    """The command that sets it up otherwise."""
    is_grave: bool = False
    """Whether it carries none, or hardly any."""


async def ensure(access: KafkaAccess, brokers: Brokers) -> TopicLayout:
    """Make the topic if it is missing, and tell of it; `BusUnavailable`, `ConfigError` where it is not to be made, or
    can't carry messages, a warning where it hardly can. Within `connect_timeout_s`."""
    try:
        async with asyncio.timeout(access.connect_timeout_s):
            layout, is_new = await there(access, brokers)
            if is_new:
                return layout
            _check_partitions(access, len(layout.leaders))
            await _warn(access, brokers)
            return layout
    except TimeoutError:
        why = f"the topic {access.topic} could not be looked at in {access.connect_timeout_s:g} s"
        raise unavailable(access, why) from None


async def there(access: KafkaAccess, brokers: Brokers) -> tuple[TopicLayout, bool]:
    """Make the topic if it is missing, and tell of it, and whether it was; `BusUnavailable`, `ConfigError` where it
    can't be made, or is not to be."""
    layout = await read_layout(access, brokers)
    if layout.leaders:
        return layout, False
    if not access.makes_topic:
        raise ConfigError(f"Kafka at {access.servers} has no topic {access.topic}: look at CACHEBUS_KAFKA_TOPIC")
    return await _made(access, brokers, layout), True


async def read_layout(access: KafkaAccess, brokers: Brokers) -> TopicLayout:
    """The topic as it stands, without leaders where there is none; `BusUnavailable`, `ConfigError`."""
    from aiokafka.errors import for_code
    from aiokafka.protocol.metadata import MetadataRequest

    answer = await brokers.ask(MetadataRequest([access.topic], allow_auto_topic_creation=False))
    try:
        there = {number: BrokerAddress(host, port) for number, host, port, _ in answer.brokers}
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
            f"{allowing(access, 'Read', 'Write', 'Describe', 'DescribeConfigs')}"
        )
    if code not in (0, UNKNOWN_TOPIC):
        raise unavailable(access, f"the topic {access.topic}: {for_code(code).__name__}")
    return TopicLayout(
        by_number, tuple(there.values()), there.get(answer.controller_id), getattr(answer, "cluster_id", None) or ""
    )


async def _made(access: KafkaAccess, brokers: Brokers, layout: TopicLayout) -> TopicLayout:
    """The topic, once it has leaders; where one does not come, the others have to do."""
    await _make(access, brokers, layout)
    for _ in range(LOOKS_WHEN_NEW):
        layout = await read_layout(access, brokers)
        if layout.leaders and None not in layout.leaders:
            break
        await asyncio.sleep(BACKOFF_MS / 1000)
    if not layout.leaders:
        raise unavailable(access, f"the topic {access.topic} was made, and is not there yet")
    return layout


async def _make(access: KafkaAccess, brokers: Brokers, layout: TopicLayout) -> None:
    code, why = await _asked_to_make(access, brokers, layout, only_validated=False)
    if code == EXISTS:  # another node was faster
        return
    if code and code not in FINAL:
        await brokers.forget()  # another one may do better
        raise unavailable(access, f"the topic {access.topic} can't be made now: {why}")
    if code:
        raise ConfigError(
            f"Kafka has no topic {access.topic}, and does not let this user make it ({why}): {making(access)}"
        )
    logger.info(
        "made the Kafka topic {}: {} partitions, {} replicas", access.topic, access.partitions, _replicas(layout)
    )


async def unmakeable(access: KafkaAccess, brokers: Brokers, layout: TopicLayout) -> str:
    """Why Kafka would not let this user make the topic; "" where it would. None is made."""
    code, why = await _asked_to_make(access, brokers, layout, only_validated=True)
    return why if code in FINAL else ""


def making(access: KafkaAccess) -> str:
    """The command that makes the topic."""
    return (
        f"kafka-topics.sh --bootstrap-server {access.servers} --create --topic {access.topic} --partitions "
        f"{access.partitions} --config cleanup.policy=delete --config retention.ms={access.retention_ms}"
    )


def _replicas(layout: TopicLayout) -> int:
    return min(REPLICAS, max(len(layout.brokers), 1))


async def _asked_to_make(
    access: KafkaAccess, brokers: Brokers, layout: TopicLayout, *, only_validated: bool
) -> tuple[int, str]:
    """The error, and what it says; (0, "") where it is made, or would be."""
    from aiokafka.errors import for_code
    from aiokafka.protocol.admin import CreateTopicsRequest

    replicas = _replicas(layout)
    configs = {"cleanup.policy": "delete", "retention.ms": str(access.retention_ms)}
    if access.in_sync > 1:
        configs["min.insync.replicas"] = str(min(access.in_sync, replicas))
    assigned = list[tuple[int, list[int]]]()  # by the brokers
    topic = (access.topic, access.partitions, replicas, assigned, list(configs.items()))
    request = CreateTopicsRequest([topic], int(access.timeout_s * 1000), only_validated)
    ((_, code, *said),) = (await brokers.ask(request)).topic_errors
    if code == NOT_CONTROLLER and layout.controller is not None:
        ((_, code, *said),) = (await brokers.ask_at(layout.controller, request)).topic_errors
    return code, ((said and said[0]) or for_code(code).__name__) if code else ""


def _check_partitions(access: KafkaAccess, partitions: int) -> None:
    if 0 < partitions < access.partitions:
        logger.warning(
            "the Kafka topic {} has {} partitions, {} are wanted (CACHEBUS_KAFKA_PARTITIONS): kafka-topics.sh "
            "--bootstrap-server {} --alter --topic {} --partitions {}",
            access.topic,
            partitions,
            access.partitions,
            access.servers,
            access.topic,
            access.partitions,
        )


async def configuration(access: KafkaAccess, brokers: Brokers) -> Mapping[str, str | None] | None:
    """How the topic is set up; None where this user may not see that; `BusUnavailable`."""
    from aiokafka.protocol.admin import DescribeConfigsRequest

    answer = await brokers.ask(DescribeConfigsRequest([(A_TOPIC, access.topic, None)]))
    ((code, _, _, _, entries),) = answer.resources
    return None if code else {name: value for name, value, *_ in entries}


async def _warn(access: KafkaAccess, brokers: Brokers) -> None:
    """`ConfigError` where the topic can't carry messages; a warning where it hardly can."""
    configured = await configuration(access, brokers)
    if configured is None:
        logger.warning("{}: {}", hidden(access), allowing(access, "DescribeConfigs"))
        return
    for fault in check_configuration(access.topic, configured, access.retention_ms, access.servers):
        logger.warning("{}: {}", fault.says, fault.mend)


def hidden(access: KafkaAccess) -> str:
    """What is to be said where this user may not see how the topic is set up."""
    return (
        f"Kafka does not let this user see how the topic {access.topic} is set up; it should have "
        f"cleanup.policy=delete, retention.ms of at least {access.retention_ms // 60} and max.message.bytes of at "
        f"least {MESSAGE_BYTES}"
    )


def check_configuration(
    topic: str, configured: Mapping[str, str | None], wanted_ms: int = 3_600_000, servers: str = "HOST:PORT"
) -> list[TopicFault]:
    """`ConfigError` where compaction would drop all but a key's last message; why it hardly carries messages: as it
    keeps them for a short time, or takes none that are large."""
    if "compact" in (configured.get("cleanup.policy") or ""):
        raise ConfigError(
            f"the Kafka topic {topic} is compacted, and would keep only the last message of each key: "
            f"{setting_up(servers, topic, 'cleanup.policy=delete')}"
        )
    found = []
    retention_ms = _number(configured, "retention.ms")
    if 0 <= retention_ms < wanted_ms // 60:
        says = (
            f"the Kafka topic {topic} keeps messages for {retention_ms / 1000} s only; who is behind for longer would "
            "miss some"
        )
        found.append(TopicFault(says, setting_up(servers, topic, f"retention.ms={wanted_ms}")))
    size_bytes = _number(configured, "max.message.bytes")
    if 0 <= size_bytes < MESSAGE_BYTES:
        says = f"the Kafka topic {topic} takes no message that is larger than {size_bytes} bytes, and drops what is"
        mend = setting_up(servers, topic, f"max.message.bytes={BATCH_BYTES}")
        found.append(TopicFault(says, mend, is_grave=size_bytes < EVENT_BYTES))
    return found


def _number(configured: Mapping[str, str | None], name: str) -> int:
    """-1 where there is none, or in a form that is not known: it is the broker's matter."""
    with suppress(ValueError):
        return int(configured.get(name) or -1)
    return -1
