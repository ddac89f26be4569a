"""The choice of faults, their schedule, frames, and what the proxy does to one direction or one kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from cachebus.errors import ConfigError
from cachebus.resp import Address
from cachebus.tools.harness.frames import Frames, garbled, is_message
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.verify.nemesis.faults import FAULTS, chosen, possible, schedule
from cachebus.tools.verify.nemesis.network_faults import reordering
from cachebus.tools.verify.target.group_watch import BY_ITSELF, GroupWatch
from cachebus.tools.verify.target.testbed import InjectedFault

SOON_S = 5.0
SILENCE_S = 0.1
HELLO = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"


def message(payload: bytes) -> bytes:
    """One as a server sends it."""
    return b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$%d\r\n%s\r\n" % (len(payload), payload)


# -- the choice ----------------------------------------------------------------------------------------------


def test_faults_are_chosen_by_name_and_group() -> None:
    assert [fault.name for fault in chosen("hang, kill")] == ["hang", "kill"]
    assert {fault.where for fault in chosen("network")} == {"network"}
    assert len(chosen("all")) == len(FAULTS) == len(chosen("network,node,source,server,group,bus,broker,hang"))
    assert chosen("none") == ()


def test_faults_of_groups_are_for_groups() -> None:
    faults = chosen("all")
    alone = {f.name for f in possible(faults, own=True, proxied=True)}
    sentinel = {f.name for f in possible(faults, own=False, proxied=True, kind="sentinel")}
    cluster = {f.name for f in possible(faults, own=False, proxied=True, kind="cluster")}
    assert {"failover", "failover-loss", "primary-frozen", "failover-newcomer"} <= sentinel & cluster
    assert cluster - sentinel == {"move-slot", "half-moved", "hung-target", "uncovered-slot", "impostor"}
    assert sentinel - cluster == {"sentinels-away", "split", "failover-unseen"}
    assert {"hang", "deaf", "garble", "lost-primary", "half-lost-primary"} <= sentinel & cluster
    assert not {"lost-primary", "half-lost-primary"} & alone
    assert not alone & {f.name for f in faults if f.where == "group"}
    assert "flushall" not in sentinel | cluster, "they are of a server that is alone"
    assert {"kill", "slow"} <= sentinel


def test_faults_of_kafka_are_for_runs_with_kafka() -> None:
    redis, kafka = (possible(chosen("all"), own=True, proxied=True, bus=bus) for bus in ("redis", "kafka"))
    assert {"bus", "broker"} == {fault.where for fault in kafka} - {fault.where for fault in redis}
    assert "deaf" in {fault.name for fault in redis} - {fault.name for fault in kafka}, "of a subscription"


@pytest.mark.parametrize(("words", "hint"), [("flushal", "did you mean flushall?"), ("xyz", "--list-faults")])
def test_an_unknown_fault_is_told(words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="there is no fault") as told:
        chosen(words)
    assert hint in str(told.value)


def test_a_server_that_is_not_ours_is_left_alone() -> None:
    left = possible(chosen("all"), own=False, proxied=True)
    assert {fault.where for fault in left} == {"network", "node", "source"}
    assert "newborn" not in {fault.name for fault in left}
    assert {fault.where for fault in possible(chosen("all"), own=True, proxied=False)} == {"node", "source", "server"}


def test_the_same_seed_makes_the_same_schedule() -> None:
    one, two, other = (schedule(chosen("all"), seed=seed, nodes=4, seconds=60.0, bound_s=1.0) for seed in (7, 7, 8))
    assert one == two
    assert one != other
    for row in one:
        ends = [occurrence.at_s + occurrence.lasts_s for occurrence in row]
        assert all(
            end <= occurrence.at_s for end, occurrence in zip(ends, row[1:], strict=False)
        )  # one after the other
        assert ends[-1] <= 59.0
    of_nodes, of_sources, of_servers, of_brokers = one
    assert all(len({occurrence.fault.name for occurrence in row}) > 10 for row in (of_nodes, of_servers))
    assert {occurrence.fault.name for occurrence in of_sources} == {"slow", "sour", "stuck"}
    assert (
        {occurrence.node for occurrence in of_nodes} == {occurrence.node for occurrence in of_sources} == {1, 2, 3, 4}
    )
    assert {occurrence.node for occurrence in of_servers} == {occurrence.node for occurrence in of_brokers} == {0}


# -- what a group does by itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "explains"),
    [
        (InjectedFault("failover", 0, 1.0, 3.0), True),
        (InjectedFault("failover", 0, 1.0, 3.0, frozenset({1, 2})), True),
        (InjectedFault("failover", 0, 1.0, 3.0, frozenset({2})), False),  # of another primary
        (InjectedFault("failover", 0, 1.0, 1.5), False),  # it goes on for long
        (InjectedFault("failover", 0, 2.1, 3.0), True),  # it was in order at the last look before
        (InjectedFault("failover", 0, 2.6, 3.0), False),  # it was there before
        (InjectedFault("kill", 1, 1.0, 3.0), False),  # of a node
    ],
)
def test_what_servers_do_by_themselves_is_what_no_fault_explains(fault: InjectedFault, explains: bool) -> None:
    nothing: Any = None
    seen = InjectedFault(BY_ITSELF, 0, 2.0, 2.9, frozenset({1}))
    assert GroupWatch(nothing, [seen]).unprovoked([fault]) == ([] if explains else [seen])


# -- frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_frames_are_whole_whatever_pieces_they_come_in(piece: int) -> None:
    sent = [
        HELLO,
        message(b"a\r\nb"),
        b"+PONG\r\n",
        b"*-1\r\n",
        b"$-1\r\n",
        b"*2\r\n$4\r\npong\r\n$0\r\n\r\n",
        b":7\r\n",
    ]
    data, frames = b"".join(sent), Frames()
    assert [frame for at in range(0, len(data), piece) for frame in frames.feed(data[at : at + piece])] == sent
    assert [is_message(frame) for frame in sent] == [False, True, False, False, False, False, False]


@pytest.mark.parametrize("payload", [b"x", b"xy", b"payload"])
def test_a_garbled_message_differs_in_one_byte_of_its_payload(payload: bytes) -> None:
    frame = message(payload)
    other = garbled(frame)
    places = [i for i, (a, b) in enumerate(zip(frame, other, strict=True)) if a != b]
    assert len(places) == 1
    assert len(frame) - 2 - len(payload) <= places[0] < len(frame) - 2


def test_reordering_loses_nothing_that_another_follows() -> None:
    spoil, sent = reordering(Random(3)), [message(b"%d" % i) for i in range(200)]
    arrived = [piece for frame in sent for piece in spoil(frame)]
    assert arrived != sent
    assert len(set(arrived)) == len(arrived) >= 197
    assert set(arrived) <= set(sent)


# -- the proxy -----------------------------------------------------------------------------------------------


class Answerer(asyncio.Protocol):
    """A server that answers each line with itself, confirms subscriptions, and can be made to speak."""

    heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.lost = asyncio.Event()
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        self.transport.write(HELLO if data.startswith(b"SUBSCRIBE") else data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Line:
    """A connection through the proxy, and its other end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: Answerer) -> None:
        self.reader, self.writer, self.far = reader, writer, far

    async def gets(self, data: bytes) -> None:
        """The next bytes must be these."""
        assert await asyncio.wait_for(self.reader.readexactly(len(data)), SOON_S) == data

    async def is_silent(self) -> bool:
        """Whether nothing comes."""
        try:
            await asyncio.wait_for(self.reader.read(1), SILENCE_S)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def between() -> AsyncIterator[tuple[Proxy, Callable[[], list[Answerer]]]]:
    """A proxy before a server, and the server's ends."""
    ends: list[Answerer] = []

    def made() -> Answerer:
        ends.append(Answerer())
        return ends[-1]

    server = await asyncio.get_running_loop().create_server(made, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    async with Proxy(dialer(Address(HOST, port))) as proxy:
        yield proxy, lambda: ends
    server.close()


@asynccontextmanager
async def lines() -> AsyncIterator[tuple[Proxy, Line, Line]]:
    """A proxy, a connection of data and one of events through it."""
    async with between() as (proxy, ends):
        made: list[Line] = []
        for first, answer in ((b"1", b"1"), (b"SUBSCRIBE c\r\n", HELLO)):
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            writer.write(first)
            assert await asyncio.wait_for(reader.readexactly(len(answer)), SOON_S) == answer
            made.append(Line(reader, writer, ends()[-1]))
        yield proxy, made[0], made[1]
        for line in made:
            line.writer.close()


async def test_one_direction_of_one_kind_is_held() -> None:
    async with lines() as (proxy, data, events):
        proxy.hold(("data",), ("down",))
        data.writer.write(b"2")
        assert await data.is_silent()
        assert data.far.heard == b"12"  # it was carried out
        events.far.transport.write(message(b"x"))
        await events.gets(message(b"x"))
        proxy.restore()
        await data.gets(b"2")


async def test_messages_are_lost_doubled_and_changed_and_nothing_else() -> None:
    async with lines() as (proxy, data, events):
        proxy.spoil(lambda frame: [] if is_message(frame) else [frame])
        events.far.transport.write(message(b"x") + b"+PONG\r\n" + message(b"y")[:9])
        await events.gets(b"+PONG\r\n")
        proxy.spoil(lambda frame: [frame, frame])
        events.far.transport.write(message(b"y")[9:])
        await events.gets(message(b"y") * 2)
        data.writer.write(message(b"z"))
        await data.gets(message(b"z"))


async def test_delayed_bytes_come_late_and_in_order() -> None:
    async with lines() as (proxy, data, _):
        delays = iter([0.2, 0.0, 0.0])
        proxy.delay(lambda: next(delays), ("data",), ("down",))
        data.far.transport.write(b"a")
        await asyncio.sleep(0.02)
        data.far.transport.write(b"b")
        assert await data.is_silent()
        await data.gets(b"ab")


async def test_a_reply_is_torn_in_the_middle_and_new_connections_are_whole() -> None:
    async with lines() as (proxy, data, events):
        proxy.tear()
        data.far.transport.write(b"12345678")
        assert await asyncio.wait_for(_all_of(data.reader), SOON_S) in (b"1234", b"")
        events.far.transport.write(message(b"x"))
        await events.gets(message(b"x"))
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"3")
        assert await asyncio.wait_for(reader.readexactly(1), SOON_S) == b"3"
        writer.close()


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    data = b""
    try:
        while piece := await reader.read(100):
            data += piece
    except ConnectionError:
        pass
    return data


async def test_what_a_node_sent_before_it_hung_up_may_arrive_later() -> None:
    async with lines() as (proxy, data, _):
        proxy.hold(("data",), ("up",))
        data.writer.write(b"late")
        await data.writer.drain()
        await asyncio.sleep(0.02)
        data.writer.close()
        await asyncio.sleep(0.05)
        assert (data.far.heard, data.far.lost.is_set()) == (b"1", False)
        proxy.restore()
        await asyncio.wait_for(data.far.lost.wait(), SOON_S)
        assert data.far.heard == b"1late"


async def test_a_cut_of_one_kind_leaves_the_other() -> None:
    async with lines() as (proxy, data, events):
        proxy.reset(("events",))
        assert await asyncio.wait_for(_all_of(events.reader), SOON_S) == b""
        data.writer.write(b"2")
        await data.gets(b"2")
