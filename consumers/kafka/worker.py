"""From commands in a topic of Kafka to every cache, at least once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from loguru import logger
from prometheus_client import Counter

from cachebus.bus.kafka_client import Endings
from cachebus.bus.kafka_topic import ensure
from cachebus.cascade import Cascade
from cachebus.errors import ConfigError
from cachebus.plan import Plan
from cachebus.settings import Settings
from consumers.apply import REFUSED, Applier
from consumers.dead import DeadLetter
from consumers.topics.dead_topic import count_of
from consumers.topics.group import GroupWorker, Membership, Records
from consumers.topics.held import Asked
from producers.command import InvalidCommand
from producers.kafka.message import ATTEMPTS, LARGEST_BYTES, Seal, commands_access

REQUEST_TIMEOUT_S: Final = 10.0
NAMED: Final = 5
"""Letters that are named in the log when a batch has more of them."""
REASON_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker reads commands; `ConfigError` for what can't be."""

    group: str | None = None
    """The consumer group; by default the namespace: "cachebus". Namespaces that share a topic need one each."""
    batch: int = 2000
    """The most messages that are in hand at a time."""
    session_timeout_s: float = 10.0
    """So long after a worker vanished without a word others take its partitions over."""
    dead_topic: str | None = None
    """By default that of the commands with ".dead" behind it."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 100_000:
            raise ConfigError("a Kafka worker's batch must be 1 to 100000 messages")
        if not 1 <= self.session_timeout_s <= 300:
            raise ConfigError("a Kafka worker's session_timeout_s must be 1 to 300")

    def membership(self, settings: Settings) -> Membership:
        """A worker's place in its group; `ConfigError` where the settings say of no Kafka."""
        access = commands_access(settings, max(REQUEST_TIMEOUT_S, self.session_timeout_s + 5))
        dead_topic = self.dead_topic or f"{access.topic}.dead"
        if dead_topic == access.topic:
            raise ConfigError(f"dead letters can't go to {dead_topic}, where commands come from")
        return Membership(
            access.arguments(), self.group or settings.namespace, dead_topic, self.batch, self.session_timeout_s
        )


class Batch:
    """Messages on their way: what they address, and what of them is dead."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.dead: list[DeadLetter] = []
        self.ignored = 0
        self.again = 0


class CommandsWorker(GroupWorker):
    """Takes commands, applies them in L2, and only then commits; several share the partitions. `ConfigError`.

    Killed anywhere, what it had in hand comes again to whoever is there. What can't be applied is set aside in the
    topic of the dead with the reason before anything is committed; commands for other namespaces are passed over.
    """

    def __init__(
        self, settings: Settings, cascades: Iterable[Cascade] = (), options: WorkerOptions | None = None
    ) -> None:
        known = options or WorkerOptions()
        super().__init__("kafka", settings, known.membership(settings), cascades)
        self._access = commands_access(settings, REQUEST_TIMEOUT_S)
        self._seal = Seal(settings)
        self._cut = Counter(
            "cachebus_worker_cut", "How often Kafka had removed messages that were not read yet", ["worker"],
            registry=self.meters.registry,
        ).labels(self.name)  # fmt: skip
        self._before: dict[TopicPartition, int] = {}
        """By partition: up to where this worker has taken; what comes from before that comes again."""

    def _subscription(self) -> dict[str, Any]:
        return {"topics": [self._access.topic]}

    async def _prepared(self) -> None:
        endings = Endings()
        async with asyncio.timeout(self._access.timeout_s):
            await ensure(self._access, endings)
            await self._dead.ensure()  # now, not when the first letter waits for it
        await endings.over(self._access.timeout_s)

    async def _missed(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        self._cut.inc()
        for one in partitions:
            self._before.pop(one, None)
        logger.error(
            "kafka: commands of {} were removed before they were read (retention, or the topic was made anew): what "
            "they would have invalidated may be served until it expires. Invalidate what was written meanwhile by "
            "`cachebus invalidate`", ", ".join(f"{one.topic}/{one.partition}" for one in partitions),
        )  # fmt: skip
        await consumer.seek_to_beginning(*partitions)

    async def _carry(self, records: Records) -> None:
        batch = Batch()
        for several in records.values():
            for record in several:
                self._take(record, batch)
        if batch.dead:
            await self._dead.put(batch.dead)
        self._account(batch, await self._applied(batch.asked))
        for partition, several in records.items():
            self._before[partition] = several[-1].offset + 1

    def _take(self, record: Any, batch: Batch) -> None:
        headers = dict(record.headers)
        if self._seal.is_for_others(headers):
            batch.ignored += 1
            return
        try:
            plan = read(record.value, headers, self._seal, self._applier)
        except REFUSED as error:
            batch.dead.append(letter(record, str(error)))
        except Exception as error:  # noqa: BLE001 -- whatever one message does to us, those behind it must not wait
            batch.dead.append(letter(record, f"{type(error).__name__} while it was read"))
        else:
            partition = TopicPartition(record.topic, record.partition)
            again = record.offset < self._before.get(partition, 0)
            batch.again += again
            batch.asked.append(Asked(plan, partition, record.offset, None if again else record.timestamp / 1000))

    def _account(self, batch: Batch, applied: Sequence[Asked]) -> None:
        self._account_applied(applied)
        self.meters.done("again", batch.again)
        self.meters.done("ignored", batch.ignored)
        self.meters.done("dead", len(batch.dead))
        for dead in batch.dead[:NAMED]:
            logger.warning("kafka: {} is set aside (attempt {}): {}", dead.source, dead.attempts, dead.reason)
        if len(batch.dead) > NAMED:
            logger.warning("kafka: so are {} more, see {}", len(batch.dead) - NAMED, self.membership.dead_topic)


def read(value: bytes | None, headers: dict[str, bytes], seal: Seal, applier: Applier) -> Plan:
    """What a message asks for; one of `REFUSED`."""
    if value is None:
        raise InvalidCommand("it has no value")
    if len(value) > LARGEST_BYTES:
        raise InvalidCommand(f"it is {len(value)} bytes long, more than {LARGEST_BYTES}")
    seal.check(value, headers)
    return applier.plan_of(value)


def letter(record: Any, reason: str) -> DeadLetter:
    """The message as it came, with the reason, and counted once more."""
    before = (dict(record.headers).get(ATTEMPTS) or b"0").decode("ascii", "replace")
    return DeadLetter(
        record.value or b"", reason[:REASON_MAX], f"{record.topic}/{record.partition}@{record.offset}",
        count_of(before, 0) + 1, record.timestamp / 1000, record.key, tuple(record.headers),
    )  # fmt: skip
