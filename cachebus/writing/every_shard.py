"""One invalidation in every shard: atomic in each, not over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cachebus.errors import InvalidationFailed
from cachebus.keys.plan import Plan
from cachebus.receipt import Receipt, joined

InvalidateShard = Callable[[Plan], Awaitable[Receipt]]


async def invalidate_in_every_shard(plans: Sequence[Plan], invalidate: InvalidateShard) -> Receipt:
    """Apply the plan of each shard; the shards do not wait for each other.

    Returns the receipt for all. Once all have been tried, raises `InvalidationFailed` where any failed, whatever failed
    it: its `receipt` is that of the others. Where none succeeded, raises the first shard's error as it is.
    """
    answers = await asyncio.gather(*map(invalidate, plans), return_exceptions=True)
    failed, first = [], None
    for plan, answer in zip(plans, answers, strict=True):
        if isinstance(answer, Exception):
            failed.append(plan.shard)
            first = first or answer
        elif isinstance(answer, BaseException):
            raise answer
    parts = [answer for answer in answers if isinstance(answer, Receipt)]
    if first is None:
        return parts[0] if len(parts) == 1 else joined(parts)
    if not parts:
        raise first
    where = ", ".join(map(str, failed))
    error = InvalidationFailed(f"of {len(plans)} shards these failed: {where}: {first}")
    error.receipt = joined(parts, failed)
    raise error from first
