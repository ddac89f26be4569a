"""Topics of Kafka as a worker's source: read as one of a group, of which several share the partitions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
)
from prometheus_client import CollectorRegistry, Counter

from cachebus.bus.kafka_client import Endings, quietly
from cachebus.consumers.topics import held
from cachebus.consumers.topics.brokers import METADATA_MAX_AGE_MS, Brokers, Topic
from cachebus.consumers.topics.dead_topic import LEAVE_S, DeadTopic
from cachebus.consumers.topics.membership import CLIENT, TROUBLE, Membership, describe
from cachebus.consumers.topics.session import TopicSession
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import Finding, Item, Meaning, Session, Source
from cachebus.errors import ConfigError
from cachebus.producers.command import Command

BURY_S: Final = 5.0
NO_POLL_LIMIT_MS: Final = 86_400_000
"""A batch that waits for L2 must not cost the place in the group: whoever got the partitions would wait likewise."""
NOT_LET: Final = (ConfigError, TopicAuthorizationFailedError, ClusterAuthorizationFailedError, PolicyViolationError)
"""What is raised where a topic can't be made: a look says so, with what helps."""


class TopicSource(Source):
    """What both kinds of workers share that read topics: which topics, and what messages mean, each says by itself."""

    part = "kafka"
    trouble = TROUBLE
    poison = (ValueError, TypeError, MessageSizeTooLargeError)
    bury_s = BURY_S
    again_s = held.LONGEST_S
    assumptions = ("topic", "offsets", "codecs", "rights", "group", "transactions")

    def __init__(self, name: str, membership: Membership) -> None:
        self.name = name
        self.membership = membership
        self.limit = membership.batch
        self.dead = DeadTopic(membership.clients, membership.dead_topic)
        self.identities: dict[str, str] = {}
        """Of the topics that were read, over all sessions."""
        self.before: dict[tuple[str, Any], int] = {}
        """By a topic's identity and the partition: up to where this worker has taken; what is before comes again."""
        self.cut: Counter
        self.unreadable: Counter

    # -- what each kind says its own way ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def subscription(self) -> dict[str, Any]:
        """Arguments of the driver's `subscribe`."""

    @property
    @abstractmethod
    def asked(self) -> Collection[str] | None:
        """The topics that brokers are asked about; None for all."""

    @abstractmethod
    def named(self, topics: Mapping[str, Topic]) -> list[str]:
        """The topics, of all that are there, that are read."""

    @abstractmethod
    def mean(self, item: Item) -> Meaning:
        """What a message asks for."""

    @abstractmethod
    def letter(self, record: Any, reason: str) -> DeadLetter:
        """The message as it is set aside."""

    @abstractmethod
    async def prepare(self) -> None:
        """See to it that there are topics to read from, where that is this worker's business."""

    @abstractmethod
    async def look_at(self, brokers: Brokers, topics: Mapping[str, Topic]) -> list[Finding]:
        """What is wrong with the topics."""

    def scopes(self, findings: Sequence[Finding]) -> tuple[list[Command], list[str]]:
        """What may have been missed by these: nobody can tell by itself."""
        return [], [finding.subject for finding in findings]

    # -- what both do -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`. Not in the group until something is taken."""
        with quietly():  # aiokafka would tell each attempt of a broker that is away
            async with AsyncExitStack() as stack:
                endings = Endings()
                stack.push_async_callback(endings.over, LEAVE_S)
                stack.push_async_callback(self.dead.aclose)
                brokers = Brokers(await stack.enter_async_context(endings.running(self._admin())))
                consumer = await stack.enter_async_context(endings.running(self._consumer()))
                session = TopicSession(self, brokers, consumer)
                stack.push_async_callback(session.commits.aclose)
                yield session

    async def make_topics(self) -> None:
        """Those that are missing and may be made; a look tells of the others."""
        with suppress(*NOT_LET):
            await self.prepare()
        with suppress(*NOT_LET):
            await self.dead.ensure()  # now, not when the first letter waits for it

    @property
    def _clients(self) -> dict[str, Any]:
        return {**self.membership.clients, "client_id": f"{CLIENT}{self.membership.namespace}"}

    def _admin(self) -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(**self._clients, metadata_max_age_ms=METADATA_MAX_AGE_MS)

    def _consumer(self) -> AIOKafkaConsumer:
        member = self.membership
        return AIOKafkaConsumer(
            **self._clients,
            group_id=member.group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a log that was cut before it was read is to be told, not skipped
            isolation_level="read_committed",
            metadata_max_age_ms=METADATA_MAX_AGE_MS,  # so soon new topics and partitions are found
            fetch_max_wait_ms=200,
            max_poll_interval_ms=NO_POLL_LIMIT_MS,
            session_timeout_ms=int(member.session_timeout_s * 1000),
            heartbeat_interval_ms=int(member.session_timeout_s * 300),
        )

    def describe(self, error: BaseException) -> str:
        """See `Source.describe`."""
        return describe(error)

    def register(self, registry: CollectorRegistry) -> None:
        """See `Source.register`."""
        self.cut = Counter(
            "cachebus_worker_cut",
            "How often Kafka had removed messages that were not read yet",
            ["worker"],
            registry=registry,
        ).labels(self.name)
        self.unreadable = Counter(
            "cachebus_worker_unreadable",
            "Messages that could not be taken apart, and were stepped over",
            ["worker"],
            registry=registry,
        ).labels(self.name)
