"""Questions to brokers that the driver does not ask: a topic's identity, and what this user may do."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    IncompatibleBrokerVersion,
    KafkaError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.offset import OffsetRequest

from cachebus.consumers.topics.topics_request import TopicsRequest
from cachebus.resp import ended

METADATA_MAX_AGE_MS: Final = 5000
EARLIEST: Final = -2
LATEST: Final = -1
NOT_ALLOWED: Final = (29, 30)
"""Error codes for a topic, or a group, that this user may not see."""
NOT_YET: Final = (14, 15, 16)
"""Error codes for a group whose coordinator is not known yet."""
AGAIN_S: Final = 0.1
LATER_S: Final = 1.0
"""So much later than the first leader others may answer: one that hangs holds up nobody's partitions but its own."""
READ, WRITE, DESCRIBE = 3, 4, 8
"""Numbers of operations: bits in what this user may do."""


class Topic(NamedTuple):
    """A topic, as brokers know it now."""

    name: str
    error: int
    """0: it exists; 3: it does not; 29: this user may not see it."""
    identity: str = ""
    """Its id: a topic that is deleted and made again has another one. Empty where brokers are too old to tell."""
    leaders: Mapping[int, int] = {}
    """The leader of each partition, -1 for none."""
    operations: int | None = None
    """What this user may do with it, as bits; None, or negative, where brokers do not tell."""

    def may(self, operation: int) -> bool:
        """Whether this user may do that; True where brokers do not tell."""
        return _may(self.operations, operation)


class ConsumerGroup(NamedTuple):
    """A consumer group, as its coordinator knows it now."""

    clients: frozenset[str]
    """The client ids of its members."""
    allowed: bool = True
    """Whether this user may be in it."""


class Committed(NamedTuple):
    """A committed offset of a group, and the metadata that was committed with it."""

    offset: int
    note: str


class BrokerAdmin:
    """Asks brokers about topics and groups, over a connection of its own."""

    def __init__(self, admin: AIOKafkaAdminClient) -> None:
        """`admin`: a started client. Who made it closes it."""
        self.admin = admin

    async def topics(self, names: Collection[str] | None) -> dict[str, Topic]:
        """These topics; None for all that this user may see."""
        try:
            found = (await self.admin._send_request(TopicsRequest(names))).to_object()["topics"]
        except (NotImplementedError, IncompatibleBrokerVersion):  # before Kafka 3, or another broker of its protocol
            found = await self.admin.describe_topics(None if names is None else list(names))
        return {one.name: one for one in map(_topic, found)}

    async def offsets(
        self, topics: Mapping[str, Topic], partitions: Iterable[TopicPartition], which: int, *, committed: bool = False
    ) -> dict[TopicPartition, int]:
        """Offsets of these partitions, as far as they have a leader that answers, soon after the first that does.
        `which`: EARLIEST for the first message, LATEST for behind the last one. `committed`: only up to the first open
        transaction."""
        asked: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for one in partitions:
            leader = topics[one.topic].leaders.get(one.partition, -1) if one.topic in topics else -1
            if leader >= 0:
                asked[leader][one.topic].append((one.partition, which))
        answers = await _of_those_that_answer(
            self.admin._send_request(OffsetRequest(-1, int(committed), list(parts.items())), leader)
            for leader, parts in asked.items()
        )
        return {
            TopicPartition(topic, part): offset
            for answer in answers
            for topic, parts in answer.topics
            for part, error, _, offset in parts
            if not error
        }

    async def group(self, name: str) -> ConsumerGroup:
        """The members of a group."""
        try:
            answer = await self._of_group(name, DescribeGroupsRequest([name], include_authorized_operations=True))
        except GroupAuthorizationFailedError:
            return ConsumerGroup(frozenset(), allowed=False)
        ((error, _, _, _, _, members, *operations),) = answer.groups
        if error in NOT_ALLOWED or not all(_may(one, READ) for one in operations):
            return ConsumerGroup(frozenset(), allowed=False)
        raise_for(error, f"the group {name}")
        return ConsumerGroup(frozenset(str(client) for _, client, *_ in members))

    async def committed(self, group: str) -> dict[TopicPartition, Committed]:
        """All offsets that a group has committed."""
        answer = await self._of_group(group, OffsetFetchRequest(group, None))
        raise_for(answer.error_code, f"the group {group}")
        found: dict[TopicPartition, Committed] = {}
        for topic, parts in answer.topics:
            for part, offset, note, error in parts:
                raise_for(error, f"the group {group}")
                if offset >= 0:
                    found[TopicPartition(topic, part)] = Committed(offset, note or "")
        return found

    async def _of_group(self, group: str, request: Any) -> Any:
        """Send a request to the group's coordinator, as soon as there is one."""
        while True:
            try:
                answer = await self.admin._send_request(request, await self.admin.find_coordinator(group))
            except GroupCoordinatorNotAvailableError:
                pass
            else:
                errors = {getattr(answer, "error_code", 0), *(one[0] for one in getattr(answer, "groups", ()))}
                if errors.isdisjoint(NOT_YET):
                    return answer
            await asyncio.sleep(AGAIN_S)

    async def configuration(self, topic: str) -> dict[str, str | None]:
        """The configuration of a topic; empty where this user may not see it."""
        from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

        (answer,) = await self.admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        ((error, _, _, _, entries),) = answer.resources
        return {} if error else {name: value for name, value, *_ in entries}


async def _of_those_that_answer(questions: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The answers of leaders, without those that fail, or are later than `LATER_S` behind the first."""
    asked = [asyncio.create_task(question, name="cachebus-offsets") for question in questions]
    silent, answers = set(asked), list[Any]()
    try:
        while silent:
            done, silent = await asyncio.wait(
                silent, timeout=LATER_S if answers else None, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            for one in done:
                with suppress(KafkaError, OSError, TimeoutError):
                    answers.append(one.result())
        return answers
    finally:
        await ended(*asked)


def _may(operations: int | None, operation: int) -> bool:
    return operations is None or operations < 0 or bool(operations >> operation & 1)


def _topic(told: Mapping[str, Any]) -> Topic:
    return Topic(
        told["topic"],
        told["error_code"],
        told.get("identity", ""),
        {part["partition"]: part["leader"] for part in told["partitions"]},
        told.get("operations"),
    )


def raise_for(code: int, what: str) -> None:
    """Raise the driver's error for this code, unless it is 0."""
    if code:
        raise for_code(code)(what)
