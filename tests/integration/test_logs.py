"""Where log lines go for who set up nothing, the standard library's logging, or loguru; and what leaves one."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cachebus import Cache, get_with_cache_aside, lifespan
from cachebus.base.log import AT_ONCE, MINUTE_S, Logger
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, quick, until
from tests.support.logs import told

PROGRAM = """
import asyncio, logging, sys
from cachebus import Cache, Settings

class Odd:
    pass

{setup}

async def main():
    async with Cache.open(Settings(url="memory://"{logs})) as cache:
        for name in ("x", "y"):
            await cache.get_or_load("thing", name, lambda: Odd(), tenant_id="acme")

asyncio.run(main())
print("loguru" in sys.modules)
"""
LOGURU = """
from loguru import logger
logger.remove()
logger.add(sys.stderr, format="LOGURU {level} {name} {message}")
"""
LINE = "a loaded thing can't be cached, and is loaded at each read: NotSerializable"


def ran(setup: str, logs: str = "") -> tuple[str, list[str]]:
    """Whether the program had loguru, and the lines on its stderr."""
    code = PROGRAM.replace("{setup}", setup).replace("{logs}", logs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    return done.stdout.strip(), done.stderr.splitlines()


def test_for_who_set_up_nothing_it_is_on_stderr_once() -> None:
    loguru, lines = ran("")
    assert (loguru, len(lines)) == ("False", 1)
    assert lines[0].startswith(LINE)


def test_the_standard_library_has_levels_names_and_places() -> None:
    _, lines = ran('logging.basicConfig(level="INFO", format="%(levelname)s %(name)s %(module)s %(message)s")')
    (line,) = [line for line in lines if "cached" in line]
    assert line.startswith(f"ERROR cachebus fill {LINE}")


def test_loguru_alone_where_settings_say_so() -> None:
    setup = 'logging.basicConfig(level="DEBUG", format="STD %(name)s %(message)s")' + LOGURU
    loguru, lines = ran(setup, ', logs="loguru"')
    assert loguru == "True"
    (line,) = [line for line in lines if "cached" in line]
    assert line.startswith(f"LOGURU ERROR cachebus.reading.fill {LINE}")


async def test_an_outage_and_its_end(own_server: EmbeddedServer) -> None:
    with told() as lines:
        async with nodes(own_server.url, 1) as (cache,):
            own_server.pause()
            await until(lambda: any(line.startswith("L2 out of reach") for line in lines))
            own_server.resume()
            await until(cache.ready)
            await until(lambda: "L2: all is well again" in lines)
    assert sum(line.startswith("L2 out of reach") for line in lines) <= 3, lines


async def test_what_cache_aside_has_swallowed_without_the_errors_text(redis_url: str) -> None:
    def load() -> int:
        raise RuntimeError("s3cret")

    with told("WARNING") as lines:
        async with lifespan(quick(redis_url)):
            assert (await get_with_cache_aside("config", "x", "acme", load))[0] is None
    assert any("get_with_cache_aside gives None for a config: RuntimeError is in metrics" in line for line in lines)
    assert not any("s3cret" in line for line in lines)


def test_of_one_kind_so_many_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now_s, told_by = 0.0, Logger()  # of its own: others may go to loguru
    monkeypatch.setattr("cachebus.base.log.monotonic", lambda: now_s)
    caplog.set_level(logging.INFO, "cachebus")
    for number in range(AT_ONCE + 5):
        told_by.warning("{} is odd", number)
        told_by.info("{} is even", number)
    assert sum("odd" in line for line in caplog.messages) == AT_ONCE
    assert sum("even" in line for line in caplog.messages) == AT_ONCE + 5
    told_by.error("another")
    now_s = MINUTE_S
    told_by.warning("{} is odd", "the last")
    assert caplog.messages[-1] == "the last is odd (5 more of this kind in the last minute)"


async def test_a_bad_placeholder_in_a_value_is_no_template(redis_url: str) -> None:
    with told("WARNING") as lines:
        async with Cache(quick(redis_url)) as cache:
            await cache.get_or_load("{odd}", "x", object, tenant_id="acme")
    assert any("a loaded {odd} can't be cached" in line for line in lines)
