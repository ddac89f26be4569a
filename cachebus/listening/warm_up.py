"""A new node takes over what is hot on a live one, in the background, so that it does not begin cold.

1. The rows in L2 tell which nodes answer: those that are warm say so (`WARM`). One of them, any, is asked over the bus
   for the names of its hot keys (`heat`).
2. What L2 has under these names is read as any other read does it (`Fetcher.read`), so all that a node may believe, and
   nothing else, enters L1: whatever is invalidated meanwhile keeps it out. No source is asked, and no fill lease.
3. It reads few at a time, and rests longer than it reads. It lets in what evicts nothing, and replaces nothing that has
   come meanwhile.
4. It ends after `warm_up_s` whatever becomes of it: then the node is as warm as it is, and answers others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cachebus.base.log import logger
from cachebus.core.hearing import Hearing
from cachebus.core.ports import Bus, NodeRow
from cachebus.errors import CacheBusError, InvalidKey, L2Unavailable
from cachebus.keys.key import Key, Keyspace
from cachebus.keys.words import shown
from cachebus.listening.heat import LATE_S, HotAnswer, HotTalk, WarmUpLimits
from cachebus.reading.fetch import Fetcher, Seen, record_of
from cachebus.reading.judge import NOT_FOUND, AsOf
from cachebus.wire.heat import HotKey, HotQuestion

WARM: Final = "warm"
"""What the row of a node says that answers."""
JITTER_S: Final = 0.2
"""Within so long those ask that have begun together."""
TRIES: Final = 3
"""So many nodes are asked, one after the other, if they do not answer."""
REACH_S: Final = 3.0
"""For so long at most whoever carries the question is connected to."""
PIECE_S: Final = 1.0
"""Who has sent a piece sends the next within so long, or no more."""
AGAIN_S: Final = 0.25
"""The pause before L2 is asked again that did not answer."""
BATCH_KEYS: Final = 100
BATCH_BYTES: Final = 128 * 1024
"""So much is read at once, by the sizes that were told."""
PAUSE_S: Final = 0.002
REST: Final = 3.0
"""How often as long as a batch took it rests: other reads have the rest of the connection, and of the loop."""
FULL: Final = "there is no more room in L1 without evicting"


@dataclass(slots=True)
class WarmUpProgress:
    """How far a warm-up has come."""

    asked: str = ""
    """The id of the node that has told names; "" before one has."""
    named: int = 0
    taken: int = 0
    """Values that have entered L1."""
    read_bytes: int = 0
    """What L2 had under the names, in bytes."""
    ended: str = ""
    """What has ended it before all names were read; "" where nothing has."""


class WarmUp:
    """One node's warm-up."""

    def __init__(
        self, fetch: Fetcher, keyspace: Keyspace, bus: Bus, talk: HotTalk, limits: WarmUpLimits | None
    ) -> None:
        """`limits`: None where there is to be none."""
        self._fetch, self._node, self._store, self._clock = fetch, fetch.node, fetch.store, fetch.clock
        self._keyspace = keyspace
        self._bus = bus
        self._talk = talk
        self._limits = limits
        self._over = asyncio.Event()
        if limits is None:
            self._over.set()

    @property
    def under_way(self) -> bool:
        """Whether it is still to be done, or being done."""
        return not self._over.is_set()

    def end(self) -> None:
        """Begin no further batch."""
        self._over.set()

    async def wait(self) -> None:
        """Return once it is over; at once where there is none."""
        await self._over.wait()

    async def step(self) -> None:
        """Do it once, and then wait for ever."""
        if self._over.is_set() or self._limits is None:
            await asyncio.Event().wait()
            return
        began_s, progress = self._clock(), WarmUpProgress()
        try:
            async with asyncio.timeout(self._limits.at_most_s):
                await self._run(progress, self._limits)
        except TimeoutError:
            progress.ended = f"{self._limits.at_most_s:g} s were over"
        finally:
            self._over.set()
            self._answer_from_now_on()
        self._tell(progress, self._clock() - began_s)

    def _answer_from_now_on(self) -> None:
        about = self._node.about
        self._node.about = about._replace(more=(*about.more, (WARM, True)))
        self._talk.answers = True

    @staticmethod
    def _tell(progress: WarmUpProgress, took_s: float) -> None:
        if not progress.asked:
            logger.debug("not warmed: {}", progress.ended or "no node is there that tells what is hot")
            return
        logger.info(
            "warmed {:,} keys in {:.1f} s, of {:,} that are hot on {}{}",
            progress.taken,
            took_s,
            progress.named,
            shown(progress.asked),
            f"; it ended early: {progress.ended}" if progress.ended else "",
        )

    async def _run(self, progress: WarmUpProgress, limits: WarmUpLimits) -> None:
        await asyncio.sleep(random.uniform(0, JITTER_S))
        hot = await self._names(progress, limits)
        for batch in self._batches(hot):
            if not self._node.l1.has_room:
                progress.ended = FULL
            elif progress.read_bytes >= limits.bytes:
                progress.ended = f"{limits.bytes:,} bytes were read"
            elif self._over.is_set():
                progress.ended = "the cache is being closed"
            if progress.ended:
                return
            began_s = self._clock()
            await self._take_over(batch, progress)
            await asyncio.sleep(max(PAUSE_S, REST * (self._clock() - began_s)))

    # -- whom to ask, and what it says ----------------------------------------------------------------------------

    async def _names(self, progress: WarmUpProgress, limits: WarmUpLimits) -> Sequence[HotKey]:
        """The hot keys of another node; none where none of those that were asked has told any."""
        tried = set[str]()
        while len(tried) < TRIES:
            shard = await self._shard_at_hand()
            try:
                warm = warm_ones((await self._store.nodes(shard, self._node.caller(shard))).rows, self._bus.hearing)
            except L2Unavailable:
                await asyncio.sleep(AGAIN_S)
                continue
            others = sorted(set(warm) - tried - {self._node.id})
            if not others:
                break
            question = HotQuestion.to(random.choice(others), self._node.id, limits.keys, limits.bytes)
            tried.add(question.answerer)
            if hot := await self._ask(shard, question):
                progress.asked, progress.named = question.answerer, len(hot)
                return hot
        return ()

    async def _shard_at_hand(self) -> int:
        """A shard that can be asked over: the names of all are told in one."""
        while True:
            now_s = self._clock()
            live = [shard.index for shard in self._node.shards if now_s < shard.valid_until_s]
            if live:
                return random.choice(live)
            await asyncio.sleep(AGAIN_S)

    async def _ask(self, shard: int, question: HotQuestion) -> Sequence[HotKey]:
        """What has come in answer, though it may lack pieces."""
        with self._talk.asking(question) as answer:
            try:
                async with (
                    asyncio.timeout(REACH_S) as reach,
                    self._bus.answers(shard, question.id.decode(), sharded=False),
                ):
                    reach.reschedule(None)
                    if self._bus.store_publishes:
                        await self._store.publish(shard, question.encode())
                    else:
                        await self._bus.publish(shard, question.encode())
                    await _gathered(answer)
            except (CacheBusError, TimeoutError) as error:
                logger.debug("{} was not asked what is hot: {}", shown(question.answerer), error or "it took too long")
            return answer.keys

    # -- what L2 has of it ------------------------------------------------------------------------------------------

    def _batches(self, hot: Sequence[HotKey]) -> Iterator[list[Key]]:
        """What is to be read at once, of names that name keys, for this node's memory, and not there by then."""
        batch, batch_bytes = list[Key](), 0
        for l1, size_bytes in hot:
            if l1 in self._node.l1.entries:
                continue
            try:
                key = self._keyspace.parsed(l1)
            except InvalidKey:
                continue  # damaged, or made up
            if not self._fetch.judge.rules(key).l1:
                continue
            if batch and (len(batch) == BATCH_KEYS or batch_bytes + size_bytes > BATCH_BYTES):
                yield batch
                batch, batch_bytes = [], 0
            batch.append(key)
            batch_bytes += size_bytes
        if batch:
            yield batch

    async def _take_over(self, batch: Sequence[Key], progress: WarmUpProgress) -> None:
        """Read these keys, those of each shard together, once L2 answers for any shard."""
        by_shard: dict[int, list[Key]] = {}
        for key in batch:
            by_shard.setdefault(key.shard, []).append(key)
        while not self._over.is_set():
            reads = [self._read(keys, progress) for keys in by_shard.values()]
            troubles = await asyncio.gather(*reads, return_exceptions=True)
            for trouble in troubles:
                if isinstance(trouble, BaseException) and not isinstance(trouble, L2Unavailable):
                    raise trouble
            if None in troubles:
                return
            await asyncio.sleep(AGAIN_S)

    async def _read(self, keys: Sequence[Key], progress: WarmUpProgress) -> None:
        """Read these keys of one shard, and let in what came; `L2Unavailable`."""
        shard = self._node.shards[keys[0].shard]
        # What this node judges itself is of its last probe that counts, what L2 judges of now: as `Fetcher` has it.
        as_of_s = shard.fresh_as_of_s if self._fetch.may_judge(shard, None) else self._clock()
        as_of = AsOf(shard.reserve(), as_of_s)
        for key, seen in zip(keys, await self._fetch.read(keys, None, admit=False), strict=True):
            progress.read_bytes += len(seen[1] or b"")
            if self._let_in(key, seen, as_of):
                progress.taken += 1
                self._node.counters.warmed += 1

    def _let_in(self, key: Key, seen: Seen, as_of: AsOf) -> bool:
        """Whether it entered L1: the reservation, which is older than the question, keeps out what was replaced."""
        l1, record = self._node.l1, record_of(seen)
        if record is None or not l1.has_room or key.l1 in l1.entries:
            return False
        value = None if seen[0] is NOT_FOUND else seen[0]
        return self._fetch.judge.admit(key, value, record, as_of) and key.l1 in l1.entries


def warm_ones(rows: Mapping[str, NodeRow], own: Hearing | None) -> list[str]:
    """The nodes that live, and say that they answer. The latest row tells what time it is. `own`: where this node hears
    events."""
    now_us = max((row.at_us for row in rows.values()), default=0)
    found = []
    for name, row in rows.items():
        theirs = Hearing.of(row.about.more)
        hears = own is None or theirs is None or not own.barrier(theirs)
        if hears and now_us - row.at_us <= row.about.bound_ms * 1000 and dict(row.about.more).get(WARM) is True:
            found.append(name)
    return found


async def _gathered(answer: HotAnswer) -> None:
    """Return once the answer is complete, or nothing more comes of it."""
    patience_s = LATE_S
    with suppress(TimeoutError):
        while not answer.complete:
            async with asyncio.timeout(patience_s):
                await answer.next()
            patience_s = PIECE_S
