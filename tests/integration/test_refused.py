"""What L2 refuses while it is there, and what this node can't read of it: in the log, and in `health()`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from pydantic import BaseModel

from cachebus import Cache, L2Unavailable, Policy, Settings
from cachebus.errors import CacheBusError
from cachebus.observe import Counters
from cachebus.reading.refusals import TELL_EVERY_S, RefusalLog
from cachebus.resp.replies import Refused
from cachebus.testing import FakeClock
from cachebus.tools.doctor.access import user_of_its_own
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, quick, until
from tests.support.logs import told


@pytest.fixture
def lines() -> Iterator[list[str]]:
    with told("WARNING") as lines:
        yield lines


@asynccontextmanager
async def without(server: EmbeddedServer, rule: str) -> AsyncIterator[Cache]:
    """A cache whose user has lost a right while it is open."""
    server.command(*user_of_its_own(Settings(url=server.url), "svc").replace(">PASSWORD", ">Zx9-pass").split())
    async with nodes(server.url.replace("redis://", "redis://svc:Zx9-pass@"), 1) as (cache,):
        await cache.set("config", "x", 1, "acme")
        assert server.command("ACL", "SETUSER", "svc", *rule.split()) == "+OK"
        yield cache


def says(cache: Cache, text: str) -> str:
    """What it names among what is not as it should be that has this text; "" where nothing has."""
    return next((told for told in cache.health().degraded if text in told), "")


async def test_fills_that_are_refused_are_told_once_for_each_type(own_server: EmbeddedServer, lines: list[str]) -> None:
    async with without(own_server, "-set") as cache:
        for number in range(5):
            for data_type in ("config", "price"):
                assert await cache.get_or_load(data_type, number, lambda: 1, "acme") == 1
        assert says(cache, "L2 has refused ")
    refused = [line.split(":")[0] for line in lines if line.startswith("L2 refuses ")]
    assert len(refused) == len(set(refused)) > 0
    assert {line.split(" of ")[1] for line in refused} == {"config", "price"}


async def test_reads_that_are_refused_are_told(own_server: EmbeddedServer, lines: list[str]) -> None:
    async with without(own_server, "-get") as cache:
        assert await cache.get_or_load("config", "y", lambda: 1, "acme") == 1
        assert says(cache, "L2 has refused reads in the last minute: NOPERM ")
    [line] = [line for line in lines if line.startswith("L2 refuses reads of config: NOPERM ")]
    assert "load from the source" in line


def test_a_refusal_that_lasts_is_told_each_minute_and_one_that_is_over_is_forgotten(lines: list[str]) -> None:
    clock, counters = FakeClock(), Counters()
    refusals = RefusalLog(clock, counters)
    for number in range(121):
        refusals.count(Refused(f"ERR can't run this script: {'ab' * 20}, on line {number}"), "fills", "price")
        clock.advance(1.0)
    assert (len(lines), counters.l2_errors) == (3, 121)
    assert len(refusals.lately()) == 1
    clock.advance(TELL_EVERY_S)
    assert refusals.lately() == []


@pytest.mark.parametrize("error", [L2Unavailable("no answer in 1 s"), Refused("LOADING Redis is loading")])
def test_an_outage_is_told_by_who_probes(lines: list[str], error: CacheBusError) -> None:
    assert isinstance(error, L2Unavailable)
    counters = Counters()
    refusals = RefusalLog(FakeClock(), counters)
    refusals.count(error, "reads", "price")
    assert (lines, refusals.lately(), counters.l2_errors) == ([], [], 1)


class Before(BaseModel):
    name: str


class After(BaseModel):
    name: str
    currency: str


async def test_records_of_another_release_that_can_not_be_read_are_told_once(redis_url: str, lines: list[str]) -> None:
    async with (
        Cache(quick(redis_url, policies={"price": Policy(model=Before)})) as a,
        Cache(quick(redis_url, policies={"price": Policy(model=After)})) as b,
    ):
        for number in range(5):
            receipt = await a.set("price", number, Before(name="x"), "acme")
            await until(lambda seq=receipt.seq: b.stats().shards[0].applied >= seq)
            assert await b.get("price", number, "acme") is None
    [line] = [line for line in lines if "can't be read" in line]
    assert line.startswith("a price in L2 can't be read, and counts as absent: the stored value does not fit ")
    assert "missing" in line
