"""The node in the model: the library's own parts, wired to a clock and a store that the model works by hand.

A coroutine of the library runs until it asks L2 for something; the model lets L2 answer at once, and hands the answer
over whenever it likes. A suspended coroutine can't be kept in a state, so it is made again for the answer: it is run
up to the same question on a node that looks as it did then (`Began`), the node is thawed as it is now, and the answer
is given.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator

from cachebus.cache import Cache
from cachebus.core.node import Node
from cachebus.core.ports import FillLeaseOutcome, FillLeaseReply, Position, ReadReply
from cachebus.core.setup import NodeSetup
from cachebus.decided import Fresh
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.keys.key import Key, Keyspace
from cachebus.keys.plan import Plan
from cachebus.l1 import L1
from cachebus.listening.attention import Attention
from cachebus.listening.catch_up import CatchUp
from cachebus.listening.fleet import FleetWatch
from cachebus.listening.heat import HotTalk
from cachebus.listening.inquiries import Inquiries
from cachebus.listening.outages import Notices
from cachebus.listening.probe import Prober
from cachebus.listening.receive import Receiver
from cachebus.observe import Counters
from cachebus.policy import Policy, PolicyTable
from cachebus.reading.cooldown import Cooldowns
from cachebus.reading.fetch import Fetcher
from cachebus.reading.flight import Departure, Flights, Fly
from cachebus.reading.flight import Flight as RealFlight
from cachebus.reading.get_or_load import Loads
from cachebus.reading.judge import MISSING
from cachebus.reading.load import begun_without_l2
from cachebus.reading.parts import LoadParts
from cachebus.reading.read import Reader
from cachebus.reading.request import Found, Loaded, Request
from cachebus.reading.waiting import Waiters
from cachebus.settings import RESEND_MAX_BYTES
from cachebus.wire import event as events
from cachebus.writing.confirm import Confirmer
from cachebus.writing.delivery import Delivery
from cachebus.writing.pending import Pending
from cachebus.writing.resend_buffer import ResendBuffer
from cachebus.writing.tell import Teller
from cachebus.writing.write import SetRequest, Writer
from tests.model.frozen import BOUND, NEVER, NOW, Began, Flight, bucket_marks
from tests.model.l2 import OWN, frozen, thawed
from tests.model.l2 import Request as Question
from tests.model.setup import Setup

Coro = Coroutine[object, object, object]
PX_MS = 10_000
LOST = L2Unavailable("no answer")


class Ask(Awaitable[object]):
    """A coroutine's question to L2."""

    def __init__(self, *request: object) -> None:
        self.request: Question = request

    def __await__(self) -> Generator[object, object, object]:
        return (yield self)


class Done:
    """A coroutine's result."""

    def __init__(self, result: object) -> None:
        self.result = result


def drive(coro: Coro, answer: object = None) -> Ask | Done:
    """Run a coroutine to its next question, or its end. A pause (`sleep(0)`) is none."""
    asyncio._set_running_loop(HandLoop())  # type: ignore[arg-type]
    try:
        while True:
            asked = coro.throw(answer.with_traceback(None)) if isinstance(answer, Exception) else coro.send(answer)
            if isinstance(asked, Ask):
                return asked
            answer = None
    except StopIteration as stop:
        return Done(stop.value)
    finally:
        asyncio._set_running_loop(None)


class HandStore:
    """A `Store` that asks the model."""

    connected = checked = True

    def lies_at(self, shard: int) -> None:
        """There is but one."""

    def get(self, key: Key) -> Awaitable[bytes | None]:
        return Ask("get", key)  # type: ignore[return-value]

    def extend(self, key: Key, token: str, px_ms: int) -> None:
        raise AssertionError("no timer runs in the model")

    def release(self, key: Key, token: str) -> None:
        """A coroutine that the model has made only for a look is closed: its lease is not L2's business."""

    async def probe(self, shard, caller, *, with_invalidated):
        return await Ask("probe", caller, with_invalidated)

    async def read(self, shard, caller, keys):
        return await Ask("read", caller, keys)

    async def fill_lease(self, key, caller, request):
        return await Ask("fill_lease", key, caller, request._replace(tags=tuple(request.tags)))

    async def fill(self, key, caller, request):
        return await Ask("fill", key, caller, request)

    async def invalidate(self, shard, caller, keys, scopes, body):
        return await Ask("invalidate", caller, keys, scopes, body)

    async def write(self, key, caller, request):
        return await Ask("write", key, caller, request)

    async def log(self, shard, after, count):
        return await Ask("log", after, count)


