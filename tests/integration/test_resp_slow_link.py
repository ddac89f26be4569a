"""Big values over slow links: as long as bytes move a connection lives, and so do the calls of all who share it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import pytest

from cachebus import Cache, L2Unavailable, Policy
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.reading import judge
from cachebus.resp import Address, Connection, NotAsked
from cachebus.resp import connection as resp_connection
from cachebus.resp.link import KEPT_MAX_BYTES, SMALL_BYTES, SMALL_KEPT_MAX_BYTES
from cachebus.resp.replies import pack
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, parts, quick, until
from tests.support.require import require
from tests.support.slow_link import SlowLink

TIMEOUT_S = 0.2
BIG = os.urandom(1_000_000)
"""Takes four time-outs at the rate below, sixteen of them many more."""
RATE = len(BIG) / (4 * TIMEOUT_S)
WHERE = {"tenant_id": "acme"}


async def opened(port: int, timeout_s: float = TIMEOUT_S) -> Connection:
    return await Connection.open(Address("127.0.0.1", port), Patience(timeout_s, 5.0, monotonic))


@pytest.fixture
async def direct(redis_server: EmbeddedServer) -> AsyncIterator[Connection]:
    connection = await opened(redis_server.port, 10.0)
    await connection.call("SET", "big", BIG)
    yield connection
    connection.close()


async def test_a_big_answer_and_the_small_ones_behind_it_arrive(
    redis_server: EmbeddedServer, direct: Connection
) -> None:
    async with SlowLink(redis_server.port, down=RATE) as link:
        connection = await opened(link.port)
        big, small = connection.call("GET", "big"), connection.call("PING")
        assert await small == b"PONG"
        assert await big == BIG
        connection.close()


async def test_a_big_question_and_the_small_ones_behind_it_leave(
    redis_server: EmbeddedServer, direct: Connection
) -> None:
    async with SlowLink(redis_server.port, up=RATE) as link:
        connection = await opened(link.port)
        big, small = connection.call("SET", "big", BIG[::-1]), connection.call("PING")
        assert await small == b"PONG"
        assert await big == b"OK"
        assert await direct.get("big") == BIG[::-1]
        connection.close()


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_link_that_stops_half_way_is_given_up(
    redis_server: EmbeddedServer, direct: Connection, way: str
) -> None:
    async with SlowLink(redis_server.port, up=RATE, down=RATE) as link:
        connection = await opened(link.port)
        before = link.carried
        big = connection.call("SET", "other", BIG) if way == "up" else connection.call("GET", "big")
        small = connection.call("PING")
        await until(lambda: link.carried - before > len(BIG) / 4)
        assert not connection.closed
        link.stop()
        for call in (big, small):
            with pytest.raises(L2Unavailable, match="did not answer"):
                await call
        assert connection.closed


async def test_who_gives_up_and_tries_again_fills_no_memory(redis_server: EmbeddedServer, direct: Connection) -> None:
    """What was asked is sent though nobody waits for it any more: so there is an end to what may wait to be sent."""
    async with SlowLink(redis_server.port) as link:
        connection = await opened(link.port, 60.0)
        link.stop()
        refused = None
        for _ in range(100):
            call = connection.call("SET", "other", BIG)
            await asyncio.sleep(0)
            if call.done():
                refused = call
                break
            call.cancel()
        assert refused is not None
        with pytest.raises(L2Unavailable, match="bytes wait to be sent"):
            await refused
        small = connection.call("PING")
        await asyncio.sleep(0)
        assert not small.done(), "a small one is refused for nobody's bytes"
        connection.close()
        with pytest.raises(L2Unavailable, match="closed"):
            await small


async def test_what_is_asked_in_one_tick_is_bounded_too(direct: Connection) -> None:
    """Before the first byte could leave, and before anybody knows whether the server is slow."""
    calls = [direct.call("SET", "big", BIG) for _ in range(100)]
    small = direct.call("PING")
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, NotAsked)]
    assert answers.count(b"OK") + len(refused) == 100
    assert len(refused) == 100 - KEPT_MAX_BYTES // (len(BIG) + 40)
    assert await small == b"PONG"


async def test_small_questions_are_bounded_as_well_where_nobody_takes_them(direct: Connection) -> None:
    direct.pause_writing()
    value = BIG[: SMALL_BYTES - 100]
    calls = [direct.call("SET", "small", value) for _ in range(2 + SMALL_KEPT_MAX_BYTES // len(value))]
    probe = direct.call("PING")
    assert not probe.done(), "there is room for a small one"
    assert isinstance(calls[-1].exception(), NotAsked)
    assert not calls[0].done()
    direct.resume_writing()
    assert await calls[0] == b"OK"


async def test_many_who_ask_for_one_big_value_share_it_once_it_is_there(redis_server: EmbeddedServer) -> None:
    """To decode it for each would hold up the loop for as long as all of them together."""
    async with nodes(redis_server.url, 2) as (a, b):
        await a.set("blob", "x", ["text"] * 20_000, **WHERE)
        given = await asyncio.gather(*(b.get("blob", "x", **WHERE) for _ in range(20)))
        assert given[0] == ["text"] * 20_000
        assert all(value is given[0] for value in given)


def test_on_another_event_loop(redis_server: EmbeddedServer) -> None:
    require(find_spec("uvloop"), "uvloop", "pip install uvloop", can_exist=False)
    import uvloop

    async def use() -> None:
        async with SlowLink(redis_server.port, up=RATE, down=RATE) as link:
            connection = await opened(link.port)
            assert await connection.call("SET", "big", BIG) == b"OK"
            assert await connection.call("GET", "big") == BIG
            connection.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use())


async def test_a_cache_reads_and_writes_big_values_and_its_other_callers_are_served(
    redis_server: EmbeddedServer,
) -> None:
    async with nodes(redis_server.url, 1) as (a,):
        await asyncio.gather(*(a.set("blob", i, BIG[i:], **WHERE) for i in range(4)))
        await a.set("config", "x", 1, **WHERE)
        async with SlowLink(redis_server.port, up=2 * RATE, down=4 * RATE) as link:
            url = f"redis://127.0.0.1:{link.port}/0"
            async with Cache(quick(url, l2_timeout_s=TIMEOUT_S)) as b:
                connection = parts(b).store._links.of(0)  # type: ignore[attr-defined]
                reading = asyncio.create_task(b.get_many("blob", range(4), **WHERE))
                writing = asyncio.create_task(b.set("blob", "new", BIG, **WHERE))
                await asyncio.sleep(0)
                small = [b.get("config", "x", **WHERE, use_memory=False) for _ in range(3)]
                assert await asyncio.gather(*small) == [1, 1, 1]
                assert await reading == {i: BIG[i:] for i in range(4)}
                await writing
                assert parts(b).store._links.of(0) is connection  # type: ignore[attr-defined]
                assert b.stats().reconnects == 0
        assert await a.get("blob", "new", **WHERE) == BIG


@pytest.mark.parametrize("how", ["get", "get_many", "search", "past memory", "never in memory"])
async def test_many_who_ask_for_one_big_value_at_once_bring_and_decode_it_once(
    redis_server: EmbeddedServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = {"big": Policy(l1=how != "never in memory")}
    async with nodes(redis_server.url, 2, policies=policies) as (a, b):
        await a.set("big", "x", list(range(30_000)), **WHERE)
        await until(b.ready)
        asks: dict[str, Callable[[], Awaitable[Any]]] = {
            "get_many": lambda: b.get_many("big", ["x"], **WHERE),
            "search": lambda: b.get("big", "x", search_hierarchy=True, **WHERE),
            "past memory": lambda: b.get("big", "x", use_memory=False, **WHERE),
        }
        ask = asks.get(how, lambda: b.get("big", "x", **WHERE))
        decoded = 0
        for name in ("unpack", "decode_value"):
            real = getattr(judge, name)

            def counted(*args: Any, real: Any = real) -> Any:
                nonlocal decoded
                decoded += 1
                return real(*args)

            monkeypatch.setattr(judge, name, counted)
        connection = parts(b).store._links.of(0)  # type: ignore[attr-defined]
        named: list[Any] = []
        monkeypatch.setattr(resp_connection, "pack", lambda args: named.append(args) or pack(args))
        found = await asyncio.gather(*(ask() for _ in range(20)))
        assert all(each in (list(range(30_000)), {"x": list(range(30_000))}) for each in found)
        assert decoded == 1
        gets = [args for args in named if args[0] in ("GET", "MGET")]
        assert [len(args) for args in gets] == [2]
        assert connection.pending == 0
