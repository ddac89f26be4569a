"""A subscriber against real servers of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import L2Unavailable
from cachebus.resp import Connection, Subscriber, parse_address
from cachebus.resp.link import ALONE_MIN
from cachebus.tools.servers.redis import EmbeddedServer

BURST = 100_000


class Heard:
    """An `on_push` that keeps what it is given, and can be waited for."""

    def __init__(self, enough: int) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self.all = asyncio.Event()
        self._enough = enough

    def __call__(self, channel: bytes, payload: bytes) -> None:
        self.messages.append((channel, payload))
        if len(self.messages) == self._enough:
            self.all.set()


async def pair(
    server: EmbeddedServer,
    on_push: Callable[[bytes, bytes], None],
    *,
    timeout_s: float = 20.0,
    on_lost: Callable[[Exception], None] | None = None,
) -> tuple[Connection, Subscriber]:
    """A mouth and ears."""
    address = parse_address(server.url)
    mouth = await Connection.open(address, Patience(20.0, 10.0, monotonic))
    ears = await Subscriber.open(address, Patience(timeout_s, 10.0, monotonic), on_push=on_push, on_lost=on_lost)
    return mouth, ears


async def test_messages_of_several_channels_come_in_order(server_kinds: EmbeddedServer) -> None:
    heard = Heard(200)
    mouth, ears = await pair(server_kinds, heard)
    await ears.subscribe("a", b"b")
    await ears.subscribe("c")
    sent = [(channel, b"%d" % number) for number in range(100) for channel in (b"a", b"c")]
    counts = await asyncio.gather(*[mouth.call("PUBLISH", *message) for message in sent])
    assert set(counts) == {1}
    await asyncio.wait_for(heard.all.wait(), 20.0)
    assert heard.messages == sent
    assert await ears.ping() == [b"pong", b""]
    ears.close()
    assert not ears.pending
    mouth.close()


async def test_ping_before_and_after_subscribing(server_kinds: EmbeddedServer) -> None:
    mouth, ears = await pair(server_kinds, Heard(1))
    before, subscribed, after = ears.ping(), ears.subscribe("a"), ears.ping()
    assert await before == b"PONG"
    await subscribed
    assert await after == [b"pong", b""]
    ears.close()
    mouth.close()


async def test_a_burst_arrives_whole_and_in_order(server_kinds: EmbeddedServer) -> None:
    heard = Heard(BURST)
    mouth, ears = await pair(server_kinds, heard)
    await ears.subscribe("flood")
    for start in range(0, BURST, 10_000):
        await asyncio.gather(*[mouth.call("PUBLISH", "flood", number) for number in range(start, start + 10_000)])
    await asyncio.wait_for(heard.all.wait(), 60.0)
    assert [int(payload) for _, payload in heard.messages] == list(range(BURST))
    ears.close()
    mouth.close()


async def test_a_big_message(server_kinds: EmbeddedServer) -> None:
    heard = Heard(2)
    mouth, ears = await pair(server_kinds, heard)
    await ears.subscribe("a")
    big = bytes(range(256)) * 8192
    await asyncio.gather(mouth.call("PUBLISH", "a", big), mouth.call("PUBLISH", "a", "after"))
    await asyncio.wait_for(heard.all.wait(), 20.0)
    assert heard.messages == [(b"a", big), (b"a", b"after")]
    ears.close()
    mouth.close()


async def test_a_silent_server_is_noticed_by_a_ping(own_server: EmbeddedServer) -> None:
    lost: list[Exception] = []
    mouth, ears = await pair(own_server, Heard(1), timeout_s=0.3, on_lost=lost.append)
    await ears.subscribe("a")
    own_server.pause()
    with pytest.raises(L2Unavailable, match="did not answer"):
        await ears.ping()
    assert ears.closed
    assert len(lost) == 1
    own_server.resume()
    mouth.close()


async def test_a_listener_that_the_server_drops_is_told(own_server: EmbeddedServer) -> None:
    lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    mouth, ears = await pair(own_server, Heard(1), on_lost=lost.set_result)
    await ears.subscribe("a")
    assert await mouth.call("CLIENT", "KILL", "TYPE", "pubsub") == 1
    assert isinstance(await asyncio.wait_for(lost, 20.0), L2Unavailable)
    mouth.close()


async def test_a_handler_that_raises_loses_the_connection(server_kinds: EmbeddedServer) -> None:
    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context.get("exception")))
    lost: asyncio.Future[Exception] = loop.create_future()

    def on_push(channel: bytes, payload: bytes) -> None:
        raise ZeroDivisionError

    mouth, ears = await pair(server_kinds, on_push, on_lost=lost.set_result)
    await ears.subscribe("a")
    await mouth.call("PUBLISH", "a", "m")
    assert isinstance(await asyncio.wait_for(lost, 20.0), L2Unavailable)
    assert ears.closed
    assert [type(error) for error in told] == [ZeroDivisionError]
    mouth.close()


async def test_a_subscription_behind_lone_questions_is_sent_at_once(redis_server: EmbeddedServer) -> None:
    """After some of them nobody is expected to join the next, so it does not wait for the end of its tick."""
    mouth, ears = await pair(redis_server, Heard(1), timeout_s=1.0)
    for _ in range(2 * ALONE_MIN):
        await ears.ping()
    await ears.subscribe("a")
    ears.close()
    mouth.close()
