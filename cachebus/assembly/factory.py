"""From settings to wired parts.

What wakes whom is made first, and handed in: no part is told later what it works with. So the order below is that in
which parts know each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachebus.assembly.backends import backends
from cachebus.assembly.world import World, world_of
from cachebus.base.clock import Clock, monotonic
from cachebus.base.home import Home, name_here
from cachebus.base.log import logger
from cachebus.cascade import CascadeTable
from cachebus.core.node import Node
from cachebus.core.ports import Bus, Store
from cachebus.core.setup import NodeSetup
from cachebus.keys.key import Keyspace
from cachebus.keys.naming import Naming
from cachebus.keys.plan import Planner
from cachebus.l1 import L1
from cachebus.listening.answering import Answering
from cachebus.listening.attach import Attachment
from cachebus.listening.attention import Attention
from cachebus.listening.catch_up import CatchUp
from cachebus.listening.explain import KeyExplainer
from cachebus.listening.fleet import FleetWatch
from cachebus.listening.heartbeat import Heartbeat, Loops
from cachebus.listening.heat import HotAnswering, HotTalk, WarmUpLimits
from cachebus.listening.hook_delivery import HookDelivery
from cachebus.listening.inquiries import Inquiries
from cachebus.listening.lapsing import LapseWatch
from cachebus.listening.outages import Notices, Outages
from cachebus.listening.peers import Peers
from cachebus.listening.probe import Prober
from cachebus.listening.receive import Receiver
from cachebus.listening.tend import Ears, Tending
from cachebus.listening.tidy import Tidying
from cachebus.listening.warm_up import WarmUp
from cachebus.observe import Counters
from cachebus.observe.hooks import Hooks
from cachebus.policy import PolicyTable
from cachebus.reading.cooldown import Cooldowns
from cachebus.reading.fetch import Fetcher
from cachebus.reading.flight import Flights
from cachebus.reading.get_or_load import Loads
from cachebus.reading.parts import LoadParts
from cachebus.reading.read import Reader
from cachebus.reading.waiting import Waiters
from cachebus.settings import Settings
from cachebus.values.cipher import ValueCipher
from cachebus.values.key_source import KeySource
from cachebus.writing.confirm import Confirmer
from cachebus.writing.delivery import Delivery
from cachebus.writing.exchange import Exchanger
from cachebus.writing.guard import Guards
from cachebus.writing.pending import Pending
from cachebus.writing.repeat import EpochResender
from cachebus.writing.resend_buffer import ResendBuffer
from cachebus.writing.tell import Teller
from cachebus.writing.write import Writer


@dataclass(frozen=True, slots=True)
class Writing:
    """What carries writes out."""

    resend_buffer: ResendBuffer
    pending: Pending
    writer: Writer
    exchanger: Exchanger
    guards: Guards
    repeating: EpochResender


@dataclass(frozen=True, slots=True)
class Listening:
    """What keeps a node up to date."""

    attention: Attention
    receiver: Receiver
    catch_up: CatchUp
    prober: Prober
    tending: Tending
    outages: Outages
    fleet: FleetWatch
    peers: Peers
    attachment: Attachment
    heartbeat: Heartbeat
    warm_up: WarmUp
    telling: HookDelivery


@dataclass(frozen=True, slots=True)
class Parts:
    """One cache's parts, wired and not yet started."""

    settings: Settings
    home: Home
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
    explainer: KeyExplainer
    writing: Writing
    listening: Listening
    keys: KeySource | None
    """What gives the keys that encrypt values."""
    world: World | None
    """Kept alive by those who share it."""


def build(
    settings: Settings, clock: Clock = monotonic, world: World | None = None, hooks: Hooks | None = None
) -> Parts:
    """Wire a cache by its settings; `ConfigError`. Must run inside the event loop that will use it.

    `world`: for a URL of memory://, in place of the one of its name. `hooks`: who wants to be told of what happens.
    """
    logger.use(settings.logs)
    home = Home()
    in_memory = settings.url.get_secret_value().startswith("memory://")
    world = (world or world_of(settings, clock)) if in_memory else None
    cipher, keys = encryption_of(settings)
    policies, cascades = PolicyTable(settings.policies, cipher), CascadeTable()
    keyspace = Keyspace(settings.shards)
    node, waiters, attention = _node(settings, clock, hooks or Hooks()), Waiters(), Attention(settings.shards)
    inquiries = Inquiries(clock)

    store, bus_of = backends(settings, clock, world, node.counters, attention.nudge)
    receiver = Receiver(node, waiters, attention, inquiries, HotTalk(clock, node.id))
    bus = bus_of(receiver.on_message)

    fetcher = Fetcher(node, store, policies, attention.nudge, l2_timeout_s=settings.l2_timeout_s)
    reader, loads = _reads(settings, fetcher, waiters, hints=bus.store_publishes)
    writing = _writing(settings, keyspace, fetcher, bus)
    return Parts(
        settings=settings,
        home=home,
        node=node,
        store=store,
        bus=bus,
        policies=policies,
        cascades=cascades,
        naming=Naming(keyspace, settings.default_tenant),
        planner=Planner(keyspace, cascades),
        reader=reader,
        loads=loads,
        writer=writing.writer,
        explainer=KeyExplainer(store, bus, inquiries, clock, node),
        writing=writing,
        listening=_listening(settings, fetcher, bus, receiver, writing),
        keys=keys,
        world=world,
    )


