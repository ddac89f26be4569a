"""`cachebus.testing.plugin` as a service's own suite has it: in a process of its own, without a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