class HandLoop:
    """Stands for the running loop: no timer of the library ever fires; leases lapse when the model says so."""

    @staticmethod
    def call_later(*_: object) -> HandLoop:
        return HandLoop()

    def cancel(self) -> None:
        pass


class Begun(Exception):
    """A flight that the library wanted to start as a task."""

    def __init__(self, flight: RealFlight, coro: Coro) -> None:
        super().__init__()
        self.flight, self.coro = flight, coro


class NoFlights(Flights):
    """In place of the node's flights: none is under way, and one that begins is the model's."""

    def find(self, name: str) -> None:
        return None

    def begin(self, name: str, departure: Departure, fly: Fly) -> RealFlight:
        flight = HandFlight(self, departure, fly, self._clock)
        raise Begun(flight, fly(flight))


class HandFlight(RealFlight):
    """A flight that no task runs."""

    def _started(self, fly: Fly) -> asyncio.Task[Found]:
        return Underway()  # type: ignore[return-value]


class Underway:
    """In place of a flight's task: it goes on."""

    @staticmethod
    def done() -> bool:
        return False

    @staticmethod
    def cancelling() -> int:
        return 0


async def load(_: object) -> Loaded:
    """The source, of which the model is asked too."""
    return Loaded(await Ask("load"))


async def load_and_tell(_: object) -> Loaded:
    """A source that tells the tag, too."""
    value = await Ask("load")
    return Loaded(value, decided=Fresh(value, tags=("tag",)))


