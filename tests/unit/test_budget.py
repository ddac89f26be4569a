"""What the steps of one call may wait together."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from cachebus import L2Unavailable
from cachebus.base.budget import AT_ONCE, TOTAL, Budget
from cachebus.base.clock import monotonic

TIMEOUT_S = 0.05


async def for_ever() -> NoReturn:
    """A step that nothing ends."""
    await asyncio.Event().wait()
    raise AssertionError


async def lasting(seconds: float) -> str:
    """A step that takes so long."""
    await asyncio.sleep(seconds)
    return "done"


async def test_a_step_that_follows_a_wait_is_ended() -> None:
    budget = Budget(monotonic, TIMEOUT_S)
    assert await budget.spent_on(lasting(2 * AT_ONCE * TIMEOUT_S)) == "done"
    with pytest.raises(L2Unavailable, match="all steps together"):
        await budget.spent_on(for_ever())


async def test_once_the_time_is_over_none_is_waited_for() -> None:
    budget = Budget(monotonic, TIMEOUT_S, spent_s=TOTAL * TIMEOUT_S)
    with pytest.raises(L2Unavailable):
        await budget.spent_on(for_ever())


async def test_a_first_step_is_its_connections_to_end_and_so_is_one_that_follows_at_once() -> None:
    """A link may be slow, and bytes arrive all the time."""
    budget = Budget(monotonic, TIMEOUT_S)
    assert await budget.spent_on(lasting(0)) == "done"
    budget.spent_s = 0.5 * AT_ONCE * TIMEOUT_S
    assert await budget.spent_on(lasting(2 * TIMEOUT_S)) == "done"


async def test_connecting_is_bounded_in_any_case() -> None:
    with pytest.raises(L2Unavailable):
        await Budget(monotonic, TIMEOUT_S).bounds(for_ever())
