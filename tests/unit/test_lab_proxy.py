"""The proxy passes bytes, holds them, gives them back, and cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cachebus.resp import Address
from cachebus.tools.harness.proxy import HOST, Proxy, dialer

SOON_S = 5.0
SILENCE_S = 0.1
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that says back what it hears; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with echo() as port, Proxy(dialer(Address(HOST, port))) as between:
        yield between


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def said_back(streams: Streams, words: bytes) -> bytes:
    streams[1].write(words)
    return await asyncio.wait_for(streams[0].readexactly(len(words)), SOON_S)


async def silent(streams: Streams) -> bool:
    try:
        await asyncio.wait_for(streams[0].read(1), SILENCE_S)
    except TimeoutError:
        return True
    return False


async def ended(streams: Streams) -> bool:
    try:
        return await asyncio.wait_for(streams[0].read(1), SOON_S) == b""
    except ConnectionError:
        return True


async def test_bytes_pass_both_ways(proxy: Proxy) -> None:
    async with connected(proxy) as one, connected(proxy) as two:
        assert await said_back(one, b"hello") == b"hello"
        assert await said_back(two, b"x" * 300_000) == b"x" * 300_000


async def test_held_bytes_arrive_in_the_end(proxy: Proxy) -> None:
    async with connected(proxy) as before:
        assert await said_back(before, b"1") == b"1"
        proxy.hold()
        before[1].write(b"2")
        assert await silent(before)
        async with connected(proxy) as during:
            during[1].write(b"3")
            assert await silent(during)
            proxy.restore()
            assert await asyncio.wait_for(before[0].readexactly(1), SOON_S) == b"2"
            assert await asyncio.wait_for(during[0].readexactly(1), SOON_S) == b"3"


async def test_a_cut_ends_connections_and_refuses_new_ones(proxy: Proxy) -> None:
    async with connected(proxy) as before:
        assert await said_back(before, b"1") == b"1"
        proxy.cut()
        assert await ended(before)
    async with connected(proxy) as during:
        assert await ended(during)
    proxy.restore()
    async with connected(proxy) as after:
        assert await said_back(after, b"2") == b"2"


async def test_a_held_connection_can_be_cut(proxy: Proxy) -> None:
    async with connected(proxy) as streams:
        assert await said_back(streams, b"1") == b"1"
        proxy.hold()
        streams[1].write(b"2")
        assert await silent(streams)
        proxy.cut()
        assert await ended(streams)


async def test_one_side_that_leaves_takes_the_other_along(proxy: Proxy) -> None:
    async with connected(proxy) as streams:
        assert await said_back(streams, b"1") == b"1"
        streams[1].write_eof()
        assert await ended(streams)


async def test_a_server_that_is_not_there_is_an_end_of_the_connection() -> None:
    async with echo() as port:
        pass
    async with Proxy(dialer(Address(HOST, port))) as proxy, connected(proxy) as streams:
        assert await ended(streams)


async def test_closing_it_leaves_nothing(proxy: Proxy) -> None:
    """Even while bytes are held; the fixture's end and the look for tasks left behind are the test."""
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    proxy.hold()
    writer.write(b"1")
    assert await silent((reader, writer))
    await proxy.__aexit__()
    assert await ended((reader, writer))
    writer.close()


async def test_a_slow_way_carries_so_many_bytes_a_second_and_holds_the_sender_up(proxy: Proxy) -> None:
    loop, words = asyncio.get_running_loop(), b"x" * 20_000
    async with connected(proxy) as first, connected(proxy) as second:
        assert await said_back(first, b"x") == await said_back(second, b"x") == b"x"
        proxy.slow(100_000, directions=("up",))
        began_s = loop.time()
        assert await asyncio.gather(said_back(first, words), said_back(second, words)) == [words, words]
        assert loop.time() - began_s >= 0.4  # both share it
        proxy.slow(1.0, directions=("up",))
        for _ in range(50):
            first[1].write(b"x" * 100_000)
        assert await silent(first)
        assert first[1].transport.get_write_buffer_size() > 0
        proxy.restore()
        assert await said_back(second, b"x") == b"x"
        assert len(await asyncio.wait_for(first[0].readexactly(5_000_000), SOON_S)) == 5_000_000
