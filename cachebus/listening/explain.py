"""Asks L2 and the nodes about one key.

1. L2 is looked at, by plain commands (`Store.inspect`).
2. The question goes to the nodes over the bus. They have `ASK_S` for their answers; who asks looks at itself.
3. The log tells what touched the key. It is read last, so that it has whatever the nodes might have heard meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final, Protocol

from cachebus.base.clock import Clock
from cachebus.core.held import held
from cachebus.core.node import Node
from cachebus.core.ports import KeyFacts, Store
from cachebus.errors import CacheBusError
from cachebus.keys.key import Key
from cachebus.keys.words import shown
from cachebus.listening.explanation import Explanation, moment
from cachebus.listening.holders import AsSeen, Replacement, counted, holders
from cachebus.listening.inquiries import AskedInquiry, Inquiries, NodeSaid
from cachebus.listening.touching import KeyHistory, history, standing, storer
from cachebus.listening.verdict import Grounds, verdict
from cachebus.listening.worth import READABLE, record_of, stored_value
from cachebus.wire.inquiry import Inquiry

ASK_S: Final = 1.0
"""For so long answers are waited for."""
REACH_S: Final = 3.0
"""For so long at most whoever carries the question is connected to."""
Elsewhere = Callable[[], Awaitable[str]]


class Carrier(Protocol):
    """What carries questions and answers: of a bus, what is needed for that."""

    store_publishes: bool

    def trouble(self, shard: int) -> str:
        """See `Bus.trouble`."""
        ...

    async def publish(self, shard: int, message: bytes) -> None:
        """See `Bus.publish`."""
        ...

    def answers(self, shard: int, question: str, *, sharded: bool) -> AbstractAsyncContextManager[None]:
        """See `Bus.answers`."""
        ...


class KeyExplainer:
    """Explains keys, on a node (`node`) or beside the fleet."""

    def __init__(
        self, store: Store, bus: Carrier, inquiries: Inquiries, clock: Clock, node: Node | None = None
    ) -> None:
        self._store = store
        self._bus = bus
        self._inquiries = inquiries
        self._clock = clock
        self._node = node

    async def explain(self, key: Key, elsewhere: Elsewhere | None = None) -> Explanation:
        """What there is of the key; `L2Unavailable`. `elsewhere`: finds the id under other names, in words, where
        nothing is cached under this one."""
        asked_s = self._clock()
        facts = await self._store.inspect(key)
        looked_s = self._clock()
        said, trouble = await self._ask(key, facts)
        record = record_of(key, facts)
        tags = () if record is None else record.tags
        known = await history(self._store, key, facts, tags)
        seen = AsSeen(facts, _replacement(facts, known), asked_s, self._clock() - looked_s)
        stored = stored_value(key, facts)
        if record is not None:
            who, how = storer(record, known)
            stored = replace(stored, written_by=who, says=f"{stored.says}, {how}")
            if stored.state in READABLE and record.seq < seen.replacement.seq:
                meanwhile = f"replaced by seq {seen.replacement.seq} while it was looked at; before that {stored.says}"
                stored = replace(stored, state="invalidated", says=meanwhile)
        nodes = holders(seen, said)
        waiting = [shown(one.answer.node) for one in said.values() if one.answer.blocked]
        found = Grounds(seen, stored, known, standing(key, facts, known), nodes, waiting, "", bool(trouble))
        cached = _cached(found)
        if not cached and elsewhere is not None and facts.record is None:
            found = found._replace(elsewhere=await elsewhere())
        return _explanation(key, found, cached=cached, trouble=trouble)

    async def _ask(self, key: Key, facts: KeyFacts) -> tuple[Mapping[str, NodeSaid], str]:
        """What the nodes have answered, and why they could not be asked."""
        question = Inquiry.about(key.l1, sharded=facts.sharded)
        with self._inquiries.asking(question) as asked:
            if self._node is not None:
                asked.take(held(self._node, key.shard, key.l1))
            try:
                async with (
                    asyncio.timeout(REACH_S),
                    self._bus.answers(key.shard, question.id.decode(), sharded=facts.sharded),
                ):
                    await self._send(key.shard, question)
                    await self._gather(asked, counted(facts))
            except CacheBusError as error:
                return asked.said, str(error)
            except TimeoutError:
                return asked.said, f"what carries the question was not there in {REACH_S:g} s"
            return asked.said, "" if self._bus.store_publishes else self._bus.trouble(key.shard)

    async def _send(self, shard: int, question: Inquiry) -> None:
        if self._bus.store_publishes:
            await self._store.publish(shard, question.encode(), sharded=question.sharded)
        else:
            await self._bus.publish(shard, question.encode())

    async def _gather(self, asked: AskedInquiry, wanted: frozenset[str]) -> None:
        """Return once all of these have answered, or the time is over."""
        try:
            async with asyncio.timeout(ASK_S):
                while not wanted <= asked.said.keys():
                    await asked.next()
        except TimeoutError:
            return


def _replacement(facts: KeyFacts, known: KeyHistory) -> Replacement:
    """The last that replaced the key: by the invalidated scopes, the low watermarks and the log."""
    seqs = [*facts.invalidated.values(), *facts.low.values(), *(touch.seq for touch in known.touches)]
    seq = max(seqs, default=0)
    at_us = known.at_us(seq)
    return Replacement(seq, None if at_us is None else at_us / 1e6)


def _cached(found: Grounds) -> bool:
    if found.stored.state in READABLE:
        return True
    return any(node.answered and (node.serves or node.fallback) for node in found.nodes)


def _explanation(key: Key, found: Grounds, *, cached: bool, trouble: str) -> Explanation:
    facts = found.seen.facts
    case, sentence = verdict(found)
    notes = []
    if trouble:
        notes.append(f"the nodes could not be asked: {trouble}; what is said of them is by their rows in L2")
    if found.history.trouble:
        notes.append(f"the log could not be read to its end: {found.history.trouble}")
    if facts.is_over:
        notes.append("L2 is another server than that of this history: the next who asks begins another epoch")
    old = len(facts.rows) - len(counted(facts))
    if old:
        notes.append(f"{old:,} rows of nodes are older than a minute, or can't be read: nobody waits for these")
    return Explanation(
        verdict=sentence,
        case=case,
        cached=cached,
        key=key.l2,
        shard=key.shard,
        epoch=facts.epoch.decode(errors="replace"),
        seq=facts.seq,
        at=moment(facts.server_us / 1e6),
        stored=found.stored,
        events=found.history.events,
        events_read=found.history.read,
        since=found.history.since,
        guards=tuple(found.guards),
        nodes=tuple(found.nodes),
        notes=tuple(notes),
    )
