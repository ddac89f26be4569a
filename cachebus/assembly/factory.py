"""From settings to wired parts: the only module that names concrete stores and buses."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from weakref import WeakValueDictionary

from cachebus.base.clock import Clock, monotonic
from cachebus.bus.kafka import KafkaBus
from cachebus.bus.kafka_client import kafka_access
from cachebus.bus.kafka_envelope import Envelope
from cachebus.bus.memory import MemoryBus, MemoryChannel
from cachebus.bus.redis import RedisBus
from cachebus.cascade import CascadeTable
from cachebus.core.node import Node
from cachebus.core.ports import Bus, Listener, Store
from cachebus.errors import ConfigError
from cachebus.keys.key import Keyspace
from cachebus.keys.naming import Naming
from cachebus.keys.plan import Planner
from cachebus.l1 import L1
from cachebus.l2.memory import MemoryShard
from cachebus.l2.memory_store import MemoryShards, MemoryStore
from cachebus.l2.names import ShardNames
from cachebus.l2.redis import RedisStore
from cachebus.listening.heartbeat import Heartbeat
from cachebus.listening.receive import Receiver
from cachebus.observe import Counters
from cachebus.policy import PolicyTable
from cachebus.reading.fetch import Fetcher
from cachebus.reading.load import Loads
from cachebus.reading.read import Reader
from cachebus.reading.waiting import Waiters
from cachebus.resp import CLUSTER, SENTINEL, ClusterMap, Fixed, Places, Route, Sentinels, parse_places
from cachebus.settings import Settings
from cachebus.writing.guard import Guards
from cachebus.writing.pending import Pending
from cachebus.writing.write import Writer


class World:
    """What all caches of a process that open the same `memory://NAME` share."""

    def __init__(
        self, shards: int, clock: Clock, *, max_invalidated_scopes: int, log_max: int, log_max_bytes: int = 1 << 26
    ) -> None:
        self.shards = MemoryShards(
            [
                MemoryShard(
                    clock, max_invalidated_scopes=max_invalidated_scopes, log_max=log_max, log_max_bytes=log_max_bytes
                )
                for _ in range(shards)
            ]
        )
        self.channels = [MemoryChannel() for _ in range(shards)]
        for shard, channel in zip(self.shards, self.channels, strict=True):
            shard.publish = channel.send


_worlds: WeakValueDictionary[str, World] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Parts:
    """One cache's parts, wired and not yet started."""

    settings: Settings
    node: Node
    store: Store
    bus: Bus
    policies: PolicyTable
    cascades: CascadeTable
    naming: Naming
    planner: Planner
    reader: Reader
    loads: Loads
    writer: Writer
    guards: Guards
    heartbeat: Heartbeat
    world: World | None
    """Kept alive by those who share it."""


def build(settings: Settings, clock: Clock = monotonic, world: World | None = None) -> Parts:
    """Wire a cache by its settings; `ConfigError`. Must run inside the event loop that will use it."""
    asyncio.get_running_loop()
    policies, cascades = PolicyTable(settings.policies), CascadeTable()
    l1 = L1(settings.l1_max_entries if settings.use_memory_cache else 0, settings.l1_max_bytes)
    node = Node(
        name=settings.node_name or f"{socket.gethostname()}-{os.getpid()}",
        shards=settings.shards,
        bound_s=settings.staleness_bound_s,
        l1=l1,
        clock=clock,
        counters=Counters(),
        guard_max_s=settings.guard_max_s,
        keep_without_l2=settings.keep_without_l2,
        max_invalidated_scopes=2 * settings.max_invalidated_scopes,
    )
    for data_type in settings.policies:
        node.groups.declare(data_type)
    waiters = Waiters()
    later = _Later()
    store, bus, world = _backends(settings, clock, later, world, node.counters)
    heartbeat = Heartbeat(node, store, bus, clock, interval_s=settings.probe_interval_s, grace_s=settings.gap_grace_s)
    heartbeat.receiver = Receiver(node, store, waiters, heartbeat.nudge, clock, heartbeat.prompt)
    later.listener = heartbeat.receiver.on_message
    fetcher = Fetcher(node, store, policies, clock, heartbeat.nudge, l2_timeout_s=settings.l2_timeout_s)
    keyspace = Keyspace(settings.shards)
    reader = Reader(fetcher, clock, outage_is_miss=settings.on_outage == "miss", enabled=settings.enabled)
    loads = Loads(
        reader, fetcher, waiters, clock, lease_ms=settings.lease_ms, enabled=settings.enabled, hints=bus.in_store
    )
    pending = Pending(node, store, settings.pending_max, settings.l2_timeout_s)
    writer = Writer(
        fetcher,
        bus,
        clock,
        heartbeat.nudge,
        pending,
        enabled=settings.enabled,
        resend_max_bytes=settings.resend_max_bytes,
    )
    heartbeat.repeat, heartbeat.forget_old = writer.repeat, writer.resend_buffer.forget_old
    guards = Guards(node)
    heartbeat.judge_guards = guards.judge
    planner = Planner(keyspace, cascades)
    return Parts(
        settings,
        node,
        store,
        bus,
        policies,
        cascades,
        Naming(keyspace),
        planner,
        reader,
        loads,
        writer,
        guards,
        heartbeat,
        world,
    )


class _Later:
    """A listener that is known only once the parts that listen are made."""

    listener: Listener

    def __call__(self, shard: int, message: bytes) -> None:
        self.listener(shard, message)


def _backends(
    settings: Settings, clock: Clock, listener: Listener, world: World | None, counters: Counters
) -> tuple[Store, Bus, World | None]:
    url = settings.url.get_secret_value()
    if url.startswith("memory://"):
        world = world or _world(url.removeprefix("memory://"), settings, clock)
        return MemoryStore(world.shards), MemoryBus(world.channels, listener), world
    route = route_of(settings, clock)
    store = redis_store(settings, route, clock)
    if settings.bus == "kafka":
        return store, kafka_bus(settings, clock, listener, counters), None
    bus = RedisBus(
        route,
        channels_of(settings),
        listener,
        timeout_s=settings.l2_timeout_s,
        connect_timeout_s=settings.connect_timeout_s,
        clock=clock,
    )
    return store, bus, None


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


def redis_store(settings: Settings, route: Route, clock: Clock) -> RedisStore:
    """The store on Redis, not yet connected."""
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
    )


def _world(name: str, settings: Settings, clock: Clock) -> World:
    shared = _worlds.get(name) if name else None
    if shared is None:
        shared = World(
            settings.shards,
            clock,
            max_invalidated_scopes=settings.max_invalidated_scopes,
            log_max=settings.log_max_len,
            log_max_bytes=settings.log_max_bytes,
        )
        if name:
            _worlds[name] = shared
    if len(shared.shards) != settings.shards:
        raise ConfigError(f"memory://{name} has {len(shared.shards)} shards here, this cache wants {settings.shards}")
    return shared
