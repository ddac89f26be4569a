"""Servers by name: a name server that is silent takes one thread, of the library's own, and holds up nobody else."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import L2Unavailable
from cachebus.resp import Connection, parse_address
from cachebus.resp.names import addresses_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from tests.support.caches import PATIENCE_S, nodes, until
from tests.support.servers import any_binary

GONE = "gone.test"


class NameServer:
    """Answers as the real one, but is silent about one name until it may speak."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.may_speak = threading.Event()
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, *args: Any, **more: Any) -> Any:
        """In place of `socket.getaddrinfo`."""
        if host != GONE:
            return self._real(host, *args, **more)
        self.asked.append(host)
        self.may_speak.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """The machine's."""
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.may_speak.set()


async def to(host: str, port: int) -> Connection:
    """Connected, or given up soon."""
    address = parse_address(f"redis://{host}:{port}/0")
    return await Connection.open(address, Patience(0.05, 0.05, monotonic))


async def test_a_name_that_hangs_is_asked_for_once_and_takes_no_thread_of_the_applications(
    own_server: EmbeddedServer, names: NameServer
) -> None:
    with ThreadPoolExecutor(1) as only_one:
        asyncio.get_running_loop().set_default_executor(only_one)
        for port in (own_server.port, own_server.port, own_server.port + 1):
            with pytest.raises(L2Unavailable, match="no answer in"):
                await to(GONE, port)
        try:
            async with asyncio.timeout(PATIENCE_S):
                assert await asyncio.to_thread(lambda: "free") == "free"
        except TimeoutError:
            names.may_speak.set()  # or closing the pool would wait for ever
            raise
        assert names.asked == [GONE]
        (await to("localhost", own_server.port)).close()
        names.may_speak.set()
        with pytest.raises(OSError, match="Temporary failure in name resolution"):
            await addresses_of(GONE)


async def test_a_sentinel_whose_name_hangs_holds_up_no_failover(names: NameServer) -> None:
    """For as long as nobody knows a primary, each look asks every Sentinel."""
    async with SentinelGroup(any_binary(), replicas=1) as group:
        first, *others = (sentinel.port for sentinel in group.sentinels)
        known = ",".join(f"localhost:{port}" for port in others)
        async with nodes(f"redis+sentinel://{GONE}:{first},{known}/{SERVICE}/0", 1) as (a,):
            await a.set("config", "x", 1, tenant_id="acme")
            await ask(group.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
            await until(lambda: a.stats().reconnects > 0)
            await until(lambda: a.ready() and a.stats().l2_connected)
            await a.set("config", "x", 2, tenant_id="acme")
        assert names.asked == [GONE]


async def test_addresses_need_no_thread(own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.resp.names.Thread", None)
    (await to("127.0.0.1", own_server.port)).close()
    assert [await addresses_of(host) for host in ("::1", "fe80::1%lo")] == [["::1"], ["fe80::1%lo"]]


async def test_without_a_thread_it_says_so_and_the_next_who_asks_is_answered(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        with pytest.raises(L2Unavailable, match="can't start new thread"):
            await to("localhost", own_server.port)
    (await to("localhost", own_server.port)).close()


async def test_a_child_waits_for_no_thread_of_its_parents(names: NameServer) -> None:
    waits = asyncio.create_task(addresses_of(GONE))
    await until(lambda: names.asked)
    child = os.fork()
    if not child:
        from cachebus.resp import names as module

        os._exit(len(module._under_way))
    assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1]) == 0
    names.may_speak.set()
    with pytest.raises(OSError, match="Temporary failure"):
        await waits


@contextmanager
def swallowing(host: str, port: int) -> Iterator[None]:
    """A place that answers nobody: so many wait there already that whoever comes is not even refused."""
    with ExitStack() as stack:
        there = stack.enter_context(socket.socket())
        there.bind((host, port))
        there.listen(0)
        for _ in range(4):
            waits = stack.enter_context(socket.socket())
            waits.setblocking(False)
            with suppress(BlockingIOError):
                waits.connect((host, port))
        yield


@pytest.mark.parametrize("order", [("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")])
async def test_an_address_that_answers_nobody_keeps_nobody_from_the_names_others(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    real = socket.getaddrinfo

    def both(host: Any, *args: Any, **more: Any) -> Any:
        if host != "two.test":
            return real(host, *args, **more)
        return [place for address in order for place in real(address, *args, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with swallowing("127.0.0.2", own_server.port):
        address = parse_address(f"redis://two.test:{own_server.port}/0")
        connection = await Connection.open(address, Patience(5.0, 5.0, monotonic))
        assert await connection.call("PING") == b"PONG"
        connection.close()
        with pytest.raises(L2Unavailable, match=r"no answer in 0\.1 s"):
            await Connection.open(
                parse_address(f"redis://127.0.0.2:{own_server.port}/0"), Patience(0.1, 0.1, monotonic)
            )
