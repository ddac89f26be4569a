"""One rig for each kind of store and bus: memory, and a server of every kind that must work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.contract.people import Person
from tests.contract.rig import MemoryRig, RedisRig, StoreRig
from tests.support.servers import KINDS, Kind, SharedServers, binary_of

MAX = 100_000


@pytest.fixture(params=["memory", *KINDS], ids=lambda kind: kind if isinstance(kind, str) else kind.name)
async def rig(request: pytest.FixtureRequest, shared_servers: SharedServers) -> AsyncIterator[StoreRig]:
    """An empty store of each kind. A test's mark `limits(marks_max=.., log_max=..)` sets its sizes."""
    marker = request.node.get_closest_marker("limits")
    limits = {"marks_max": MAX, "log_max": MAX, **(marker.kwargs if marker else {})}
    kind: str | Kind = request.param
    rig = MemoryRig(**limits) if isinstance(kind, str) else RedisRig(shared_servers.get(binary_of(kind)).url, **limits)
    await rig.begin()
    yield rig
    await rig.end()


@pytest.fixture
async def redis(rig: StoreRig) -> RedisRig:
    """A server of each kind: for what memory has no part in."""
    assert isinstance(rig, RedisRig)
    return rig


@pytest.fixture
async def join(rig: StoreRig) -> Callable[[str], Awaitable[Person]]:
    """Makes nodes."""

    async def joined(name: str) -> Person:
        return await Person(await rig.store(), name).attach()

    return joined


@pytest.fixture
async def ann(join: Callable[[str], Awaitable[Person]]) -> Person:
    """A node."""
    return await join("ann")


@pytest.fixture
async def bob(join: Callable[[str], Awaitable[Person]]) -> Person:
    """Another node."""
    return await join("bob")
