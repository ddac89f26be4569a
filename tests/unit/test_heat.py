"""What is hot, told and asked for: bytes that survive and those that do not, which keys are told, and to how many."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from cachebus.core.details import ABSENT
from cachebus.core.hot import Hottest
from cachebus.core.node import Node
from cachebus.core.ports import About, NodeRow
from cachebus.core.setup import NodeSetup
from cachebus.errors import InvalidKey
from cachebus.keys.key import Keyspace
from cachebus.l1 import L1, Entry, Group
from cachebus.listening.heat import BURST, EVERY_S, FRESH_S, LATE_S, HotAnswering, HotTalk, WarmUpLimits
from cachebus.listening.warm_up import warm_ones
from cachebus.observe import Counters
from cachebus.wire.heat import (
    HOT_NAMES,
    HOT_QUESTION,
    PARTS_MAX,
    PIECE_BYTES,
    HotKey,
    HotPiece,
    HotQuestion,
    decode_hot_piece,
    decode_hot_question,
    pieces_of,
)
from cachebus.wire.inquiry import CorruptInquiry, framed

QUESTION = HotQuestion.to("old-1", "new-1", 100, 1 << 20)
PIECE = HotPiece("old-1", 0, 2, ["acme\x1fdoc\x1f7\x1e\x1e\x1e", "é"], [300, 0])
SPACE = Keyspace(1)


class FakeTime:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def name_of(number: int) -> str:
    return SPACE.key("doc", number, "acme").l1


def body(value: object, kind: bytes = HOT_NAMES) -> bytes:
    return framed(kind, 0, b"0" * 16, msgspec.msgpack.encode(value))


# -- bytes ---------------------------------------------------------------------------------------------------------


def test_a_question_and_a_piece_come_back() -> None:
    assert decode_hot_question(QUESTION.encode()) == QUESTION
    assert decode_hot_piece(PIECE.encode(QUESTION.id)) == PIECE
    assert HotQuestion.to("a", "b", 1, 1).id != HotQuestion.to("a", "b", 1, 1).id


@pytest.mark.parametrize("good", [QUESTION.encode(), PIECE.encode(b"1" * 16)], ids=["question", "piece"])
def test_each_flipped_bit_is_found(good: bytes) -> None:
    decode: Any = decode_hot_question if good.startswith(HOT_QUESTION) else decode_hot_piece
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptInquiry):
            decode(bytes(damaged))


@pytest.mark.parametrize(
    "asked",
    [None, [], {}, ["a"], ["a", "b", 1], ["a", 2, 1, 1], ["a", "b", True, 1], ["a", "b", -1, 1], ["a", "b", 1, 1.5]],
)
def test_whole_bytes_that_ask_nothing(asked: object) -> None:
    with pytest.raises(CorruptInquiry):
        decode_hot_question(body(asked, HOT_QUESTION))


def piece(**other: object) -> dict[str, object]:
    return {"node": "n", "part": 0, "parts": 1, "names": ["a"], "sizes": [1], **other}


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        piece(names=None),
        piece(names=[1]),
        piece(names=["a", "b"]),
        piece(sizes=[-1]),
        piece(sizes=["1"]),
        piece(part=1),
        piece(part=-1),
        piece(parts=0),
        piece(parts=PARTS_MAX + 1),
        piece(node=7),
    ],
)
def test_whole_bytes_that_are_no_piece(told: object) -> None:
    with pytest.raises(CorruptInquiry):
        decode_hot_piece(body(told))
    assert decode_hot_piece(body(piece(later=[1]))) == HotPiece("n", 0, 1, ["a"], [1])


def test_random_bytes_raise_nothing_else_and_what_is_too_large_is_not_read() -> None:
    dice = random.Random(1)
    decoders: list[Any] = [decode_hot_question, decode_hot_piece]
    for _ in range(1000):
        some = dice.randbytes(dice.randrange(60))
        for kind, decode in zip((HOT_QUESTION, HOT_NAMES), decoders, strict=True):
            for data in (some, framed(kind, 0, b"0" * 16, some)):
                try:
                    decode(data)
                except CorruptInquiry:
                    continue
    with pytest.raises(CorruptInquiry, match="too long"):
        decode_hot_piece(body(piece(names=["x" * PIECE_BYTES])))
    with pytest.raises(CorruptInquiry, match="too long"):
        decode_hot_question(body(["x" * 4096, "b", 1, 1], HOT_QUESTION))


@pytest.mark.parametrize("longest", [1, 60, 1500])
def test_an_answer_in_pieces_keeps_its_order_and_each_piece_can_be_read(longest: int) -> None:
    dice = random.Random(longest)
    hot = [HotKey(f"{i}" + "é" * dice.randrange(longest), i) for i in range(3000)]
    pieces = pieces_of("n", hot)
    assert len(pieces) > 1
    read = [decode_hot_piece(one.encode(b"0" * 16)) for one in pieces]
    assert [one.part for one in read] == list(range(len(pieces)))
    assert {one.parts for one in read} == {len(pieces)}
    assert [HotKey(*key) for one in read for key in zip(one.names, one.sizes, strict=True)] == hot
    assert pieces_of("n", []) == [HotPiece("n", 0, 1, [], [])]


def test_a_name_from_elsewhere_is_that_of_a_key_or_of_none() -> None:
    for key in (SPACE.key("doc", "a:*", "acme", None, "v", None), SPACE.key("system", "x", None)):
        again = SPACE.parsed(key.l1)
        assert (again.l1, again.l2, again.shard, again.crc) == (key.l1, key.l2, key.shard, key.crc)
    good = name_of(7)
    for bad in ("", "x", good[:-1], good + "\x1e", good.replace("7", "\x07"), good.replace("acme", ""), "\x1f" * 5):
        with pytest.raises(InvalidKey):
            SPACE.parsed(bad)
    with pytest.raises(InvalidKey):
        SPACE.parsed(name_of(7).replace("7", "7" * 2000))


# -- which keys are hot --------------------------------------------------------------------------------------------


def node_of(max_entries: int = 10_000, clock: FakeTime | None = None) -> Node:
    return Node(NodeSetup("old", 1, 2.0), L1(max_entries, 1 << 30), clock or FakeTime(), Counters())


def put(node: Node, number: int, freq: int = 0, *, group: Group | None = None, **other: Any) -> None:
    key = SPACE.key("doc", number, "acme")
    own = group or node.groups.joined(key, fenced=True, tags=())
    given = {"expires_s": 1e9, "size": 300, **other}
    made = Entry(key.l1, number, own, 1e9, 7, 1e9, given["expires_s"], given["size"], given.get("extra"))
    node.l1.put(made)
    made.freq = freq


def hottest(node: Node, most_names: int = 1 << 30, most_bytes: int = 1 << 30) -> list[str]:
    found = Hottest(node, most_names, most_bytes)
    for _ in found.walk():
        pass
    return [key.l1 for key in found.found]


def test_the_hottest_come_first_as_l1_sees_it() -> None:
    node = node_of(70)
    for number in range(70):
        put(node, number, 1 if number < 9 else 0)
    for number in range(70, 80):  # what is hit moves to the main queue when L1 evicts
        put(node, number)
    main, small = node.l1.queued()
    assert main == [name_of(number) for number in range(9)]
    entries = node.l1.entries
    entries[small[-1]].freq, entries[main[3]].freq, entries[main[5]].freq, entries[small[-2]].freq = 3, 3, 2, 1
    told = hottest(node)
    assert told[:4] == [main[3], small[-1], main[5], small[-2]]
    assert told[4:11] == [main[i] for i in (0, 1, 2, 4, 6, 7, 8)], "hit once before they moved, so ahead of the unread"
    assert set(told) == entries.keys()


def test_it_tells_as_many_as_wanted_and_touches_nothing() -> None:
    node = node_of()
    for number in range(5000):
        put(node, number, number % 4)
    before = [(entry.key, entry.freq, entry.group.hits) for entry in node.l1.entries.values()]
    assert hottest(node, 10) == hottest(node)[:10] == [name_of(number) for number in range(3, 43, 4)]
    assert hottest(node, most_bytes=3001) == hottest(node)[:10]
    assert hottest(node, 0) == []
    assert [(entry.key, entry.freq, entry.group.hits) for entry in node.l1.entries.values()] == before


def test_only_what_l2_has_is_told() -> None:
    node = node_of()
    put(node, 1, 3)
    put(node, 2, 3, expires_s=99.0)
    put(node, 3, 3, extra=ABSENT)
    put(node, 4, 3, group=node.groups.joined(SPACE.key("doc", 4, "acme"), fenced=False, tags=()))
    put(node, 5, 3, group=Group(0, "doc", float("-inf"), -1, fenced=True))  # of an earlier life of the shard
    assert hottest(node) == [name_of(1)]
    assert node.l1.entries.keys() == {name_of(number) for number in range(1, 6)}


def test_what_comes_and_goes_between_two_steps_does_no_harm() -> None:
    node = node_of(20_000)
    for number in range(10_000):
        put(node, number, 1)
    found, dice = Hottest(node, 1 << 30, 1 << 30), random.Random(1)
    for step, _ in enumerate(found.walk()):
        node.l1.remove(name_of(dice.randrange(10_000)))
        put(node, 10_000 + step, 3)
    assert len({key.l1 for key in found.found}) == len(found.found) > 9000
    node.l1.check()
    node.l1.clear()


def test_an_l1_has_room_where_whatever_comes_evicts_nothing() -> None:
    for max_entries, max_bytes in ((0, 100), (100, 0)):
        assert not L1(max_entries, max_bytes).has_room
    l1, number = L1(1000, 8000), 0
    while l1.has_room:
        l1.put(Entry(str(number), None, Group(0, "doc", 0.0, 0, fenced=True), 0.0, 0, 0.0, 0.0, 1 + number * 37 % 1000))
        number += 1
        assert len(l1) == number, "none has gone for it"
    assert l1.bytes > 7000


# -- who is asked, and answers ---------------------------------------------------------------------------------------


def row(silent_s: float = 0.0, *more: tuple[str, Any]) -> NodeRow:
    return NodeRow(0, b"", 10**12 - int(silent_s * 1e6), About(2000, 0, more))


def test_those_are_asked_that_live_and_say_that_they_are_warm() -> None:
    warm = ("warm", True)
    rows = {"new": row(), "old": row(0, warm), "late": row(1.9, warm), "gone": row(2.1, warm)}
    rows |= {"odd": row(0, ("warm", 1)), "odder": row(0, ("warm", [1])), "no": row(0, ("warm", False))}
    assert warm_ones(rows, None) == ["old", "late"]
    assert warm_ones({}, None) == []


class SentPieces:
    """A store and bus of which only what is published counts."""

    store_publishes = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, HotPiece]] = []

    async def publish(self, shard: int, message: bytes, *, to: str = "", sharded: bool = False) -> None:
        self.sent.append((to, decode_hot_piece(message)))


class Answerer:
    """A node that is asked."""

    def __init__(self, keys: int = 1000) -> None:
        self.clock, self.sent = FakeTime(), SentPieces()
        self.node = node_of(clock=self.clock)
        for number in range(10):
            put(self.node, number, 3)
        self.talk = HotTalk(self.clock, self.node.id)
        self.talk.answers = True
        both: Any = self.sent
        self.answering = HotAnswering(self.node, both, both, self.talk, WarmUpLimits(keys, 1 << 30, 10.0))

    def asked(self, names: int = 100, size_bytes: int = 1 << 30, **other: str) -> HotQuestion:
        """Ask it."""
        question = HotQuestion.to(other.get("to", self.node.id), "new", names, size_bytes)
        self.talk.take(0, question.encode())
        return question

    async def due(self) -> int:
        """Answer all that is to be answered; how many that were."""
        count = 0
        while self.talk._due:
            await self.answering.step()
            count += 1
        return count


async def test_it_answers_who_asks_it_with_no_more_than_both_want() -> None:
    one = Answerer(keys=7)
    for names, size_bytes, told in ((100, 1 << 30, 7), (3, 1 << 30, 3), (100, 1300, 4), (0, 1 << 30, 0)):
        question = one.asked(names, size_bytes)
        assert await one.due() == 1
        to, piece_ = one.sent.sent.pop()
        assert (to, piece_.node) == (question.id.decode(), one.node.id)
        assert piece_.names == [name_of(number) for number in range(told)]
        assert piece_.sizes == [300] * told


async def test_it_passes_over_what_is_for_others_comes_twice_is_damaged_or_late() -> None:
    one = Answerer()
    one.asked(to="another")
    question = one.asked()
    for _ in range(5):
        one.talk.take(0, question.encode())
        one.talk.take(0, question.encode()[:-1])
        one.talk.take(0, HOT_QUESTION)
        one.talk.take(0, HOT_NAMES + bytes(60))
    assert await one.due() == 1
    one.asked()
    one.clock.now_s += LATE_S + 0.1
    assert await one.due() == 1
    assert len(one.sent.sent) == 1
    one.talk.answers = False  # as of one that is not warm yet
    one.asked()
    assert await one.due() == 0


async def test_it_answers_so_many_however_many_ask() -> None:
    one = Answerer()
    for _ in range(200):
        one.asked()
    assert await one.due() == BURST
    one.clock.now_s += 3 * EVERY_S
    for _ in range(200):
        one.asked()
    assert await one.due() == 3
    one.clock.now_s += 1000 * EVERY_S
    for _ in range(200):
        one.asked()
    assert await one.due() == BURST, "what was not used is not saved up"


async def test_it_looks_for_its_hot_keys_once_for_all_who_ask_together(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = 0

    class Counting(Hottest):
        def __init__(self, *given: Any) -> None:
            nonlocal walks
            walks += 1
            super().__init__(*given)

    monkeypatch.setattr("cachebus.listening.heat.Hottest", Counting)
    one = Answerer()
    for _ in range(5):
        one.asked()
    assert await one.due() == 5
    assert walks == 1
    one.clock.now_s += FRESH_S + 0.1
    one.asked()
    await one.due()
    assert walks == 2


# -- what is taken of answers ------------------------------------------------------------------------------------------


def part(number: int, parts: int = 3, node: str = "old-1") -> HotPiece:
    return HotPiece(node, number, parts, [f"{number}.{i}" for i in range(40)], [1] * 40)


async def test_pieces_are_put_together_in_any_order_and_up_to_what_was_asked_for() -> None:
    talk = HotTalk(FakeTime(), "new-1")
    with talk.asking(QUESTION) as answer:
        for one in (part(2), part(2), part(1, node="forged"), part(1, parts=9), part(0)):
            talk.take(0, one.encode(QUESTION.id))
        talk.take(0, part(1).encode(b"f" * 16))
        talk.take(0, part(1).encode(QUESTION.id)[:-1])
        assert not answer.complete
        await asyncio.wait_for(answer.next(), 1)
        assert [key.l1 for key in answer.keys] == [*part(0).names, *part(2).names]
        talk.take(0, part(1).encode(QUESTION.id))
        assert answer.complete
    assert [key.l1 for key in answer.keys] == [*part(0).names, *part(1).names, *part(2).names[:20]], "a hundred"
    talk.take(0, part(1).encode(QUESTION.id))
    assert not talk._asked


async def test_a_flood_of_pieces_is_bounded() -> None:
    talk = HotTalk(FakeTime(), "new-1")
    with talk.asking(QUESTION) as answer:
        for number in range(1000):
            talk.take(0, HotPiece("old-1", number, 1000, [], []).encode(QUESTION.id))
        assert len(answer._parts) == 1
        assert not answer.complete
        assert answer.keys == []
