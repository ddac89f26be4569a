"""From settings to a store and a bus: the only module that names concrete ones."""

from __future__ import annotations

from collections.abc import Callable

from cachebus.assembly.world import World
from cachebus.base.clock import Clock
from cachebus.base.patience import Patience
from cachebus.bus.kafka.bus import KafkaBus
from cachebus.bus.kafka.client import kafka_access
from cachebus.bus.kafka.envelope import Envelope
from cachebus.bus.memory import MemoryBus
from cachebus.bus.redis import RedisBus
from cachebus.core.ports import Bus, Listener, Store
from cachebus.l2.layout import Layout
from cachebus.l2.memory_store import MemoryStore
from cachebus.l2.names import ShardNames
from cachebus.l2.redis import RedisStore
from cachebus.observe import Counters
from cachebus.resp import (
    CLUSTER,
    SENTINEL,
    ClusterMap,
    Endpoints,
    Fixed,
    Login,
    ProvidedCredentials,
    Route,
    Sentinels,
    parse_endpoints,
)
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
        route, channels_of(settings), listener, Patience(settings.l2_timeout_s, settings.connect_timeout_s, clock)
    )


def channels_of(settings: Settings) -> list[str]:
    """The channels of the settings' shards; `ConfigError`."""
    database = endpoints_of(settings).template.db
    return [ShardNames(settings.namespace, shard, database).channel for shard in range(settings.shards)]


def kafka_bus(settings: Settings, clock: Clock, listener: Listener | None, counters: Counters) -> KafkaBus:
    """The bus on Kafka, not yet connected (`listener` None: only to publish); `ConfigError`."""
    return KafkaBus(kafka_access(settings), Envelope.of(settings), listener, counters, clock)


def route_of(settings: Settings, clock: Clock) -> Route:
    """The way to the settings' Redis; `ConfigError`."""
    endpoints = endpoints_of(settings)
    shards, timeout_s = settings.shards, settings.connect_timeout_s
    if endpoints.kind == SENTINEL:
        return Sentinels(endpoints, shards, connect_timeout_s=timeout_s, clock=clock)
    if endpoints.kind == CLUSTER:
        logs = [ShardNames(settings.namespace, shard).log for shard in range(shards)]
        return ClusterMap(endpoints.addresses, logs, connect_timeout_s=timeout_s, clock=clock)
    return Fixed(endpoints.template, shards)


def endpoints_of(settings: Settings) -> Endpoints:
    """What the settings' URL says, with credentials and TLS; `ConfigError`."""
    wait_s, interval_s = settings.connect_timeout_s / 2, settings.reauth_interval_s
    login = Login(
        username=None if settings.username is None else settings.username.get_secret_value(),
        password=None if settings.password is None else settings.password.get_secret_value(),
        ca_certs=settings.ssl_ca_certs,
        check_hostname=settings.ssl_check_hostname,
        client_name=f"cachebus-{settings.namespace}",
        credentials=ProvidedCredentials.of(settings.credential_provider, wait_s, interval_s),
        of_sentinels=ProvidedCredentials.of(settings.sentinel_credential_provider, wait_s, interval_s),
    )
    return parse_endpoints(settings.url.get_secret_value(), login)


def redis_store(
    settings: Settings, route: Route, clock: Clock, on_changed: Callable[[int], object] | None = None
) -> RedisStore:
    """The store on Redis, not yet connected. `on_changed`: as of `RedisStore`."""
    layout = Layout(
        settings.namespace,
        settings.shards,
        settings.bus,
        settings.max_invalidated_scopes,
        settings.log_max_len,
        settings.log_max_bytes,
        endpoints_of(settings).template.db,
    )
    return RedisStore(route, layout, Patience(settings.l2_timeout_s, settings.connect_timeout_s, clock), on_changed)
