"""The progress of a worker in its partitions, from one rebalance to the next: what is taken, held and committed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import TopicPartition

from cachebus.base.clock import monotonic
from cachebus.consumers.topics.held import NO_SHARDS, Held, HeldMessage
from cachebus.consumers.topics.note import Note, StartOffset
from cachebus.consumers.worker.source import Item, Left
from cachebus.producers.command import encode

YIELD_S: Final = 0.005
"""Taking over a batch yields to the event loop this often."""


class AssignmentProgress:
    """The progress in one assignment. It ends with the next rebalance: what is not committed by then is read again by
    the worker that gets the partition."""

    def __init__(
        self, assignment: Any, begins: Mapping[TopicPartition, StartOffset], notes: Mapping[str, Note]
    ) -> None:
        self.assignment = assignment
        self.taken: dict[TopicPartition, int] = {}
        """The offset behind what was taken last, by partition."""
        self.missed: dict[TopicPartition, str] = {}
        """Partitions in which messages were missed that are not made up for yet, and why."""
        self._first: dict[TopicPartition, int] = {}
        self._notes = dict(notes)
        self.begin(begins)
        self.held = Held()
        self.undone = deque[Item]()
        """Items for which there was no time: they come first."""
        self.broken = set[TopicPartition]()
        """Partitions that are read one message at a time, since one of the next messages can't be parsed."""
        self.committed: dict[TopicPartition, tuple[int, str]] = {}
        self._texts: dict[TopicPartition, str] = {}

    def begin(self, begins: Mapping[TopicPartition, StartOffset]) -> None:
        """Add partitions, with where they are read from."""
        first = {partition: begin.offset for partition, begin in begins.items()}
        self.taken |= first
        self._first |= first
        self.missed |= {partition: begin.missed for partition, begin in begins.items() if begin.missed}

    @property
    def unbegun(self) -> set[TopicPartition]:
        """Partitions of the assignment whose start is not known yet: nothing of them is read."""
        return set(self.assignment.tps) - self.taken.keys()

    def identity(self, topic: str) -> str:
        """The topic's identity when this assignment began."""
        return self._notes[topic].identity

    def identities(self) -> dict[str, str]:
        """The identities of the topics of which something is committed, and with it what was missed."""
        return {name: self.identity(name) for name in {one.topic for one in self.committed}}

    def l2(self, topic: str) -> str:
        """Where what is read of the topic is applied, as it was known when this assignment began."""
        return self._notes[topic].l2

    def losses(self) -> str:
        """What is missed, by the messages that come first behind it: another text where more was missed since."""
        parts = (f"{one.partition}/{self.identity(one.topic)}@{self._first[one]}" for one in self.missed)
        return " ".join(sorted(parts))

    def made_up(self, partitions: Sequence[TopicPartition]) -> None:
        """What was missed in these partitions is made up for."""
        for partition in partitions:
            if self.missed.pop(partition, None) is not None:
                self._texts.pop(partition, None)

    def to_commit(self) -> dict[TopicPartition, tuple[int, str]]:
        """The offsets that are due to be committed, with their notes: up to the first message that is held or
        undone."""
        first: dict[TopicPartition, int] = {}
        for item in self.undone:
            if not isinstance(item.raw, HeldMessage):
                partition = partition_of(item.raw)
                first[partition] = min(item.raw.offset, first.get(partition, item.raw.offset))
        found: dict[TopicPartition, tuple[int, str]] = {}
        for partition, taken in self.taken.items():
            held, undone = self.held.first(partition), first.get(partition, taken)
            up_to = min(taken, undone) if held is None else min(taken, undone, held)
            entry = up_to, self._text(partition)
            if self.committed.get(partition) != entry:
                found[partition] = entry
        return found

    async def acknowledge(self, left: Left) -> None:
        """Take over what is left of a batch."""
        waits = {id(one.item): one for one in left.waiting}
        letters = {id(one.item): one.letter for one in left.not_set_aside}
        items = {id(one.item): one.item for one in left.waiting}
        items |= {id(one.item): one.item for one in left.not_set_aside}
        tried: dict[HeldMessage, frozenset[int]] = {}
        kept: list[tuple[HeldMessage, frozenset[int]]] = []
        held_s = monotonic()
        for at, item in items.items():
            waiting = waits.get(at)
            shards = waiting.shards if waiting else NO_SHARDS
            commands = tuple(map(_bytes_of, waiting.commands)) if waiting else ()
            if isinstance(item.raw, HeldMessage):
                item.raw.commands, item.raw.letter = commands, letters.get(at)
                tried[item.raw] = shards
            else:
                one = HeldMessage(item.raw, partition_of(item.raw), commands, item.sent_s, item.again, letters.get(at))
                kept.append((one, shards))
            if monotonic() - held_s > YIELD_S:
                await asyncio.sleep(0)
                held_s = monotonic()
        self.held.tried(tried, {one.raw for one in left.undone if isinstance(one.raw, HeldMessage)})
        for given in kept:
            self.held.keep(*given)
        self.undone.extendleft(reversed([one for one in left.undone if not isinstance(one.raw, HeldMessage)]))

    def _text(self, partition: TopicPartition) -> str:
        text = self._texts.get(partition)
        if text is None:
            note = self._notes[partition.topic]._replace(missed=self.missed.get(partition, ""))
            text = self._texts[partition] = note.text()
        return text


def partition_of(record: Any) -> TopicPartition:
    """The partition of a message."""
    return TopicPartition(record.topic, record.partition)


def place_of(record: Any) -> str:
    """The place of a message, for people: "topic/0@12"."""
    return f"{record.topic}/{record.partition}@{record.offset}"


def _bytes_of(command: Any) -> bytes:
    if isinstance(command, str):
        return command.encode()
    return command if isinstance(command, bytes) else encode(command)
