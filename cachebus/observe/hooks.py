"""Who wants to be told of what happens in a cache, and what waits to be told to them.

1. Where something happens, an attribute is looked at that is empty where nobody has subscribed: `if hooks.loaded:`.
   That is all it costs then.
2. `tell` notes the bare facts, and returns: whoever reads, writes or listens waits for no callback.
3. The cache's supervisor takes them out in order (`cachebus.listening.hook_delivery`), and makes events of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, get_args

from cachebus.base.clock import Clock
from cachebus.base.parameters import name_of
from cachebus.errors import ConfigError
from cachebus.observe.counters import Counters
from cachebus.observe.hook_events import HookName

NAMES: Final[tuple[HookName, ...]] = get_args(HookName)
QUEUE_MAX: Final = 10_000
"""So much may wait to be told. An invalidation counts once for each key and scope besides, since it keeps them."""
TIMEOUT_S: Final = 5.0
"""How long an awaitable that a callback gives may take, unless its subscriber says otherwise."""


class Hook:
    """One subscription, until `remove()`, or until the block ends: `with cache.on("loaded", note):`."""

    __slots__ = ("_hooks", "callback", "is_removed", "name", "timeout_s", "told_s")

    def __init__(self, hooks: Hooks, name: HookName, callback: Callable[[Any], object], timeout_s: float) -> None:
        self._hooks = hooks
        self.name, self.callback, self.timeout_s = name, callback, timeout_s
        self.is_removed = False
        """Whether it is over: what still waits is not told to it."""
        self.told_s = float("-inf")
        """When it was last logged that the callback fails."""

    def remove(self) -> None:
        """End it; twice is harmless. What waits to be told is not told to it any more."""
        if not self.is_removed:
            self.is_removed = True
            self._hooks.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<hook {self.name}: {name_of(self.callback)}>"


class Untold(NamedTuple):
    """What has happened, and who is to hear of it."""

    name: HookName
    at_s: float
    facts: tuple[Any, ...]
    hooks: tuple[Hook, ...]
    """Those that there were when it happened."""
    weight: int


class Hooks:
    """The subscriptions of one cache, open or not, and what waits for its supervisor while it is open."""

    __slots__ = (*NAMES, "_clock", "_counters", "_queue", "_wake", "_weight")

    invalidated: tuple[Hook, ...]
    loaded: tuple[Hook, ...]
    load_failed: tuple[Hook, ...]
    stale_served: tuple[Hook, ...]
    lease_lapsed: tuple[Hook, ...]
    flushed: tuple[Hook, ...]
    evicted: tuple[Hook, ...]
    degraded: tuple[Hook, ...]

    def __init__(self) -> None:
        for name in NAMES:
            setattr(self, name, ())
        self._queue: deque[Untold] = deque()
        self._weight = 0
        self._wake: Callable[[], object] | None = None

    @staticmethod
    def check(name: object, timeout_s: object) -> None:
        """`ConfigError` for a name that is none, `ValueError` for a time limit that is none."""
        if name not in NAMES:
            raise ConfigError(f"there is no hook {name!r}: there are {', '.join(NAMES)}")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
            raise ValueError(f"timeout_s must be a number of seconds above 0, not {timeout_s!r}")

    def add(self, name: HookName, callback: Callable[[Any], object], timeout_s: float) -> Hook:
        """Subscribe; what `check` raises, and `ConfigError` for what can't be called."""
        self.check(name, timeout_s)
        if not callable(callback):
            raise ConfigError(f"a hook is told by calling a function, not a {type(callback).__name__}")
        hook = Hook(self, name, callback, timeout_s)
        setattr(self, name, (*getattr(self, name), hook))
        return hook

    def remove(self, hook: Hook) -> None:
        """Forget a subscription."""
        setattr(self, hook.name, tuple(each for each in getattr(self, hook.name) if each is not hook))

    # -- while the cache is open ----------------------------------------------------------------------------------

    def begin(self, clock: Clock, counters: Counters, wake: Callable[[], object]) -> None:
        """From now on what happens waits to be told. `wake`: called when something comes to wait."""
        self._clock, self._counters, self._wake = clock, counters, wake

    def tell(self, name: HookName, *facts: object, weight: int = 1) -> None:
        """Something has happened of which somebody wants to be told. Dropped, and counted, where too much waits
        already."""
        if self._wake is None:
            return
        if self._queue and self._weight + weight > QUEUE_MAX:
            self._counters.hook_events_dropped += 1
            return
        self._weight += weight
        self._queue.append(Untold(name, self._clock(), facts, getattr(self, name), weight))
        self._wake()

    def take(self) -> Untold | None:
        """The oldest that waits; None where nothing does."""
        if not self._queue:
            return None
        untold = self._queue.popleft()
        self._weight -= untold.weight
        return untold

    def end(self) -> int:
        """Note nothing any more, and drop what still waits; how much that was."""
        left = len(self._queue)
        if self._wake is not None:
            self._counters.hook_events_dropped += left
        self._wake, self._weight = None, 0
        self._queue.clear()
        return left
