"""The async twins of Django's cache interface: each is the sync verb on a thread.

Django's own are that only since 6.1. Before, `aincr` reads and then stores, and `aget_or_set` loads for each caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import BaseCache


def _awaited(verb: str) -> Callable[..., Awaitable[Any]]:
    @wraps(getattr(BaseCache, verb), assigned=())  # for its signature
    async def twin(self: Any, *args: Any, **more: Any) -> Any:
        return await sync_to_async(getattr(self, verb), thread_sensitive=True)(*args, **more)

    twin.__name__ = f"a{verb}"
    twin.__doc__ = f"As `{verb}`."
    return twin


class AwaitedVerbs:
    """`aget`, `aset` and all the others."""

    aget = _awaited("get")
    aset = _awaited("set")
    aadd = _awaited("add")
    atouch = _awaited("touch")
    adelete = _awaited("delete")
    ahas_key = _awaited("has_key")
    aincr = _awaited("incr")
    adecr = _awaited("decr")
    aget_or_set = _awaited("get_or_set")
    aget_many = _awaited("get_many")
    aset_many = _awaited("set_many")
    adelete_many = _awaited("delete_many")
    aclear = _awaited("clear")
    aincr_version = _awaited("incr_version")
    adecr_version = _awaited("decr_version")
    aclose = _awaited("close")
