"""Where log lines go for who set up nothing, the standard library's logging, or loguru; and what leaves one."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cachebus import Cache, ConfigError, get_with_cache_aside, lifespan
from cachebus.base.log import AT_ONCE, MINUTE_S, Logger, logger
from cachebus.producers import DirectProducer
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


async def test_loguru_that_is_not_installed_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "loguru", None)
    monkeypatch.setattr(logger, "_pinned", False)  # as a command may have it, in this process
    with pytest.raises(ConfigError, match=r"CACHEBUS_LOGS.* pip install loguru"):
        await Cache(quick("memory://", logs="loguru")).__aenter__()


async def test_an_outage_and_its_end(own_server: EmbeddedServer) -> None:
    with told("WARNING") as lines:  # of one level: who is shown the one is shown the other
        async with nodes(own_server.url, 1) as (cache,):
            own_server.pause()
            await until(lambda: any(line.startswith("L2 out of reach") for line in lines))
            own_server.resume()
            await until(cache.ready)
            await until(lambda: "L2: all is well again" in lines)
    assert sum(line.startswith("L2 out of reach") for line in lines) <= 3, lines


async def test_an_outage_that_lasts_is_told_again(own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.listening.outages.TELL_EVERY_S", 0.3)
    with told("WARNING", of="L2 is still out of reach after ") as lines:
        async with nodes(own_server.url, 1):
            own_server.kill()
            await until(lambda: len(lines) >= 2)


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
    assert caplog.messages[-2:] == ["5 lines of this kind were not told: {} is odd", "the last is odd"]
    assert caplog.records[-1].msg == "%s is odd"


def test_what_was_not_told_is_said_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s, told_by = 0.0, Logger()
    monkeypatch.setattr("cachebus.base.log.monotonic", lambda: now_s)
    for _ in range(AT_ONCE + 5):
        told_by.warning("it is 5 % odd")
    now_s = 43_200
    for _ in range(2):
        told_by.warning("it is 5 % odd")
    assert caplog.messages[AT_ONCE:] == ["5 lines of this kind were not told: it is 5 % odd", *["it is 5 % odd"] * 2]


async def test_a_producer_alone_says_what_was_not_told(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.producers.session._TIDY_S", 0.01)
    with told("WARNING", of="not told: ") as lines:
        async with DirectProducer(quick(redis_url)) as producer:
            for number in range(AT_ONCE + 5):
                logger.warning("number {} of a producer is odd", number)
            monkeypatch.setattr("cachebus.base.log.MINUTE_S", 0.0)
            await producer.invalidate("config", "x", tenant_id="acme")
            await until(lambda: lines)
    assert "5 lines of this kind were not told: number {} of a producer is odd" in lines


def test_a_record_has_the_template_and_the_values_as_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the template others group lines, and they show values in ways of their own."""
    now_s, told_by, error = 0.0, Logger(), ValueError("{why} %s")
    monkeypatch.setattr("cachebus.base.log.monotonic", lambda: now_s)
    told_by.warning("5 % of {} took {:.1f} s: {!r}", {"a": 1}, 0.25, error)
    (record,) = caplog.records
    assert record.msg == "5 %% of %s took %s s: %s"
    assert record.args == ("{'a': 1}", "0.2", repr(error))
    assert record.getMessage() == f"5 % of {{'a': 1}} took 0.2 s: {error!r}"
    for number in range(AT_ONCE):
        told_by.warning("5 % of {} took {:.1f} s: {!r}", number, 1, 2)
    now_s = MINUTE_S
    told_by.warning("5 % of {} took {:.1f} s: {!r}", "x", 1, 2)
    assert caplog.records[-1].msg == record.msg
    assert caplog.messages[-2] == "1 line of this kind was not told: 5 % of {} took {:.1f} s: {!r}"


async def test_a_bad_placeholder_in_a_value_is_no_template(redis_url: str) -> None:
    with told("WARNING") as lines:
        async with Cache(quick(redis_url)) as cache:
            await cache.get_or_load("{odd}", "x", object, tenant_id="acme")
    assert any("a loaded {odd} can't be cached" in line for line in lines)
