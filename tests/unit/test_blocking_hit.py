"""A hit on one thread while the loop's thread changes what is there: every way in which the two can come between each
other, byte code by byte code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from cachebus.core.node import Node
from cachebus.core.ports import Invalidated, ProbeReply
from cachebus.core.setup import NodeSetup
from cachebus.keys.key import Keyspace
from cachebus.l1 import L1, Entry
from cachebus.observe import Counters
from cachebus.threads.hit import served
from cachebus.wire.event import NONE_RAISED, Event, EventHeader, WritePart

D_S = 2.0
EPOCH = b"e" * 16
KEY = Keyspace(1).key("doc", 7, "acme")
SCOPE = "T\x1facme"
Act = Callable[[], Any]


class Rig:
    """A node that has heard nothing since second 0, and holds a value that was replaced in second 3. It is second 6
    now: whoever begins to read may not be given that value any more."""

    def __init__(self, *, keys: bool, expires_s: float = 1e9) -> None:
        self.now_s = 0.0
        self.node = node = Node(NodeSetup("n", 1, D_S), L1(10, 1_000_000), self.clock, Counters())
        node.begin_epoch(0, self.probe(0, Invalidated({}, {})), 0.0, "start")
        group = node.groups.joined(KEY, fenced=True, tags=())
        self.entry = Entry(KEY.l1, "old", group, expires_s, 0, D_S, expires_s, 100)
        node.l1.put(self.entry)
        header = EventHeader(EPOCH, 1, 0, False, NONE_RAISED)
        part = WritePart((KEY.l1,), (), "") if keys else WritePart((), (SCOPE,), "")
        self.event = Event(header, [part])
        assert self.read() == "old"
        self.now_s = 6.0
        assert self.read() is None

    def clock(self) -> float:
        return self.now_s

    def probe(self, seq: int, invalidated: Invalidated | None = None) -> ProbeReply:
        return ProbeReply(EPOCH, seq, 0, invalidated)

    def read(self) -> Any:
        """What a thread is given that calls now."""
        entry = served(self.node.l1.entries, KEY.l1, self.clock)
        return None if entry is None else entry.value

    # -- what the loop does ---------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """The event arrives at last, and a probe's answer renews the lease."""
        self.node.hear(0, self.event)
        self.node.probed(0, self.probe(1), self.now_s, self.now_s)

    def catch_up_late(self) -> None:
        """The answer comes first, which tells that something is missing; the event renews the lease."""
        self.node.probed(0, self.probe(1), self.now_s, self.now_s)
        self.node.hear(0, self.event)

    def begin_anew(self) -> None:
        """The log was trimmed, or it is another epoch: all is dropped."""
        reply = self.probe(1, Invalidated({"00": {SCOPE: 1}}, {}))
        self.node.begin_epoch(0, reply, self.now_s, "gap")


@pytest.fixture(autouse=True)
def _traced_once() -> None:
    """Python tells of byte codes from the second time on that a function is traced."""
    for how in ("catch_up", "catch_up_late", "begin_anew"):
        rig = Rig(keys=True)
        until(rig.read, -1, rig.catch_up)
        until(getattr(rig, how), -1, rig.read)


def until(act: Act, at: int, then: Act) -> tuple[Any, bool]:
    """What an act gives with `then` done before its byte code of that number, and whether it has so many."""
    passed = 0

    def look(frame: Any, event: str, _: Any) -> Any:
        nonlocal passed
        frame.f_trace_opcodes = True
        if event == "opcode":
            if passed == at:
                passed += 1
                then()
                return None
            passed += 1
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        given = act()
    finally:
        sys.settrace(before)
    return given, passed > at


@pytest.mark.parametrize("keys", [True, False], ids=["a key", "a scope"])
@pytest.mark.parametrize("how", ["catch_up", "catch_up_late", "begin_anew"])
def test_a_reader_that_is_held_up_anywhere_gives_nothing_that_was_replaced(how: str, keys: bool) -> None:
    at, more, points = 0, True, 0
    while more:
        rig = Rig(keys=keys)
        given, more = until(rig.read, at, getattr(rig, how))
        assert given is None, f"held up before byte code {at}"
        at, points = at + 1, points + more
    assert points > 20


@pytest.mark.parametrize("keys", [True, False], ids=["a key", "a scope"])
@pytest.mark.parametrize("how", ["catch_up", "catch_up_late", "begin_anew"])
def test_a_loop_that_is_held_up_anywhere_lets_nothing_be_given_that_was_replaced(how: str, keys: bool) -> None:
    at, more, points = 0, True, 0
    while more:
        rig, given = Rig(keys=keys), []
        _, more = until(getattr(rig, how), at, lambda rig=rig, given=given: given.append(rig.read()))
        assert given in ([], [None]), f"held up before byte code {at}"
        at, points = at + 1, points + more
    assert points > 100


def test_a_reader_that_is_held_up_twice() -> None:
    """Before the event, and before the lease that follows it: at every pair of places."""
    places = 40
    for first in range(places):
        for second in range(first, places):
            rig = Rig(keys=True)

            def event(rig: Rig = rig) -> None:
                rig.node.hear(0, rig.event)

            def lease(rig: Rig = rig) -> None:
                rig.node.probed(0, rig.probe(1), rig.now_s, rig.now_s)

            assert twice(rig.read, (first, event), (second, lease)) is None


def twice(act: Act, one: tuple[int, Act], other: tuple[int, Act]) -> Any:
    """What an act gives with these done before its byte codes of these numbers, in this order."""
    passed = 0

    def look(frame: Any, event: str, _: Any) -> Any:
        nonlocal passed
        frame.f_trace_opcodes = True
        if event == "opcode":
            for at, then in (one, other):
                if passed == at:
                    then()
            passed += 1
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        return act()
    finally:
        sys.settrace(before)


def test_hits_are_counted_and_never_beyond_what_queues_expect() -> None:
    rig = Rig(keys=True)
    rig.now_s = 1.0
    for _ in range(10):
        assert rig.read() == "old"
    assert rig.entry.freq == 3
    assert rig.node.groups.hits() == {"doc": 11}
    at, more = 0, True
    while more:
        rig = Rig(keys=True)
        rig.now_s, rig.entry.freq = 1.0, 2
        _, more = until(rig.read, at, rig.read)
        assert rig.entry.freq == 3
        at += 1
    rig.node.l1.check()
