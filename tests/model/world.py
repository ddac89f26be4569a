"""The whole model: one L2 shard, one node with its L1, writers and a loader elsewhere, a bus that does as it likes.

A write at the source, its invalidation's script and the reply are one step (for the node's own: two). Whatever the
node asks of L2 reaches it at once; the answer comes as late as you like, or never. Events wait in a bag: delivered in
any order, late, or never. A load reads the source at the moment its lease is granted, which is the oldest it may give.
A failover brings L2 back under another id, as it is or as it was just before some invalidation. Time goes in ticks.

Not here: split brain, expiry, refresh, what a search remembers as absent, waiting for another's lease. Write guards,
and fallbacks for a source that fails, have worlds of their own: `test_guards.py`, `fallbacks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from cachebus.core import membership
from cachebus.core.ports import Caller, FillLeaseOutcome, Position
from cachebus.core.requests import FillLeaseRequest, FillRequest, WriteRequest
from tests.model.frozen import BOUND, NOW, Began, Flight, Tending, Vault, Write
from tests.model.l2 import ELSEWHERE, L2, OWN, Interned, Request, epoch_name, new_record
from tests.model.nodes import Nodes, part_of_turn
from tests.model.rig import LOST, body_of, garbled, message_place
from tests.model.setup import BUDGETS, Setup

Label = tuple[object, ...]
D = 2
NO_SNAP = -1
OTHER = "R"
"""The token of the loader elsewhere."""
_INVS, _FAILOVERS, _WIPES, _EVICTIONS, _TRIMS, _OWN, _OUTAGES, _LAPSES, _GARBLES = range(len(BUDGETS))


class Token(NamedTuple):
    """The receipt of a write, and how often each key had changed by then."""

    place: Position
    seen: tuple[int, ...]


class Truth(NamedTuple):
    """What has really happened. `now`: how often each key has changed at the source; `recent`: the age of each change
    that is younger than D, with the keys changed; `own`: the changes that the node's own callers know of."""

    now: tuple[int, ...]
    recent: tuple[tuple[int, tuple[int, ...]], ...]
    tokens: tuple[Token, ...]
    own: tuple[int, ...]
    strong: tuple[int, ...] = (0, 0)
    """Those of which some writer has heard that no node can serve what was before."""

    def due(self) -> tuple[int, ...]:
        """The changes that every read must show by now."""
        return tuple(n - sum(touched[k] for _, touched in self.recent) for k, n in enumerate(self.now))


class State(NamedTuple):
    """One state of the world; all whole numbers are those of `World.truths`, `World.l2.states` and `World.nodes`.

    `snap` is the L2 that was kept, `core` the node, and then come what is under way on it, or 0."""

    truth: int
    l2: int
    snap: int
    core: int
    flight: int
    write: int
    tending: int
    bag: tuple[int, ...]
    checked: bool
    """Whether the node's connection is known to lead to the server that is there now."""
    probed_here: bool
    """Whether the probe under way was answered by the server that is there now."""
    elsewhere: tuple[int, bytes, int, int] | None
    """What the loader elsewhere has loaded: key, epoch and seq of its lease, value."""
    left: tuple[int, ...]
    waiting: tuple[Token, int, float] | None = None
    """Who waits for the nodes: for which write, since when, and for how long at most, in ticks."""
    watched: tuple[bytes, float] | None = None
    """What that process knows of the set of rows: its name, and since when."""


FOR_EVER = 2 * BOUND
"""For how long a name is known that was known from the beginning, in ticks."""
Step = tuple[Label, State]


