"""The node's steps: from one frozen state to the next through the real code, each distinct one run once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cachebus.coherence import OWED_MAX, Shard
from cachebus.fetch import MISSING
from cachebus.l1 import Entry, Group
from cachebus.node import Details, details
from cachebus.ports import Place
from tests.model.frozen import (
    BOUND, INF, NOW, Began, Flight, Held, NodeState, View, ago, ahead_of_now, older, renumbered,
)  # fmt: skip
from tests.model.l2 import Interned, Request, frozen, thawed
from tests.model.rig import Ask, Coro, Done, Rig, drive
from tests.model.setup import Setup

T = TypeVar("T")
_SLOTS = {
    "_ahead", "_journal", "_journal_floor", "_journal_max", "_owed", "applied", "bound_s", "count", "epoch", "floor",
    "foreign", "head", "index", "marks", "valid_until",
}  # fmt: skip
_NODE = {
    "id", "clock", "bound_s", "shards", "l1", "counters", "server_offset_s", "on_applied", "untidy", "_groups",
    "_lives", "_with_contexts", "_with_tags", "_valid_until",
}  # fmt: skip
LIFE = 1
"""The generation of what L1 holds since the last flush; older ones are 0."""


class Nodes:
    """The states of one node, by number."""

    def __init__(self, setup: Setup) -> None:
        self.states: Interned[NodeState] = Interned()
        self._rig = Rig(setup)
        self._setup = setup
        self._keys = setup.keys
        self._types = tuple(sorted({key.family.data_type for key in setup.keys}))
        self._known: dict[tuple[object, ...], object] = {}
        if set(Shard.__slots__) != _SLOTS or vars(self._rig.node).keys() != _NODE:
            raise AssertionError("Shard or Node has other parts now: teach the model to freeze them")

    def attached(self, epoch: bytes) -> int:
        """A node that has just begun in an epoch, with an empty L1."""
        view = View(epoch, 0, 0, 0, (), BOUND, None, (), (), 0, (), 0)
        return self.states.number(NodeState(view, (), BOUND, False, False, (None, None)))

    def _once(self, name: str, step: Callable[[], T], *arguments: object) -> T:
        known = self._known.get((name, *arguments), self)
        if known is self:
            known = self._known[name, *arguments] = step()
        return known  # type: ignore[return-value]

    # -- time, events, reads of L1 ------------------------------------------------------------------------------------

    def older(self, number: int) -> int:
        """A tick later."""
        return self._once("older", lambda: self._number(older(self.states.things[number])), number)

    def heard(self, number: int, message: bytes) -> int:
        """A message of the bus has come."""

        def step() -> int:
            state = self._thaw(number)
            self._rig.receiver.on_message(0, message)
            return self._freeze(state)

        return self._once("heard", step, number, message)

    def looked(self, number: int, key: int) -> int:
        """Somebody has read a key from L1 by the slow path, which moves or removes an entry."""

        def step() -> int:
            state = self._thaw(number)
            self._rig.reader._remembered(self._keys[key], None)
            return self._freeze(state)

        return self._once("looked", step, number, key)

    # -- beginnings: what is asked of L2 ----------------------------------------------------------------------------

    def began(self, number: int) -> Began:
        """What a coroutine that begins now takes with it."""
        view = self.states.things[number].view
        vouched = view.valid - BOUND if view.valid > 0 else None
        return Began(view.epoch, view.count, view.applied, 0.0, vouched)

    def asks(self, number: int, what: str, *arguments: object, checked: bool = True) -> Request:
        """The question with which something begins, or goes on: "read" key after, "lease" key, "fill", "write" kind
        version, or "turn"."""

        def step() -> Request:
            state = self._thaw(number)
            rig = self._rig
            rig.store.checked = checked
            if what == "fill":
                _, coro = rig.again(state.flight)
                self._thaw(number)
                asked = drive(coro, state.flight.data[2])
            elif what == "lease":
                _, coro = rig.flight(*arguments)
                asked = drive(coro, rig.nothing(drive(coro)))
            else:
                begin = {"read": self._reads, "write": rig.writing, "turn": lambda: rig.turn("probe")}[what]
                coro = begin(*arguments)
                asked = drive(coro)
            coro.close()
            return frozen(asked.request)  # type: ignore[return-value, union-attr]

        return self._once("asks", step, number, what, *arguments, checked)

    def _reads(self, key: int, after: Place | None) -> Coro:
        return self._rig.fetch.one(self._keys[key], after)

    def put(self, number: int, **parts: object) -> int:
        """The node with something more under way, or less."""
        return self._number(self.states.things[number]._replace(**parts))

    # -- ends: what becomes of L2's answers -----------------------------------------------------------------------

    def landed(self, number: int, answer: object = None) -> tuple[int, object, Request | None]:
        """The flight has ended: with what for its callers, or with one more question, to which `answer` then is.

        One that would now go on to lease has ended too: another that leases at once may begin.
        """

        def step() -> tuple[int, object, Request | None]:
            state = self.states.things[number]
            flight = state.flight
            _, coro = self._rig.again(flight)
            self._thaw(number)
            if flight.what == "fill":
                end = drive(coro, flight.data[3])
            else:
                end = drive(coro, thawed(flight.data[1] if flight.what == "one" else flight.data))
            if answer is not None:
                end = drive(coro, thawed(answer))
            then = self._freeze(state._replace(flight=None))
            coro.close()
            if isinstance(end, Done):
                return then, end.result.value, None
            asked = end.request[0] == "read"
            return then, None, frozen(end.request) if asked else None  # type: ignore[return-value]

        return self._once("landed", step, number, answer)

    def wrote(self, number: int) -> int:
        """The reply to the node's own write has come."""

        def step() -> int:
            state = self.states.things[number]
            write = state.write
            self._rig.go_back(write.began)
            coro = self._rig.writing(write.kind, write.version[0])
            self._rig.resumed(coro, lambda: self._thaw(number), write.reply)
            return self._freeze(state._replace(write=None))

        return self._once("wrote", step, number)

    def tended(self, number: int) -> tuple[int, str, Request | None]:
        """The reply that the heartbeat waits for has come; it may ask for more, as the part of its turn named."""

        def step() -> tuple[int, str, Request | None]:
            state = self.states.things[number]
            tending = state.tending
            self._rig.go_back(tending.began)
            coro = self._rig.turn(tending.what)
            end = self._rig.resumed(coro, lambda: self._thaw(number), tending.reply)
            then = self._freeze(state._replace(tending=None))
            coro.close()
            if isinstance(end, Done):
                return then, "", None
            return then, part_of_turn(end.request), frozen(end.request)  # type: ignore[return-value]

        return self._once("tended", step, number)

    # -- what callers would get ---------------------------------------------------------------------------------------

    def serves(self, number: int, after: Place | None) -> tuple[int | None, ...]:
        """What L1 gives for each key, or None."""

        def step() -> tuple[int | None, ...]:
            self._thaw(number)
            entries = [self._rig.reader._remembered(key, after) for key in self._keys]
            return tuple(None if entry is None else entry.value for entry in entries)

        return self._once("serves", step, number, after)

    def hits(self, number: int) -> tuple[int | None, ...]:
        """What the fast path gives for each key, or None."""

        def step() -> tuple[int | None, ...]:
            self._thaw(number)
            return tuple(self._rig.hit(key) for key in self._keys)

        return self._once("hits", step, number)

    def trusts(self, number: int) -> tuple[int | None, ...]:
        """What L1 holds and believes, whether it may be served now or not."""

        def step() -> tuple[int | None, ...]:
            self._thaw(number)
            entries = [self._rig.node.trusted(key) for key in self._keys]
            return tuple(None if entry is None else entry.value for entry in entries)

        return self._once("trusts", step, number)

    def joins(self, number: int, after: Place | None) -> int | None:
        """What a caller gets who comes now and joins the flight, or None."""

        def step() -> int | None:
            flight = self.states.things[number].flight
            real, coro = self._rig.again(flight)
            self._thaw(number)
            joins = self._rig.reader._joinable(self._keys[flight.key], real, after)
            coro.close()
            if not joins:
                return None
            if flight.what in ("load", "fill"):
                return flight.data[2]  # type: ignore[index]
            return self.landed(number)[1]  # type: ignore[return-value]

        return self._once("joins", step, number, after)

    def reads(self, number: int, checked: bool, key: int, after: Place | None, reply: object) -> object:
        """What a read of L2 gives that is answered at once."""

        def step() -> object:
            self._thaw(number)
            self._rig.store.checked = checked
            coro = self._reads(key, after)
            drive(coro)
            end = drive(coro, thawed(reply))
            coro.close()
            return None if isinstance(end, Ask) or end.result is MISSING else end.result

        return self._once("reads", step, number, checked, key, after, reply)

    def bare(self, number: int) -> int:
        """The node with nothing under way."""

        def step() -> int:
            return self.put(number, flight=None, write=None, tending=None)

        return self._once("bare", step, number)

    # -- thawing and freezing -----------------------------------------------------------------------------------------

    def _number(self, state: NodeState) -> int:
        return self.states.number(renumbered(state))

    def _thaw(self, number: int) -> NodeState:
        state = self.states.things[number]
        rig, view, shard, node = self._rig, state.view, self._rig.shard, self._rig.node
        rig.now = NOW
        shard.epoch, shard.applied, shard.head, shard.floor = view.epoch, view.applied, view.head, view.floor
        shard.marks, shard.foreign = dict(view.marks), view.foreign
        shard.valid_until = NOW + view.valid
        shard._ahead = set(view.ahead)
        shard._owed.clear()
        shard._owed.extend((seq, NOW + sent) for seq, sent in view.owed)
        shard.count, shard._journal, shard._journal_floor = view.count, dict(view.journal), view.journal_floor
        node.server_offset_s = 0.0
        node._lives[0] = LIFE
        node._valid_until[0] = NOW + state.spread
        node._with_contexts = {(0, t) for t in self._types} if state.with_contexts else set()
        node._with_tags = {(0, t) for t in self._types} if state.with_tags else set()
        node._groups[0] = {t: (Group(0, t, NOW + valid, LIFE, True), Group(0, t, INF, LIFE, False))
                           for t, valid in state.groups}  # fmt: skip
        node.l1.clear()
        for key, held in zip(self._keys, state.held, strict=True):
            if held is not None:
                node.l1.put(self._entry(key.l1, key.family.data_type, held))
        return state

    def _entry(self, name: str, data_type: str, held: Held) -> Entry:
        if held.place:
            group = Group(0, data_type, 0.0, LIFE if held.place == 1 else LIFE - 1, held.leased)
        else:
            group = self._rig.node._groups[0][data_type][not held.leased]
        extra = None if held.tags is None else Details(keep_until=INF, tags=held.tags, version=b"\0" * 8)
        times = (NOW + held.read_until, NOW + held.expires)
        return Entry(name, held.value, group, NOW + held.fast_until, held.seq, *times, 1, extra)

    def _freeze(self, state: NodeState) -> int:
        """The number of the node as it is now, with what is under way in `state`."""
        shard, node = self._rig.shard, self._rig.node
        if not (shard.applied <= shard.head and all(seq > shard.applied + 1 for seq in shard._ahead)):
            raise AssertionError("applied is beyond head, or an event waits behind no hole")
        view = View(
            shard.epoch, shard.applied, shard.head, shard.floor, tuple(sorted(shard.marks.items())),
            ahead_of_now(shard.valid_until), shard.foreign, tuple(sorted(shard._ahead)),
            tuple((seq, ago(sent)) for seq, sent in shard._owed)[:OWED_MAX],
            shard.count, tuple(sorted(shard._journal.items())), shard._journal_floor,
        )  # fmt: skip
        groups = node._groups[0]
        return self._number(
            NodeState(
                view,
                tuple((t, ahead_of_now(groups[t][0].valid_until)) for t in sorted(groups)),
                ahead_of_now(node._valid_until[0]),
                bool(node._with_contexts),
                bool(node._with_tags),
                tuple(self._held(node.l1.entries.get(key.l1)) for key in self._keys),
                state.flight,
                state.write,
                state.tending,
            )
        )

    def _held(self, entry: Entry | None) -> Held | None:
        if entry is None:
            return None
        group, extra = entry.group, details(entry)
        live = self._rig.node._groups[0].get(group.data_type)
        place = 0 if live is not None and group is live[not group.leased] else 1
        if place and group.valid_until:
            raise AssertionError("a group has been retired, and its entries are served still")
        if group.generation != self._rig.node._lives[0]:
            place = 2
        return Held(
            entry.value, entry.seq, ahead_of_now(entry.read_until), ahead_of_now(entry.expires),
            ahead_of_now(entry.fast_until), place, group.leased, None if extra is None else tuple(extra.tags),
        )  # type: ignore[arg-type]  # fmt: skip


def part_of_turn(request: Request) -> str:
    """Which part of the heartbeat's turn asks this."""
    return "log" if request[0] == "log" else "begin" if request[2] else "probe"
