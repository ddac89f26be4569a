"""The source that is Debezium's topics on Kafka: a consumer group that commits what has been applied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from loguru import logger

from cachebus.errors import ConfigError
from cachebus.settings import Settings
from consumers.cdc.carry import Batch, Carrier
from consumers.cdc.change import UnusableChange
from consumers.cdc.debezium import parse_envelope
from consumers.cdc.router import Router
from consumers.cdc.rules import Rules
from consumers.topics.group import GroupWorker, Membership, Records
from consumers.topics.held import Asked

DEAD_TOPIC: Final = "cachebus.cdc.dead"


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

    def membership(self) -> Membership:
        """Its place in the group."""
        return Membership(self.client(), self.group, self.dead_topic, self.batch, self.session_timeout_s)


class TopicsWorker(GroupWorker):
    """Follows Debezium's topics; several share the partitions."""

    def __init__(self, settings: Settings, rules: Rules, source: KafkaSource) -> None:
        super().__init__("cdc", settings, source.membership(), rules.cascades)
        self.source = source
        try:
            self._topics = re.compile(f"(?:{source.topics})\\Z")
        except re.error as error:
            raise ConfigError(f"topics: {source.topics!r} is no regular expression: {error}") from None
        self._rules = rules
        self._router = Router(rules)
        self._carrier = Carrier(self._router, self._applier, self.meters)
        for rule in rules.rule:
            if rule.replica_identity is None and not {"update", "delete"}.isdisjoint(rule.operations):
                logger.warning(
                    "cdc: rule of {!r}: old rows count by their key alone; if the table has REPLICA IDENTITY FULL, say "
                    'so by replica_identity = "full"', rule.table,
                )  # fmt: skip

    def _subscription(self) -> dict[str, Any]:
        return {"pattern": self._topics.pattern}

    async def _missed(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        """All that the rules name goes."""
        named = ", ".join(f"{one.topic}/{one.partition}" for one in partitions)
        commands = self._router.everything(self._rules.tenants)
        logger.error(
            "cdc: Kafka has removed messages of {} that were not read yet: changes were missed. Invalidating all that "
            "the rules name, for the {} tenants at the head of the rules; others' caches may hold old rows until they "
            "expire", named, len(self._rules.tenants),
        )  # fmt: skip
        await consumer.seek_to_beginning(*partitions)  # before, so that what comes meanwhile is in it
        await self._applier.apply([self._applier.plan_of(command) for command in commands])

    async def _carry(self, records: Records) -> None:
        batch, asked = Batch(), list[Asked]()
        for partition, several in records.items():
            for record in several:
                known = len(batch.asks)
                self._take(record, batch)
                new = batch.asks[known:]
                asked += [Asked(ask.plan, partition, record.offset, ask.committed_s) for ask in new]
        if batch.dead:
            await self._dead.put(batch.dead)
            self._carrier.buried(batch.dead)
        self._account_applied(await self._applied(asked))
        self.meters.done("ignored", batch.ignored)

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
