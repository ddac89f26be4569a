"""What the checks of topics find, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aiokafka import TopicPartition, codec

from cachebus.consumers.topics.note import ANEW, L2, REMEDY, RULES, WHY
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Cause, Finding

_UNLIKE: Final = {
    L2: (
        "workers for another Redis",
        "workers for another Redis are in it, and apply there alone what they are given",
        "give all of them the same CACHEBUS_URL, that of the caches: who is then given the partitions makes up for it",
    ),
    RULES: (
        "workers with other rules or cascades",
        "workers with other rules or cascades are in it, and tell by these alone what they are given",
        "give all of them the same (--rules, --cascades): who is then given the partitions makes up for it",
    ),
}
"""Of workers that differ in this: who they are, the problem, the remedy."""


def subject_of(partition: TopicPartition, why: str) -> tuple[str, str]:
    """The assumption and the subject of what was missed in the partition."""
    return "topic" if why == ANEW else "offsets", clean(partition.topic)


def of_missed(missed: Mapping[TopicPartition, str], state: str = "") -> Iterable[Finding]:
    """What was missed, and is over; `state`: by what it was found."""
    found: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for one, why in missed.items():
        found[subject_of(one, why)][why].append(one.partition)
    for (assumption, subject), by_why in found.items():
        problem = "; ".join(
            f"{WHY[why]} (partitions {', '.join(map(str, sorted(parts)))})" for why, parts in by_why.items()
        )
        remedy = "; ".join(REMEDY[why] for why in by_why if REMEDY[why])
        cause = Cause.RULES if by_why.keys() == {RULES} else Cause.OTHER
        yield Finding(assumption, subject, problem, remedy, missed=True, over=True, state=state, cause=cause)


def of_unlike(kind: str, group: str, partitions: Sequence[TopicPartition]) -> Finding:
    """Workers in the group differ from this one, by what lies beside the offsets of these partitions. `kind`: L2 or
    RULES."""
    who, problem, remedy = _UNLIKE[kind]
    where = ", ".join(f"{clean(one.topic)}/{one.partition}" for one in partitions[:5])
    where += ", ..." * (len(partitions) > 5)
    return Finding("group", f"{clean(group)}, {who}", f"{problem} ({where})", remedy)


def of_codecs() -> Iterable[Finding]:
    """A way of compressing that a topic may use is not installed."""
    missing = [name for name in ("snappy", "lz4", "zstd") if not getattr(codec, f"has_{name}")()]
    if missing:
        yield Finding(
            "codecs",
            "kafka",
            f"messages that are compressed by {', '.join(missing)} can't be read",
            "pip install 'cachebus[kafka]'",
        )
