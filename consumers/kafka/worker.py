"""Applies the commands in a topic of Kafka, at least once."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cachebus.base.log import logger
from cachebus.bus.kafka.topic import ensure, read_layout
from cachebus.cascade import Cascade
from cachebus.consumers.topics.brokers import BrokerAdmin, Topic
from cachebus.consumers.topics.dead_topic import count_of
from cachebus.consumers.topics.inspection import MISSING, UNKNOWN
from cachebus.consumers.topics.membership import Membership
from cachebus.consumers.topics.note import ANY_RULES
from cachebus.consumers.topics.progress import place_of
from cachebus.consumers.topics.source import TopicSource
from cachebus.consumers.topics.tools import altered, created, created_dead
from cachebus.consumers.worker import commands
from cachebus.consumers.worker.cascades import digest, reached
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import Cause, Finding, Item, Meaning
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.errors import ConfigError
from cachebus.producers.command import Command, InvalidateAllTenants, InvalidCommand
from cachebus.producers.kafka.message import ATTEMPTS, LARGEST_BYTES, Seal, commands_access
from cachebus.settings import Settings

REQUEST_TIMEOUT_S: Final = 10.0
NOTHING: Final = Meaning()


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker reads commands. `ConfigError` for options that can't be."""

    group: str | None = None
    """The consumer group; by default the namespace: "cachebus". Namespaces that share a topic need one each."""
    batch: int = 2000
    """The most messages of a batch."""
    session_timeout_s: float = 10.0
    """How long after a worker has died others take over its partitions, in seconds."""
    dead_topic: str | None = None
    """The topic of dead letters; by default the commands' topic followed by the namespace and ".dead"."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 100_000:
            raise ConfigError("a Kafka worker's batch must be 1 to 100000 messages")
        if not 1 <= self.session_timeout_s <= 300:
            raise ConfigError("a Kafka worker's session_timeout_s must be 1 to 300")

    def membership(self, settings: Settings) -> Membership:
        """The membership in the group; `ConfigError` if the settings name no Kafka."""
        access = commands_access(settings, max(REQUEST_TIMEOUT_S, self.session_timeout_s + 5))
        dead_topic = self.dead_topic or f"{access.topic}.{settings.namespace}.dead"
        if dead_topic == access.topic:
            raise ConfigError(f"dead letters can't go to {dead_topic}, where commands come from")
        return Membership(
            access.arguments(),
            self.group or settings.namespace,
            dead_topic,
            self.batch,
            self.session_timeout_s,
            settings.namespace,
        )


class CommandsSource(TopicSource):
    """The topic of commands. Commands for other namespaces are ignored."""

    def __init__(self, settings: Settings, options: WorkerOptions, cascades: Sequence[Cascade] = ()) -> None:
        super().__init__("kafka", options.membership(settings))
        self.said = digest(cascades)
        self._reached, self._shards = reached(cascades), settings.shards
        self._access = commands_access(settings, REQUEST_TIMEOUT_S)
        self._seal = Seal(settings)
        self.options = {**self.options, "--topic": commands.given("kafka_commands_topic", self._access.topic)}

    @property
    def subscription(self) -> dict[str, Any]:
        """See `TopicSource.subscription`."""
        return {"topics": [self._access.topic]}

    @property
    def asked(self) -> Collection[str]:
        """See `TopicSource.asked`."""
        return [self._access.topic, self.membership.dead_topic]

    def named(self, topics: Mapping[str, Topic]) -> list[str]:
        """See `TopicSource.named`."""
        return [self._access.topic]

    def mean(self, item: Item) -> Meaning:
        """See `TopicSource.mean`."""
        record = item.raw
        headers, value = dict(record.headers), record.value
        if headers and self._seal.is_for_others(headers):
            return NOTHING
        if value is None:
            raise InvalidCommand("it has no value")
        if len(value) > LARGEST_BYTES:
            raise InvalidCommand(f"it is {len(value)} bytes long, more than {LARGEST_BYTES}")
        self._seal.check(value, headers)
        return Meaning((value,))

    def letter(self, record: Any, reason: str) -> DeadLetter:
        """See `TopicSource.letter`."""
        return letter(record, reason)

    def scopes(self, findings: Sequence[Finding]) -> list[Command] | None:
        """See `TopicSource.scopes`: all that cascades reach, where others were followed before, and nothing else was
        missed."""
        if not all(finding.cause is Cause.RULES for finding in findings):
            return None
        shards = range(self._shards)
        return [
            InvalidateAllTenants(op="all_tenants", shard=shard, data_type=one)
            for one in self._reached
            for shard in shards
        ]

    def look_once(self) -> None:
        """See `TopicSource.look_once`. It may be asked without the cascades, or with such that are to come."""
        super().look_once()
        self.said = ANY_RULES

    async def prepare(self) -> None:
        """See `TopicSource.prepare`. A topic that was missing may be one whose name is mistyped."""
        async with asyncio.timeout(self._access.timeout_s):
            is_there = (await read_layout(self._access, self.any_broker)).leaders
            await ensure(self._access, self.any_broker)
        if not is_there:
            logger.warning(
                "kafka: the topic {} was missing, and is made: whoever sends commands to another one is not heard here",
                clean(self._access.topic),
            )

    async def look_at(self, brokers: BrokerAdmin, topics: Mapping[str, Topic]) -> list[Finding]:
        """See `TopicSource.look_at`."""
        name, dead = self._access.topic, self.membership.dead_topic
        findings = [
            Finding("topic", one, MISSING, how, cause=Cause.ABSENT)
            for one, how in (
                (name, created(self._access, name, self._access.partitions)),
                (dead, created_dead(self._access, dead)),
            )
            if one not in topics or topics[one].error == UNKNOWN
        ]
        policy = (await brokers.configuration(name)).get("cleanup.policy") or ""
        if "compact" in policy:
            findings.append(
                Finding(
                    "topic",
                    name,
                    "it is compacted, and keeps only the last message of each key",
                    altered(self._access, name, "cleanup.policy=delete"),
                    missed=True,
                )
            )
        return findings


class CommandsWorker(SourceWorker):
    """Takes commands, applies them in L2, and only then commits. Several workers share the partitions.

    If it is killed, what it had in hand comes again to another worker. What can't be applied is set aside in the topic
    of dead letters, with the reason, before anything is committed. Commands for other namespaces are ignored.
    `ConfigError` for settings that can't be.
    """

    source: CommandsSource

    def __init__(
        self, settings: Settings, cascades: Iterable[Cascade] = (), options: WorkerOptions | None = None
    ) -> None:
        followed = tuple(cascades)
        source = CommandsSource(settings, options or WorkerOptions(), followed)
        super().__init__("kafka", source, settings, followed)

    @property
    def membership(self) -> Membership:
        """Its membership in the group."""
        return self.source.membership


def letter(record: Any, reason: str) -> DeadLetter:
    """The dead letter of a message, with the reason, and one attempt more."""
    before = (dict(record.headers).get(ATTEMPTS) or b"0").decode("ascii", "replace")
    return DeadLetter(
        record.value or b"",
        reason,
        place_of(record),
        count_of(before, 0) + 1,
        record.timestamp / 1000,
        record.key,
        tuple(record.headers),
    )
