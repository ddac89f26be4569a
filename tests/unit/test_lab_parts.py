"""The small parts of the demo: figures of the moment, the pace, the catalogue, the compared dict, the messages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cachebus.base.clock import monotonic
from cachebus.resp import parse_address
from cachebus.tools.demo import catalogue
from cachebus.tools.demo.board import Board
from cachebus.tools.demo.catalogue import FILE, Catalogue, SlowSource, SqliteShop
from cachebus.tools.demo.plan import DemoPlan, load_of
from cachebus.tools.demo.server import DemoServer
from cachebus.tools.demo.subjects import DictWithTtl
from cachebus.tools.demo.trace import Survey
from cachebus.tools.demo.traffic import BACKLOG_S, Pace
from cachebus.tools.harness.messages import Done, Failed, Message, Ready, Tick, decode_message, encode


class Hands:
    """A clock that stands until it is turned."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


# -- figures of the moment --------------------------------------------------------------------------------------------


def test_rates_are_of_the_last_second() -> None:
    board = Board(nodes=2)
    for quarter in range(9):
        board.add(
            Tick(
                node=2,
                at_s=100 + quarter / 4,
                accesses=quarter * 300,
                reads=quarter * 250,
                l1_hits=quarter * 200,
                l2_hits=quarter * 25,
                loads=quarter * 5,
                applied=40 + quarter,
                lease_left_s=1.5,
            )
        )
    board.add(Tick(node=1, at_s=102.0, applied=51))
    silent, busy = board.rows(lambda node: "odd" if node == 1 else "")
    assert (busy.node, busy.requests, busy.l1_share, busy.l2_share, busy.loads) == (2, 1_200.0, 0.8, 0.1, 20.0)
    assert (busy.applied, busy.behind, busy.lease_left_s, busy.state) == (48, 3, 1.5, "")
    assert (silent.node, silent.requests, silent.l1_share, silent.behind, silent.state) == (1, 0.0, 0.0, 0, "odd")
    assert (board.head, board.accesses, board.over) == (51, 2_400, False)


def test_a_board_without_ticks_shows_nothing_yet() -> None:
    assert [row.requests for row in Board(nodes=3).rows(lambda _: "")] == [0.0, 0.0, 0.0]


def test_it_is_over_when_every_node_is_at_its_end() -> None:
    board = Board(nodes=2)
    board.add(Tick(node=1, at_s=1.0, over=True))
    assert not board.over
    board.add(Tick(node=2, at_s=1.0, over=True))
    assert board.over


# -- the pace ---------------------------------------------------------------------------------------------------------


async def test_accesses_pass_at_the_rate() -> None:
    hands, passed = Hands(), 0
    pace = Pace(100.0, hands)

    async def walk() -> None:
        nonlocal passed
        while True:
            await pace.turn()
            passed += 1

    async def settled() -> int:
        pace.beat()
        for _ in range(10):
            await asyncio.sleep(0)
        return passed

    walkers = [asyncio.create_task(walk()) for _ in range(3)]
    assert await settled() == 0
    hands.now_s += 0.105
    assert await settled() == 10
    hands.now_s += 0.1
    assert await settled() == 20
    hands.now_s += 3_600  # what a stall has kept from being done is not made up for
    assert await settled() == pytest.approx(20 + 100 * BACKLOG_S, abs=1)
    for walker in walkers:
        walker.cancel()


