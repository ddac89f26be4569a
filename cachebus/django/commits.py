"""What is to be invalidated after a transaction's commit: noted while it is under way, done in one go behind it.

Each note is a callback of the transaction. Django drops those of a savepoint, or of all, that is rolled back, and with
them the notes: they are held by it alone. The first callback that runs does what all the others of its connection have
noted, so that a thousand saves are a few invalidations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary, ref

from cachebus.base.ids import Id
from cachebus.base.log import logger
from cachebus.cascade import Target
from cachebus.django.shared import SharedCache
from cachebus.errors import CacheBusError

DEAD_MAX = 1_000
"""Notes of rolled back savepoints that may lie about."""


class Noted:
    """Some targets of a tenant, to go after the commit. `is_certain`: a row of the same transaction says it too."""

    __slots__ = ("__weakref__", "cache", "is_certain", "targets", "tenant_id")

    def __init__(self, cache: SharedCache, tenant_id: Id, targets: list[Target], *, is_certain: bool = False) -> None:
        self.cache = cache
        self.tenant_id = tenant_id
        self.targets = targets
        self.is_certain = is_certain


_noted: WeakKeyDictionary[Any, list[ref[Noted]]] = WeakKeyDictionary()
"""By connection, which is a thread's own."""


def note(noted: Noted, connection: Any) -> None:
    """Have this invalidated after the commit of the connection's transaction; at once where none is under way."""
    waiting = _noted.setdefault(connection, [])
    if len(waiting) > DEAD_MAX:
        waiting[:] = [one for one in waiting if one() is not None]
    waiting.append(ref(noted))

    def committed() -> None:
        if noted.targets:  # else it was done by another one's callback
            _carry_out(list(_alive(connection)))

    connection.on_commit(committed)


def _alive(connection: Any) -> Iterator[Noted]:
    for waiting in _noted.pop(connection, []):
        noted = waiting()
        if noted is not None:
            yield noted


def _carry_out(noted: list[Noted]) -> None:
    """Invalidate all of it. Where some fails the rest is done all the same, and then it is raised; what a row of an
    outbox says too is only logged."""
    failed: CacheBusError | None = None
    together: dict[tuple[int, Id, bool], list[Noted]] = {}
    for one in noted:
        together.setdefault((id(one.cache), one.tenant_id, one.is_certain), []).append(one)
    for (_, tenant_id, is_certain), some in together.items():
        targets = list(dict.fromkeys(target for one in some for target in one.targets))
        for one in some:
            one.targets = []
        try:
            some[0].cache.invalidate(targets, tenant_id, "saved by Django")
        except CacheBusError as error:
            if is_certain:
                logger.warning("an invalidation after a commit has failed, and is the outbox's now: {}", error)
            else:
                failed = failed or error
    if failed is not None:
        raise failed
