"""What L2 has of a key: for a load that looks there first, and in the background."""

from __future__ import annotations

from collections.abc import Callable

from cachebus.reading.fetch import MISSING
from cachebus.reading.parts import LoadParts
from cachebus.reading.request import Found, Request


async def look_up(parts: LoadParts, request: Request, refresh: Callable[[Request, bytes], None]) -> Found:
    """What L2 has, by a plain get where this node may judge it. `refresh`: begins to load anew, without a wait, what is
    past its soft expiry; it is given the version that is there."""
    seen = await parts.fetch.found(request.key, request.after, admit=request.use_memory)
    if seen.value is not MISSING:
        parts.rests.saw(request.key.l1, seen.version)
    if seen.soft:
        refresh(request, seen.version)
    return Found(seen.value, "l2", copy=seen.copy)
