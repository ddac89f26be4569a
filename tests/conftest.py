"""Fixtures for all tests: servers to run against, and a look at what each test leaves behind."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cachebus.cli.embedded import EmbeddedServer
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


@pytest.fixture
def traces() -> Path:
    """The folder with real traces, from the environment variable CACHEBUS_TRACES."""
    folder = os.environ.get("CACHEBUS_TRACES", "")
    require(folder and Path(folder).is_dir(), "real traces", "set CACHEBUS_TRACES to a folder that holds them")
    return Path(folder)


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    yield
    left = await tasks_left()
    if left:
        pytest.fail("the test left tasks behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _no_process_left(shared_servers: SharedServers) -> Iterator[None]:
    before = child_processes()
    yield
    left = children_left(before | shared_servers.pids())
    if left:
        pytest.fail("the test left processes behind:\n" + "\n".join(left), pytrace=False)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put the look for tasks first in every coroutine test, so that it is torn down after all other fixtures."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.fixturenames.insert(0, "_no_task_left")
