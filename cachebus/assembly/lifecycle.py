"""A cache's life: its parts brought to life, looked at, and brought to rest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from anyio import get_cancelled_exc_class

from cachebus.assembly.factory import Parts, build
from cachebus.assembly.figures import OFF, figures, health_of, is_ready
from cachebus.assembly.hooking import Hooking
from cachebus.assembly.world import World
from cachebus.base import home
from cachebus.base.clock import Clock, monotonic
from cachebus.base.definition import Definition
from cachebus.base.log import logger
from cachebus.cascade import Cascade, CascadeTable
from cachebus.core.applied import OnApplied
from cachebus.errors import BusUnavailable, CacheBusError, ConfigError, L2Unavailable
from cachebus.keys.key import type_scope
from cachebus.observe import Health, Stats
from cachebus.policy import Policy, Rules
from cachebus.reading.reentrance import loads_for
from cachebus.settings import Settings
from cachebus.values.results import Asked, model_in, one_model

CANCELLED_S = 1.0
"""What loads may take to end that closing has cancelled; and what leaving may take where nothing else is left."""
SAY_WHY_S = 0.1
"""Connecting ends by its own limit, which knows what to say of it; the limit of the whole start comes so much later."""


async def attach(parts: Parts) -> None:
    """Connect, listen, read where every shard is, and begin to tend; `L2Unavailable`, `ProtocolMismatch`."""
    settings = parts.settings
    parts.listening.telling.begin()
    try:
        await parts.listening.attachment.attach(settings.connect_timeout_s + SAY_WHY_S, settings.l2_timeout_s)
    except (L2Unavailable, BusUnavailable) as trouble:
        if not settings.start_degraded:
            raise L2Unavailable(f"{trouble} (at start, {settings.safe_url})") from trouble
        logger.warning("starting degraded, without L2: {}", trouble)
    parts.listening.heartbeat.start()


async def stop(parts: Parts) -> None:
    """Let loads end, tell hooks what has happened, hand fill leases back, leave the fleet, disconnect. Cancelled
    meanwhile, it does so at once."""
    settings, loop = parts.settings, asyncio.get_running_loop()
    began_s = loop.time()
    parts.listening.warm_up.end()
    try:
        await _land(parts)
        left_s = max(CANCELLED_S, began_s + settings.close_timeout_s - loop.time())
        await parts.listening.telling.end(left_s, is_told=parts.listening.heartbeat.runs)
        await parts.listening.heartbeat.stop()
        if settings.enabled:
            # Bounded apart: where big values are under way, an answer may take longer than a silent L2 is given.
            left_s = max(CANCELLED_S, began_s + settings.close_timeout_s - loop.time())
            async with asyncio.timeout(min(settings.l2_timeout_s * 1.25, left_s)):
                await _take_leave(parts)
    except (CacheBusError, TimeoutError) as error:  # out of reach, or laid out anew by others
        logger.debug("could not take leave of L2: {}", error or "no answer in time")
    finally:
        parts.listening.heartbeat.cancel()
        parts.writing.pending.abandon()
        if parts.keys is not None:
            parts.keys.close()
        try:
            await parts.bus.close()
        finally:
            await parts.store.close()
            parts.node.l1.clear()


async def _stop_quietly(parts: Parts) -> None:
    """`stop` after something else went wrong, which is what the caller shall hear."""
    try:
        await stop(parts)
    except Exception as trouble:  # noqa: BLE001 (logged; the first error passes)
        logger.warning("the cache did not close cleanly: {!r}", trouble)


async def _land(parts: Parts) -> None:
    """Let loads end and what is pending be delivered; a load that goes on although it was cancelled is left behind."""
    patience_s, flights = parts.settings.close_timeout_s, parts.loads.flights
    try:
        async with asyncio.timeout(patience_s + CANCELLED_S):
            await asyncio.gather(flights.close(patience_s), parts.writing.pending.close(patience_s))
    except TimeoutError:
        logger.warning("{} loads were cancelled and go on: closing leaves them behind", len(flights))


async def _take_leave(parts: Parts) -> None:
    node = parts.node
    there = [shard.index for shard in node.shards if shard.epoch]
    leaving = (parts.store.forget(shard, node.caller(shard), node.id, lives=False) for shard in there)
    for trouble in await asyncio.gather(*leaving, return_exceptions=True):
        if isinstance(trouble, BaseException):
            raise trouble


def _declare(parts: Parts, data_type: str, policy: Policy) -> None:
    is_another = parts.policies.rules(data_type).version != policy.version
    parts.policies.register(data_type, policy)
    parts.node.groups.declare(data_type)
    if is_another:
        _decode_anew(parts, data_type)


def _decode_anew(parts: Parts, data_type: str) -> None:
    """Believe nothing in memory of this type, nor what is under way: it was decoded without the model that it has."""
    for shard in parts.node.shards:
        parts.node.forget(shard.index, (), [type_scope(data_type)])
        parts.listening.attention.nudge(shard.index)


class Life(Hooking):
    """What every cache has beside its verbs: how it is opened, set up, looked at and closed."""

    def __init__(
        self, settings: Settings | str | None = None, *, world: World | None = None, clock: Clock = monotonic
    ) -> None:
        super().__init__()
        self.settings = Settings.of(settings)
        self._world = world
        self._parts: Parts | None = None
        self._landing: Parts | None = None
        """While it is closed: for loads that are under way, and for nobody else."""
        self._policies: dict[str, Policy] = {}
        self._cascades: list[Cascade] = []
        self._models: dict[str, Asked] = {}
        """By data type: what values are decoded into where the policy does not say."""
        self._entries: Any = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where it is open: with `_entries`, what a hit goes by."""
        self._clock = clock

    def _anew(self) -> Self:
        """Another one, not open, of the same settings, with the same declared and the same subscribed."""
        other = type(self)(self.settings, world=self._world, clock=self._clock)
        other._policies, other._cascades = dict(self._policies), list(self._cascades)
        other._models, other._hooks = dict(self._models), self._hooks
        return other

    @classmethod
    def open(cls, settings: Settings | str | None = None) -> Self:
        """The cache at a URL or of settings, to be entered: `async with Cache.open(...) as cache`; `ConfigError`."""
        return cls(settings)

    async def __aenter__(self) -> Self:
        if self._parts is not None and not self._parts.home.gone:
            raise ConfigError("this cache is open already")
        parts = build(self.settings, self._clock, self._world, self._hooks)
        self._parts = parts
        for data_type, policy in self._policies.items():
            _declare(parts, data_type, policy)
        for cascade in self._cascades:
            parts.cascades.register(cascade)
        if self.settings.enabled:
            try:
                get_cancelled_exc_class()  # anyio imports the rest of itself at its first use: before L2 is asked
                if parts.keys is not None:
                    await parts.keys.read()
                    parts.keys.watch()
                await attach(parts)
            except BaseException:
                self._parts = None
                await _stop_quietly(parts)
                raise
        else:
            logger.warning(OFF)
        self._entries, self._loop = parts.node.l1.entries, parts.home.loop
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except Exception as trouble:
            if error is None:
                raise
            logger.warning("the cache did not close cleanly: {!r}", trouble)  # what the block raised passes

    async def aclose(self) -> None:
        """Let loads end and pending invalidations be delivered within `close_timeout_s`, hand back fill leases, leave
        the fleet. What is still pending then is lost, counted and logged. Closing twice is harmless.

        No load begins meanwhile but for one that is under way, which may use the cache. Loads that have not ended by
        then are cancelled; one that has not a second later is left behind. (One that blocks
        the event loop blocks this too.) Raises `ConfigError` at once in another process, thread or event loop than that
        which opened the cache."""
        parts = self._parts
        if parts is None:
            return
        if not parts.home.here:
            if parts.home.gone:
                self._forget()
            raise parts.home.close_elsewhere("cache")
        self._forget()
        self._landing = parts
        try:
            await stop(parts)
        finally:
            self._landing = None

    def _forget(self) -> None:
        self._parts, self._entries, self._loop = None, {}, None

    def _live(self) -> Parts:
        parts = self._parts
        if parts is None and self._landing is not None and loads_for(self._landing.loads.flights):
            parts = self._landing
        if parts is None:
            raise ConfigError("this cache is not open: use it inside `async with Cache.open(...) as cache`")
        if not parts.home.here:
            raise parts.home.elsewhere("cache")
        return parts

    def _observed_parts(self) -> Parts:
        """The parts, for who only looks, from any thread of the process that opened the cache; `ConfigError`."""
        parts = self._parts
        if parts is None:
            raise ConfigError("this cache is not open: use it inside `async with Cache.open(...) as cache`")
        if home.forks != parts.home.forks:
            raise parts.home.elsewhere("cache")
        return parts

    def ready(self) -> bool:
        """Whether the leases are live, so that memory answers; may be called from any thread. A primary of several that
        is out of reach takes only its own tenants away, so it does not count, as long as another one is there;
        `stats().shards` tells of each. False in an outage of L2, in which reads are answered all the same: a probe that
        takes a process out of service should ask for `health().serving`."""
        parts = self._observed_parts()
        return not parts.home.is_stopped and is_ready(parts)

    def health(self) -> Health:
        """Whether reads are answered, whether the leases are live, and what is not as it should be, in words; see
        `Health`. May be called from any thread."""
        return health_of(self._observed_parts())

    def register(self, *cascades: Cascade, policies: Mapping[str, Policy] | None = None) -> None:
        """Declare cascades and policies; before the cache is opened or after. `ConfigError` for a cycle, or a policy
        that does not fit its type; nothing is declared then."""
        CascadeTable([*self._cascades, *cascades])
        policies = {data_type: self._with_model(data_type, policy) for data_type, policy in (policies or {}).items()}
        for data_type, policy in policies.items():
            Rules(data_type, policy)
        for cascade in cascades:
            if self._parts is not None:
                self._parts.cascades.register(cascade)
            self._cascades.append(cascade)
        for data_type, policy in policies.items():
            if self._parts is not None:
                _declare(self._parts, data_type, policy)
            self._policies[data_type] = policy

    def _with_model(self, data_type: str, policy: Policy) -> Policy:
        model, _ = self._models.get(data_type, (None, None))
        if policy.model is not None or policy.codec != "msgpack" or policy.decode is not None:
            return policy
        return policy if model_in(model) is None else policy.model_copy(update={"model": model})

    def decode_into(self, data_type: str, model: Any, asker: Definition) -> None:
        """Have values of a data type decoded into this model where its policy names none, now and whenever another
        policy is registered. `ConfigError` where it names another, or another asker has. `asker`: who wants that.
        What comes back as it is anyway, as an int, is the type's model as well, and needs no decoding."""
        known = self._models.get(data_type)
        policy = self._policies.get(data_type) or self.settings.policies.get(data_type) or Policy()
        if known is not None and policy.model == known[0]:
            policy = policy.model_copy(update={"model": None})
        if policy.model is not None and policy.model != model:
            raise ConfigError(
                f"{asker} returns {model!r}, and the policy of {data_type!r} has the model {policy.model!r}"
            )
        self._models[data_type] = one_model(known, data_type, model, asker)
        if model_in(model) is None:
            return
        self.register(policies={data_type: policy})
        if known is None and policy.model is None and self._parts is not None:
            _decode_anew(self._parts, data_type)

    async def probe(self) -> None:
        """Ask L2 now where every shard stands, as the heartbeat does every `probe_interval_s`; `L2Unavailable` if any
        does not answer, though the others then have. Nothing where the cache is off."""
        parts = self._live()
        if not self.settings.enabled:
            return
        probes = (parts.listening.prober.probe(shard.index) for shard in parts.node.shards)
        for trouble in await asyncio.gather(*probes, return_exceptions=True):
            if isinstance(trouble, BaseException):
                raise trouble

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until no invalidation of this cache is pending; False when `timeout_s` is over before."""
        return await self._live().writing.pending.drain(timeout_s)

    async def warmed(self, timeout_s: float | None = None) -> bool:
        """Wait until this cache has taken over what is hot on another node (`warm_up`), or has given that up; False
        when `timeout_s` is over before. True at once where it takes over nothing. Reads need not wait for it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._live().listening.warm_up.wait()
        except TimeoutError:
            return False
        return True

    def stats(self) -> Stats:
        """Every counter of this cache, and how it stands now; see `Stats` for what each means. May be called from any
        thread, as a metrics server does; the figures are then not all of one moment."""
        parts = self._observed_parts()
        while True:
            try:
                return figures(parts)
            except RuntimeError:  # from another thread: something has come or gone while it was counted
                if parts.home.here:
                    raise

    @property
    def on_applied(self) -> OnApplied | None:
        """Called with (shard, epoch, seq, monotonic s) when a shard's applied seq moves: for tests and tools."""
        return self._live().node.applied_hook.call

    @on_applied.setter
    def on_applied(self, hook: OnApplied | None) -> None:
        self._live().node.applied_hook.call = hook
