"""Messages as a worker takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers.source import Item
from consumers.topics.committing import assignment_of
from consumers.topics.share import Share, place_of
from consumers.topics.unreadable import is_unreadable, stepped_over

if TYPE_CHECKING:
    from consumers.topics.source import TopicSource

ONE_BY_ONE_MS: Final = 200


class Reader:
    """Of one session."""

    def __init__(self, source: TopicSource, consumer: AIOKafkaConsumer) -> None:
        self._source = source
        self._consumer = consumer

    def taken(self, share: Share, records: Mapping[TopicPartition, Sequence[Any]]) -> list[Item]:
        """What the driver has given; nothing, where it is of an assignment that has not been begun."""
        if assignment_of(self._consumer) is not share.assignment:  # they are the next one's, and come again
            return []
        items: list[Item] = []
        for partition, several in records.items():
            before = self._source.before.get((share.identity(partition.topic), partition), 0)
            place = f"{partition.topic}/{partition.partition}@"
            items += [
                Item(f"{place}{one.offset}", one, (one.timestamp or 0) / 1000, one.offset < before) for one in several
            ]
        self._positions(share)
        return items

    def _positions(self, share: Share) -> None:
        """Where the driver is, is what was taken; also behind what is no message."""
        for partition in share.taken:
            state = share.assignment.state_value(partition)
            if state is not None and state.has_valid_position:
                share.taken[partition] = state.position

    def go_back(self, share: Share) -> None:
        """To behind what was taken: what the driver had given of other partitions is lost with what it raised."""
        for partition, offset in share.taken.items():
            self._consumer.seek(partition, offset)

    async def one_by_one(self, share: Share, limit: int) -> list[Item]:
        """The messages of a partition up to one that can't be read, and that one."""
        partition = min(share.broken)
        records: list[Any] = []
        while len(records) < limit:
            try:
                found = await self._consumer.getmany(partition, timeout_ms=ONE_BY_ONE_MS, max_records=1)
            except Exception as error:
                if not is_unreadable(error):
                    raise
                at = share.assignment.state_value(partition).position
                unreadable = await stepped_over(self._consumer, partition, at, error)
                self._source.unreadable.inc(unreadable.behind - unreadable.offset)
                share.broken.discard(partition)
                return [*self.taken(share, {partition: records}), Item(place_of(unreadable), unreadable)]
            if not found:
                share.broken.discard(partition)
                break
            records += found[partition]
        return self.taken(share, {partition: records})
