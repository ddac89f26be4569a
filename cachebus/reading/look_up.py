"""What L2 has of a key: for a load that looks there first, and in the background."""

from __future__ import annotations

from collections.abc import Callable

from cachebus.reading.fetch import record_of
from cachebus.reading.parts import LoadParts
from cachebus.reading.request import Found, Request


async def look_up(parts: LoadParts, request: Request, refresh: Callable[[Request, bytes], None]) -> Found:
    """What L2 has, by a plain get where this node may judge it. `refresh`: begins to load anew, without a wait, what is
    past its soft expiry; it is given the version that is there."""
    key = request.key
    value, _ = seen = await parts.fetch.read_one(key, request.after, admit=request.use_memory)
    record = record_of(seen)
    if record is None:
        return Found(value, "l2")
    parts.cooldowns.saw(key.l1, record.version)
    soft_version = parts.fetch.judge.soft_version(key.shard, record)
    if soft_version:
        refresh(request, soft_version)
    return Found(value, "l2", copy=parts.fetch.judge.copier_of(key, record, value))
