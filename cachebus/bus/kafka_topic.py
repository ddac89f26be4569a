"""A topic of ours, of events or of commands: made where it is missing, looked at where it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from loguru import logger

from cachebus.bus.kafka_client import Endings, KafkaAccess, connecting
from cachebus.errors import ConfigError

REPLICAS: Final = 3
UNKNOWN_TOPIC: Final = 3
EXISTS: Final = 36
NOT_ALLOWED: Final = 29


async def topic_there(access: KafkaAccess, endings: Endings) -> None:
    """As `ensure`, within `connect_timeout_s`; `BusUnavailable`."""
    with connecting(access):
        async with asyncio.timeout(access.connect_timeout_s):
            await ensure(access, endings)


async def ensure(access: KafkaAccess, endings: Endings) -> None:
    """Make the topic if it is missing; `ConfigError` where it can't carry messages, a warning where it hardly can.

    Raises the driver's errors.
    """
    from aiokafka.admin import AIOKafkaAdminClient

    async with endings.running(AIOKafkaAdminClient(**access.arguments())) as admin:
        (found,) = await admin.describe_topics([access.topic])
        if found["error_code"] == UNKNOWN_TOPIC:
            await _make(admin, access)
        elif found["error_code"] == NOT_ALLOWED:
            raise ConfigError(
                f"Kafka does not let this user see the topic {access.topic}: allow it by "
                f"kafka-acls.sh --add --allow-principal User:NAME --operation Read --operation Write "
                f"--operation Describe --operation DescribeConfigs --topic {access.topic}"
            )
        else:
            _check_partitions(access, len(found["partitions"]))
            await _check_configuration(admin, access)


async def _make(admin: Any, access: KafkaAccess) -> None:
    from aiokafka.admin import NewTopic
    from aiokafka.errors import for_code

    brokers = len((await admin.describe_cluster())["brokers"])
    replicas = min(REPLICAS, max(brokers, 1))
    configs = {"cleanup.policy": "delete", "retention.ms": str(access.retention_ms)}
    if access.in_sync > 1:
        configs["min.insync.replicas"] = str(min(access.in_sync, replicas))
    topic = NewTopic(access.topic, access.partitions, replicas, topic_configs=configs)
    answer = await admin.create_topics([topic], timeout_ms=int(access.timeout_s * 1000))
    ((_, code, *said),) = answer.topic_errors
    if code == EXISTS:  # another node was faster
        return
    if code:
        why = (said and said[0]) or for_code(code).__name__
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


async def _check_configuration(admin: Any, access: KafkaAccess) -> None:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, access.topic)])
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
