"""Commits offsets to the group, while the worker takes the next batch."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    OffsetMetadataTooLargeError,
    RebalanceInProgressError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)
from aiokafka.structs import OffsetAndMetadata

from cachebus.consumers.topics.brokers import AGAIN_S
from cachebus.consumers.topics.identities import TopicIdentities
from cachebus.consumers.topics.progress import AssignmentProgress
from cachebus.resp import ended

COMMIT_S: Final = 10.0
MOVED_ON: Final = (
    IllegalStateError,
    RebalanceInProgressError,
    IllegalGenerationError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)
"""Errors after which the partitions are another worker's, or nobody's. What was not committed comes again to it."""


def assignment_of(consumer: AIOKafkaConsumer) -> Any:
    """The driver's current assignment; None during a rebalance."""
    subscription = consumer._subscription.subscription
    assignment = None if subscription is None else subscription.assignment
    return assignment if assignment is not None and assignment.active else None


class Committer:
    """Commits one after the other, each while the next batch is taken."""

    def __init__(self, consumer: AIOKafkaConsumer, identities: TopicIdentities) -> None:
        self._consumer = consumer
        self._identities = identities
        self.is_unkept = True
        """Whether the topics' identities may be to be kept."""
        self._committing: asyncio.Task[None] | None = None

    async def commit(self, progress: AssignmentProgress) -> None:
        """Begin to commit what is due, once the last commit has ended. After a rebalance nothing is committed."""
        await self.committed()
        due = progress.to_commit()
        is_current = assignment_of(self._consumer) is progress.assignment
        if (due or self.is_unkept) and is_current and self._committing is None:
            self._committing = asyncio.create_task(self._committed(progress, due))

    async def committed(self) -> None:
        """Wait for the commit under way; raises its error."""
        while (task := self._committing) is not None:
            await asyncio.wait((task,))
            if self._committing is task:
                self._committing = None
                task.result()

    async def _committed(self, progress: AssignmentProgress, due: dict[TopicPartition, tuple[int, str]]) -> None:
        with suppress(*MOVED_ON):
            async with asyncio.timeout(COMMIT_S):
                await self._tried({one: OffsetAndMetadata(*entry) for one, entry in due.items()}, progress.assignment)
            progress.committed |= due
            if self.is_unkept:
                await self._keep_identities(progress)

    async def _keep_identities(self, progress: AssignmentProgress) -> None:
        """Keep the identities of topics, once it is noted what was missed as they became others."""
        self.is_unkept = False
        self._identities.took(progress.identities())
        text = self._identities.due(progress.identities())
        if text is not None:
            with suppress(TopicAuthorizationFailedError, OffsetMetadataTooLargeError):  # a check warns of the first
                async with asyncio.timeout(COMMIT_S):
                    await self._tried({self._identities.place: OffsetAndMetadata(0, text)}, progress.assignment)
                self._identities.kept(text)

    async def aclose(self) -> None:
        """Wait for the commit under way, for a while, then cancel it: at once where whoever waits is cancelled."""
        task = self._committing
        if task is not None:
            try:
                await asyncio.wait((task,), timeout=COMMIT_S / 2)
            finally:
                await ended(task)

    async def _tried(self, offsets: dict[TopicPartition, OffsetAndMetadata], assignment: Any) -> None:
        """Commit as the driver's `commit` does. That one logs an error if it is cancelled."""
        coordinator = self._consumer._coordinator
        while True:
            await coordinator.ensure_coordinator_known()
            try:
                async with coordinator._commit_lock:
                    await coordinator._do_commit_offsets(assignment, offsets)
            except KafkaError as error:
                if not error.retriable or isinstance(error, MOVED_ON):
                    raise
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def over(self) -> None:
        """Wait for the commit under way, whether or not it fails."""
        if self._committing is not None:
            await asyncio.wait((self._committing,))
