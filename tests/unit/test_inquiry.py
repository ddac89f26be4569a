"""Questions about keys and their answers: bytes that survive, bytes that do not, and how many are taken."""

from __future__ import annotations

import random

import msgspec
import pytest

from cachebus import l1 as memory
from cachebus.core.held import held
from cachebus.core.node import Node
from cachebus.core.setup import NodeSetup
from cachebus.listening.answering import Answering
from cachebus.listening.inquiries import BURST, NODES_MAX, PER_S, Inquiries
from cachebus.observe import Counters
from cachebus.wire import inquiry
from cachebus.wire.inquiry import MOST_BYTES, CorruptInquiry, Inquiry, NodeAnswer, decode_answer, decode_question

L1 = "acme\x1fprice\x1f7\x1e\x1e\x1e"
FULL = NodeAnswer(
    "n-1", "e" * 16, 7, 9, 2000, 1500, "value", 5, "00010203", "expired", 12, -1, 5, True, True, True, True
)


class FakeTime:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("asked", [Inquiry.about(L1), Inquiry.about("é" * 500, sharded=True)])
def test_a_question_comes_back(asked: Inquiry) -> None:
    assert decode_question(asked.encode()) == asked
    assert inquiry.id_of(asked.encode()) == asked.id


@pytest.mark.parametrize("said", [FULL, NodeAnswer("n")])
def test_an_answer_comes_back(said: NodeAnswer) -> None:
    assert decode_answer(said.encode(b"0" * 16)) == said


def test_two_questions_have_two_ids() -> None:
    assert Inquiry.about(L1).id != Inquiry.about(L1).id


@pytest.mark.parametrize("good", [Inquiry.about(L1, sharded=True).encode(), FULL.encode(b"1" * 16)], ids=["Q", "A"])
def test_each_flipped_bit_is_found(good: bytes) -> None:
    decode = decode_question if good.startswith(inquiry.QUESTION) else decode_answer
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptInquiry):
            decode(bytes(damaged))


def framed(kind: bytes, body: bytes, of: bytes = b"0" * 16) -> bytes:
    return inquiry.framed(kind, 0, of, body)


