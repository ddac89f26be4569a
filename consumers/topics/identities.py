"""The identities of the topics that a group has read, kept beyond these topics.

Brokers remove a group's offsets of a topic together with it, and so what is noted beside them. So the identities lie
beside the group's offset of the topic of the dead, too. By them a worker that starts finds that a topic is another one
than its group has read, and that what was unread in that one is gone.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Final

from aiokafka import TopicPartition

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.topics.brokers import Committed

NAME, IDENTITY = 5, 4
"""How many characters tell a topic's name, and its identity, from others."""
MOST: Final = 440
"""Brokers take 4096 bytes beside an offset (`offset.metadata.max.bytes`)."""
KEEP_EVERY_S: Final = 600.0
"""Brokers remove offsets of topics that the group does not read, some days after they were committed."""
ANOTHER: Final = "another"
_ENTRY: Final = re.compile(rf"([\w-]{{{NAME}}})([\w-]{{{IDENTITY}}})", re.ASCII)


class TopicIdentities:
    """The identities of topics, as this worker and its group know them."""

    def __init__(self, namespace: str, dead_topic: str, clock: Clock = monotonic) -> None:
        self.place = TopicPartition(dead_topic, 0)
        """Where they lie."""
        self._namespace = namespace
        self._clock = clock
        self._ours: dict[str, str] = {}
        """Those of the topics that this worker has read, over all sessions."""
        self._known: dict[str, str] = {}
        """What lies there, or did: by what tells the name, what tells the identity."""
        self._there: dict[str, str] = {}
        self._kept_s = float("-inf")

    def found(self, committed: Mapping[TopicPartition, Committed]) -> None:
        """Learn what lies there now."""
        self._there = self._read(committed[self.place].note) if self.place in committed else {}
        self._known |= self._there

    def _read(self, text: str) -> dict[str, str]:
        try:
            told = json.loads(text)
            is_ours, entries = told["cachebus"] == self._namespace, str(told["topics"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return {}
        return dict(_ENTRY.findall(entries)) if is_ours else {}

    def before(self, topic: str, identity: str) -> str | None:
        """The identity of the topic that was read before: this one, another one, or None where none is known."""
        if topic in self._ours:
            return self._ours[topic]
        known = self._known.get(_digest(topic, NAME))
        return known and (identity if known == _digest(identity, IDENTITY) else ANOTHER)

    def took(self, identities: Mapping[str, str]) -> None:
        """These topics are read, and nothing was missed by that, or that is noted where it lasts."""
        self._ours |= {topic: identity for topic, identity in identities.items() if identity}

    def due(self, identities: Mapping[str, str]) -> str | None:
        """What is to be kept once these topics are read; None where it lies there. Workers of one group keep theirs at
        one place: what another one has written over is due once more."""
        ours = {_digest(name, NAME): _digest(identity, IDENTITY) for name, identity in identities.items() if identity}
        is_late = self._clock() - self._kept_s >= KEEP_EVERY_S
        lacking = ours.items() - self._there.items()
        if not ours or not (is_late or (lacking and len(self._there) < MOST)):
            return None
        others = {name: known for name, known in self._known.items() if name not in ours}
        entries = [*ours.items(), *others.items()][:MOST]
        return json.dumps({"cachebus": self._namespace, "topics": "".join(map("".join, entries))})

    def kept(self, text: str) -> None:
        """That lies there now."""
        self._there = self._read(text)
        self._known |= self._there
        self._kept_s = self._clock()


def _digest(text: str, size: int) -> str:
    return urlsafe_b64encode(hashlib.blake2b(text.encode(), digest_size=size).digest()).decode()[:size]
