"""What every `BlockingCache` has beside its verbs: how it is made, set up, looked at and closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self, TypeVar

from cachebus.assembly.hooking import Hooking
from cachebus.base.definition import Definition
from cachebus.cache import Cache
from cachebus.cascade import Cascade
from cachebus.core.applied import OnApplied
from cachebus.errors import ConfigError, InvalidationFailed, LoadTimeout
from cachebus.observe import Health, Stats
from cachebus.policy import Policy, Rules
from cachebus.settings import Settings
from cachebus.threads.crossing import Crossing, Limit
from cachebus.threads.loaders import RunApart, run_apart
from cachebus.threads.loop import is_running
from cachebus.threads.resident import Resident

R = TypeVar("R")
USUAL_S = 60.0


class BlockingLife(Resident[Cache], Hooking):
    """A cache on the event loop of this process."""

    _WHAT = "cache"

    def __init__(self, settings: Settings | str | None = None, *, timeout_s: float | None = None) -> None:
        """As `open`."""
        Resident.__init__(self, settings)
        Hooking.__init__(self)
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0 seconds, not {timeout_s!r}")
        self._timeout_s = timeout_s
        within_s = timeout_s or max(USUAL_S, self.settings.connect_timeout_s + 2 * self.settings.staleness_bound_s)
        self._usual, self._sending = Limit(within_s), Limit(within_s, InvalidationFailed)
        self._declared = Cache(self.settings)
        self._declared._hooks = self._hooks
        """Never open: what is declared, for each cache that is made like it."""
        self._made: Cache | None = None
        """The one that is open, or being opened."""
        self._run_apart: RunApart | None = None
        """How a framework wants the loads that run in threads of their own; None: as they are."""
        self._clock = self._declared._clock
        self._entries: Any = {}
        """L1's, while it is open: what a hit goes by. In the child of a fork it is empty, as memory that hears nothing
        of writes is."""

    @classmethod
    def open(cls, settings: Settings | str | None = None, *, timeout_s: float | None = None) -> Self:
        """The cache at a URL or of settings: to be entered by `with`, or called, which opens it; `ConfigError`.

        - `timeout_s`: how long a call waits at most, in seconds. What the calling thread does itself, as a loader that
          runs there, does not count. None: a minute, or twice the `load_timeout_s` of a loaded type where that is more

        What takes longer raises `LoadTimeout` where it loads, `InvalidationFailed` where it invalidates, which may have
        happened then, else `L2Unavailable`.
        """
        return cls(settings, timeout_s=timeout_s)

    async def _asked(self, verb: Callable[[Cache], Awaitable[R]]) -> R:
        if self._run_apart is not None:
            run_apart.set(self._run_apart)  # seen by this call's own task, and what that begins
        return await super()._asked(verb)

    def _make(self) -> Cache:
        self._made = self._declared._anew()
        return self._made

    def _changed(self, there: Cache | None) -> None:
        super()._changed(there)
        self._made = there
        self._entries = {} if there is None else there._entries

    def _forked(self) -> None:
        self._hooks.end()  # what waits is the parent's to tell
        super()._forked()

    def _loading(self, data_type: str) -> tuple[Limit, bool]:
        """How long a load of this type may be waited for, and whether it must not hold up its caller."""
        rules = self._rules(data_type)
        if rules is None:
            return Limit(self._usual.within_s, LoadTimeout), False
        within_s = self._timeout_s or max(self._usual.within_s, 2 * rules.load_timeout_s)
        return Limit(within_s, LoadTimeout), rules.load_soft_timeout_s is not None

    def _rules(self, data_type: str) -> Rules | None:
        parts = self._at_hand()._parts
        return None if parts is None or type(data_type) is not str else parts.policies.rules(data_type)

    def _at_hand(self) -> Cache:
        """The open cache, for what may be asked of it from any thread."""
        there = self._there
        return self._ask(_itself) if there is None else there

    # -- as of a cache --------------------------------------------------------------------------------------------

    def register(self, *cascades: Cascade, policies: Mapping[str, Policy] | None = None) -> None:
        """As `Cache.register`: before the cache is opened, or after."""
        self._declare(lambda cache: cache.register(*cascades, policies=policies))

    def decode_into(self, data_type: str, model: Any, asker: Definition) -> None:
        """As `Cache.decode_into`."""
        self._declare(lambda cache: cache.decode_into(data_type, model, asker))

    def _declare(self, declare: Callable[[Cache], None]) -> None:
        """For the cache that is open, and for each that will be."""

        async def declared() -> None:
            for cache in (self._declared, self._made):
                if cache is not None:
                    declare(cache)

        if is_running():  # there the cache may be open, or just be opened
            Crossing().run(declared(), self._usual)
        else:
            declare(self._declared)

    def probe(self) -> None:
        """As `Cache.probe`."""
        self._ask(lambda cache: cache.probe())

    def drain(self, timeout_s: float | None = None) -> bool:
        """As `Cache.drain`, with no other time limit than `timeout_s`."""
        within_s = float("inf") if timeout_s is None else timeout_s + self._usual.within_s
        return self._ask(lambda cache: cache.drain(timeout_s), Limit(within_s))

    def warmed(self, timeout_s: float | None = None) -> bool:
        """As `Cache.warmed`, with no other time limit than `timeout_s`."""
        within_s = float("inf") if timeout_s is None else timeout_s + self._usual.within_s
        return self._ask(lambda cache: cache.warmed(timeout_s), Limit(within_s))

    def ready(self) -> bool:
        """As `Cache.ready`; a cache that is not open yet is opened."""
        return self._at_hand().ready()

    def health(self) -> Health:
        """As `Cache.health`; a cache that is not open yet is opened."""
        return self._at_hand().health()

    def stats(self) -> Stats:
        """As `Cache.stats`; a cache that is not open yet is opened. Of hits that several threads count at the same
        moment some may be missing."""
        return self._at_hand().stats()

    @property
    def on_applied(self) -> OnApplied | None:
        """As `Cache.on_applied`; it is called on the event loop, and must not call this cache."""
        return self._ask(_hook)

    @on_applied.setter
    def on_applied(self, hook: OnApplied | None) -> None:
        async def hooked(cache: Cache) -> None:
            cache.on_applied = hook

        self._ask(hooked)


async def _itself(cache: Cache) -> Cache:
    return cache


async def _hook(cache: Cache) -> OnApplied | None:
    return cache.on_applied
