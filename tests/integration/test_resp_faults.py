"""What a connection makes of servers that hang, die, refuse or talk nonsense."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import L2Unavailable
from cachebus.resp import Address, Connection, parse_address
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from tests.support.servers import KINDS, Kind, binary_of

TIMEOUT_S = 0.8
ROOT = Path(__file__).parents[2]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def doomed(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server of the test's own, once of each kind."""
    kind: Kind = request.param
    with EmbeddedServer(binary_of(kind)) as server:
        yield server


class Losses:
    """An `on_lost` that can be waited for."""

    def __init__(self) -> None:
        self.told: list[Exception] = []
        self.happened = asyncio.Event()

    def __call__(self, error: Exception) -> None:
        self.told.append(error)
        self.happened.set()


async def opened(address: Address, on_lost: Losses | None = None, **limits: float) -> Connection:
    patience = Patience(TIMEOUT_S, 5.0, monotonic)._replace(**limits)  # type: ignore[arg-type]  # floats
    return await Connection.open(address, patience, on_lost=on_lost)


@asynccontextmanager
async def fake_server(handle: Handler) -> AsyncIterator[Address]:
    """A server that treats each client as `handle` says."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1], password="hunter2")
    finally:
        server.close()
        for task in filter(None, tasks):
            task.cancel()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_server_that_hangs_is_noticed_and_all_who_wait_are_told(doomed: EmbeddedServer) -> None:
    lost = Losses()
    connection = await opened(parse_address(doomed.url), lost)
    await connection.get("k")
    doomed.pause()
    started = monotonic()
    asked = [connection.get("k") for _ in range(50)] + [connection.call("SET", "k", 1) for _ in range(50)]
    errors = await asyncio.gather(*asked, return_exceptions=True)
    elapsed_s = monotonic() - started
    assert TIMEOUT_S <= elapsed_s <= TIMEOUT_S * 1.5
    told = f"127.0.0.1:{doomed.port} did not answer in 0.8 s"
    assert {(type(error), str(error)) for error in errors} == {(L2Unavailable, told)}
    assert [str(error) for error in lost.told] == [told]
    assert connection.closed
    with pytest.raises(L2Unavailable, match="not connected"):
        await connection.get("k")
    doomed.resume()


async def test_a_server_that_hangs_under_load_is_noticed_as_soon(doomed: EmbeddedServer) -> None:
    """The oldest question counts, though there are new ones all the time."""
    connection = await opened(parse_address(doomed.url))
    doomed.pause()
    started = monotonic()
    oldest = connection.call("PING")
    while not oldest.done():
        young = connection.get("k")
        await asyncio.sleep(0.005)
    assert TIMEOUT_S <= monotonic() - started <= TIMEOUT_S * 1.5
    assert isinstance(oldest.exception(), L2Unavailable)
    assert isinstance(young.exception(), L2Unavailable)
    doomed.resume()


async def test_a_pause_shorter_than_the_timeout_is_forgiven(doomed: EmbeddedServer) -> None:
    connection = await opened(parse_address(doomed.url), timeout_s=30.0)
    doomed.pause()
    asked = [connection.call("INCR", "n") for _ in range(20)]
    done, _ = await asyncio.wait(asked, timeout=0.05)
    assert not done
    doomed.resume()
    assert await asyncio.gather(*asked) == list(range(1, 21))
    connection.close()


async def test_a_server_that_takes_no_bytes_holds_nobody_longer_than_the_timeout(doomed: EmbeddedServer) -> None:
    connection = await opened(parse_address(doomed.url))
    doomed.pause()
    chunk = b"x" * 1_000_000
    asked = [connection.call("APPEND", "k", chunk) for _ in range(30)]  # far beyond what the socket buffers
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(error) for error in errors} == {L2Unavailable}
    doomed.resume()


async def test_a_server_killed_in_mid_flight(doomed: EmbeddedServer) -> None:
    lost = Losses()
    connection = await opened(parse_address(doomed.url), lost, timeout_s=30.0)
    doomed.pause()
    asked = [connection.get("k"), connection.get("l"), connection.call("INCR", "n")]
    await asyncio.sleep(0)
    doomed.kill()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(error) for error in errors} == {L2Unavailable}
    assert len(lost.told) == 1
    doomed.start()
    again = await opened(parse_address(doomed.url))
    assert again.generation > connection.generation
    assert await again.get("k") is None
    again.close()


async def test_an_idle_connection_hears_of_its_servers_death(doomed: EmbeddedServer) -> None:
    lost = Losses()
    connection = await opened(parse_address(doomed.url), lost)
    doomed.kill()
    await asyncio.wait_for(lost.happened.wait(), 10.0)
    assert connection.closed


async def test_a_connection_that_the_server_kills(doomed: EmbeddedServer) -> None:
    lost = Losses()
    connection = await opened(parse_address(doomed.url), lost)
    number = await connection.call("CLIENT", "ID")
    assert doomed.command("CLIENT", "KILL", "ID", str(number)) == ":1"
    await asyncio.wait_for(lost.happened.wait(), 10.0)
    assert str(lost.told[0]).startswith(f"127.0.0.1:{doomed.port} closed") or "lost" in str(lost.told[0])
    assert connection.closed


async def test_a_closed_port_is_named_and_the_password_is_not() -> None:
    port = free_port()
    with pytest.raises(L2Unavailable, match=f"^cannot connect to 127.0.0.1:{port}: .*(refused|failed)") as caught:
        await opened(parse_address(f"redis://:hunter2@127.0.0.1:{port}"))
    assert "hunter2" not in str(caught.value)


async def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(L2Unavailable, match=r"^cannot connect to no-such-host\.invalid:6379: "):
        await opened(parse_address("redis://no-such-host.invalid"))
    with pytest.raises(L2Unavailable, match=r"^cannot connect to "):
        await opened(Address("x" * 70 + ".example"))


async def test_a_server_that_closes_at_once() -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with fake_server(close) as address:
        with pytest.raises(L2Unavailable, match=f"{address}"):
            await opened(address)


async def test_a_server_that_never_answers_the_login() -> None:
    async with fake_server(silent) as address:
        with pytest.raises(L2Unavailable, match=f"^cannot connect to {address}: no answer in 0.1 s$"):
            await opened(address, connect_timeout_s=0.1, timeout_s=5.0)


async def test_cancelling_open_leaves_no_socket() -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        try:
            while await reader.read(1000):
                pass
        except ConnectionError:
            pass  # a dropped socket may look like that too
        left.set()

    async with fake_server(wait) as address:
        opening = asyncio.create_task(opened(address))
        await arrived.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await asyncio.wait_for(left.wait(), 10.0)


async def test_a_server_that_repeats_the_password() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"-ERR unknown command `AUTH`, with args beginning with: `hunter2`\r\n")
        await reader.read()

    async with fake_server(echo) as address:
        with pytest.raises(L2Unavailable, match=r"refused: ERR unknown command .*\*\*\*"):
            await opened(address)


@pytest.mark.parametrize("asked", [False, True])
async def test_a_server_that_is_full_says_so(asked: bool) -> None:
    """Before or after it has read the first question, by which of them it comes first."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked:
            await reader.read(1)
        writer.write(b"-ERR max number of clients reached\r\n")

    async with fake_server(refuse) as address:
        with pytest.raises(L2Unavailable, match=r"refused: ERR max number of clients reached$"):
            await opened(replace(address, client_name="web-1"))


