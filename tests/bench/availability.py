"""What one server's trouble does to the tenants of others: failed calls, and p99 beside that of the time before it.

A row for each fault and each way to run servers. `detail` tells of the tenants that it strikes, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from cachebus import Cache, CacheBusError, ConfigError, Settings
from cachebus.base.clock import monotonic
from cachebus.resp import slot_of
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SentinelGroup
from tests.bench.rounds import p99
from tests.bench.rows import Row, at_most
from tests.bench.run import Bench
from tests.bench.scale import Scale
from tests.support.caches import until
from tests.support.kafka_fleet import spread, tenant_of
from tests.support.primaries import SHARDS, Town, names_of, no_answer

D_S: Final = 1.0
PAUSE_S: Final = 0.005
"""Between the calls for one tenant."""
SETTLES_S: Final = 120.0
SOUND, STRUCK = "sound", "struck"
LOADED: Final = "loaded"

Fault = AbstractAsyncContextManager[None]
"""Strikes as it is entered, and mends as it is left."""


@dataclass
class Calls:
    """Calls of one time, for tenants of one kind."""

    took_s: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def share(self) -> float:
        """Of 100, how many have failed."""
        return 100 * self.failed / max(1, len(self.took_s))

    def __str__(self) -> str:
        return f"{self.failed} of {len(self.took_s)} failed, p99 {p99(self.took_s) * 1e3:.1f} ms"


async def rows(bench: Bench) -> list[Row]:
    """Each fault, in a Cluster, behind Sentinels, and with Kafka as the bus. A quick run has one of them."""
    found = await _of_a_cluster(bench)
    if bench.scale == Scale.quick():
        return found
    found += await _of_sentinels(bench)
    try:
        first = KafkaServer()
    except ConfigError:
        return found
    return found + await _of_kafka(bench, first)


def _settings(url: str, **more: Any) -> Settings:
    usual = {"staleness_bound_s": D_S, "l2_timeout_s": 0.5, "shards": SHARDS, "keep_without_l2": False}
    return Settings(**{"url": url, **usual, **more})


@asynccontextmanager
async def _pair(settings: Settings) -> AsyncIterator[tuple[Cache, Cache]]:
    async with Cache.open(settings) as a, Cache.open(settings) as b:
        yield a, b


# -- a life under a fault ---------------------------------------------------------------------------------------------


async def _lives(caches: Sequence[Cache], tenant: str, seen: Callable[[], Calls]) -> None:
    """All kinds of calls for a tenant, one behind the other. `seen`: where the next one counts."""
    writer, reader = caches
    where: dict[str, Any] = {"tenant_id": tenant}
    kinds: list[Callable[[], Awaitable[Any]]] = [
        lambda: writer.set("config", "x", 1, **where),
        lambda: reader.get("config", "x", use_memory=False, **where),
        lambda: writer.invalidate("config", "x", wait="nodes", **where),
        lambda: reader.get_or_load("config", "y", lambda: LOADED, **where),
        lambda: writer.increment("n", **where),
    ]
    while True:
        for call in kinds:
            calls, began_s = seen(), monotonic()
            try:
                await call()
            except CacheBusError:
                calls.failed += 1
            calls.took_s.append(monotonic() - began_s)
            await asyncio.sleep(PAUSE_S)


async def _under(
    bench: Bench, caches: Sequence[Cache], tenants: Mapping[str, Sequence[str]], fault: Fault
) -> tuple[dict[str, Calls], dict[str, Calls]]:
    """The calls before a fault, and under it, by the kind of tenant."""
    before, during = ({kind: Calls() for kind in tenants} for _ in range(2))
    now = {kind: Calls() for kind in tenants}

    def seen(kind: str) -> Callable[[], Calls]:
        return lambda: now[kind]

    tasks = [
        asyncio.create_task(_lives(caches, tenant, seen(kind)))
        for kind, several in tenants.items()
        for tenant in several
    ]
    lasts_s = max(1.0, bench.scale.messages * 2e-3)
    try:
        await asyncio.sleep(2 * D_S)  # before, a wait for all nodes waits for those that may have been here, too
        now = before
        await asyncio.sleep(lasts_s)
        async with fault:
            now = during
            await asyncio.sleep(lasts_s)
            now = {kind: Calls() for kind in tenants}
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for one in ended:
        if not isinstance(one, asyncio.CancelledError):
            raise one  # type: ignore[misc]
    return before, during


def _told(name: str, what: str, before: dict[str, Calls], during: dict[str, Calls]) -> list[Row]:
    sound, struck = during[SOUND], during[STRUCK]
    normal_s, now_s = p99(before[SOUND].took_s), p99(sound.took_s)
    detail = f"{sound}; struck: {struck.failed} of {len(struck.took_s)} failed"
    return [
        Row(
            f"availability.{name}",
            f"{what}: failed calls of the others' tenants",
            sound.share,
            "%",
            at_most(0.0),
            {},
            detail,
        ),
        Row(
            f"availability.{name}_p99",
            f"{what}: p99 of the others' tenants, beside before",
            now_s / normal_s,
            "x",
            at_most(2.0),
            {},
            f"{now_s * 1e3:.1f} ms beside {normal_s * 1e3:.1f}",
        ),
    ]


# -- a Cluster --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _killed(server: EmbeddedServer | KafkaServer) -> AsyncIterator[None]:
    await asyncio.to_thread(server.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def _hanging(server: EmbeddedServer | KafkaServer) -> AsyncIterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@asynccontextmanager
async def _host_gone(server: EmbeddedServer) -> AsyncIterator[None]:
    async with _killed(server):
        with no_answer(server.port):
            yield


@asynccontextmanager
async def _uncovered(server: EmbeddedServer, others: Sequence[EmbeddedServer], tenant: str) -> AsyncIterator[None]:
    slot = slot_of(names_of(tenant).log)
    for each in (server, *others):
        await ask(each, "CLUSTER", "DELSLOTS", slot)
    try:
        yield
    finally:
        await ask(server, "CLUSTER", "ADDSLOTS", slot)


@asynccontextmanager
async def _half_moved(source: EmbeddedServer, target: EmbeddedServer, town: Town) -> AsyncIterator[None]:
    slot = slot_of(names_of(town.tenants[1]).log)
    await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await town.id_of(source))
    await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await town.id_of(target))
    try:
        yield
    finally:
        for each in (source, target):
            await ask(each, "CLUSTER", "SETSLOT", slot, "STABLE")


@asynccontextmanager
async def _refusing(server: EmbeddedServer) -> AsyncIterator[None]:
    await ask(server, "CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        yield
    finally:
        await ask(server, "CONFIG", "SET", "min-replicas-to-write", 0)


async def _all_there(town: Town) -> None:
    async with Cache.open(_settings(town.url)) as cache:
        await until(lambda: cache.stats().l2_connected, within_s=SETTLES_S)


async def _of_a_cluster(bench: Bench) -> list[Row]:
    """Three primaries, each with tenants of its own; one is struck, or one of its slots, beside which it has others."""
    found: list[Row] = []
    async with Town(replicas=0) as town:
        first, second, third = town.servers
        tenants = {STRUCK: town.tenants[1:2], SOUND: [town.tenants[0], town.tenants[2]]}
        beside = {STRUCK: tenants[STRUCK], SOUND: [*tenants[SOUND], town.sibling]}
        faults: dict[str, tuple[str, Callable[[], Fault], Mapping[str, Sequence[str]]]] = {
            "killed": ("is killed", lambda: _killed(second), tenants),
            "hanging": ("hangs", lambda: _hanging(second), tenants),
            "host_gone": ("is gone with its host", lambda: _host_gone(second), tenants),
            "no_replicas": ("refuses for want of replicas", lambda: _refusing(second), tenants),
            "uncovered": ("has lost a slot", lambda: _uncovered(second, (first, third), town.tenants[1]), beside),
            "half_moved": ("has half moved a slot", lambda: _half_moved(second, first, town), beside),
        }
        for name, (what, fault, whose) in list(faults.items())[: 1 if bench.scale == Scale.quick() else None]:
            bench.progress.step(f"cluster, {name}")
            async with _pair(_settings(town.url)) as caches:
                seen = await _under(bench, caches, whose, fault())
                found += _told(f"cluster_{name}", f"Cluster, one primary of three {what}", *seen)
            await _all_there(town)
    return found


# -- Sentinels --------------------------------------------------------------------------------------------------------


async def _of_sentinels(bench: Bench) -> list[Row]:
    """There is one primary, so nobody is spared: how long until the promoted one serves, and what fails meanwhile."""
    found: list[Row] = []
    for name, what in (("killed", "is killed"), ("hanging", "hangs"), ("host_gone", "is gone with its host")):
        bench.progress.step(f"sentinels, {name}")
        async with SentinelGroup(replicas=2, min_replicas=1) as group, _pair(_settings(group.url)) as caches:
            head = await group.primary()
            fault = {"killed": _killed, "hanging": _hanging, "host_gone": _host_gone}[name]
            async with fault(head):
                found.append(await _promotion(group, head, caches, name, what))
    return found


async def _promotion(group: SentinelGroup, head: EmbeddedServer, caches: Sequence[Cache], name: str, what: str) -> Row:
    a, b = caches
    loads = Calls()

    async def load() -> None:
        while True:
            began_s = monotonic()
            try:
                await b.get_or_load("config", "y", lambda: LOADED, tenant_id="acme")
            except CacheBusError:
                loads.failed += 1
            loads.took_s.append(monotonic() - began_s)
            await asyncio.sleep(PAUSE_S)

    loading = asyncio.create_task(load())
    try:
        await until(lambda: group.primary(but=head), within_s=SETTLES_S)
        promoted_s = monotonic()

        async def serves() -> bool:
            return (await a.set("config", "x", 1, tenant_id="acme")).stored

        await until(serves, within_s=SETTLES_S)
        took_s = monotonic() - promoted_s
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    return Row(
        f"availability.sentinels_{name}",
        f"Sentinels, the primary {what}: from the promotion to the first set",
        took_s,
        "s",
        at_most(1.0),
        {},
        f"loads meanwhile: {loads}",
    )


# -- Kafka ------------------------------------------------------------------------------------------------------------


async def _of_kafka(bench: Bench, first: KafkaServer) -> list[Row]:
    """Two brokers, each with partitions of its own; one is struck."""
    found: list[Row] = []
    with first, KafkaServer(joins=first, number=2) as second:
        for name, what, fault in (("killed", "is killed", _killed), ("hanging", "hangs", _hanging)):
            bench.progress.step(f"kafka, {name}")
            how = await spread([first, second], bench.server.url, {0: [1], 1: [2]})
            async with _pair(_settings(**how)) as caches:
                tenants = {SOUND: [tenant_of(caches[0], 0)], STRUCK: [tenant_of(caches[0], 1)]}
                seen = await _under(bench, caches, tenants, fault(second))
                found += _told(f"kafka_{name}", f"Kafka, one broker of two {what}", *seen)
    return found
