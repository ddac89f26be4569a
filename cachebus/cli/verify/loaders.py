"""The loads of one node: each reads the version that is committed when it is half through, and is written down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Final

from cachebus.cli.verify.items import Item
from cachebus.cli.verify.setup import LEASE_MS
from cachebus.cli.verify.tape import VERB_SHIFT, Tape
from cachebus.cli.verify.truth import Truth
from cachebus.clock import Clock

Load = Callable[[], Awaitable[Any]]
QUICK_S: Final = (0.001, 0.003)
LATER_S: Final = (0.01, 0.06)
SLOW_S: Final = (1.2 * LEASE_MS / 1000, 2.5 * LEASE_MS / 1000)
"""Longer than a lease: the one who loads must extend it."""
LATER_SHARE, SLOW_SHARE = 0.08, 0.01


class Loaders:
    """A loader for every item, made once."""

    def __init__(self, items: Sequence[Item], truth: Truth, tape: Tape, dice: Random, clock: Clock) -> None:
        self._truth, self._tape, self._dice, self._clock = truth, tape, dice, clock
        self.slow_until_s = self.sour_until_s = float("-inf")
        self.loads = 0
        self.ordinary: list[Any] = [item and self._loader(item, 1) for item in items]
        """For reads that may share what another read loads."""
        self.special: list[Any] = [item and self._loader(item, 0) for item in items]
        """For reads that go past memory, or that carry a token."""

    def _loader(self, item: Item, ordinary: int) -> Load:
        mark = item.number | ordinary << VERB_SHIFT

        async def load() -> list[Any]:
            self.loads += 1
            began_s, version = self._clock(), 0
            place = self._tape.add(mark, 0, began_s, 0.0)
            half_s = self._latency_s() / 2
            try:
                await asyncio.sleep(half_s)
                if self._clock() < self.sour_until_s:
                    raise ConnectionError("the source is away")
                version = self._truth.versions[item.number]
                await asyncio.sleep(half_s)
                return item.value(version)
            finally:
                self._tape.change(place, mark, version, began_s, self._clock())

        return load

    def _latency_s(self) -> float:
        kind = self._dice.random()
        if self._clock() < self.slow_until_s:
            kind /= 4
        if kind < SLOW_SHARE:
            return self._dice.uniform(*SLOW_S)
        return self._dice.uniform(*(LATER_S if kind < SLOW_SHARE + LATER_SHARE else QUICK_S))
