"""The source that is Debezium's topics on Kafka: a consumer group that commits what has been applied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loguru import logger

from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import Rules
from cachebus.consumers.cdc.topics.debezium import parse_envelope
from cachebus.consumers.topics.brokers import Brokers, Topic
from cachebus.consumers.topics.looking import MISSING
from cachebus.consumers.topics.membership import Membership
from cachebus.consumers.topics.share import place_of
from cachebus.consumers.topics.source import TopicSource
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import Finding, Item, Meaning
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.errors import ConfigError
from cachebus.producers.command import Command
from cachebus.settings import Settings

NOTHING = Meaning()


@dataclass(frozen=True)
class KafkaSource:
    """Which topics of which Kafka."""

    bootstrap_servers: str
    topics: str
    """A regular expression that fits a topic's whole name: several prefixes by `|`."""
    group: str | None = None
    """By default the namespace with "-cdc" behind it: "cachebus-cdc"."""
    batch: int = 5000
    """Messages that are looked at together."""
    session_timeout_s: float = 10.0
    """So long after a worker vanished without a word others take its partitions over."""
    dead_topic: str | None = None
    """By default the namespace with ".cdc.dead" behind it: "cachebus.cdc.dead"."""
    clients: Mapping[str, Any] = field(default_factory=dict)
    """More of aiokafka's client settings, such as those of TLS and SASL."""
    namespace: str = "cachebus"
    """Whose caches it is for; a worker's is that of its settings."""

    def client(self) -> dict[str, Any]:
        """What all clients are given."""
        return {"bootstrap_servers": self.bootstrap_servers, **self.clients}

    def membership(self) -> Membership:
        """Its place in the group."""
        return Membership(
            self.client(),
            self.group or f"{self.namespace}-cdc",
            self.dead_topic or f"{self.namespace}.cdc.dead",
            self.batch,
            self.session_timeout_s,
            self.namespace,
        )


class DebeziumSource(TopicSource):
    """Debezium's topics, by rules."""

    if_unnamed = "Name tenants at the head of the rules, or invalidate it by hand"

    def __init__(self, rules: Rules, given: KafkaSource) -> None:
        super().__init__("cdc", given.membership())
        try:
            self._fits = re.compile(f"(?:{given.topics})\\Z")
        except re.error as error:
            raise ConfigError(f"topics: {given.topics!r} is no regular expression: {error}") from None
        if self._fits.match(self.membership.dead_topic):
            raise ConfigError(f"dead letters can't go to {self.membership.dead_topic}, where changes come from")
        self._pattern = given.topics
        self._rules = rules
        self._router = Router(rules)

    @property
    def subscription(self) -> dict[str, Any]:
        """See `TopicSource.subscription`."""
        return {"pattern": self._fits.pattern}

    @property
    def asked(self) -> None:
        """See `TopicSource.asked`."""
        return

    def named(self, topics: Mapping[str, Topic]) -> list[str]:
        """See `TopicSource.named`."""
        return [name for name, topic in topics.items() if self._fits.match(name) and not topic.error]

    def mean(self, item: Item) -> Meaning:
        """See `TopicSource.mean`."""
        change = parse_envelope(item.raw.value, item.raw.key)
        if change is None:
            return NOTHING
        item.sent_s = change.committed_at_s or item.sent_s
        return self._router.meaning(change)

    def letter(self, record: Any, reason: str) -> DeadLetter:
        """See `TopicSource.letter`."""
        return DeadLetter(record.value or b"", reason, place_of(record), 1, record.timestamp / 1000, record.key)

    async def prepare(self) -> None:
        """See `TopicSource.prepare`: Debezium makes them."""

    async def look_at(self, brokers: Brokers, topics: Mapping[str, Topic]) -> list[Finding]:
        """See `TopicSource.look_at`."""
        findings: list[Finding] = []
        if not self.named(topics):
            findings.append(
                Finding(
                    "topic",
                    clean(self._pattern),
                    "no topic that one may see fits it",
                    "look at --topics, at the connector's topic.prefix, and at this user's rights",
                )
            )
        dead = self.membership.dead_topic
        if dead not in topics:
            findings.append(Finding("topic", dead, MISSING, f"kafka-topics.sh --create --topic {dead} --partitions 1"))
        return findings

    def scopes(self, findings: Sequence[Finding]) -> tuple[list[Command], list[str]]:
        """See `TopicSource.scopes`: all that the rules name."""
        return self._router.missed(self._rules.rule)


class TopicsWorker(SourceWorker):
    """Follows Debezium's topics; several share the partitions. `ConfigError`."""

    source: DebeziumSource

    def __init__(self, settings: Settings, rules: Rules, source: KafkaSource) -> None:
        self.given = replace(source, namespace=settings.namespace)
        super().__init__("cdc", DebeziumSource(rules, self.given), settings, rules.cascades)
        for rule in rules.rule:
            if rule.replica_identity is None and not {"update", "delete"}.isdisjoint(rule.operations):
                logger.warning(
                    "cdc: rule of {!r}: PostgreSQL's old rows count by their key alone; if the table has REPLICA "
                    'IDENTITY FULL, say so by replica_identity = "full"',
                    rule.table,
                )
