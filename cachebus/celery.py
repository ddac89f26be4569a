"""cachebus in Celery: `cachebus = CeleryCache(app, url)`, and in a task `cachebus.cache.get_or_load("product", 7,
load)`.

Needs Celery: `pip install 'cachebus[celery]'`. Each process of the pool has a cache of its own, which opens with the
first call there, never in the parent, and closes when the process ends. The tenant of who sends a task travels with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

try:
    from celery import Celery, signals
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "cachebus.celery needs Celery: pip install 'cachebus[celery]'", name=_missing.name
    ) from None

from cachebus.base.ids import text_of
from cachebus.base.log import logger
from cachebus.context import IDS, Context, current
from cachebus.errors import CacheBusError
from cachebus.settings import Settings
from cachebus.threads import BlockingCache

__all__ = ["CeleryCache"]
HEADER: Final = "cachebus_context"
"""In a task's message: the ids of the `Context` that it was sent in, as text."""


class CeleryCache:
    """The cache of a Celery application, and the context of its tasks.

    - `app`: the application
    - `settings`: those of the cache, or a URL; None: of the environment
    - `contexts`: whether a task that is sent inside `Context(tenant_id="acme")`, by whichever process, runs inside that
      context too. It is trusted as the broker is

    Made at import time, where the application is made, so that senders and workers both have it. Raises `ConfigError`
    for settings that are wrong.
    """

    def __init__(self, app: Celery, settings: Settings | str | None = None, *, contexts: bool = True) -> None:
        self.app = app
        self.cache = BlockingCache.open(settings)
        """Safe in every pool: processes, threads, solo. Opened by its first call in a process."""
        self._entered: dict[str, Context] = {}
        """By the id of a task that runs here."""
        # A process of the pool ends without Python's own exit: nobody else would have it leave the fleet.
        self._followed: list[tuple[Any, Callable[..., None]]] = [
            (signals.worker_process_shutdown, self._end),
            (signals.worker_shutdown, self._end),
        ]
        if contexts:
            self._followed += [
                (signals.before_task_publish, self._send),
                (signals.task_prerun, self._enter),
                (signals.task_postrun, self._leave),
            ]
        for signal, receiver in self._followed:
            signal.connect(receiver, weak=False, dispatch_uid=self._uid(receiver))

    def close(self) -> None:
        """Close it in this process, and hear of no task any more."""
        for signal, receiver in self._followed:
            signal.disconnect(receiver, dispatch_uid=self._uid(receiver))
        self.cache.close()

    def _uid(self, receiver: Callable[..., None]) -> str:
        # Left to itself Celery tells methods apart by their functions alone: of two caches one would hear nothing.
        return f"cachebus-{id(self)}-{receiver.__name__}"

    def _end(self, **_: Any) -> None:
        try:
            self.cache.close()
        except CacheBusError as error:
            logger.warning("the cache did not close cleanly: {}", error)

    def _send(self, headers: dict[str, Any] | None = None, **_: Any) -> None:
        context = current()
        if context is not None and headers is not None and HEADER not in headers:
            headers[HEADER] = {
                name: text_of(name, part) for name, part in zip(IDS, context.ids, strict=True) if part is not None
            }

    def _enter(self, task_id: str, task: Any, **_: Any) -> None:
        ids = getattr(task.request, HEADER, None)
        if isinstance(ids, dict):
            context = Context(**{name: ids[name] for name in IDS if name in ids})
            context.__enter__()
            self._entered[task_id] = context

    def _leave(self, task_id: str, **_: Any) -> None:
        context = self._entered.pop(task_id, None)
        if context is not None:
            context.__exit__(None, None, None)
