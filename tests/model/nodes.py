"""The node's steps: from one frozen state to the next through the real code, each distinct one run once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

from cachebus.core.ports import Position
from cachebus.errors import InvalidationFailed, L2Unavailable
from cachebus.reading.fetch import Seen
from cachebus.reading.judge import MISSING
from tests.model.freezer import Freezer
from tests.model.frozen import BOUND, INF, Began, Core, Flight, Held, Tending, View, Write, later, older, renumbered
from tests.model.l2 import Interned, Request, frozen, record_place, thawed
from tests.model.rig import LOST, Ask, Coro, Done, Rig, drive
from tests.model.setup import Setup

T = TypeVar("T")


class Nodes:
    """The states of one node, and of what is under way on it, by number."""

    def __init__(self, setup: Setup) -> None:
        self.cores: Interned[Core] = Interned()
        self.flights: Interned[Flight | None] = Interned()
        self.writes: Interned[Write | None] = Interned()
        self.tendings: Interned[Tending | None] = Interned()
        for parts in (self.flights, self.writes, self.tendings):
            parts.number(None)
        self._rig = Rig(setup)
        self._keys = setup.keys
        self._freezer = Freezer(self._rig)
        self._known: dict[tuple[object, ...], object] = {}

    def attached(self, epoch: bytes) -> int:
        """A node that has just begun in an epoch and, where there is something to read, read both keys."""
        view = View(epoch, 0, 0, (), (), BOUND, (), (), (), 0, (), 0)
        if self._rig.setup.empty:
            return self.cores.number(Core(view, (), BOUND, False, False, (None, None)))
        held = Held(0, 0, BOUND, INF, INF, 0, True, self._rig.setup.tags or None)
        groups = tuple((data_type, BOUND) for data_type in self._freezer.types)
        contexts = any(any(key.contexts) for key in self._keys)
        return self.cores.number(Core(view, groups, BOUND, contexts, held.tags is not None, (held, held)))

    def _once(self, name: str, step: Callable[[], T], *arguments: object) -> T:
        known = self._known.get((name, *arguments), self)
        if known is self:
            known = self._known[name, *arguments] = step()
        return known  # type: ignore[return-value]

    def _thaw(self, core: int) -> None:
        self._freezer.thaw(self.cores.things[core])

    def _freeze(self) -> int:
        return self.cores.number(self._freezer.freeze())

    # -- the passage of time -------------------------------------------------------------------------------------------

    def aged(self, core: int, flight: int, write: int, tending: int) -> tuple[int, int, int, int]:
        """Everything a tick later; a reply that took the heartbeat D is given up."""

        def aged_core() -> int:
            return self.cores.number(older(self.cores.things[core]))

        def aged_part(parts: Interned[T], number: int) -> int:
            part = parts.things[number]
            if parts is self.tendings and part.began.at - 1 <= -BOUND:
                return 0
            return parts.number(part._replace(began=later(part.began)))

        return (
            self._once("aged", aged_core, core),
            flight and self._once("aged flight", lambda: aged_part(self.flights, flight), flight),
            write and self._once("aged write", lambda: aged_part(self.writes, write), write),
            tending and self._once("aged tending", lambda: aged_part(self.tendings, tending), tending),
        )

    def settled(self, core: int, flight: int, write: int) -> tuple[int, int, int]:
        """The same with journal positions numbered anew, and without a flight that nobody can join any more, whose
        value can't enter L1 any more, and that has nothing more to ask of L2."""

        def step() -> tuple[int, int, int]:
            parts = [p for p in (self.flights.things[flight], self.writes.things[write]) if p is not None]
            if flight and self._is_lost(core, parts[0]):
                del parts[0]
            then, began = renumbered(self._tidy(core), [part.began for part in parts])
            numbers = [0, 0]
            for part, its in zip(parts, began, strict=True):
                if isinstance(part, Flight):
                    numbers[0] = self.flights.number(part._replace(began=its))
                else:
                    numbers[1] = self.writes.number(part._replace(began=its))
            return self.cores.number(then), *numbers

        return self._once("settled", step, core, flight, write)

    def _tidy(self, core: int) -> Core:
        """Without entries that are dead, which a sweep may take at any time, and without groups that nothing is in,
        which come again as they were."""
        state = self.cores.things[core]
        for key, held in enumerate(state.held):
            if held is not None and held.place and self.trusts(core)[key] is None:
                core = self.looked(core, key)
        state = self.cores.things[core]
        live = {k.family.data_type for k, held in zip(self._keys, state.held, strict=True) if held and not held.place}
        groups = tuple((t, valid) for t, valid in state.groups if t in live or valid != state.spread)
        return state._replace(groups=groups)

    def _is_lost(self, core: int, flight: Flight) -> bool:
        if flight.what == "load":
            return False
        real, coro = self._rig.again(flight)
        coro.close()
        self._thaw(core)
        shard, key = self._rig.shard, self._keys[flight.key]
        shard.valid_until_s = INF  # in the best case
        scopes = (*key.scopes, *self._rig.setup.tags)
        epoch, seq = _place_of(flight)
        enters = shard.admits(real.fresh._reservation, key, scopes, epoch, seq)
        return not enters and not real.joinable(self._rig.asking(key))

    # -- events, reads of L1 ----------------------------------------------------------------------------------------

    def heard(self, core: int, message: bytes) -> int:
        """A message of the bus has come."""

        def step() -> int:
            self._thaw(core)
            self._rig.receiver.on_message(0, message)
            return self._freeze()

        return self._once("heard", step, core, message)

    def looked(self, core: int, key: int) -> int:
        """Somebody has read a key from L1 by the slow path, which moves or removes an entry."""

        def step() -> int:
            self._thaw(core)
            self._rig.reader.remembered(self._keys[key], None)
            return self._freeze()

        return self._once("looked", step, core, key)

    # -- beginnings: what is asked of L2 ------------------------------------------------------------------------------

    def began(self, core: int) -> Began:
        """What a coroutine that begins now takes with it."""
        view = self.cores.things[core].view
        vouched = view.valid - BOUND if view.valid > 0 else None
        return Began(view.epoch, view.count, view.applied, 0.0, vouched, view.low, view.invalidated, view.foreign)

    def called(self, core: int, key: int) -> int:
        """The seq by which a load that begins now without L2 goes: as new as all that this node knows of its key."""

        def step() -> int:
            self._thaw(core)
            return self._rig.called(key)

        return self._once("called", step, core, key)

    def asks(self, core: int, what: str, *arguments: object, checked: bool = True) -> Request:
        """The question with which something begins, or goes on: "read" key after, "fill_lease" key, "fill" flight,
        "write" kind version, or "turn"."""

        def step() -> Request:
            self._thaw(core)
            rig = self._rig
            rig.store.checked = [checked]
            if what == "fill":
                flight = self.flights.things[int(str(arguments[0]))]
                coro = rig.again(flight)[1]
                self._thaw(core)
                asked = drive(coro, flight.data[2])
            elif what == "fill_lease":
                coro = rig.flight(*arguments)[1]
                asked = drive(coro, rig.nothing(drive(coro)))
            else:
                begin = {"read": self._reads, "write": rig.writing, "turn": lambda: rig.turn("probe")}[what]
                coro = begin(*arguments)
                asked = drive(coro)
            coro.close()
            return frozen(asked.request)  # type: ignore[return-value, union-attr]

        return self._once("asks", step, core, what, *arguments, checked)

    def _reads(self, key: int, after: Position | None) -> Coro:
        return self._rig.fetch.read_one(self._keys[key], after)

    # -- ends: what becomes of L2's answers ---------------------------------------------------------------------------

    def landed(self, core: int, flight: int, answer: object = None) -> tuple[int, object, Request | None]:
        """The flight has ended: with what for its callers, or with one more question, to which `answer` then is.

        One that would now go on to lease has ended too: another that leases at once may begin.
        """

        def step() -> tuple[int, object, Request | None]:
            part = self.flights.things[flight]
            coro = self._rig.again(part)[1]
            self._thaw(core)
            if part.what == "fill":
                end = drive(coro, part.data[3])
            else:
                reply = part.data[{"one": 1, "alone": 0}[part.what]] if part.what in ("one", "alone") else part.data
                end = drive(coro, thawed(reply))
            if answer is not None:
                end = drive(coro, thawed(answer))
            then = self._freeze()
            coro.close()
            if isinstance(end, Done):
                return then, end.result.value, None
            asked = end.request[0] == "read"
            return then, None, frozen(end.request) if asked else None  # type: ignore[return-value]

        return self._once("landed", step, core, flight, answer)

    def wrote(self, core: int, write: int, *, lost: bool = False) -> int:
        """The reply to the node's own write has come; or it was lost, and the caller has heard of it."""

        def step() -> int:
            part = self.writes.things[write]
            self._rig.go_back(part.began)
            coro = self._rig.writing(part.kind, part.version[0])
            with suppress(L2Unavailable, InvalidationFailed):
                self._rig.resumed(coro, lambda: self._thaw(core), LOST if lost else part.reply)
            return self._freeze()

        return self._once("wrote", step, core, write, lost)

    def tended(self, core: int, tending: int) -> tuple[int, str, Request | None]:
        """The reply that the heartbeat waits for has come; it may ask for more, as the part of its turn named."""

        def step() -> tuple[int, str, Request | None]:
            part = self.tendings.things[tending]
            self._rig.go_back(part.began)
            coro = self._rig.turn(part.what)

            def back_to_now() -> None:
                self._thaw(core)
                self._rig.shard._suspects = tuple(epoch for epoch, _ in part.began.foreign)

            end = self._rig.resumed(coro, back_to_now, part.reply)
            then = self._freeze()
            coro.close()
            if isinstance(end, Done):
                return then, "", None
            return then, part_of_turn(end.request), frozen(end.request)  # type: ignore[return-value]

        return self._once("tended", step, core, tending)

    # -- what callers would get ----------------------------------------------------------------------------------------

    def serves(self, core: int, after: Position | None) -> tuple[int | None, ...]:
        """What L1 gives for each key, or None."""

        def step() -> tuple[int | None, ...]:
            self._thaw(core)
            entries = [self._rig.reader.remembered(key, after) for key in self._keys]
            return tuple(None if entry is None else entry.value for entry in entries)

        return self._once("serves", step, core, after)

    def hits(self, core: int) -> tuple[int | None, ...]:
        """What the fast path gives for each key, or None."""

        def step() -> tuple[int | None, ...]:
            self._thaw(core)
            return tuple(self._rig.hit(key) for key in self._keys)

        return self._once("hits", step, core)

    def trusts(self, core: int) -> tuple[int | None, ...]:
        """What L1 holds and believes, whether it may be served now or not."""

        def step() -> tuple[int | None, ...]:
            self._thaw(core)
            entries = [self._rig.node.trusted(key) for key in self._keys]
            return tuple(None if entry is None else entry.value for entry in entries)

        return self._once("trusts", step, core)

    def joins(self, core: int, flight: int, after: Position | None) -> int | None:
        """What a caller gets who comes now and joins the flight, or None."""

        def step() -> int | None:
            part = self.flights.things[flight]
            real, coro = self._rig.again(part)
            self._thaw(core)
            joins = real.joinable(self._rig.asking(self._keys[part.key], after))
            coro.close()
            if not joins:
                return None
            if part.what in ("load", "fill"):
                return part.data[2]  # type: ignore[index]
            return self.landed(core, flight)[1]  # type: ignore[return-value]

        return self._once("joins", step, core, flight, after)

    def reads(self, core: int, checked: bool, key: int, after: Position | None, reply: object) -> object:
        """What a read of L2 gives that is answered at once."""

        def step() -> object:
            self._thaw(core)
            self._rig.store.checked = [checked]
            coro = self._reads(key, after)
            drive(coro)
            end = drive(coro, thawed(reply))
            coro.close()
            if isinstance(end, Ask):
                return None
            value, _ = cast("Seen", end.result)
            return None if value is MISSING else value

        return self._once("reads", step, core, checked, key, after, reply)


def part_of_turn(request: Request) -> str:
    """Which part of the heartbeat's turn asks this."""
    return "log" if request[0] == "log" else "begin" if request[2] else "probe"


def _place_of(flight: Flight) -> tuple[bytes, int]:
    """Epoch and seq of the record that the flight would let into L1."""
    if flight.what == "one":
        operation, reply = flight.data  # type: ignore[misc]
        return record_place(reply if operation == "get" else reply.records[0])
    if flight.what == "hit":
        return record_place(flight.data.record)  # type: ignore[attr-defined]
    if flight.what == "alone":
        return flight.began.epoch, flight.data[1]  # type: ignore[index]
    return flight.data[:2]  # type: ignore[index]
