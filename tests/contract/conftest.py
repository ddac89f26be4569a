"""One rig for each kind of store: memory, and a server of every kind that must work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import pytest

from tests.contract.clients import Client
from tests.contract.rig import ClusterRig, MemoryRig, RedisRig, StoreRig
from tests.support.servers import KINDS, Kind, SharedServers, binary_of

MAX = 100_000
MEMORY = Kind("memory", "PATH", "", can_exist=True)
CLUSTER = Kind("cluster", "PATH", "", can_exist=True)
program = cache(binary_of)
"""Looking for a server runs each that it finds, to ask for its version: once is enough."""


def pytest_configure(config: pytest.Config) -> None:
    """Tell of the mark."""
    config.addinivalue_line("markers", "limits(marks_max=..., log_max=..., log_max_bytes=...): a test's store's sizes")


@asynccontextmanager
async def rigged(request: pytest.FixtureRequest, servers: SharedServers) -> AsyncIterator[StoreRig]:
    """A rig of the kind that the fixture asks for, with the sizes that the test asks for."""
    marker = request.node.get_closest_marker("limits")
    limits = {"max_invalidated_scopes": MAX, "log_max": MAX, **(marker.kwargs if marker else {})}
    kind: Kind = request.param
    rig: StoreRig
    if kind is MEMORY:
        rig = MemoryRig(**limits)
    elif kind is CLUSTER:
        rig = ClusterRig(await servers.cluster(), **limits)
    else:
        rig = RedisRig(servers.get(program(kind)).url, **limits)
    await rig.begin()
    try:
        yield rig
    finally:
        await rig.end()


@pytest.fixture(params=[MEMORY, *KINDS, CLUSTER], ids=lambda kind: kind.name)
async def rig(request: pytest.FixtureRequest, shared_servers: SharedServers) -> AsyncIterator[StoreRig]:
    """An empty store of each kind."""
    async with rigged(request, shared_servers) as rig:
        yield rig


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def redis(request: pytest.FixtureRequest, shared_servers: SharedServers) -> AsyncIterator[RedisRig]:
    """An empty server of each kind, for what memory has no part in."""
    async with rigged(request, shared_servers) as rig:
        assert isinstance(rig, RedisRig)
        yield rig


@pytest.fixture
async def ann(rig: StoreRig) -> Client:
    """A node that has attached."""
    return await Client(await rig.store(), "ann").attach()


@pytest.fixture
async def bob(rig: StoreRig) -> Client:
    """Another node that has attached."""
    return await Client(await rig.store(), "bob").attach()
