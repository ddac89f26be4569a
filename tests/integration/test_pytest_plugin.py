"""`cachebus.testing.plugin` as a service's own suite has it: in a process of its own, without a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import cast

import pytest

from cachebus.testing.plugin import loop_scope_of

ROOT = Path(__file__).parents[2]
SERVICE = """
import asyncio
from cachebus import CacheManager, Policy, Settings, cached, configure

configure(Settings(url="redis://nobody.invalid:6379/0", policies={"page": Policy(ttl_s=60)}))
loads = []

@cached("page", resource_id="{number}", tenant_id="acme")
async def page(number: int) -> str:
    loads.append(number)
    return f"page {number}"

async def change(number: int) -> None:
    await CacheManager.invalidate("page", number, "acme")
"""
TESTS = """
import asyncio
import pytest
import service
from cachebus import Cache, current_cache, lifespan

@pytest.fixture(autouse=True)
def _nothing_loaded():
    service.loads.clear()

MARK
async def test_the_services_cache_is_in_memory(cache):
    assert current_cache() is cache
    assert cache.settings.policies["page"].ttl_s == 60
    assert [await service.page(1) for _ in range(2)] == ["page 1"] * 2
    assert service.loads == [1]

MARK
async def test_each_test_begins_with_an_empty_one(cache):
    await service.page(1)
    assert service.loads == [1]

MARK
async def test_time_passes_when_the_test_says_so(cache, clock):
    await service.page(1)
    clock.advance(59)
    await service.page(1)
    assert service.loads == [1]
    clock.advance(2)
    await service.page(1)
    assert service.loads == [1, 1]

MARK
async def test_what_was_invalidated(cache, invalidations):
    await service.change(7)
    invalidations.assert_invalidated("page", 7, "acme")
    invalidations.assert_not_invalidated("page", 8, "acme")

MARK
@pytest.mark.cachebus(enabled=False)
async def test_everything_off(cache):
    for _ in range(3):
        await service.page(1)
    assert service.loads == [1, 1, 1]

MARK
async def test_a_fleet(fleet, clock):
    a, b = fleet.caches
    await a.set("page", 1, "x", "acme", ttl=10)
    assert await b.get("page", 1, "acme") == "x"
    clock.advance(11)
    assert await b.get("page", 1, "acme") is None

def test_an_application_that_opens_it_itself(cache_in_memory):
    async def application():
        async with lifespan() as cache:
            assert cache.settings.safe_url == "memory://"
            assert await service.page(1) == "page 1"

    asyncio.run(application())
"""
PASSED = 7


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """The suite of a service that is configured for a Redis which there is not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(service=SERVICE)
    return pytester


