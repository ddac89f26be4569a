"""The source that is Debezium's topics on Kafka: a consumer group that commits what has been applied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
)
from loguru import logger

from cachebus.errors import ConfigError
from cachebus.settings import Settings
from consumers.apply import Applier
from consumers.cdc.carry import Batch, Carrier
from consumers.cdc.change import UnusableChange
from consumers.cdc.dead_topic import TOPIC as DEAD_TOPIC
from consumers.cdc.dead_topic import DeadTopic
from consumers.cdc.debezium import parse_envelope
from consumers.cdc.router import Router
from consumers.cdc.rules import Rules
from consumers.patience import Patience
from consumers.worker import Worker

POLL_S: Final = 0.3
"""How long a quiet consumer is asked; draining waits that long at most."""
NEW_TOPICS_S: Final = 5.0
"""How soon a topic that fits the pattern is found after it was made."""
MOVED_ON: Final = (CommitFailedError, IllegalStateError, RebalanceInProgressError)
"""Partitions are another worker's now: what was not committed comes again, to it."""


@dataclass(frozen=True)
class KafkaSource:
    """Which topics of which Kafka."""

    bootstrap_servers: str
    topics: str
    """A regular expression that fits a topic's whole name: several prefixes by `|`."""
    group: str = "cachebus-cdc"
    batch: int = 5000
    """Messages that are looked at together."""
    session_timeout_s: float = 10.0
    """So long after a worker vanished without a word others take its partitions over."""
    dead_topic: str = DEAD_TOPIC
    clients: Mapping[str, Any] = field(default_factory=dict)
    """More of aiokafka's client settings, such as those of TLS and SASL."""

    def client(self) -> dict[str, Any]:
        """What all clients are given."""
        return {"bootstrap_servers": self.bootstrap_servers, **self.clients}


class TopicsWorker(Worker):
    """Follows Debezium's topics; several share the partitions."""

    def __init__(self, settings: Settings, rules: Rules, source: KafkaSource) -> None:
        super().__init__("cdc", ("l2", "kafka"))
        self.source = source
        try:
            self._topics = re.compile(f"(?:{source.topics})\\Z")
        except re.error as error:
            raise ConfigError(f"topics: {source.topics!r} is no regular expression: {error}") from None
        self._rules = rules
        self._router = Router(rules)
        self._applier = Applier(settings, self.health, self.meters, rules.cascades)
        self._carrier = Carrier(self._router, self._applier, self.meters)
        self._patience = Patience("kafka", self.health)
        for rule in rules.rule:
            if rule.replica_identity is None and not {"update", "delete"}.isdisjoint(rule.operations):
                logger.warning(
                    "cdc: rule of {!r}: old rows count by their key alone; if the table has REPLICA IDENTITY FULL, say "
                    'so by replica_identity = "full"', rule.table,
                )  # fmt: skip
        self._read: dict[TopicPartition, int] = {}
        self._dead = DeadTopic(source.client(), source.dead_topic)

    async def run(self) -> None:
        """Follow the topics until drained."""
        async with self._applier.opened():
            while not self.draining:
                try:
                    await self._follow()
                except (KafkaError, OSError) as error:
                    await self._patience.wait(f"{type(error).__name__}: {error}")

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **self.source.client(),
            group_id=self.source.group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a log that was cut before it was read is to be told, not skipped
            isolation_level="read_committed",
            metadata_max_age_ms=int(NEW_TOPICS_S * 1000),
            fetch_max_wait_ms=200,
            session_timeout_ms=int(self.source.session_timeout_s * 1000),
            heartbeat_interval_ms=int(self.source.session_timeout_s * 300),
        )
        try:
            await consumer.start()
            consumer.subscribe(pattern=self._topics.pattern, listener=_Told())
            self._patience.over()
            while not self.draining:
                records = await self._next(consumer)
                if records:
                    await self._carry(consumer, records)
                self._look(consumer)
        finally:
            with suppress(KafkaError, OSError):
                await consumer.stop()
            with suppress(KafkaError, OSError):
                await self._dead.aclose()

    async def _next(self, consumer: AIOKafkaConsumer) -> Mapping[TopicPartition, Sequence[Any]]:
        try:
            found: Mapping[TopicPartition, Sequence[Any]] = await consumer.getmany(
                timeout_ms=int(POLL_S * 1000), max_records=self.source.batch
            )
            return found
        except NoOffsetForPartitionError as unread:  # nothing of it was ever read: all of it is to be
            await consumer.seek_to_beginning(*_partitions(unread))
        except OffsetOutOfRangeError as cut:
            await self._missed(consumer, _partitions(cut))
        return {}

    async def _missed(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        """Kafka has removed what was not read yet (or the topic was made anew): all that the rules name goes."""
        named = ", ".join(f"{one.topic}/{one.partition}" for one in partitions)
        commands = self._router.everything(self._rules.tenants)
        logger.error(
            "cdc: Kafka has removed messages of {} that were not read yet: changes were missed. Invalidating all that "
            "the rules name, for the {} tenants at the head of the rules; others' caches may hold old rows until they "
            "expire", named, len(self._rules.tenants),
        )  # fmt: skip
        await consumer.seek_to_beginning(*partitions)  # before, so that what comes meanwhile is in it
        await self._applier.apply([self._applier.plan_of(command) for command in commands])

    async def _carry(self, consumer: AIOKafkaConsumer, records: Mapping[TopicPartition, Sequence[Any]]) -> None:
        batch = Batch()
        for of_partition in records.values():
            for record in of_partition:
                self._take(record, batch)
        if batch.dead:
            await self._dead.put(batch.dead)
            self._carrier.buried(batch.dead)
        await self._applier.apply(batch.plans)
        self._carrier.applied(batch)
        read = {partition: several[-1].offset + 1 for partition, several in records.items()}
        with suppress(*MOVED_ON):
            await consumer.commit(read)
        self._read |= read

    def _take(self, record: Any, batch: Batch) -> None:
        source = f"{record.topic}/{record.partition}@{record.offset}"
        try:
            change = parse_envelope(record.value, record.key)
        except UnusableChange as error:
            self._carrier.refuse(batch, record.value, str(error), source)
            return
        if change is None:
            batch.ignored += 1
        else:
            self._carrier.take(change, batch, source=source, payload=record.value)

    def _look(self, consumer: AIOKafkaConsumer) -> None:
        """How much is waiting, as far as the brokers have told."""
        assigned = consumer.assignment()
        self._read = {partition: at for partition, at in self._read.items() if partition in assigned}
        self.meters.backlog.set(
            sum(max(0, (consumer.highwater(partition) or 0) - at) for partition, at in self._read.items())
        )


class _Told(ConsumerRebalanceListener):  # type: ignore[misc]
    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing: each batch is committed before the next is asked for."""

    async def on_partitions_assigned(self, assigned: Any) -> None:
        logger.info("cdc: reads {} partitions of {} topics", len(assigned), len({one.topic for one in assigned}))


def _partitions(error: KafkaError) -> list[TopicPartition]:
    """Those that such an error names: one, or a mapping from several to offsets."""
    (named,) = error.args
    return list(named) if isinstance(named, dict) else [named]
