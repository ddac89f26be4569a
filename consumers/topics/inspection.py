"""The checks of a worker that reads topics: what it assumes of topics, group and rights, and how much waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.topics.brokers import (
    DESCRIBE,
    EARLIEST,
    LATEST,
    NOT_ALLOWED,
    READ,
    WRITE,
    Committed,
    ConsumerGroup,
    Topic,
)
from cachebus.consumers.topics.findings import of_codecs, of_missed, of_unlike, subject_of
from cachebus.consumers.topics.held import HeldMessage
from cachebus.consumers.topics.membership import CLIENT
from cachebus.consumers.topics.note import L2, RULES, begin_at, note_of
from cachebus.consumers.topics.progress import partition_of
from cachebus.consumers.topics.tools import altered, tool
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import AGREE_LOOKS, SENT_FROM_S, Cause, Finding, Look
from cachebus.errors import BusUnavailable

if TYPE_CHECKING:
    from cachebus.consumers.topics.progress import AssignmentProgress
    from cachebus.consumers.topics.session import TopicSession

LOOK_TIMEOUT_S: Final = 15.0
"""How long one check may take, with all its questions to brokers that may be far away, or busy."""
KEPT_MS: Final = 86_400_000
"""If dead letters are kept for less than this, they may be gone before anybody looks."""
OPEN_S: Final = 60.0
"""A transaction that is open for longer is reported."""
MISSING: Final = "it is missing"
MAKES: Final = f"{MISSING}; a worker that starts makes it where it may, so look whether its name is right"
UNKNOWN: Final = 3


class TopicInspector:
    """Checks topics and group for one session."""

    def __init__(self, session: TopicSession) -> None:
        self._session = session
        self._source = session.source
        self._access = session.source.membership.access
        self.told: tuple[AssignmentProgress | None, dict[TopicPartition, tuple[str, str]]] = None, {}
        """What was missed, as it was last reported: the assumption and subject of each partition."""
        self._missing = 0
        """In how many checks in a row some topic was missing."""
        self._stuck: dict[TopicPartition, tuple[int, float]] = {}
        """Where the open transaction of a partition begins, and since when it is seen."""
        self._unlike_for = Counter[str]()
        """In how many checks in a row workers were in the group that differ in this, one of `L2` and `RULES`."""
        self._silent = set[TopicPartition]()
        """Of which no leader told in the last check."""

    async def look(self) -> Look:
        """See `Session.look`."""
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            return await self._look()

    async def _look(self) -> Look:
        source, session = self._source, self._session
        topics = await session.brokers.topics(source.asked)
        named = source.named(topics)
        self._begun_anew(topics)
        findings = [*await source.look_at(session.brokers, topics), *self._rights(topics, named), *of_codecs()]
        self._missing = self._missing + 1 if any(one.cause is Cause.ABSENT for one in findings) else 0
        if not session.joined:
            findings = [one._replace(problem=MAKES) if one.cause is Cause.ABSENT else one for one in findings]
        group = await session.brokers.group(source.membership.group)
        if not group.allowed:
            return Look([*findings, self._not_in_group()], warnings=source.warnings)
        committed = await session.brokers.committed(source.membership.group)
        source.identities.found(committed)
        session.commits.is_unkept = True
        other = self._other(group, committed)
        if other is not None and session.joined:
            raise BusUnavailable(str(other))  # ends the session, which leaves the group
        findings += [other] if other is not None else []
        findings += self._strangers(group)
        findings += self._unlike(group, committed, named)
        findings += await self._kept(topics)
        positions = self._positions(topics, named, committed)
        asked = positions.keys() | (set() if session.progress is None else session.progress.unbegun)
        asked_s = monotonic()
        ends, stable = await asyncio.gather(
            session.brokers.offsets(topics, asked, LATEST),
            session.brokers.offsets(topics, positions, LATEST, committed=True),
        )
        findings += self._unanswered(asked - ends.keys())
        if session.joined:
            findings += self._missed()
        elif source.checks_for is not None:  # else it is found once the worker has joined
            findings += await self._to_be_missed(topics, positions, committed)
        findings += self._open_transactions(ends, stable)
        positions = self._positions(topics, named, committed)  # once more: what was read since then waits no more
        waits_s = source.unread.waits_s(asked, positions, ends, asked_s)
        look = self._counted(findings, positions, ends, waits_s)
        look.warnings = [*source.warnings, *self._unkept(topics)]
        return look

    # -- topics -------------------------------------------------------------------------------------------------------

    def _begun_anew(self, topics: Mapping[str, Topic]) -> None:
        """If a topic was deleted and made again, read it from its first message; if L2 is another one, or has lost
        all, find out once more what was missed."""
        progress, l2 = self._session.progress, self._source.identity()
        if progress is None:
            return
        for name in {one.topic for one in progress.taken}:
            now = topics[name].identity if name in topics and not topics[name].error else ""
            before = progress.identity(name)
            if (now and before and now != before) or (l2 and l2 != progress.l2(name)):
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
                    tool(
                        self._access,
                        "acls",
                        f"--add --allow-principal User:NAME --operation {verb} --operation Describe "
                        f"--topic {clean(name)}",
                    ),
                )

    def _unkept(self, topics: Mapping[str, Topic]) -> Iterable[str]:
        """A warning if the topics' identities can't be kept."""
        name, access = self._source.membership.dead_topic, self._access
        if name in topics and not topics[name].error and not topics[name].may(READ):
            grant = tool(access, "acls", f"--add --allow-principal User:NAME --operation Read --topic {clean(name)}")
            yield (
                f"this user has not the right Read to {clean(name)}: a topic that is deleted and made anew while no "
                f"worker runs is not noticed; to mend it: {grant}"
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
        remedy = altered(self._access, name, "cleanup.policy=delete,retention.ms=-1")
        return [Finding("topic", clean(name), problem, remedy)]

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
            tool(self._access, "acls", f"--add --allow-principal User:NAME --operation Read --group {clean(name)}"),
            stops=True,
        )

    def _other(self, group: ConsumerGroup, committed: Mapping[TopicPartition, Committed]) -> Finding | None:
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
            "give this worker a group of its own by --group; or, when nobody is in it any more: "
            + tool(self._access, "consumer-groups", f"--delete --group {clean(name)}"),
            stops=True,
        )

    def _strangers(self, group: ConsumerGroup) -> Iterable[Finding]:
        """Other programs in the group: nobody applies the messages that they get."""
        found = sorted(client for client in group.clients if not client.startswith(CLIENT))
        if found:
            name = clean(self._source.membership.group)
            yield Finding(
                "group",
                name,
                f"other programs are in it ({clean(', '.join(found[:5]))}), and are given some of the partitions: "
                "nobody applies what they read",
                "end them, or give this worker a group of its own by --group; who is in it: "
                + tool(self._access, "consumer-groups", f"--describe --members --group {name}"),
                missed=True,
            )

    def _unlike(
        self, group: ConsumerGroup, committed: Mapping[TopicPartition, Committed], named: Collection[str]
    ) -> Iterable[Finding]:
        """Workers in the group that would not do as this one does, by what they have noted, in several checks in a row:
        a rebalance takes a while, and workers are replaced one after the other. A check looks once: not for other
        rules, since it may be of rules that are to come."""
        source, progress, checked = self._source, self._session.progress, self._source.checks_for
        others = set[TopicPartition]()
        if progress is not None:
            others = committed.keys() - progress.assignment.tps
        elif checked is not None and any(client.startswith(CLIENT) for client in group.clients):
            others = set(committed)
        ours = "", source.membership.namespace  # of another one's Redis this one can tell nothing
        notes = {one: note_of(committed[one].note) for one in sorted(others) if one.topic in named}
        notes = {one: note for one, note in notes.items() if note.namespace in ours}
        l2 = source.identity() if checked is None else checked
        unlike = {
            L2: [one for one, note in notes.items() if l2 and note.l2 not in ("", l2)],
            RULES: [
                one for one, note in notes.items() if checked is None and note.namespace and note.said != source.said
            ],
        }
        for kind, strange in unlike.items():
            self._unlike_for[kind] = self._unlike_for[kind] + 1 if strange else 0
            if self._unlike_for[kind] >= (AGREE_LOOKS if checked is None else 1):
                yield of_unlike(kind, source.membership.group, strange)

    def _missed(self) -> Iterable[Finding]:
        progress = self._session.progress
        missed = dict(progress.missed) if progress is not None else {}
        self.told = progress, {one: subject_of(one, why) for one, why in missed.items()}
        return of_missed(missed, "" if progress is None else progress.losses())

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
            one: begin_at(
                committed.get(one),
                at,
                source.note_of(topics[one.topic]),
                known.before(one.topic, topics[one.topic].identity),
            )
            for one, at in first.items()
        }
        found = of_missed({one: begin.missed for one, begin in begins.items() if begin.missed})
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

    def _unanswered(self, silent: Collection[TopicPartition]) -> Iterable[Finding]:
        """Partitions of which no leader tells, in two checks in a row: one that moves is not told of."""
        still, self._silent = self._silent & set(silent), set(silent)
        for topic in sorted({one.topic for one in still}):
            parts = ", ".join(str(one.partition) for one in sorted(still) if one.topic == topic)
            yield Finding(
                "topic",
                clean(topic),
                f"the leaders of its partitions {parts} do not answer, and what is there waits",
                "bring these brokers back, or have this worker reach them by the names that they announce "
                "(advertised.listeners); which ones they are: "
                + tool(self._access, "topics", f"--describe --topic {clean(topic)}"),
            )

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
            where = f"--topic {clean(one.topic)} --partition {one.partition}"
            if now_s - since_s >= OPEN_S:
                yield Finding(
                    "transactions",
                    f"{clean(one.topic)}/{one.partition}",
                    f"a transaction is open since the message {at}, and all behind that waits",
                    "end its producer, or abort it; who it is: "
                    + tool(self._access, "transactions", f"describe-producers {where}")
                    + " ; what aborts it, where that one is gone for good: "
                    + tool(self._access, "transactions", f"abort {where} --start-offset {at}"),
                )

    def _counted(
        self,
        findings: list[Finding],
        positions: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        waits_s: Mapping[TopicPartition, float],
    ) -> Look:
        """What waits. Of a partition with messages in hand, what is unread came behind them."""
        session = self._session
        progress = session.progress
        new = [item for item in session.in_hand if not isinstance(item.raw, HeldMessage)]
        held = len(progress.held) if progress is not None else 0
        kept = held + len(new) + (len(progress.undone) if progress is not None else 0)
        unread = sum(max(0, ends[one] - at) for one, at in positions.items() if one in ends)
        true = [item for item in new if item.sent_s is not None and item.sent_s > SENT_FROM_S]
        taken = {partition_of(item.raw) for item in true}
        now_s = wall_s()
        ages_s = [now_s - item.sent_s for item in true if item.sent_s is not None]
        ages_s += [waited_s for one, waited_s in waits_s.items() if one not in taken]
        if progress is not None and progress.held.sent_s is not None and progress.held.sent_s > SENT_FROM_S:
            ages_s.append(now_s - progress.held.sent_s)
        oldest_s = max(0.0, *ages_s) if ages_s else None if kept else 0.0
        return Look(findings, kept + unread, oldest_s, held=held)
