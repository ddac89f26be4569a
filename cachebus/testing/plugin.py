"""A plugin for pytest: the service's cache in memory, several caches over one store, a clock that stands still.

Installed, it is there by itself; `-p no:cachebus.testing.plugin` keeps it away. A fixture of the same name in your own
`conftest.py` takes the place of one of these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal, cast, get_args

import pytest

from cachebus.base.clock import Clock
from cachebus.cache import Cache
from cachebus.manager import CacheManager, lifespan, override_settings
from cachebus.settings import SettingsOptions, with_options
from cachebus.testing.fleet import FakeClock, Fleet
from cachebus.testing.recording import Invalidations, record_invalidations

OPENER = (
    ", by the fixture `cache`, which `invalidations` asks for: of an application that opens it itself ask for "
    "`cache_in_memory` alone, and while it runs take `record_invalidations(current_cache())`"
)
EVERYWHERE = "cachebus_in_memory"
LoopScope = Literal["function", "class", "module", "package", "session"]
"""For how long pytest-asyncio keeps an event loop."""


def async_fixture(function: Callable[..., Any], loop_scope: LoopScope) -> Any:
    """A fixture that is a coroutine: pytest-asyncio's where that is installed, since its strict mode wants them marked.
    Others that run coroutines, such as anyio's plugin, take it, too."""
    try:
        from pytest_asyncio import fixture
    except ImportError:
        return pytest.fixture(function)
    try:
        return fixture(function, loop_scope=loop_scope)
    except TypeError:  # before 0.24 it took none. A plugin that can't be imported would end each run of pytest
        return fixture(function)


def loop_scope_of(request: pytest.FixtureRequest) -> LoopScope:
    """In which of pytest-asyncio's loops the test runs. A cache belongs to the loop that it is opened in, and fixtures
    run in another one, unless they are told."""
    mark = request.node.get_closest_marker("asyncio")
    if mark is None:
        return "function"
    own = mark.kwargs.get("loop_scope") or mark.kwargs.get("scope")
    if own in get_args(LoopScope):
        return cast("LoopScope", own)
    try:
        default = request.config.getini("asyncio_default_test_loop_scope")
    except ValueError:  # before 0.26 there was no such setting; or the mark is another plugin's
        return "function"
    return cast("LoopScope", default or "function")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switches for all tests: everything off, and everything in memory."""
    parser.addini(EVERYWHERE, "have each test ask for the fixture cache_in_memory", type="bool", default=False)
    parser.getgroup("cachebus").addoption(
        "--cachebus-off", action="store_true", help="the caches of cachebus's fixtures keep nothing: each read loads"
    )


class Everywhere:
    """A plugin for suites that say so in their settings: no test can reach a Redis by a process-wide cache."""

    @pytest.fixture(autouse=True)
    def _cachebus_in_memory(self, cache_in_memory: None) -> None:
        """Have the process-wide cache be in memory in every test."""


def pytest_configure(config: pytest.Config) -> None:
    """The mark by which a test says how its cache is set up, and what the suite's settings say of all tests."""
    if config.getini(EVERYWHERE):
        config.pluginmanager.register(Everywhere(), "cachebus-in-memory")
    config.addinivalue_line(
        "markers", "cachebus(**settings): fields of cachebus.Settings for the test's caches, such as enabled=False"
    )


def options_of(request: pytest.FixtureRequest) -> SettingsOptions:
    """What the marks of a test say of its caches, the nearest last, policies by their types; and that they are in
    memory."""
    options: SettingsOptions = {"url": "memory://", "bus": "redis"}
    for mark in reversed(list(request.node.iter_markers("cachebus"))):
        options = with_options(options, cast("SettingsOptions", mark.kwargs))
    if request.config.getoption("--cachebus-off"):
        options["enabled"] = False
    return options


@pytest.fixture
def clock() -> Clock:
    """A `FakeClock`, which the test's caches go by."""
    return FakeClock()


@pytest.fixture
def cache_in_memory(request: pytest.FixtureRequest, clock: Clock) -> Iterator[None]:
    """Have the process-wide cache be in memory, by whomever it is opened in the test, such as the application."""
    with override_settings(clock=clock, **options_of(request)):
        yield


@pytest.fixture
def cache(request: pytest.FixtureRequest) -> Cache:
    """The process-wide cache, open, in memory."""
    return cast("Cache", request.getfixturevalue(_name("cache", loop_scope_of(request))))


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """A `Fleet` of two nodes, open."""
    return cast("Fleet", request.getfixturevalue(_name("fleet", loop_scope_of(request))))


def _name(fixture: str, loop_scope: LoopScope) -> str:
    return f"_cachebus_{fixture}_in_{loop_scope}_loop"


def _cache_in(loop_scope: LoopScope) -> Any:
    async def opened(cache_in_memory: None) -> AsyncIterator[Cache]:  # noqa: ARG001 (a fixture that must be there)
        async with lifespan() as cache:
            CacheManager._opener = OPENER
            yield cache

    return async_fixture(opened, loop_scope)


def _fleet_in(loop_scope: LoopScope) -> Any:
    async def opened(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Fleet]:
        async with Fleet(clock=clock, **options_of(request)) as fleet:
            yield fleet

    return async_fixture(opened, loop_scope)


# One of each for each loop that a test may run in: pytest-asyncio wants to know a fixture's when it is made.
for _scope in get_args(LoopScope):
    globals()[_name("cache", _scope)] = _cache_in(_scope)
    globals()[_name("fleet", _scope)] = _fleet_in(_scope)


@pytest.fixture
def invalidations(cache: Cache) -> Iterator[Invalidations]:
    """What the process-wide cache is asked to invalidate from here on."""
    with record_invalidations(cache) as seen:
        yield seen
