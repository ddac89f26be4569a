"""The way to the database is dropped without a word: connections stay open, and nothing passes."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from cachebus.consumers.cdc.slot import reader
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.worker import watcher
from cachebus.resp import Address
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from tests.support.caches import until
from tests.support.cdc_surroundings import Looks, at_work, given, worker
from tests.support.changes import Heard, tell
from tests.support.worker_health import why

TABLE = "CREATE TABLE o (id text PRIMARY KEY, tenant_id text); ALTER TABLE o REPLICA IDENTITY FULL"
PUT = "INSERT INTO o VALUES ('{}', 'acme')"
WITHIN_S = 10
"""Much less than the time-out of other commands."""


async def test_it_is_noticed_by_the_quickest_of_questions(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "ALIVE_S", 1.0)
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    await tell(database, [TABLE])
    async with proxy_of(database) as proxy:
        one = worker(through(proxy, database), redis_url, given())
        heard = Heard(one)
        looks = Looks(one)
        async with at_work(one):
            await until(lambda: one.follows)
            await tell(database, [PUT.format("first")])
            await until(lambda: heard.has("o", "first"))
            last = looks.count + 3
            await until(lambda: looks.count >= last)  # by then nothing is read any more
            proxy.hold()
            await tell(database, [PUT.format("behind")])
            await until(lambda: "TimeoutError" in why(one, "database"), within_s=WITHIN_S)
            proxy.reset()
            proxy.restore()
            await until(lambda: heard.has("o", "behind"), within_s=20)


@pytest.mark.parametrize("dropped", [0, 1], ids=["main", "beside"])
async def test_so_is_that_one_of_two_connections_is_dropped(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, dropped: int
) -> None:
    monkeypatch.setattr(reader, "ALIVE_S", 1.0)
    await tell(database, [TABLE])
    async with proxy_of(database) as proxy:
        one = worker(database, redis_url, given())
        by_ways(one, [through(proxy, database) if number == dropped else database for number in range(2)])
        heard, looks = Heard(one), Looks(one)
        async with at_work(one):
            await until(lambda: one.follows and looks.count > 2)  # by then nothing is read any more
            proxy.hold()
            await tell(database, [PUT.format("q" * 600), PUT.format("behind")])
            await until(lambda: why(one, "database"), within_s=WITHIN_S)
            proxy.reset()
            proxy.restore()
            await until(lambda: heard.has("o", "behind"), within_s=20)


def proxy_of(database: str) -> Proxy:
    there = urlsplit(database)
    assert there.hostname is not None
    assert there.port is not None
    return Proxy(dialer(Address(there.hostname, there.port)))


def through(proxy: Proxy, database: str) -> str:
    there = urlsplit(database)
    user = there.netloc.rpartition("@")[0]
    return urlunsplit(there._replace(netloc=f"{user}@{HOST}:{proxy.port}"))


def by_ways(one: SlotWorker, urls: list[str]) -> None:
    """Connect by these in turn."""
    connected = one.source._connected
    number = -1

    def next_connected(idle_ms: int) -> AbstractAsyncContextManager[asyncpg.Connection]:
        nonlocal number
        number = (number + 1) % len(urls)
        one.source._url = urls[number]
        return connected(idle_ms)

    one.source._connected = next_connected  # type: ignore[method-assign]
