"""Waiting for something to become true, up to a deadline, instead of sleeping for a time that may be too short."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cachebus.base.clock import monotonic

PAUSE_S = 0.005


async def eventually(true: Callable[[], Awaitable[bool]], *, within_s: float) -> None:
    """Return as soon as `true()` says so; fail the test when it has not within so many seconds."""
    deadline_s = monotonic() + within_s
    while not await true():
        assert monotonic() < deadline_s, f"not within {within_s} s"
        await asyncio.sleep(PAUSE_S)