def packed(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


@pytest.mark.parametrize(
    "body",
    [b"\xc1", b"", packed([]), packed({}), packed([7, {}]), packed(L1), packed(None), b"\x91" * 3000, b"\x91\xa1\xff"],
)
def test_whole_bytes_that_are_no_question(body: bytes) -> None:
    """Anybody who may send can compute a CRC."""
    with pytest.raises(CorruptInquiry):
        decode_question(framed(inquiry.QUESTION, body))
    with pytest.raises(CorruptInquiry):
        decode_answer(framed(inquiry.ANSWER, body))


def test_random_bytes_raise_nothing_else() -> None:
    dice = random.Random(1)
    for _ in range(2000):
        body = dice.randbytes(dice.randrange(60))
        for data in (body, framed(inquiry.QUESTION, body), framed(inquiry.ANSWER, body)):
            for decode in (decode_question, decode_answer):
                try:
                    decode(data)
                except CorruptInquiry:
                    continue


def test_what_is_too_large_is_not_read() -> None:
    with pytest.raises(CorruptInquiry):
        decode_question(framed(inquiry.QUESTION, packed(["x" * MOST_BYTES, {}])))
    with pytest.raises(CorruptInquiry):
        decode_answer(framed(inquiry.ANSWER, packed({"node": "x" * MOST_BYTES})))


def test_an_id_is_hexadecimal_so_that_it_may_name_a_channel() -> None:
    for of in (b"0" * 15 + b" ", b"\r\n" + b"0" * 14, b"A" * 16, b"*" * 16):
        with pytest.raises(CorruptInquiry):
            decode_question(framed(inquiry.QUESTION, packed([L1, {}]), of))


def test_what_later_versions_add_is_passed_over() -> None:
    assert decode_question(framed(inquiry.QUESTION, packed([L1, {"later": 1}, "more"]))).l1 == L1
    said = decode_answer(framed(inquiry.ANSWER, packed({"node": "n", "later": [1]})))
    assert said == NodeAnswer("n")


# -- how many are taken ------------------------------------------------------------------------------------------------


async def due(inquiries: Inquiries) -> int:
    """How many questions wait for their answer; they are taken."""
    count = 0
    while inquiries._due:
        await inquiries.due()
        count += 1
    return count


async def test_a_node_answers_so_many_at_once_and_so_many_a_second() -> None:
    clock = FakeTime()
    inquiries = Inquiries(clock)
    for _ in range(1000):
        inquiries.take(0, Inquiry.about(L1).encode())
    assert await due(inquiries) == BURST
    clock.now_s += 1.0
    for _ in range(1000):
        inquiries.take(0, Inquiry.about(L1).encode())
    assert await due(inquiries) == PER_S
    clock.now_s += 1000.0
    for _ in range(1000):
        inquiries.take(0, Inquiry.about(L1).encode())
    assert await due(inquiries) == BURST, "what was not used is not saved up"


async def test_what_is_no_question_costs_no_turn() -> None:
    inquiries = Inquiries(FakeTime())
    good = Inquiry.about(L1).encode()
    for garbage in (good[:-1], good[:7], inquiry.QUESTION, good + b"x", NodeAnswer("n").encode(b"0" * 16)):
        for _ in range(50):
            inquiries.take(0, garbage)
    assert await due(inquiries) == 0
    inquiries.take(0, good)
    assert await due(inquiries) == 1


async def test_who_only_asks_answers_nobody() -> None:
    inquiries = Inquiries(FakeTime(), answers=False)
    inquiries.take(0, Inquiry.about(L1).encode())
    assert await due(inquiries) == 0


async def test_only_answers_to_what_was_asked_are_taken_one_a_node() -> None:
    inquiries = Inquiries(FakeTime())
    question = Inquiry.about(L1)
    with inquiries.asking(question) as asked:
        inquiries.take(0, question.encode())  # who asks looks at itself
        inquiries.take(0, NodeAnswer("a", seq=1).encode(question.id))
        inquiries.take(0, NodeAnswer("a", seq=2).encode(question.id))
        inquiries.take(0, NodeAnswer("b").encode(b"f" * 16))
        inquiries.take(0, NodeAnswer("c").encode(question.id)[:-1])
        await asked.next()
    assert {name: said.answer.seq for name, said in asked.said.items()} == {"a": 1}
    inquiries.take(0, NodeAnswer("late").encode(question.id))
    assert asked.said.keys() == {"a"}
    assert await due(inquiries) == 0
    assert not inquiries._asked


async def test_a_flood_of_answers_is_bounded() -> None:
    inquiries, question = Inquiries(FakeTime()), Inquiry.about(L1)
    with inquiries.asking(question) as asked:
        for number in range(NODES_MAX + 10):
            asked.take(NodeAnswer(str(number)))
    assert len(asked.said) == NODES_MAX


# -- who answers -------------------------------------------------------------------------------------------------------


class Sent:
    """A store and bus of which only what is published counts."""

    store_publishes = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    async def publish(self, shard: int, message: bytes, *, to: str = "", sharded: bool = False) -> None:
        self.sent.append((to, message))


def node_of(name: str, clock: FakeTime) -> Node:
    return Node(NodeSetup(name, 1, 2.0), memory.L1(10, 1_000_000), clock, Counters())


@pytest.mark.parametrize(
    ("name", "waited_s", "answers"),
    [("n", 0.0, 1), ("n", 0.9, 1), ("n", 1.1, 0), ("n" * MOST_BYTES, 0.0, 0)],
    ids=["at once", "in time", "late", "of an endless name"],
)
async def test_what_is_late_or_too_large_is_not_sent(name: str, waited_s: float, answers: int) -> None:
    clock, sent, question = FakeTime(), Sent(), Inquiry.about(L1)
    inquiries = Inquiries(clock)
    answering = Answering(node_of(name, clock), sent, sent, inquiries)  # type: ignore[arg-type]
    inquiries.take(0, question.encode())
    clock.now_s += waited_s
    await answering.step()
    assert [to for to, _ in sent.sent] == [question.id.decode()] * answers


def test_to_be_asked_about_what_a_watermark_has_taken_counts_nothing_and_moves_nothing() -> None:
    clock = FakeTime()
    node = node_of("n", clock)
    retired = memory.Group(0, "price", float("-inf"), 0, fenced=True)
    entry = memory.Entry(L1, 1, retired, 1e9, 7, 1e9, 1e9, 300)
    node.l1.put(entry)
    assert (held(node, 0, L1).holds, held(node, 0, L1).why_not) == ("value", "")
    node.shards[0].low["**"] = 8
    for _ in range(2):
        said = held(node, 0, L1)
        assert (said.holds, said.why_not, said.serves_ms, said.fast) == ("value", "replaced", 0, False)
    assert node.counters.lost_to_watermarks == 0
    assert node.l1.entries[L1] is entry
    assert entry.group is retired
    assert held(node, 0, "no such name") == held(node, 0, "")