async def test_who_waits_for_a_turn_is_let_go_in_the_end() -> None:
    pace = Pace(0.001, Hands())
    waiting = [asyncio.create_task(pace.turn()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    pace.open()
    await asyncio.wait(waiting)
    assert [task.cancelled() for task in waiting] == [True, False, False]
    await pace.turn()


async def test_no_rate_is_no_limit_yet_others_get_their_turn() -> None:
    pace, others = Pace(0.0, Hands()), 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(1_000):
        await pace.turn()
    task.cancel()
    assert others > 5


# -- the catalogue ----------------------------------------------------------------------------------------------------


def test_versions_count_the_writes_and_are_seen_by_others(tmp_path: Path) -> None:
    catalogue.create(tmp_path / FILE, [7, 0xFFFFFFFF])
    with Catalogue(tmp_path / FILE) as writer, Catalogue(tmp_path / FILE) as reader:
        assert reader.read(7)["version"] == 1
        assert [writer.write(7), writer.write(7)] == [2, 3]
        assert reader.read(7)["version"] == 3
        assert reader.read(0xFFFFFFFF)["version"] == 1


def test_a_row_that_is_not_there(tmp_path: Path) -> None:
    catalogue.create(tmp_path / FILE, [7])
    with Catalogue(tmp_path / FILE) as opened:
        for call in (opened.read, opened.write):
            with pytest.raises(LookupError):
                call(8)
        assert opened.write(7) == 2  # and the connection is as good as before


async def test_the_source_counts_its_loads(tmp_path: Path) -> None:
    catalogue.create(tmp_path / FILE, [7])
    with SqliteShop(tmp_path / FILE, monotonic) as opened:
        source = SlowSource(opened, latency_s=0.0)
        assert (await source.load(7))["word"] == 7
        assert source.loads == 1


# -- the dict that it is compared with --------------------------------------------------------------------------------


async def test_the_dict_forgets_by_time_by_number_and_by_its_own_writes(tmp_path: Path) -> None:
    catalogue.create(tmp_path / FILE, range(5))
    hands = Hands()
    with SqliteShop(tmp_path / FILE, monotonic) as opened:
        source = SlowSource(opened, latency_s=0.0)
        subject = DictWithTtl(source, ttl_s=5.0, entries_max=2, clock=hands)
        for word in (0, 0, 1, 1):
            await subject.read(word)
        assert subject.figures() == {"l1_hits": 2, "loads": 2}
        await subject.read(2)  # drops the oldest
        await subject.read(0)
        assert source.loads == 4
        assert (await opened.write(0)).version == 2
        assert (await subject.read(0))["version"] == 1  # stale, as it is made
        assert await subject.invalidate(0) == (0, 0)
        assert (await subject.read(0))["version"] == 2
        hands.now_s += 5.0
        await subject.read(0)
        assert source.loads == 6


# -- plans, addresses, messages ---------------------------------------------------------------------------------------


def test_a_trace_that_would_end_early_is_played_more_slowly() -> None:
    plan = DemoPlan(nodes=4, duration_s=10.0, rate=2_000.0)
    assert load_of(plan, Survey(8_000, frozenset({1}))).rate == 200.0
    assert load_of(plan, Survey(8_000_000, frozenset({1}))).rate == 2_000.0
    assert load_of(DemoPlan(rate=0.0), Survey(8_000, frozenset({1}))).rate == 0.0
    assert load_of(plan, None).accesses is None


def test_the_way_by_a_proxy_keeps_login_and_database() -> None:
    url = "rediss://us%40er:p%2Fw@example.org:6380/3?ssl_cert_reqs=none"
    server = DemoServer(url, parse_address(url), "n", "")
    there = parse_address(server.url_by("127.0.0.1", 7777))
    assert (there.host, there.port, there.db) == ("127.0.0.1", 7777, 3)
    assert (there.username, there.password, there.ssl) == ("us@er", "p/w", None)
    assert "p%2Fw" not in repr(server)
    bare = DemoServer("", parse_address("redis://h:1"), "n", "")
    assert bare.url_by("127.0.0.1", 7777) == "redis://127.0.0.1:7777/0"


@pytest.mark.parametrize(
    "message", [Ready(1), Tick(node=2, at_s=1.5, reads=7), Done(Tick(node=1, at_s=2.0)), Failed(1, "é")]
)
def test_messages_arrive_as_they_were_sent(message: Message) -> None:
    line = encode(message)
    assert b"\n" not in line
    assert decode_message(line) == message
