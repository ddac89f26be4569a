"""Debezium's topics on Kafka as a worker's source: a consumer group that commits what has been applied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cachebus.base.log import logger
from cachebus.consumers.cdc.rules.router import TABLES_REMEMBERED, Router
from cachebus.consumers.cdc.rules.rules import Rule, RuleFile
from cachebus.consumers.cdc.topics.debezium import parse_envelope
from cachebus.consumers.topics.brokers import BrokerAdmin, Topic
from cachebus.consumers.topics.inspection import MISSING
from cachebus.consumers.topics.membership import Membership
from cachebus.consumers.topics.progress import place_of
from cachebus.consumers.topics.source import TopicSource
from cachebus.consumers.topics.tools import created_dead
from cachebus.consumers.worker import commands
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import Cause, Finding, Item, Meaning
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.errors import ConfigError
from cachebus.producers.command import Command
from cachebus.settings import Settings

NOTHING = Meaning()
NAMED = 5
"""How many tables a warning names."""
READABLE = (
    "what the connector writes must be whole envelopes as JSON: value.converter=org.apache.kafka.connect.json."
    "JsonConverter, without ExtractNewRecordState"
)


@dataclass(frozen=True)
class KafkaSource:
    """The choice of topics, and of the Kafka that has them."""

    bootstrap_servers: str
    topics: str
    """A regular expression that matches a topic's whole name; several prefixes are joined by `|`."""
    group: str | None = None
    """The consumer group; by default the namespace followed by "-cdc": "cachebus-cdc"."""
    batch: int = 5000
    """The most messages of a batch."""
    session_timeout_s: float = 10.0
    """How long after a worker has died others take over its partitions, in seconds."""
    dead_topic: str | None = None
    """The topic of dead letters; by default the namespace followed by ".cdc.dead": "cachebus.cdc.dead"."""
    clients: Mapping[str, Any] = field(default_factory=dict)
    """More client settings of aiokafka, such as those of TLS and SASL."""
    namespace: str = "cachebus"
    """The namespace of the caches. A worker takes it from its settings."""
    shards: int = 1
    """How many shards the cache has. A worker takes it from its settings."""

    def client(self) -> dict[str, Any]:
        """The arguments of all clients."""
        return {"bootstrap_servers": self.bootstrap_servers, **self.clients}

    def membership(self) -> Membership:
        """The membership in its group."""
        return Membership(
            self.client(),
            self.group or f"{self.namespace}-cdc",
            self.dead_topic or f"{self.namespace}.cdc.dead",
            self.batch,
            self.session_timeout_s,
            self.namespace,
        )


class DebeziumSource(TopicSource):
    """Debezium's topics, routed by rules."""

    if_all_is_dead = READABLE

    def __init__(self, rules: RuleFile, given: KafkaSource) -> None:
        super().__init__("cdc", given.membership())
        self.options = {"--source": "kafka", **self.options}
        self.variables = (*self.variables, commands.L2)
        try:
            self._fits = re.compile(f"(?:{given.topics})\\Z")
        except re.error as error:
            raise ConfigError(f"topics: {given.topics!r} is no regular expression: {error}") from None
        if self._fits.match(self.membership.dead_topic):
            raise ConfigError(f"dead letters can't go to {self.membership.dead_topic}, where changes come from")
        self._pattern = given.topics
        self._rules = rules
        self._router = Router(rules, given.shards)
        self.said = self._router.said
        self._tables: set[str] = set()
        """Tables of which messages have come."""
        self._doubts = [
            f"rule of {rule.table!r}: PostgreSQL's old rows count by their key alone; if the table has REPLICA "
            'IDENTITY FULL, say so by replica_identity = "full"'
            for rule in rules.rule
            if rule.replica_identity is None and not {"update", "delete"}.isdisjoint(rule.operations)
        ]
        """Warnings about rules, whatever comes."""

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
        if len(self._tables) < TABLES_REMEMBERED:
            self._tables.add(f"{change.schema}.{change.table}")
        return self._router.meaning(change)

    def origin(self, partition: str) -> str:
        """See `TopicSource.origin`: the topic, which is a table's, whatever the partition."""
        return partition.rpartition("/")[0]

    def letter(self, record: Any, reason: str) -> DeadLetter:
        """See `TopicSource.letter`."""
        return DeadLetter(record.value or b"", reason, place_of(record), 1, record.timestamp / 1000, record.key)

    async def prepare(self) -> None:
        """See `TopicSource.prepare`. Nothing: Debezium creates its topics."""

    async def look_at(self, brokers: BrokerAdmin, topics: Mapping[str, Topic]) -> list[Finding]:
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
        self._warn([*self._doubts, *self._unmatched(self.named(topics))])
        dead = self.membership.dead_topic
        if dead not in topics:
            remedy = created_dead(self.membership.access, dead)
            findings.append(Finding("topic", dead, MISSING, remedy, cause=Cause.ABSENT))
        return findings

    def _unmatched(self, named: Sequence[str]) -> list[str]:
        """A warning if a rule's table has neither messages nor a topic, and a topic has no rule: a name may be
        mistyped. (A table that was never written has no topic either, so that alone is no reason.)"""
        places = {".".join(name.split(".")[-2:]) for name in named if name.count(".") > 1} | self._tables
        rules = [one for one in self._rules.rule if not any(self._is_of(one, place) for place in places)]
        others = sorted(place for place in places if not self._router.rules_of(*place.split(".", 1)))
        if not rules or not others:
            return []
        tables = ", ".join(dict.fromkeys(repr(one.table) for one in rules[:NAMED]))
        unused = f"no topic and no message is of the tables that these rules name: {tables}"
        return [f"{unused}; and no rule is for {', '.join(others[:NAMED])}. Is a name mistyped?"]

    def _is_of(self, rule: Rule, place: str) -> bool:
        return any(one is rule for one in self._router.rules_of(*place.split(".", 1)))

    def _warn(self, warnings: Sequence[str]) -> None:
        """Log each warning, unless it was one of the last check."""
        for warning in warnings:
            if warning not in self.warnings:
                logger.warning("cdc: {}", clean(warning, 2000))
        self.warnings = warnings

    def scopes(self, findings: Sequence[Finding]) -> list[Command]:
        """See `TopicSource.scopes`: all that the rules name."""
        return self._router.missed(self._rules.rule)


class TopicsWorker(SourceWorker):
    """Follows Debezium's topics. Several workers share the partitions. `ConfigError` for settings that can't be."""

    source: DebeziumSource

    def __init__(self, settings: Settings, rules: RuleFile, source: KafkaSource) -> None:
        self.given = replace(source, namespace=settings.namespace, shards=settings.shards)
        super().__init__("cdc", DebeziumSource(rules, self.given), settings, rules.cascades)