@pytest.mark.parametrize("seed", range(20))
async def test_random_bytes(seed: int) -> None:
    dice = random.Random(seed)

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"+OK\r\n+PONG\r\n")
        await reader.read(1000)
        writer.write(b"?" + dice.randbytes(500))
        await reader.read()

    async with fake_server(babble) as address:
        lost = Losses()
        connection = await opened(address, lost, timeout_s=30.0)
        asked: list[asyncio.Future[Any]] = [connection.call("X"), connection.get("a"), connection.get("b")]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(error) for error in errors} == {L2Unavailable}
        assert "no RESP2" in str(lost.told[0])


FORKED = """
import asyncio, os, sys
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.resp import Connection, Subscriber, parse_address

async def main():
    loop = asyncio.get_running_loop()
    patience = Patience(5.0, 5.0, monotonic)
    connection = await Connection.open(parse_address(sys.argv[1]), patience)
    heard = []
    subscriber = await Subscriber.open(
        parse_address(sys.argv[1]), patience, on_push=lambda channel, payload: heard.append(payload)
    )
    await subscriber.subscribe("news")
    asked = [connection.call("ECHO", "first")]
    asked += [connection.call("PUBLISH", "news", "it is out")]
    pid = os.fork()
    if pid == 0:  # the child goes on with the loop for a turn, as one does that was forked in a handler
        loop.call_soon(os._exit, 0)  # once what this turn had to send is sent
        await loop.create_future()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert await asked[0] == b"first"
    for n in range(5):
        assert await connection.call("ECHO", str(n)) == str(n).encode(), n
    await subscriber.ping()
    assert heard == [b"it is out"], heard
    print(await asked[1])

asyncio.run(main())
"""


async def test_a_forked_child_says_nothing_on_its_parents_socket(doomed: EmbeddedServer) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", FORKED, doomed.url],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
