"""The traffic of one node: readers that go through its accesses at a given rate, a share of which are writes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from random import Random
from typing import Final

from cachebus.base.clock import Clock
from cachebus.errors import CacheBusError, InvalidationFailed
from cachebus.tools.demo.catalogue import Shop
from cachebus.tools.demo.history import DemoLog
from cachebus.tools.demo.subjects import Subject
from cachebus.tools.harness.messages import Job, Tick

READERS: Final = 32
WRITES_UNDER_WAY: Final = 32
"""A node that can't get its invalidations through makes no further writes."""
BEAT_S: Final = 0.002
BURST: Final = 64
"""After so many accesses other tasks get a turn: hits alone never yield to them."""
BACKLOG_S: Final = 0.25
"""After a stall, at most the accesses of this time are caught up on."""
REPEAT_S: Final = 0.1


class Pace:
    """Lets accesses pass at a rate a second; 0 for no limit."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._began_s = clock()
        self._passed = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait until the next access is due."""
        while self._rate and self._due() < 1:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        self._passed += 1
        if not self._passed % BURST:
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Wake those whose accesses are due, for ever. To be run in a task of its own."""
        while True:
            await asyncio.sleep(BEAT_S)
            self.beat()

    def beat(self) -> None:
        """Wake as many waiters as accesses are due. To be called every few milliseconds."""
        for _ in range(min(int(self._due()), len(self._waiting))):
            self._wake()

    def open(self) -> None:
        """Let all accesses pass from now on."""
        self._rate = 0.0
        while self._waiting:
            self._wake()

    def _wake(self) -> None:
        waiting = self._waiting.popleft()
        if not waiting.done():
            waiting.set_result(None)

    def _due(self) -> float:
        due = (self._clock() - self._began_s) * self._rate - self._passed
        late_s = due / self._rate if self._rate else 0.0
        if late_s <= BACKLOG_S:
            return due
        self._began_s += late_s - BACKLOG_S
        return BACKLOG_S * self._rate


class Traffic:
    """Runs a node's accesses against its cache, and records reads and writes."""

    def __init__(
        self,
        job: Job,
        accesses: Iterator[int],
        subject: Subject,
        shop: Shop,
        reads: DemoLog,
        writes: DemoLog,
        clock: Clock,
    ) -> None:
        self._job = job
        self._accesses = accesses
        self._subject = subject
        self._shop = shop
        self._seen = reads
        self._made = writes
        self._clock = clock
        self._rng = Random(f"{job.seed}:{job.node}:writes")
        self._pace = Pace(job.rate, clock)
        self._stopping = False
        self._over = False
        self._done = self._reads = self._writes = self._failed = self._repeated = self._under_way = 0
        self._writes_until_s = float("inf") if job.writes_for_s is None else clock() + job.writes_for_s

    def stop(self) -> None:
        """Begin no further access."""
        self._stopping = True
        self._pace.open()

    async def run(self) -> None:
        """Run until the accesses end or `stop` is called. Returns when no write is under way any more."""
        pacing = asyncio.create_task(self._pace.run())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(READERS):
                    group.create_task(self._walk(group))
        finally:
            pacing.cancel()
        self._over = True

    def tick(self) -> Tick:
        """The figures of this node."""
        return Tick(
            node=self._job.node,
            at_s=self._clock(),
            accesses=self._done,
            reads=self._reads,
            writes=self._writes,
            failed=self._failed,
            repeated=self._repeated,
            over=self._over,
            **self._subject.figures(),
        )

    async def _walk(self, group: asyncio.TaskGroup) -> None:
        for word in self._accesses:  # shared by all readers
            await self._pace.turn()
            if self._stopping:
                return
            if self._rng.random() < self._job.write_ratio and self._may_write():
                group.create_task(self._write(word))
            else:
                await self._read(word)
            self._done += 1

    def _may_write(self) -> bool:
        return self._under_way < WRITES_UNDER_WAY and self._clock() < self._writes_until_s

    async def _read(self, word: int) -> None:
        started_s = self._clock()
        try:
            item = await self._subject.read(word)
        except CacheBusError:
            self._failed += 1
            return
        self._reads += 1
        self._seen.add(word, item["version"], started_s)

    async def _write(self, word: int) -> None:
        self._under_way += 1
        try:
            written = await self._shop.write(word)
            if self._shop.notifies:
                # Its position in the shard's history is found in the log afterwards.
                self._made.add(word, written.version, written.committing_s, written.committed_s, 0, 0)
                self._writes += 1
            else:
                await self._tell_of(word, written.version)
        finally:
            self._under_way -= 1

    async def _tell_of(self, word: int, version: int) -> None:
        called_s = self._clock()
        while True:
            try:
                epoch, seq = await self._subject.invalidate(word)
                break
            except InvalidationFailed:
                self._repeated += 1
                if self._stopping:
                    return
                await asyncio.sleep(REPEAT_S)
        # The promise holds from now on: a write whose invalidation never returned makes no read stale.
        self._made.add(word, version, called_s, self._clock(), epoch, seq)
        self._writes += 1