def outcome(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """What becomes of the suite, in a process of its own."""
    return suite.runpytest_subprocess("-p", "cachebus.testing.plugin", "--strict-markers", "-q", *arguments)


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_with_pytest_asyncio(suite: pytest.Pytester, mode: str) -> None:
    suite.makepyfile(test_it=TESTS.replace("MARK", "@pytest.mark.asyncio" if mode == "strict" else ""))
    result = outcome(suite, "-p", "no:anyio", "-o", f"asyncio_mode={mode}")
    result.assert_outcomes(passed=PASSED)


LOOPS = [("", "session"), ("", "class"), ("test", ""), ("fixture", ""), ("test", "function")]
"""What pytest-asyncio's settings have in the session's loop, and what the tests' mark says."""


@pytest.mark.parametrize(("defaults", "mark"), LOOPS)
def test_whichever_loop_a_test_runs_in(suite: pytest.Pytester, defaults: str, mark: str) -> None:
    head, _, tests = TESTS.partition("MARK")
    tests = tests.replace("MARK", "").replace("(cache", "(self, cache").replace("(fleet", "(self, fleet")
    given = f'loop_scope="{mark}"' if mark else ""
    begin = f"class TestIt:\n    pytestmark = pytest.mark.asyncio({given})\n"
    suite.makepyfile(test_it=head + begin + indent(tests, "    "))
    options = [f"asyncio_default_{each}_loop_scope=session" for each in defaults.split()]
    result = outcome(suite, "-p", "no:anyio", *(part for each in options for part in ("-o", each)))
    result.assert_outcomes(passed=PASSED)


OLDER = """
import pytest_asyncio
made = pytest_asyncio.fixture

def fixture(function, **options):
    if "loop_scope" in options:
        raise TypeError("fixture() got an unexpected keyword argument 'loop_scope'")
    return made(function, **options)

pytest_asyncio.fixture = fixture
"""
"""What pytest-asyncio refused before 0.24. Whoever has it and cachebus has the plugin, whether it is used or not."""


def test_with_an_older_pytest_asyncio(suite: pytest.Pytester) -> None:
    suite.makepyfile(older=OLDER, test_it=TESTS.replace("MARK", "@pytest.mark.asyncio"))
    suite.syspathinsert()
    result = suite.runpytest_subprocess("-p", "older", "-p", "cachebus.testing.plugin", "-p", "no:anyio", "-q")
    result.assert_outcomes(passed=PASSED)


@pytest.mark.parametrize(
    ("said", "scope"), [({"loop_scope": "session"}, "session"), ({"scope": "class"}, "class"), ({}, "function")]
)
def test_a_mark_says_its_loop_where_there_is_no_setting_for_it(said: dict[str, str], scope: str) -> None:
    """As before pytest-asyncio 0.26."""

    def getini(name: str) -> str:
        raise ValueError(f"unknown configuration value: {name!r}")

    mark = pytest.mark.asyncio(**said).mark
    node, config = SimpleNamespace(get_closest_marker=lambda _name: mark), SimpleNamespace(getini=getini)
    assert loop_scope_of(cast("pytest.FixtureRequest", SimpleNamespace(node=node, config=config))) == scope


def test_with_anyio(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_it=TESTS.replace("MARK", "@pytest.mark.anyio"))
    suite.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    outcome(suite, "-p", "no:asyncio").assert_outcomes(passed=PASSED)


def test_the_whole_suite_with_everything_off(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_it=TESTS.replace("MARK", "@pytest.mark.asyncio"))
    result = outcome(suite, "--cachebus-off")
    result.assert_outcomes(passed=4, failed=3)
    result.stdout.fnmatch_lines_random(
        [f"FAILED *::{name}*" for name in ("test_the_services_cache_is_in_memory", "test_time_passes*", "test_a_fleet")]
    )


def test_a_mark_adds_to_those_around_it(suite: pytest.Pytester) -> None:
    """Policies by their types, as nested blocks of `override_settings` do."""
    suite.makepyfile(
        test_it="""
        import pytest
        import service
        from cachebus import Policy

        pytestmark = pytest.mark.cachebus(shards=3, policies={"page": Policy(ttl_s=7), "list": Policy(ttl_s=8)})

        @pytest.mark.cachebus(policies={"page": Policy(ttl_s=5)})
        class TestIt:
            @pytest.mark.cachebus(shards=2, policies={"other": Policy(ttl_s=9)})
            async def test_it(self, cache, fleet):
                for settings in (cache.settings, fleet.settings):
                    times = {name: policy.ttl_s for name, policy in settings.policies.items()}
                    assert (settings.shards, times) == (2, {"page": 5, "list": 8, "other": 9})
        """
    )
    outcome(suite, "-o", "asyncio_mode=auto").assert_outcomes(passed=1)


def test_what_fails_says_what_was_invalidated(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_it="""
        import service
        async def test_it(cache, invalidations):
            await service.change(7)
            invalidations.assert_invalidated("page", 8, "acme")
        """
    )
    result = outcome(suite, "-o", "asyncio_mode=auto")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *AssertionError: page/8/acme was not invalidated, but *page*7*"])


def test_by_the_suites_settings_no_test_needs_to_ask_for_it(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_it="""
        import service
        from cachebus import lifespan

        async def test_it():
            async with lifespan() as cache:
                assert cache.settings.safe_url == "memory://"
                assert await service.page(1) == "page 1"

        async def test_one_that_asks(cache):
            assert cache.settings.safe_url == "memory://"

        class TestIt:
            async def test_it(self):
                async with lifespan() as cache:
                    assert cache.settings.safe_url == "memory://"
        """
    )
    auto = ("-o", "asyncio_mode=auto", "-o", "cachebus_in_memory=true")
    outcome(suite, *auto).assert_outcomes(passed=3)
    outcome(suite, *auto[:3], "cachebus_in_memory=false", "-k", "one_that_asks").assert_outcomes(passed=1, deselected=2)
    suite.makeconftest("import os\nos.environ['CACHEBUS_CONNECT_TIMEOUT_S'] = '0.1'\n")
    outcome(suite, *auto[:2]).assert_outcomes(passed=1, failed=2)


APPLICATION = """
import pytest
import service
from cachebus import current_cache, lifespan
from cachebus.testing import record_invalidations
from fastapi import FastAPI
from fastapi.testclient import TestClient

app = FastAPI(lifespan=lifespan)

@app.put("/pages/{number}")
async def put(number: int):
    await service.change(number)

def test_it(cache_in_memory):
    with TestClient(app) as client, record_invalidations(current_cache()) as seen:
        client.put("/pages/7")
    seen.assert_invalidated("page", 7, "acme")

async def test_who_asks_for_what_opens_it(cache_in_memory, invalidations):
    with TestClient(app):
        pass
"""


def test_an_application_that_finds_it_open_says_who_has_opened_it_and_what_to_ask_for(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_it=APPLICATION)
    result = outcome(suite, "-o", "asyncio_mode=auto")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*ConfigError: the process-wide cache is open already, by the fixture `cache`, which `invalidations` asks*"]
    )


def test_a_fixture_of_ones_own_goes_first(suite: pytest.Pytester) -> None:
    suite.makeconftest("import pytest, time\n@pytest.fixture\ndef clock():\n    return time.monotonic\n")
    suite.makepyfile(test_it="import time\nasync def test_it(cache):\n    assert cache._clock is time.monotonic\n")
    outcome(suite, "-o", "asyncio_mode=auto").assert_outcomes(passed=1)


HEAVY = (
    "cachebus.cli",
    "cachebus.consumers",
    "cachebus.tools.servers",
    "cachebus.tools.verify.run",
    "aiokafka",
    "numpy",
)


def test_the_plugin_brings_little_beside_the_library() -> None:
    """Every run of pytest pays for it, in an environment where it is installed."""
    code = f"import cachebus.testing.plugin, sys; print(sorted(set({HEAVY}) & set(sys.modules)))"
    assert printed(code) == "[]"


def test_without_pytest_the_rest_is_there() -> None:
    code = (
        "import sys; sys.modules.update(pytest=None, pytest_asyncio=None); import cachebus.testing as t; print(t.Fleet)"
    )
    assert "Fleet" in printed(code)


def printed(code: str) -> str:
    """What such a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    return done.stdout.strip()