class Rig:
    """One node's parts, wired as in `cachebus.assembly.factory`."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.now = NOW
        self.store = HandStore()
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        l1 = L1(16, 1 << 20)
        self.node = Node(NodeSetup(OWN, 1, BOUND), l1, clock, Counters())
        self.shard = self.node.shards[0]
        policies = PolicyTable({t: Policy(ttl_s=math.inf) for t in "de"})
        self.rules = policies.rules("d")
        waiters = Waiters()
        self.fetch = Fetcher(self.node, self.store, policies, self._nudge)
        self.reader = Reader(self.fetch)
        self.loads = Loads(LoadParts(self.fetch, self.reader, waiters, NoFlights(clock), Cooldowns(clock), PX_MS))
        self.writer = self._writer()
        attention = Attention(1)  # which nobody heeds: the model probes whenever it likes
        self.receiver = Receiver(
            self.node, waiters, attention, Inquiries(self.node.clock), HotTalk(self.node.clock, self.node.id)
        )
        self.catch_up = CatchUp(self.node, self.store, attention, grace_s=0.0)
        self.prober = Prober(self.node, self.store, self.catch_up, FleetWatch(self.node, Notices()), self._nudge)
        self.cache = Cache("memory://")
        self.cache._entries, self.cache._clock = l1.entries, clock

    @staticmethod
    def _nudge(shard: int) -> None:
        """The model probes whenever it likes."""

    def _writer(self) -> Writer:
        node, store = self.node, self.store
        resend_buffer = ResendBuffer(node.clock, Keyspace(1), RESEND_MAX_BYTES, node.counters)
        delivery = Delivery(self.fetch, Teller(resend_buffer, None))
        pending = Pending(node, store, delivery.invalidate, 0, 0.0)
        confirmer = Confirmer(store, node.clock, node.bound_s, node.memberships, keep_without_l2=node.keep_without_l2)
        return Writer(self.fetch, delivery, pending, confirmer, enabled=True)

    def asking(self, key: Key, after: Position | None = None) -> Request:
        """What a caller on this node asks for."""
        if self.setup.told:
            return Request(key, load_and_tell, self.rules, after)
        tags = self.setup.tags if self.setup.fills else ()
        return Request(key, load, self.rules, after, tags=tags)

    def flight(self, key: int) -> tuple[RealFlight, Coro]:
        """A flight for a caller who finds nothing in L1: what is in there is not looked at."""
        self.node.l1.clear()
        caller = self.loads.get_or_load(self.asking(self.setup.keys[key]))
        try:
            drive(caller)
        except Begun as begun:
            return begun.flight, begun.coro
        raise AssertionError("a read that misses begins no flight")

    def called(self, key: int) -> int:
        """The seq by which a load without L2 goes that begins now."""
        return begun_without_l2(self.node, self.setup.keys[key])[1]

    def writing(self, kind: str, version: int) -> Coro:
        """An invalidation, or a set of key 0, by a caller on this node."""
        plan = Plan(0)
        keys, scopes = self.setup.target(kind)
        plan.keys, plan.scopes = list(keys), list(scopes)
        if kind == "w":
            return self.writer.set(SetRequest(self.setup.keys[0], version, self.rules, plan, tags=self.setup.tags))
        return self.writer.invalidate(plan)

    def turn(self, what: str) -> Coro:
        """A part of the heartbeat's turn."""
        if what == "begin":
            return self.catch_up.begin_epoch(0, "epoch")
        return self.catch_up.read_log(0) if what == "log" else self.prober.probe(0)

    # -- coroutines that began earlier ----------------------------------------------------------------------------

    def go_back(self, began: Began) -> None:
        """Make the node look as a coroutine saw it when it began, as far as that matters to it."""
        shard = self.shard
        shard.epoch, shard.drop_count, shard.applied = began.epoch, began.count, began.applied
        shard.highest_seq = began.applied + 1
        shard.low, shard.invalidated = dict(began.low), bucket_marks(began.invalidated)
        shard.foreign = dict(began.foreign)
        self.now = NOW + began.at
        shard.valid_until_s = NEVER if began.vouched is None else NOW + began.vouched + BOUND
        self.store.checked = [True]

    def resumed(self, coro: Coro, back_to_now: Callable[[], None], answer: object) -> Ask | Done:
        """Run a coroutine up to its first question as the node was then, and give it the answer as the node is now."""
        asked = drive(coro)
        if not isinstance(asked, Ask):
            raise AssertionError(f"{coro} ended with {asked.result} where it once asked something")
        back_to_now()
        return drive(coro, thawed(answer))

    def again(self, flight: Flight) -> tuple[RealFlight, Coro]:
        """A flight made again: it waits for the answer to its last question, and the node looks as it did when it
        began. One that leases has found nothing in L2 just before; one that is alone had no answer from L2."""
        self.go_back(flight.began)
        if flight.what == "one":
            self.store.checked = [flight.data[0] == "get"]  # type: ignore[index]
        real, coro = self.flight(flight.key)
        asked = drive(coro)
        if flight.what == "one":
            return real, coro
        if flight.what == "alone":
            self.shard.highest_seq = flight.data[1]  # type: ignore[index]
            drive(coro, LOST)
            return real, coro
        drive(coro, self.nothing(asked))
        if flight.what != "hit":
            epoch, seq, value = flight.data[:3]  # type: ignore[index]
            drive(coro, FillLeaseReply(epoch, seq, FillLeaseOutcome.GRANTED, None, 0))
            if flight.what == "fill":
                drive(coro, value)
        return real, coro

    def nothing(self, asked: Ask | Done) -> object:
        """The answer of an L2 without a record."""
        return ReadReply(self.shard.epoch, self.shard.applied, [None]) if asked.request[0] == "read" else None  # type: ignore[union-attr]

    # -- what a caller gets -----------------------------------------------------------------------------------------

    def hit(self, key: Key) -> int | None:
        """What the fast path of a public verb gives."""
        family = key.family
        coro = self.cache.get(family.data_type, key.resource_id, family.tenant, *key.contexts)
        try:
            done = drive(coro)
        except ConfigError:  # it went past the fast path, to a cache that is not open
            return None
        return done.result if isinstance(done, Done) else None  # type: ignore[return-value]


def missing(value: object) -> bool:
    """Whether a read gave nothing."""
    return value is MISSING


def message_place(message: bytes) -> tuple[bytes, int]:
    """Epoch and seq of an event."""
    event = events.decode(message)
    return event.epoch, event.seq


def body_of(setup: Setup, kind: str) -> bytes:
    """The body of an invalidation by somebody elsewhere."""
    keys, scopes = setup.target(kind)
    return events.encode_body([events.WritePart([key.l1 for key in keys], list(scopes))])


def garbled(message: bytes) -> bytes:
    """The event with another seq in its header: the next one's."""
    seq = int.from_bytes(message[20:28], "big") + 1
    return message[:20] + seq.to_bytes(8, "big") + message[28:]


__all__ = ["LOST", "Ask", "Done", "Rig", "body_of", "drive", "frozen", "garbled", "message_place", "missing"]
