"""Fixtures for all tests: servers to run against, and a look at what each test leaves behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from hypothesis import settings

from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.mariadb import MariaDBServer
from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.command import Typed
from tests.support.leftovers import child_processes, children_left, tasks_left
from tests.support.require import require
from tests.support.servers import KINDS, Kind, SharedServers, any_binary, binary_of

# A time limit for each example would measure how busy the machine is.
settings.register_profile("cachebus", deadline=None)
settings.load_profile("cachebus")


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[SharedServers]:
    """One server of each kind for the whole run."""
    servers = SharedServers()
    yield servers
    servers.stop()


@pytest.fixture
def redis_server(shared_servers: SharedServers) -> EmbeddedServer:
    """This machine's best server, emptied. Shared: a test that breaks its server takes `own_server`."""
    return shared_servers.get(any_binary())


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """The address of this machine's best server, emptied."""
    return redis_server.url


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def server_kinds(request: pytest.FixtureRequest, shared_servers: SharedServers) -> EmbeddedServer:
    """Runs the test once on each kind of server that must work, emptied; a kind that is missing skips loudly."""
    kind: Kind = request.param
    return shared_servers.get(binary_of(kind))


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server of the test's own, for tests that kill, pause or reconfigure it."""
    with EmbeddedServer(any_binary()) as server:
        yield server


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to that database."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def kafka(shared_servers: SharedServers) -> KafkaServer:
    """A Kafka broker. Shared: a test takes topics of its own, and one that breaks its broker a broker of its own."""
    return shared_servers.kafka()


@pytest.fixture
def postgres(shared_servers: SharedServers) -> PostgresServer:
    """A PostgreSQL server. Shared: a test takes a `database`, and one that breaks its server a server of its own."""
    return shared_servers.postgres()


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    async with connected(postgres.url) as connection:
        await connection.execute(f"CREATE DATABASE {name} STRATEGY FILE_COPY")
    yield postgres.url_of(name)
    async with connected(postgres.url) as connection:
        slots = (
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT active"
        )
        await connection.execute(slots, name)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def mariadb(shared_servers: SharedServers) -> MariaDBServer:
    """A MariaDB server. Shared: a test that breaks or sets up its server takes one of its own."""
    return shared_servers.mariadb()


@pytest.fixture
def traces() -> Path:
    """The folder with real traces, from the environment variable CACHEBUS_TRACES."""
    folder = os.environ.get("CACHEBUS_TRACES", "")
    require(folder and Path(folder).is_dir(), "real traces", "set CACHEBUS_TRACES to a folder that holds them")
    return Path(folder)


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(repr(context)))
    yield
    left = await tasks_left()
    if left:
        pytest.fail("the test left tasks behind:\n" + "\n".join(left), pytrace=False)
    if complaints:
        pytest.fail("the event loop was told of what nobody took:\n" + "\n".join(complaints), pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def _what_was_there_is_not_looked_at() -> None:
    """What earlier files left for good, as trees of all the code, need not be looked at after each test of this one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """A socket that nobody closed is told of when it is collected: of this test, not of whichever one runs by then."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _no_process_left(shared_servers: SharedServers) -> Iterator[None]:
    before = child_processes()
    yield
    left = children_left(before | shared_servers.pids())
    if left:
        pytest.fail("the test left processes behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _no_second_copy() -> Iterator[None]:
    """Two folders of the package are links: imported by their own names, their modules would be there twice, and what
    is patched in the one would go on in the other."""
    yield
    twice = sorted(name for name in sys.modules if name.partition(".")[0] in ("consumers", "producers"))
    if twice:
        pytest.fail(f"imported by another name than cachebus.…: {', '.join(twice)}", pytrace=False)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put the look for tasks first in every coroutine test, so that it is torn down after all other fixtures."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.fixturenames.insert(0, "_no_task_left")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs the command in this process, which is quicker: exit status, output, errors."""
    from cachebus.cli import main

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cachebus", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.run()
        out, errors = capsys.readouterr()
        return int(ended.value.code or 0), out, errors

    return run