class World:
    """Where a set-up can go."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.l2 = L2(setup.max_invalidated_scopes, rows=setup.strong)
        self.nodes = Nodes(setup)
        self.truths: Interned[Truth] = Interned()
        self._older: dict[int, int] = {}
        self._turns: dict[tuple[int, ...], State] = {}
        self.messages: Interned[bytes] = Interned()
        self._places: list[tuple[bytes, int]] = []

    def start(self) -> State:
        """Both keys in L2 as they are at the source; the node attached, its lease fresh."""
        first = epoch_name(1)
        records = ((key.l2, new_record(key.l2, 0, self.setup.tags, first)) for key in self.setup.keys)
        stored = () if self.setup.empty else tuple(sorted(records))
        contexts = () if self.setup.empty else {k.family.data_type for k in self.setup.keys if k.everywhere}
        vault = Vault("s0", "s0", first, 0, 1, records=stored, in_contexts=tuple(sorted(contexts)))
        if self.setup.strong:
            bound_ms = int(BOUND * 1000)
            vault = vault._replace(rows=((OWN, 0, first, 0),), nodes_name=epoch_name(0), bound_ms=bound_ms)
        truth = Truth((0, 0), (), (), (0, 0))
        core, l2, left = self.nodes.attached(first), self.l2.states.number(vault), self.setup.budgets()
        return State(
            self.truths.number(truth),
            l2,
            NO_SNAP,
            core,
            0,
            0,
            0,
            (),
            True,
            True,
            None,
            left,
            None,
            (epoch_name(0), FOR_EVER) if self.setup.strong else None,
        )

    def steps(self, state: State) -> Iterator[Step]:
        """All that may happen next."""
        yield from self._writers(state)
        yield from self._servers(state)
        yield from self._arrivals(state)
        yield from self._heartbeat(state)
        yield from self._flight_goes_on(state) if state.flight else self._flights(state)
        if self.setup.own_kinds:
            yield from self._own_writes(state)
        if self.setup.second:
            yield from self._other_loader(state)
        if state.waiting:
            yield ("look at the nodes",), self._looked_around(state)
        elif self.setup.waiter_is_node:
            yield ("probe elsewhere",), self._probed_elsewhere(state)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _spent(self, state: State, budget: int) -> tuple[int, ...]:
        return tuple(n - (i == budget) for i, n in enumerate(state.left))

    def _ask(self, state: State, request: Request) -> tuple[State, object]:
        """The world after L2 has got a request, and the reply."""
        l2, reply, sent = self.l2.do(state.l2, request)
        if not sent:
            return (state if l2 == state.l2 else state._replace(l2=l2)), reply
        bag = state.bag + tuple(self._message(message) for message in sent)
        return state._replace(l2=l2, bag=self._useful(bag, state.core)), reply

    def _message(self, message: bytes) -> int:
        number = self.messages.number(message)
        if number == len(self._places):
            self._places.append(message_place(message))
        return number

    def _useful(self, bag: tuple[int, ...], core: int) -> tuple[int, ...]:
        """The bag without what the node has applied: hearing it again changes nothing in this epoch."""
        if not bag:
            return bag
        view = self.nodes.cores.things[core].view
        if not self.setup.repeats:
            bag = tuple(
                message
                for message in bag
                for epoch, seq in [self._places[message]]
                if (
                    seq > view.applied and seq not in view.ahead
                    if epoch == view.epoch
                    else self.setup.old or epoch > view.epoch
                )
            )
        return tuple(sorted(set(bag)))

    def _with_core(self, state: State, core: int, flight: int = -1, write: int = -1, **more: Any) -> State:
        """The world with another node, another flight or write under way on it, and what else is given."""
        had = state.flight
        flight, write = had if flight < 0 else flight, state.write if write < 0 else write
        core, flight, write = self.nodes.settled(core, flight, write)
        bag = self._useful(more.pop("bag", state.bag), core)
        after = state._replace(core=core, flight=flight, write=write, bag=bag, **more)
        return self._ended(after, OWN) if had and not flight else after

    # -- everybody else -------------------------------------------------------------------------------------------

    def _changed(self, state: State, kind: str) -> tuple[Truth, Request]:
        """A change at the source, and what must be asked of L2 for it."""
        touched = (0, 0) if kind == "x" else (1, 1) if kind == "s" else (1, 0)
        before = self.truths.things[state.truth]
        now = tuple(n + t for n, t in zip(before.now, touched, strict=True))
        truth = before._replace(now=now, recent=(*before.recent, (0, touched)))
        keys, scopes = self.setup.target(kind)
        body = body_of(self.setup, kind)
        if kind == "w":
            record = new_record(keys[0].l2, now[0], self.setup.tags)
            return truth, ("write", keys[0], ELSEWHERE, WriteRequest(record, 0, body))
        return truth, ("invalidate", ELSEWHERE, keys, scopes, body)

    def _acknowledged(self, truth: Truth, reply: object) -> int:
        token = Token(Position(reply.epoch, reply.seq), truth.now)  # type: ignore[attr-defined]
        tokens = (*truth.tokens, token) if self.setup.tokens else ()
        return self.truths.number(truth._replace(tokens=tokens))

    def _writers(self, state: State) -> Iterator[Step]:
        if not state.left[_INVS]:
            return
        for kind in self.setup.kinds:
            truth, request = self._changed(state, kind)
            after, reply = self._ask(state._replace(left=self._spent(state, _INVS)), request)
            after = after._replace(truth=self._acknowledged(truth, reply))
            if self.setup.strong and state.waiting is None:
                token = Token(Position(reply.epoch, reply.seq), truth.now)  # type: ignore[attr-defined]
                bound = membership.first_bound_s(self.setup.waiter_bound, reply, ELSEWHERE)  # type: ignore[arg-type]
                after = after._replace(waiting=(token, 0, bound))
            yield ("write" if kind == "w" else "invalidate", kind), after
            if self.setup.rollback and state.left[_FAILOVERS] and state.snap == NO_SNAP:
                yield ("keep L2, then", "write" if kind == "w" else "invalidate", kind), after._replace(snap=state.l2)

    def _servers(self, state: State) -> Iterator[Step]:
        vault = self.l2.states.things[state.l2]
        if state.left[_FAILOVERS]:
            left = self._spent(state, _FAILOVERS)
            back = self.l2.states.things[state.snap]._replace(epochs=vault.epochs) if state.snap >= 0 else vault
            l2 = self.l2.states.number(back._replace(server=f"s{self.setup.failovers - left[_FAILOVERS]}"))
            label = ("failover",) if state.snap < 0 else ("failover to the kept L2",)
            yield label, state._replace(l2=l2, snap=NO_SNAP, checked=False, probed_here=False, left=left)
        if state.left[_WIPES]:
            wiped = Vault(vault.server, "", b"", 0, vault.epochs)
            yield ("wipe",), state._replace(l2=self.l2.states.number(wiped), left=self._spent(state, _WIPES))
        if state.left[_EVICTIONS]:
            left = self._spent(state, _EVICTIONS)
            gone = self.l2.changed(state.l2, meta_server="", epoch=b"", seq=0, bound_ms=0)
            yield ("evict meta",), state._replace(l2=gone, left=left)
            if vault.rows:
                gone = self.l2.changed(state.l2, rows=(), nodes_name=b"")
                yield ("evict nodes",), state._replace(l2=gone, left=left)
            if vault.invalidated:
                yield ("evict marks",), state._replace(l2=self.l2.changed(state.l2, invalidated=()), left=left)
        if state.left[_TRIMS] and vault.messages:
            l2 = self.l2.changed(state.l2, messages=())
            yield ("trim",), state._replace(l2=l2, left=self._spent(state, _TRIMS))
        if state.left[_LAPSES]:
            for name, _, token in vault.fill_leases:
                rest = tuple(lease for lease in vault.fill_leases if lease[0] != name)
                l2 = self.l2.changed(state.l2, fill_leases=rest)
                yield ("lapse", name, token), state._replace(l2=l2, left=self._spent(state, _LAPSES))

    def _waiter(self, state: State) -> Caller:
        """Who waits: a producer, or a node that has applied everything, as its row says."""
        if not self.setup.waiter_is_node:
            return ELSEWHERE
        vault = self.l2.states.things[state.l2]
        return Caller(OTHER, vault.seq, vault.epoch)

    def _probed_elsewhere(self, state: State) -> State:
        """The node that will wait leaves its row, and hears of the set's name."""
        after, reply = self._ask(state, ("nodes", self._waiter(state)))
        known = state.watched if state.watched and state.watched[0] == reply.name else (reply.name, 0.0)  # type: ignore[attr-defined]
        return after._replace(watched=known)

    def _looked_around(self, state: State) -> State:
        """The writer that waits has looked at the nodes' rows, and may have heard enough."""
        after, reply = self._ask(state, ("nodes", self._waiter(state)))
        assert state.waiting is not None
        assert state.watched is not None
        token, _, bound = state.waiting
        name, age = state.watched
        view = membership.MembershipView()
        view.saw(name, NOW - age)
        reply = reply._replace(rows=dict(reply.rows))  # type: ignore[attr-defined]
        bound = membership.largest_bound_s(reply, bound)
        # A tick is no minute: what is to be known for longer than D, is known from the beginning or never.
        after_s = min(FOR_EVER, membership.complete_after_s(bound, keep_without_l2=bool(self.setup.outages)))
        _, done = membership.judged(view, reply, token.place, after_s, NOW)  # type: ignore[arg-type]
        since = NOW - view.since_s
        watched = (view.name, (since if since >= FOR_EVER else min(BOUND, since)) if view.name else 0.0)
        after = after._replace(watched=watched, waiting=(token, state.waiting[1], bound))
        if not done:
            return after
        truth = self.truths.things[state.truth]
        truth = truth._replace(strong=tuple(map(max, truth.strong, token.seen)))
        return after._replace(waiting=None, truth=self.truths.number(truth))

    def _other_loader(self, state: State) -> Iterator[Step]:
        if state.elsewhere is None:
            for k in self.setup.loads:
                key = self.setup.keys[k]
                after, reply = self._ask(state, ("fill_lease", key, ELSEWHERE, FillLeaseRequest(OTHER, 10_000)))
                if reply.outcome is FillLeaseOutcome.GRANTED:  # type: ignore[attr-defined]
                    source = self.truths.things[state.truth].now[k]
                    load = (k, reply.epoch, reply.seq, source)  # type: ignore[attr-defined]
                    yield ("lease and load elsewhere", k), after._replace(elsewhere=load)
        else:
            k, epoch, seq, value = state.elsewhere
            record = new_record(self.setup.keys[k].l2, value, self.setup.tags, epoch, seq)
            after, _ = self._ask(state, ("fill", self.setup.keys[k], ELSEWHERE, FillRequest(OTHER, record, 0)))
            yield ("fill elsewhere", k), self._ended(after._replace(elsewhere=None), OTHER)

    def _ended(self, state: State, token: str) -> State:
        """A loader is done: its lease, where it still stands, is as good as lapsed."""

        def without(number: int) -> int:
            if number < 0:
                return number
            leases = self.l2.states.things[number].fill_leases
            rest = tuple(lease for lease in leases if lease[2] != token)
            return number if rest == leases else self.l2.changed(number, fill_leases=rest)

        return state._replace(l2=without(state.l2), snap=without(state.snap))

    # -- the node -------------------------------------------------------------------------------------------------

    def _arrivals(self, state: State) -> Iterator[Step]:
        core, flight, write, tending = self.nodes.aged(state.core, state.flight, state.write, state.tending)
        after = self._with_core(state, core, flight, write, tending=tending, truth=self._aged(state.truth))
        yield ("tick",), after._replace(**self._patience(state)) if self.setup.strong else after
        for message in state.bag:
            epoch, seq = self._places[message]
            core = self.nodes.heard(state.core, self.messages.things[message])
            rest = state.bag if self.setup.repeats else tuple(m for m in state.bag if m != message)
            yield ("event", f"{int(epoch, 16)}:{seq}"), self._with_core(state, core, bag=rest)
            if state.left[_GARBLES]:
                core = self.nodes.heard(state.core, garbled(self.messages.things[message]))
                left = self._spent(state, _GARBLES)
                yield ("garbled event", f"{int(epoch, 16)}:{seq}"), self._with_core(state, core, bag=rest, left=left)
        for key, held in enumerate(self.nodes.cores.things[state.core].held):
            if held is not None and held.place:
                yield ("look", key), self._with_core(state, self.nodes.looked(state.core, key))

    def _patience(self, state: State) -> dict[str, Any]:
        """Who waits, and what it knows, a tick later; one that has waited for its bound has waited enough."""
        waiting, truth, watched = state.waiting, self._aged(state.truth), state.watched
        if waiting:
            token, since, bound = waiting
            waiting = (token, since + 1, bound)
            if since + 1 >= bound:
                # Whoever waited so long counts on it, as on an earlier answer.
                known = self.truths.things[truth]
                strong = tuple(seen if seen > d else 0 for seen, d in zip(token.seen, known.due(), strict=True))
                truth = self.truths.number(known._replace(strong=tuple(map(max, known.strong, strong))))
                waiting = None
        if watched is not None:
            watched = watched[0], watched[1] if watched[1] >= BOUND else watched[1] + 1
        rows = self.l2.states.things[state.l2].rows
        older = tuple((node, applied, epoch, min(int(BOUND), age + 1)) for node, applied, epoch, age in rows)
        return {"waiting": waiting, "watched": watched, "truth": truth, "l2": self.l2.changed(state.l2, rows=older)}

    def _aged(self, number: int) -> int:
        known = self._older.get(number)
        if known is not None:
            return known
        truth = self.truths.things[number]
        truth = truth._replace(recent=tuple((age + 1, touched) for age, touched in truth.recent if age + 1 < D))
        due = truth.due()  # a token says nothing any more once every read must show as much
        tokens = tuple(t for t in truth.tokens if any(seen > d for seen, d in zip(t.seen, due, strict=True)))
        # What was due to everybody by the bound says no more than that any longer.
        strong = tuple(seen if seen > d else 0 for seen, d in zip(truth.strong, due, strict=True))
        self._older[number] = self.truths.number(truth._replace(tokens=tokens, strong=strong))
        return self._older[number]

    def _heartbeat(self, state: State) -> Iterator[Step]:
        if state.tending:
            yield ("answer", self.nodes.tendings.things[state.tending].what), self._answered(state)
        elif self.setup.late:
            request = self.nodes.asks(state.core, "turn")
            yield ("probe",), self._tending(state, part_of_turn(request), request)
        else:
            yield ("probe",), self.tend(state)

    def tend(self, state: State) -> State:
        """A whole turn of the heartbeat of which every question is answered at once."""
        turn = (state.core, state.l2, state.flight, state.write, state.checked)
        after = self._turns.get(turn)
        if after is None:
            request = self.nodes.asks(state.core, "turn")
            after = self._tending(state, part_of_turn(request), request)
            while after.tending:
                after = self._answered(after)
            self._turns[turn] = after
        snap = self._ended(state, OWN).snap if state.flight and not after.flight else state.snap
        return after._replace(
            truth=state.truth,
            snap=snap,
            bag=self._useful(state.bag, after.core),
            elsewhere=state.elsewhere,
            left=state.left,
            waiting=state.waiting,
            watched=state.watched,
        )

    def _tending(self, state: State, what: str, request: Request) -> State:
        began = self.nodes.began(state.core)._replace(vouched=None)
        after, reply = self._ask(state, request)
        tending = self.nodes.tendings.number(Tending(what, began, reply))
        return after._replace(tending=tending, probed_here=True if what != "log" else state.probed_here)

    def _answered(self, state: State) -> State:
        part = self.nodes.tendings.things[state.tending]
        known = state.checked or (part.what != "log" and state.probed_here)
        core, what, request = self.nodes.tended(state.core, state.tending)
        write = self.nodes.writes.things[state.write]
        if write is not None and write.behind:
            write = write._replace(behind=False)
        more = {"tending": 0, "checked": known, "probed_here": True}
        after = self._with_core(state, core, write=self.nodes.writes.number(write), **more)
        return after if request is None else self._tending(after, what, request)

    def _flights(self, state: State) -> Iterator[Step]:
        served = self.nodes.serves(state.core, None)
        tokens = self.truths.things[state.truth].tokens
        behind = any(self.nodes.serves(state.core, token.place) != served for token in tokens)
        for k in self.setup.loads:
            if served[k] is None or behind:
                yield from self._flight(state, k, self.nodes.began(state.core))

    def _flight(self, state: State, k: int, began: Began) -> Iterator[Step]:
        source = self.truths.things[state.truth].now[k]
        request = self.nodes.asks(state.core, "read", k, None, checked=state.checked)
        after, reply = self._ask(state, request)
        if reply is None or (request[0] == "read" and reply.records[0] is None):  # type: ignore[attr-defined]
            if after is not state:
                yield (str(request[0]), k, "in vain"), after
        else:
            yield (str(request[0]), k), self._flies(after, Flight("one", k, began, (request[0], reply)))
        began = began._replace(vouched=None)
        after, reply = self._ask(state, self.nodes.asks(state.core, "fill_lease", k, checked=state.checked))
        if reply.outcome is FillLeaseOutcome.GRANTED and self.setup.fills:  # type: ignore[attr-defined]
            load = (reply.epoch, reply.seq, source)  # type: ignore[attr-defined]
            yield ("lease and load", k), self._flies(after, Flight("load", k, began, load))
        elif reply.outcome is FillLeaseOutcome.HIT and self.setup.lease_hits:  # type: ignore[attr-defined]
            yield ("lease hits", k), self._flies(after, Flight("hit", k, began, reply))
        if state.left[_OUTAGES]:
            alone = self._flies(state, Flight("alone", k, began, (source, self.nodes.called(state.core, k))))
            yield ("load alone", k), alone._replace(left=self._spent(state, _OUTAGES))

    def _flies(self, state: State, flight: Flight) -> State:
        return self._with_core(state, state.core, self.nodes.flights.number(flight))

    def _flight_goes_on(self, state: State) -> Iterator[Step]:
        flight = self.nodes.flights.things[state.flight]
        if flight.what == "load":
            after, reply = self._ask(state, self.nodes.asks(state.core, "fill", state.flight))
            accepted = "accepted" if reply.done else "refused"  # type: ignore[attr-defined]
            filled = flight._replace(what="fill", data=(*flight.data, reply))  # type: ignore[misc]
            yield ("fill", flight.key, accepted), self._flies(after, filled)
        else:
            yield ("land", flight.key), self._landed(state)
        if flight.what in ("load", "fill") and state.left[_OUTAGES]:
            lost = flight._replace(what="fill", data=(*flight.data[:3], LOST))  # type: ignore[index]
            after = self._flies(state._replace(left=self._spent(state, _OUTAGES)), lost)
            label = "fill lost" if flight.what == "load" else "reply lost"
            yield (label, flight.key), self._landed(after) if after.flight else after

    def _landed(self, state: State) -> State:
        core, _, request = self.nodes.landed(state.core, state.flight)
        if request is not None:
            flight = state.flight
            state, reply = self._ask(state, request)
            core, _, _ = self.nodes.landed(state.core, flight, reply)
        return self._with_core(state, core, flight=0)

    def _own_writes(self, state: State) -> Iterator[Step]:
        before = self.truths.things[state.truth]
        if state.write:
            write = self.nodes.writes.things[state.write]
            if write.behind and state.tending:
                return
            shown = write.version if write.kind == "s" else (write.version[0], 0)
            own = tuple(map(max, before.own, shown))
            truth = self.truths.number(before._replace(own=own))
            after = self._with_core(state, self.nodes.wrote(state.core, state.write), write=0)
            yield ("own reply", write.kind), after._replace(truth=truth)
            if state.left[_OUTAGES]:
                lost = self.nodes.wrote(state.core, state.write, lost=True)
                left = self._spent(state, _OUTAGES)
                # Nobody was told that it has happened; but as it has, this node gives nothing older, either.
                after = self._with_core(state, lost, write=0, left=left)
                yield ("own reply lost", write.kind), after._replace(truth=truth)
        elif state.left[_OWN]:
            began = self.nodes.began(state.core)._replace(vouched=None)
            for kind in self.setup.own_kinds:
                truth, _ = self._changed(state, kind)
                request = self.nodes.asks(state.core, "write", kind, truth.now[0])
                after, reply = self._ask(state._replace(left=self._spent(state, _OWN)), request)
                write = self.nodes.writes.number(Write(kind, began, truth.now, reply, behind=bool(state.tending)))
                after = self._with_core(after, after.core, write=write)
                yield ("own", kind), after._replace(truth=self._acknowledged(truth, reply))
