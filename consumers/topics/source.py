"""Topics of Kafka as a worker's source. Several workers of one group share the partitions."""

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

from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import quietly
from cachebus.bus.kafka.driver import by_any
from cachebus.bus.kafka.endings import Endings
from cachebus.consumers.topics import held
from cachebus.consumers.topics.brokers import METADATA_MAX_AGE_MS, BrokerAdmin, Topic
from cachebus.consumers.topics.dead_topic import LEAVE_S, DeadTopic
from cachebus.consumers.topics.identities import TopicIdentities
from cachebus.consumers.topics.membership import CLIENT, TROUBLE, Membership, describe
from cachebus.consumers.topics.note import Note
from cachebus.consumers.topics.session import TopicSession
from cachebus.consumers.topics.unread import UnreadMessages
from cachebus.consumers.worker import commands
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import Finding, Item, Meaning, Session, Source
from cachebus.errors import ConfigError
from cachebus.producers.command import Command

SET_ASIDE_S: Final = 5.0
OPEN: Final = "PLAINTEXT"
"""The protocol of brokers that ask for no credentials."""
NO_POLL_LIMIT_MS: Final = 86_400_000
"""A batch that waits for L2 must not end the membership: a worker that got the partitions would wait as well."""
NOT_LET: Final = (ConfigError, TopicAuthorizationFailedError, ClusterAuthorizationFailedError, PolicyViolationError)
"""Errors when a topic can't be created. A check reports it, with what helps."""


class TopicSource(Source):
    """What all sources on topics share. Each says which topics it reads, and what messages mean."""

    part = "kafka"
    trouble = TROUBLE
    poison = (ValueError, TypeError, MessageSizeTooLargeError)
    set_aside_s = SET_ASIDE_S
    again_s = held.LONGEST_S
    assumptions = ("topic", "offsets", "codecs", "rights", "group", "transactions")

    def __init__(self, name: str, membership: Membership) -> None:
        self.name = name
        self.membership = membership
        self.limit = membership.batch
        self.any_broker = Brokers(membership.access)
        """Over all sessions: it knows which cluster is ours."""
        self.dead = DeadTopic(membership, self.any_broker)
        self.letters_at = f"the topic {membership.dead_topic}"
        self.options = {
            "--bootstrap-servers": membership.access.servers,
            "--group": membership.group,
            "--dead-topic": membership.dead_topic,
            "--namespace": commands.given("namespace", membership.namespace),
        }
        is_open = membership.access.security.get("security_protocol", OPEN) == OPEN
        self.variables = () if is_open else (commands.KAFKA,)
        self.said = ""
        """What rules and cascades say, where there are any: another text where they say another thing."""
        self.identities = TopicIdentities(membership.namespace, membership.dead_topic)
        """The identities of the topics that were read, over all sessions."""
        self.before: dict[tuple[str, Any], int] = {}
        """How far this worker has taken messages before, by topic identity and partition: earlier ones come again."""
        self.warnings: Sequence[str] = ()
        """What the last check has found that may be a mistake."""
        self.unread = UnreadMessages()
        self.cut: Counter
        self.unreadable: Counter

    # -- what each source says ----------------------------------------------------------------------------------------

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
        """The names of those topics that are read."""

    @abstractmethod
    def mean(self, item: Item) -> Meaning:
        """What a message asks for."""

    @abstractmethod
    def letter(self, record: Any, reason: str) -> DeadLetter:
        """The dead letter of a message."""

    @abstractmethod
    async def prepare(self) -> None:
        """Create the topics to read from, where that is the worker's task."""

    @abstractmethod
    async def look_at(self, brokers: BrokerAdmin, topics: Mapping[str, Topic]) -> list[Finding]:
        """What is wrong with the topics."""

    def origin(self, partition: str) -> str:
        """See `Session.origin`: by default the topic and the partition."""
        return partition

    def scopes(self, findings: Sequence[Finding]) -> list[Command] | None:
        """See `Session.scopes`: by default nobody can name what was missed."""
        return None

    def note_of(self, topic: Topic) -> Note:
        """What is noted beside the offsets of a topic whose messages are all told."""
        return Note(self.membership.namespace, topic.identity, said=self.said, l2=self.identity())

    # -- what all sources do ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`. The session joins the group with its first `take`."""
        with quietly():  # aiokafka logs each failed attempt
            async with AsyncExitStack() as stack:
                endings = Endings()
                stack.push_async_callback(self.any_broker.forget)
                stack.push_async_callback(endings.over, LEAVE_S)
                stack.push_async_callback(self.dead.aclose)
                brokers = BrokerAdmin(await stack.enter_async_context(endings.running(self._admin())))
                consumer = await stack.enter_async_context(endings.running(self._consumer()))
                session = TopicSession(self, brokers, consumer)
                stack.push_async_callback(session.aclose)
                stack.push_async_callback(session.commits.aclose)
                yield session

    async def make_topics(self) -> None:
        """Create missing topics, as far as this user may. A check reports the others."""
        with suppress(*NOT_LET):
            await self.prepare()
        with suppress(*NOT_LET):
            await self.dead.ensure()  # now, so that the first letter does not wait for it

    @property
    def _clients(self) -> dict[str, Any]:
        return {**self.membership.clients, "client_id": f"{CLIENT}{self.membership.namespace}"}

    def _admin(self) -> AIOKafkaAdminClient:
        return by_any(AIOKafkaAdminClient(**self._clients, metadata_max_age_ms=METADATA_MAX_AGE_MS), self.any_broker)

    def _consumer(self) -> AIOKafkaConsumer:
        member = self.membership
        consumer = AIOKafkaConsumer(
            **self._clients,
            group_id=member.group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # messages that were removed unread must be reported, not skipped
            isolation_level="read_committed",
            metadata_max_age_ms=METADATA_MAX_AGE_MS,  # how soon new topics and partitions are found
            fetch_max_wait_ms=200,
            max_poll_interval_ms=NO_POLL_LIMIT_MS,
            session_timeout_ms=int(member.session_timeout_s * 1000),
            heartbeat_interval_ms=int(member.session_timeout_s * 300),
        )
        return by_any(consumer, self.any_broker)

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
