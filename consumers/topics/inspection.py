"""The checks of a worker that reads topics: what it assumes of topics, group and rights, and how much waits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition, codec

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.topics.brokers import (
    DESCRIBE,
    EARLIEST,
    LATEST,
    NOT_ALLOWED,
    READ,
    WRITE,
    Committed,
    Group,
    Topic,
)
from cachebus.consumers.topics.held import HeldMessage
from cachebus.consumers.topics.membership import CLIENT
from cachebus.consumers.topics.note import ANEW, REMEDY, WHY, begin_at, note_of
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Finding, Look
from cachebus.errors import BusUnavailable

if TYPE_CHECKING:
    from cachebus.consumers.topics.progress import Progress
    from cachebus.consumers.topics.session import TopicSession

LOOK_TIMEOUT_S: Final = 15.0
"""How long one check may take, with all its questions to brokers that may be far away, or busy."""
KEPT_MS: Final = 86_400_000
"""If dead letters are kept for less than this, they may be gone before anybody looks."""
OPEN_S: Final = 60.0
"""A transaction that is open for longer is reported."""
MISSING: Final = "it is missing"
UNKNOWN: Final = 3
SENT_FROM_S: Final = 1_420_000_000.0
"""A time before 2015 is not a real one."""


class TopicInspector:
    """Checks topics and group for one session."""

    def __init__(self, session: TopicSession) -> None:
        self._session = session
        self._source = session.source
        self.told: tuple[Progress | None, dict[TopicPartition, tuple[str, str]]] = None, {}
        """What was missed, as it was last reported: the assumption and subject of each partition."""
        self._missing = 0
        """In how many checks in a row some topic was missing."""
        self._stuck: dict[TopicPartition, tuple[int, float]] = {}
        """Where the open transaction of a partition begins, and since when it is seen."""

    async def look(self) -> Look:
        """See `Session.look`."""
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            return await self._look()

    async def _look(self) -> Look:
        source, session = self._source, self._session
        topics = await session.brokers.topics(source.asked)
        named = source.named(topics)
        self._begun_anew(topics)
        findings = [*await source.look_at(session.brokers, topics), *self._rights(topics, named), *_codecs()]
        self._missing = self._missing + 1 if any(one.problem == MISSING for one in findings) else 0
        group = await session.brokers.group(source.membership.group)
        if not group.allowed:
            return Look([*findings, self._not_in_group()])
        committed = await session.brokers.committed(source.membership.group)
        other = self._other(group, committed)
        if other is not None and session.joined:
            raise BusUnavailable(str(other))  # ends the session, which leaves the group
        findings += [other] if other is not None else []
        findings += self._strangers(group)
        findings += await self._kept(topics)
        positions = self._positions(topics, named, committed)
        ends = await session.brokers.offsets(topics, positions, LATEST)
        stable = await session.brokers.offsets(topics, positions, LATEST, committed=True)
        findings += self._missed() if session.joined else await self._to_be_missed(topics, positions, committed)
        findings += self._open_transactions(ends, stable)
        return self._counted(findings, positions, ends)

    # -- topics -------------------------------------------------------------------------------------------------------

    def _begun_anew(self, topics: Mapping[str, Topic]) -> None:
        """If a topic was deleted and made again, read it from its first message."""
        progress = self._session.progress
        for name in {one.topic for one in progress.taken} if progress is not None else ():
            now = topics[name].identity if name in topics and not topics[name].error else ""
            if progress is not None and now and progress.identity(name) and now != progress.identity(name):
                self._session.begin_anew()

    def _rights(self, topics: Mapping[str, Topic], named: Collection[str]) -> Iterable[Finding]:
        wanted = [(name, READ, "Read") for name in named]
        wanted.append((self._source.membership.dead_topic, WRITE, "Write"))
        for name, operation, verb in wanted:
            topic = topics.get(name)
            if topic is None:
                continue
            if topic.error in NOT_ALLOWED or not topic.may(operation) or not topic.may(DESCRIBE):
                yield Finding(
                    "rights",
                    clean(name),
                    f"this user has not the rights {verb} and Describe",
                    f"kafka-acls.sh --add --allow-principal User:NAME --operation {verb} --operation Describe "
                    f"--topic {clean(name)}",
                )

    async def _kept(self, topics: Mapping[str, Topic]) -> Iterable[Finding]:
        """Whether the topic of dead letters keeps them."""
        name = self._source.membership.dead_topic
        if name not in topics or topics[name].error:
            return []
        told = await self._session.brokers.configuration(name)
        retention_ms = int(told.get("retention.ms") or -1)
        if "compact" in (told.get("cleanup.policy") or ""):
            problem = "it is compacted: it refuses letters without a key, and keeps one of each key"
        elif 0 <= retention_ms < KEPT_MS:
            problem = f"letters are removed from it after {retention_ms / 1000:.0f} s"
        else:
            return []
        return [Finding("topic", clean(name), problem, altered(name, "cleanup.policy=delete,retention.ms=-1"))]

    async def mend(self) -> bool:
        """Create a topic that is missing in two checks in a row: somebody may be about to make it again. At the start
        it is created at once."""
        if self._missing and (self._missing > 1 or not self._session.joined):
            await self._source.make_topics()
            return True
        return False

    # -- the group ----------------------------------------------------------------------------------------------------

    def _not_in_group(self) -> Finding:
        name = self._source.membership.group
        return Finding(
            "rights",
            clean(name),
            "this user may not be in this group",
            f"kafka-acls.sh --add --allow-principal User:NAME --operation Read --group {clean(name)}",
            stops=True,
        )

    def _other(self, group: Group, committed: Mapping[TopicPartition, Committed]) -> Finding | None:
        """Whether another namespace's workers have this group. Each would get only a part of the messages. The group
        belongs to the namespace that has committed something."""
        ours, name = self._source.membership.namespace, self._source.membership.group
        found = {note_of(one.note).namespace for one in committed.values()} - {""}
        if not found:
            found = {client.removeprefix(CLIENT) for client in group.clients if client.startswith(CLIENT)} | {ours}
        owner = min(found)
        if owner == ours:
            return None
        return Finding(
            "group",
            clean(name),
            f"it serves the caches of the namespace {clean(owner)}, not those of {ours}",
            f"give this worker a group of its own by --group; or, when nobody is in it any more: "
            f"kafka-consumer-groups.sh --delete --group {clean(name)}",
            stops=True,
        )

    def _strangers(self, group: Group) -> Iterable[Finding]:
        """Other programs in the group: nobody applies the messages that they get."""
        found = sorted(client for client in group.clients if not client.startswith(CLIENT))
        if found:
            name = clean(self._source.membership.group)
            yield Finding(
                "group",
                name,
                f"other programs are in it ({clean(', '.join(found[:5]))}), and are given some of the partitions: "
                "nobody applies what they read",
                f"end them, or give this worker a group of its own by --group; who is in it: "
                f"kafka-consumer-groups.sh --describe --members --group {name}",
                missed=True,
            )

    def _missed(self) -> Iterable[Finding]:
        progress = self._session.progress
        missed = dict(progress.missed) if progress is not None else {}
        self.told = progress, {one: _named(one, why) for one, why in missed.items()}
        return _of_missed(missed, "" if progress is None else progress.losses())

    async def _to_be_missed(
        self,
        topics: Mapping[str, Topic],
        partitions: Iterable[TopicPartition],
        committed: Mapping[TopicPartition, Committed],
    ) -> Iterable[Finding]:
        """What a worker that starts now will find missed. It makes up for that once it has started."""
        first = await self._session.brokers.offsets(topics, partitions, EARLIEST)
        source, known = self._source, self._source.identities
        begins = {
            one: begin_at(committed.get(one), at, source.note_of(topics[one.topic]), known.get(one.topic))
            for one, at in first.items()
        }
        found = _of_missed({one: begin.missed for one, begin in begins.items() if begin.missed})
        return [finding._replace(missed=False) for finding in found]

    # -- what waits ---------------------------------------------------------------------------------------------------

    def _positions(
        self, topics: Mapping[str, Topic], named: Iterable[str], committed: Mapping[TopicPartition, Committed]
    ) -> dict[TopicPartition, int]:
        """Where this worker is in each partition. If it is not in the group: where the group has committed."""
        progress = self._session.progress
        if progress is not None:
            return progress.taken | progress.held.left_there
        if self._session.joined:
            return {}
        there = [TopicPartition(name, part) for name in named for part in topics[name].leaders]
        return {one: committed[one].offset if one in committed else 0 for one in there}

    def _open_transactions(
        self, ends: Mapping[TopicPartition, int], stable: Mapping[TopicPartition, int]
    ) -> Iterable[Finding]:
        now_s = monotonic()
        open_at = {one: at for one, at in stable.items() if at < ends.get(one, at)}
        self._stuck = {
            one: self._stuck[one] if one in self._stuck and self._stuck[one][0] == at else (at, now_s)
            for one, at in open_at.items()
        }
        for one, (at, since_s) in self._stuck.items():
            if now_s - since_s >= OPEN_S:
                yield Finding(
                    "transactions",
                    f"{clean(one.topic)}/{one.partition}",
                    f"a transaction is open since the message {at}, and all behind that waits",
                    "end its producer, or find it by kafka-transactions.sh find-hanging, and abort it",
                )

    def _counted(
        self, findings: list[Finding], positions: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> Look:
        session = self._session
        progress = session.progress
        new = [item for item in session.in_hand if not isinstance(item.raw, HeldMessage)]
        held = len(progress.held) if progress is not None else 0
        kept = held + len(new) + (len(progress.undone) if progress is not None else 0)
        unread = sum(max(0, ends[one] - at) for one, at in positions.items() if one in ends)
        sent_s = [item.sent_s for item in new if item.sent_s is not None]
        if progress is not None and progress.held.sent_s is not None:
            sent_s.append(progress.held.sent_s)
        true_s = [at_s for at_s in sent_s if at_s > SENT_FROM_S]
        oldest_s = max(0.0, wall_s() - min(true_s)) if true_s else None if kept + unread else 0.0
        return Look(findings, kept + unread, oldest_s, held=held)


def altered(topic: str, config: str) -> str:
    """The command that changes a topic's configuration."""
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {clean(topic)} --add-config {config}"


def _named(partition: TopicPartition, why: str) -> tuple[str, str]:
    return "topic" if why == ANEW else "offsets", clean(partition.topic)


def _of_missed(missed: Mapping[TopicPartition, str], state: str = "") -> Iterable[Finding]:
    found: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for one, why in missed.items():
        found[_named(one, why)][why].append(one.partition)
    for (assumption, subject), by_why in found.items():
        problem = "; ".join(
            f"{WHY[why]} (partitions {', '.join(map(str, sorted(parts)))})" for why, parts in by_why.items()
        )
        remedy = "; ".join(REMEDY[why] for why in by_why if REMEDY[why])
        yield Finding(assumption, subject, problem, remedy, missed=True, over=True, state=state)


def _codecs() -> Iterable[Finding]:
    missing = [name for name in ("snappy", "lz4", "zstd") if not getattr(codec, f"has_{name}")()]
    if missing:
        yield Finding(
            "codecs",
            "kafka",
            f"messages that are compressed by {', '.join(missing)} can't be read",
            "pip install 'cachebus[kafka]'",
        )
