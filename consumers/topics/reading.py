"""Reads messages, and steps over those that the driver can't parse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from cachebus.consumers.topics.commits import assignment_of
from cachebus.consumers.topics.progress import AssignmentProgress, place_of
from cachebus.consumers.topics.screen import BatchScreen
from cachebus.consumers.topics.unreadable import is_unreadable, stepped_over, where
from cachebus.consumers.worker.source import Item

if TYPE_CHECKING:
    from cachebus.consumers.topics.source import TopicSource

ONE_BY_ONE_MS: Final = 200


class TopicReader:
    """Reads messages for one session."""

    def __init__(self, source: TopicSource, consumer: AIOKafkaConsumer) -> None:
        self._source = source
        self._consumer = consumer
        self._screen = BatchScreen(consumer)

    def taken(self, progress: AssignmentProgress, records: Mapping[TopicPartition, Sequence[Any]]) -> list[Item]:
        """The items of these messages; none after a rebalance."""
        if assignment_of(self._consumer) is not progress.assignment:  # they are of the next assignment, and come again
            return []
        items: list[Item] = []
        for partition, several in records.items():
            if partition not in progress.taken:  # its start is not known yet: they come again
                continue
            before = self._source.before.get((progress.identity(partition.topic), partition), 0)
            place = f"{partition.topic}/{partition.partition}@"
            items += [
                Item(f"{place}{one.offset}", one, (one.timestamp or 0) / 1000, one.offset < before) for one in several
            ]
        self._positions(progress)
        return items

    def _positions(self, progress: AssignmentProgress) -> None:
        """Take over the driver's positions, which also pass what is no message, such as the end of a transaction."""
        for partition in progress.taken:
            state = progress.assignment.state_value(partition)
            if state is not None and state.has_valid_position:
                progress.taken[partition] = state.position

    def go_back(self, progress: AssignmentProgress) -> None:
        """Have the driver read on from what was taken: with its error it has lost messages of other partitions."""
        for partition, offset in progress.taken.items():
            self._consumer.seek(partition, offset)

    async def one_by_one(self, progress: AssignmentProgress, limit: int) -> list[Item]:
        """The messages of a broken partition, up to and with the one that can't be parsed, and messages of others."""
        partition = min(progress.broken)
        items = await self._up_to_broken(progress, partition, limit)
        progress.broken.discard(partition)
        others = progress.taken.keys() - progress.broken - {partition}
        if others and len(items) < limit:
            try:
                found = await self._consumer.getmany(*others, timeout_ms=0, max_records=limit - len(items))
            except Exception as error:  # noqa: BLE001 -- raised again, unless a message is to blame
                self.broke(progress, error)
            else:
                items += self.taken(progress, found)
        return items

    async def _up_to_broken(self, progress: AssignmentProgress, partition: TopicPartition, limit: int) -> list[Item]:
        records: list[Any] = []
        while len(records) < limit:
            try:
                found = await self._consumer.getmany(partition, timeout_ms=ONE_BY_ONE_MS, max_records=1)
            except Exception as error:
                if not is_unreadable(error):
                    raise
                at = progress.assignment.state_value(partition).position
                unreadable = await stepped_over(self._consumer, self._screen, partition, at, error)
                self._source.unreadable.inc(unreadable.behind - unreadable.offset)
                return [*self.taken(progress, {partition: records}), Item(place_of(unreadable), unreadable)]
            if not found:
                break
            records += found[partition]
        return self.taken(progress, {partition: records})

    def broke(self, progress: AssignmentProgress, error: Exception) -> None:
        """The driver has raised this while it read several partitions. If a message is to blame, its partition is read
        one message at a time from now on; otherwise the error is raised again."""
        broken = where(self._consumer) if is_unreadable(error) else None
        if broken is None:
            raise error
        progress.broken.add(broken)
        self.go_back(progress)