def _reads(settings: Settings, fetcher: Fetcher, waiters: Waiters, *, hints: bool) -> tuple[Reader, Loads]:
    enabled, clock = settings.enabled, fetcher.clock
    reader = Reader(fetcher, outage_is_miss=settings.on_outage == "miss", enabled=enabled)
    flights, cooldowns = Flights(clock), Cooldowns(clock)
    parts = LoadParts(fetcher, reader, waiters, flights, cooldowns, settings.lease_ms, enabled=enabled, hints=hints)
    return reader, Loads(parts)


def _node(settings: Settings, clock: Clock, hooks: Hooks) -> Node:
    l1 = L1(settings.l1_max_entries if settings.use_memory_cache else 0, settings.l1_max_bytes, hooks)
    setup = NodeSetup(
        name_here(settings.node_name),
        settings.shards,
        settings.staleness_bound_s,
        guard_max_s=settings.guard_max_s,
        keep_without_l2=settings.keep_without_l2,
        max_invalidated_scopes=2 * settings.max_invalidated_scopes,
    )
    node = Node(setup, l1, clock, Counters(), hooks)
    for data_type in settings.policies:
        node.groups.declare(data_type)
    return node


def _writing(settings: Settings, keyspace: Keyspace, fetcher: Fetcher, bus: Bus) -> Writing:
    node, store = fetcher.node, fetcher.store
    resend_buffer = ResendBuffer(node.clock, keyspace, settings.resend_max_bytes, node.counters)
    teller = Teller(resend_buffer, None if bus.store_publishes else bus)
    delivery = Delivery(fetcher, teller)
    pending = Pending(node, store, delivery.invalidate, settings.pending_max, settings.l2_timeout_s)
    confirmer = Confirmer(store, node.clock, node.bound_s, node.memberships, keep_without_l2=node.keep_without_l2)
    writer = Writer(fetcher, delivery, pending, confirmer, enabled=settings.enabled)
    return Writing(
        resend_buffer=resend_buffer,
        pending=pending,
        writer=writer,
        exchanger=Exchanger(fetcher, writer, enabled=settings.enabled),
        guards=Guards(node, writer, enabled=settings.enabled),
        repeating=EpochResender(node, delivery, resend_buffer),
    )


def encryption_of(settings: Settings) -> tuple[ValueCipher | None, KeySource | None]:
    """What encrypts values, and what gives it its keys."""
    if settings.encryption is None:
        return None, None
    cipher = ValueCipher(settings.namespace, required=settings.encryption_required)
    return cipher, KeySource(settings.encryption, cipher, settings.connect_timeout_s)


def _listening(settings: Settings, fetcher: Fetcher, bus: Bus, receiver: Receiver, writing: Writing) -> Listening:
    node, store, attention = receiver.node, fetcher.store, receiver.attention
    notices, outages = Notices(node.clock), Outages(store, node.clock, settings.shards, node.hooks)
    fleet = FleetWatch(node, notices)
    catch_up = CatchUp(node, store, attention, grace_s=settings.gap_grace_s)
    prober = Prober(node, store, catch_up, fleet, writing.guards.judge)
    turn_s = settings.probe_interval_s
    tending = Tending(prober, attention, outages, writing.repeating.probe_answered, turn_s=turn_s)
    ears = Ears(bus, attention, outages)
    tidying = Tidying(node, writing.resend_buffer.forget_old, pause_s=turn_s)
    answering = Answering(node, store, bus, receiver.inquiries)
    telling, lapsing = HookDelivery(node.hooks, node.counters, node.clock), LapseWatch(node, turn_s=turn_s)
    # Each in a task of its own: one of L2 and the bus that hangs must not keep the other from coming back.
    peers = Peers(node, store, bus, notices, pause_s=turn_s)
    of_kafka = (peers.introduce, peers.check) if settings.bus == "kafka" else ()
    limits = _warm_up_limits(settings)
    warm_up = WarmUp(fetcher, Keyspace(settings.shards), bus, receiver.hot, limits)
    of_warm = (warm_up.step, HotAnswering(node, store, bus, receiver.hot, limits).step) if limits else ()
    of_shards = tending.step, ears.step, writing.repeating.step
    of_node = tidying.step, answering.step, telling.step, lapsing.step
    loops = Loops(settings.shards, of_shards, (*of_node, *of_kafka, *of_warm))
    return Listening(
        attention=attention,
        receiver=receiver,
        catch_up=catch_up,
        prober=prober,
        tending=tending,
        outages=outages,
        fleet=fleet,
        peers=peers,
        attachment=Attachment(node, store, bus, prober, outages),
        heartbeat=Heartbeat(loops, notices, node.clock, interval_s=turn_s),
        warm_up=warm_up,
        telling=telling,
    )


def _warm_up_limits(settings: Settings) -> WarmUpLimits | None:
    """None where there is nothing to be warmed, or it is not wanted."""
    holds = settings.enabled and settings.use_memory_cache and min(settings.l1_max_entries, settings.l1_max_bytes) > 0
    if not (settings.warm_up and holds):
        return None
    return WarmUpLimits(settings.warm_up_keys, settings.warm_up_bytes, settings.warm_up_s)
