"""A plugin for pytest: the service's cache in memory, several caches over one store, a clock that stands still.

Installed, it is there by itself; `-p no:cachebus.testing.plugin` keeps it away. A fixture of the same name in your own
`conftest.py` takes the place of one of these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

from cachebus.base.clock import Clock
from cachebus.cache import Cache
from cachebus.manager import lifespan, override_settings
from cachebus.settings import SettingsOptions
from cachebus.testing.fleet import FakeClock, Fleet
from cachebus.testing.recording import Invalidations, record_invalidations


def async_fixture(function: Callable[..., Any]) -> Any:
    """A fixture that is a coroutine: pytest-asyncio's where that is installed, since its strict mode wants them marked.
    Others that run coroutines, such as anyio's plugin, take it, too."""
    try:
        from pytest_asyncio import fixture
    except ImportError:
        return pytest.fixture(function)
    return fixture(function)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switch for everything off."""
    parser.getgroup("cachebus").addoption(
        "--cachebus-off", action="store_true", help="the caches of cachebus's fixtures keep nothing: each read loads"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The mark by which a test says how its cache is set up."""
    config.addinivalue_line(
        "markers", "cachebus(**settings): fields of cachebus.Settings for the test's caches, such as enabled=False"
    )


def options_of(request: pytest.FixtureRequest) -> SettingsOptions:
    """What the marks of a test say of its caches, the nearest last; and that they are in memory."""
    options: dict[str, Any] = {"url": "memory://", "bus": "redis"}
    for mark in reversed(list(request.node.iter_markers("cachebus"))):
        options.update(mark.kwargs)
    if request.config.getoption("--cachebus-off"):
        options["enabled"] = False
    return cast("SettingsOptions", options)


@pytest.fixture
def clock() -> Clock:
    """A `FakeClock`, which the test's caches go by."""
    return FakeClock()


@pytest.fixture
def cache_in_memory(request: pytest.FixtureRequest, clock: Clock) -> Iterator[None]:
    """Have the process-wide cache be in memory, by whomever it is opened in the test, such as the application."""
    with override_settings(clock=clock, **options_of(request)):
        yield


@async_fixture
async def cache(cache_in_memory: None) -> AsyncIterator[Cache]:  # noqa: ARG001 (a fixture that must be there)
    """The process-wide cache, open, in memory."""
    async with lifespan() as opened:
        yield opened


@async_fixture
async def fleet(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Fleet]:
    """A `Fleet` of two nodes, open."""
    async with Fleet(clock=clock, **options_of(request)) as opened:
        yield opened


@pytest.fixture
def invalidations(cache: Cache) -> Iterator[Invalidations]:
    """What the process-wide cache is asked to invalidate from here on."""
    with record_invalidations(cache) as seen:
        yield seen
