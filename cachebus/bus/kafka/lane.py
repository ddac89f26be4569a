"""By which way messages go to a leader."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Final

from cachebus.bus.kafka.connection import BrokerAddress, KafkaConnection

if TYPE_CHECKING:
    from cachebus.bus.kafka.queue import Queue

REQUEST_BYTES: Final = 16 * 1024 * 1024
"""The most that is sent at once to one leader."""

Way = tuple[BrokerAddress, int | None]
"""A leader, and which of its lanes for late partitions; None: the one for all others."""


class Lane:
    """One connection to a leader, over which one request at a time goes."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.queues: dict[int, Queue] = {}
        """Those that go over it, by their partitions' numbers."""
        self._stirring: dict[int, Queue] = {}
        """Those of them that may have something to send. A leader may have thousands: no others are looked at."""
        self._paused: dict[int, Queue] = {}
        """Those that have, and are refused for now: they are looked at when the first is due, and not with each event
        that comes."""
        self._paused_until_s = inf
        self.connection: KafkaConnection | None = None
        self.portion = REQUEST_BYTES
        """How much is sent in one request: less after one that was not answered in time, as over a slow link, more
        after each that took less than half of it."""
        self.stirred = asyncio.Event()
        self.busy = False
        self.over = False
        self.task: asyncio.Task[None] | None = None

    def stir(self, queue: Queue) -> None:
        """Something of it waits."""
        if queue.number not in self._paused:
            self._stirring[queue.number] = queue
            self.stirred.set()

    def leave(self, queue: Queue) -> None:
        """It goes over another one."""
        for one in (self.queues, self._stirring, self._paused):
            one.pop(queue.number, None)

    def take_ready(self, now_s: float) -> list[Queue]:
        """Those of which something may be sent."""
        if now_s >= self._paused_until_s:
            self._stirring |= self._paused
            self._paused, self._paused_until_s = {}, inf
        found: dict[int, Queue] = {}
        for number, queue in self._stirring.items():
            if not queue.waiting or queue.busy:
                continue
            if wait_s := queue.attempts.wait_s:
                self._paused[number] = queue
                self._paused_until_s = min(self._paused_until_s, now_s + wait_s)
            else:
                found[number] = queue
        self._stirring = found
        return [*found.values()]

    def pause_s(self, now_s: float) -> float | None:
        """How long it takes until one of those that pause is due; None where none does."""
        return max(0.0, self._paused_until_s - now_s) if self._paused else None
