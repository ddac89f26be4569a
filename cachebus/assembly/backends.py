"""From settings to a store and a bus: the only module that names concrete ones."""

from __future__ import annotations

from collections.abc import Callable

from cachebus.assembly.world import World
from cachebus.base.clock import Clock
from cachebus.bus.kafka.bus import KafkaBus
from cachebus.bus.kafka.client import kafka_access
from cachebus.bus.kafka.envelope import Envelope
from cachebus.bus.memory import MemoryBus
from cachebus.bus.redis import RedisBus
from cachebus.core.ports import Bus, Listener, Store
from cachebus.l2.memory_store import MemoryStore
from cachebus.l2.names import ShardNames
from cachebus.l2.redis import RedisStore
from cachebus.observe import Counters
from cachebus.resp import CLUSTER, SENTINEL, ClusterMap, Fixed, Places, Route, Sentinels, parse_places
from cachebus.settings import Settings


def backends(
    settings: Settings, clock: Clock, world: World | None, counters: Counters, on_changed: Callable[[int], object]
) -> tuple[Store, Callable[[Listener], Bus]]:
    """The store, not yet connected, and what makes the bus for a listener that comes to know the store; `ConfigError`.

    `world`: the one of `memory://`, None for all other URLs. `on_changed`: as of `RedisStore`.
    """
    if world is not None:
        return MemoryStore(world.shards), lambda listener: MemoryBus(world.channels, listener)
    route = route_of(settings, clock)
    store = redis_store(settings, route, clock, on_changed)
    if settings.bus == "kafka":
        return store, lambda listener: kafka_bus(settings, clock, listener, counters)
    return store, lambda listener: redis_bus(settings, route, clock, listener)


def redis_bus(settings: Settings, route: Route, clock: Clock, listener: Listener) -> RedisBus:
    """The bus on Redis, not yet connected; `ConfigError`."""
    return RedisBus(
        route,
        channels_of(settings),
        listener,
        timeout_s=settings.l2_timeout_s,
        connect_timeout_s=settings.connect_timeout_s,
        clock=clock,
    )


def channels_of(settings: Settings) -> list[str]:
    """The channels of the settings' shards; `ConfigError`."""
    database = places_of(settings).template.db
    return [ShardNames(settings.namespace, shard, database).channel for shard in range(settings.shards)]


def kafka_bus(settings: Settings, clock: Clock, listener: Listener | None, counters: Counters) -> KafkaBus:
    """The bus on Kafka, not yet connected (`listener` None: only to publish); `ConfigError`."""
    return KafkaBus(kafka_access(settings), Envelope.of(settings), listener, counters, clock)


def route_of(settings: Settings, clock: Clock) -> Route:
    """The way to the settings' Redis; `ConfigError`."""
    places = places_of(settings)
    shards, timeout_s = settings.shards, settings.connect_timeout_s
    if places.kind == SENTINEL:
        return Sentinels(
            places.addresses, places.service, places.template, shards, connect_timeout_s=timeout_s, clock=clock
        )
    if places.kind == CLUSTER:
        logs = [ShardNames(settings.namespace, shard).log for shard in range(shards)]
        return ClusterMap(places.addresses, logs, connect_timeout_s=timeout_s, clock=clock)
    return Fixed(places.template, shards)


def places_of(settings: Settings) -> Places:
    """What the settings' URL says, with credentials and TLS; `ConfigError`."""
    return parse_places(
        settings.url.get_secret_value(),
        username=None if settings.username is None else settings.username.get_secret_value(),
        password=None if settings.password is None else settings.password.get_secret_value(),
        ca_certs=settings.ssl_ca_certs,
        check_hostname=settings.ssl_check_hostname,
        client_name=f"cachebus-{settings.namespace}",
    )


def redis_store(
    settings: Settings, route: Route, clock: Clock, on_changed: Callable[[int], object] | None = None
) -> RedisStore:
    """The store on Redis, not yet connected. `on_changed`: as of `RedisStore`."""
    return RedisStore(
        route,
        namespace=settings.namespace,
        shards=settings.shards,
        bus=settings.bus,
        timeout_s=settings.l2_timeout_s,
        connect_timeout_s=settings.connect_timeout_s,
        clock=clock,
        max_invalidated_scopes=settings.max_invalidated_scopes,
        log_max=settings.log_max_len,
        log_max_bytes=settings.log_max_bytes,
        database=places_of(settings).template.db,
        on_changed=on_changed,
    )
