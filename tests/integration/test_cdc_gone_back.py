"""A database that comes back with older data, while workers run on."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import until
from tests.support.cdc_surroundings import at_work, given, worker
from tests.support.changes import Heard, fetched, running, tell
from tests.support.logs import told

TABLE = "CREATE TABLE o (id text PRIMARY KEY, tenant_id text); ALTER TABLE o REPLICA IDENTITY FULL"
PUT = "INSERT INTO o VALUES ('{}', 'acme')"
ALL = "D acme o"


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="cachebus-", dir="/tmp") as made:  # the server's own user may enter it
        Path(made).chmod(0o755)
        directory = Path(made) / "pg"
        directory.mkdir()
        with PostgresServer(directory=directory) as one:
            yield one


async def copied(server: PostgresServer) -> Path:
    """A copy of its data as it is now."""
    await asyncio.to_thread(server.stop)
    data, copy = server.directory / "data", server.directory / "data.old"
    await asyncio.to_thread(shutil.copytree, data, copy, symlinks=True)
    for path in (copy, *copy.rglob("*")):
        shutil.chown(path, data.owner(), data.group())
    await asyncio.to_thread(server.start)
    return copy


async def put_back(server: PostgresServer, copy: Path) -> None:
    """A server that was killed loses what it has, and comes back with that."""
    shutil.rmtree(server.directory / "data")
    shutil.move(copy, server.directory / "data")
    await asyncio.to_thread(server.start)


async def test_what_is_written_where_older_data_came_back_is_applied_and_what_was_lost_let_go_of(
    server: PostgresServer, redis_url: str
) -> None:
    """1. The data is copied. 2. A row is written, and applied. 3. The copy is put back. 4. Another row of the same size
    comes to lie at the same place of the log. Caches may hold the first, which is no more."""
    await tell(server.url, [TABLE])
    async with running(worker(server.url, redis_url, given())):
        pass
    copy = await copied(server)
    one = worker(server.url, redis_url, given())
    heard = Heard(one)
    with told(of="has come back with older data") as lines:
        await lived_through(server, copy, one, heard)
    assert len(lines) == 1


async def lived_through(server: PostgresServer, copy: Path, one: SlotWorker, heard: Heard) -> None:
    """The steps from 2 on."""
    async with at_work(one):
        await tell(server.url, [PUT.format("aaaa")])
        await until(lambda: heard.has("o", "aaaa"))
        assert not heard.asked[ALL]
        await asyncio.to_thread(server.kill)
        await put_back(server, copy)
        await tell(server.url, [PUT.format("bbbb")])
        await until(lambda: heard.has("o", "bbbb"), within_s=20)
        await until(lambda: heard.asked[ALL], within_s=20)
        await until(lambda: fetched(server.url, "SELECT whole FROM cachebus_cdc_slots"))
        await until(lambda: one.health.ready)
        times = heard.asked[ALL]
        await tell(server.url, [PUT.format("cccc")])
        await until(lambda: heard.has("o", "cccc"))
        assert heard.asked[ALL] == times, "it is let go of once"


async def test_a_crash_of_the_server_lets_go_of_nothing(server: PostgresServer, redis_url: str) -> None:
    """The slot goes back to where the server stored it last, and tells of what is done once more."""
    await tell(server.url, [TABLE])
    one = worker(server.url, redis_url, given())
    heard = Heard(one)
    async with at_work(one):
        await until(lambda: one.follows)
        for name in ("aaaa", "bbbb"):
            await tell(server.url, [PUT.format(name)])
            await until(lambda name=name: heard.has("o", name))
        before = heard.asked[ALL]
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await tell(server.url, [PUT.format("cccc")])
        await until(lambda: heard.has("o", "cccc"), within_s=20)
        await until(lambda: one.health.ready)
        assert heard.asked[ALL] == before


@asynccontextmanager
async def standing_by(server: PostgresServer, redis_url: str) -> AsyncIterator[tuple[SlotWorker, Heard]]:
    """A worker beside one that has applied a row, and that ends with the server."""
    first, second = (worker(server.url, redis_url, given()) for _ in range(2))
    heard = Heard(first)
    task = asyncio.create_task(first.run())
    try:
        await until(lambda: first.follows)
        async with at_work(second):
            before = await fetched(server.url, "SELECT pg_current_wal_insert_lsn()::text")
            await tell(server.url, [PUT.format("aaaa")])
            await until(lambda: heard.has("o", "aaaa"))
            await until(lambda: _knows_how_far(second, server, before))
            await asyncio.to_thread(server.kill)
            first.drain()
            await asyncio.wait_for(task, 20)
            yield second, Heard(second)
    finally:
        first.drain()
        await asyncio.wait_for(task, 20)


async def _knows_how_far(one: SlotWorker, server: PostgresServer, before: str) -> bool:
    """Whether it has seen that the slot is behind what was written then."""
    at = f"SELECT lsn > '{before}' AND (lsn - '0/0')::int8 = {one.source.older.furthest} FROM cachebus_cdc_slots"
    return bool(await fetched(server.url, at))


async def test_who_stood_by_and_takes_over_where_older_data_came_back_lets_go_of_what_was_lost(
    server: PostgresServer, redis_url: str
) -> None:
    """It has applied nothing itself, and the one that has is gone."""
    await tell(server.url, [TABLE])
    async with running(worker(server.url, redis_url, given())):
        pass
    copy = await copied(server)
    async with standing_by(server, redis_url) as (one, heard):
        await put_back(server, copy)
        await until(lambda: heard.asked[ALL], within_s=20)
        await until(lambda: fetched(server.url, "SELECT whole FROM cachebus_cdc_slots"))
        await until(lambda: one.health.ready)
        await tell(server.url, [PUT.format("cccc")])
        await until(lambda: heard.has("o", "cccc"))
        assert heard.asked[ALL] == 1
        assert await fetched(server.url, "SELECT count(*) FROM o") == 1


@pytest.mark.parametrize("led", [True, False])
async def test_a_failover_is_made_up_for_by_who_stood_by_and_by_nobody_who_led(
    server: PostgresServer, redis_url: str, led: bool
) -> None:
    """How far the other one had gone at last, who stood by can't know."""
    await tell(server.url, [TABLE])
    if led:
        one = worker(server.url, redis_url, given())
        async with at_work(one):
            heard = Heard(one)
            await until(lambda: one.follows and one.health.ready)
            await tell(server.url, [PUT.format("aaaa")])
            await until(lambda: heard.has("o", "aaaa"))
            before = heard.asked[ALL]
            await asyncio.to_thread(server.kill)
            await failed_over(server, one, heard)
            assert heard.asked[ALL] == before
        return
    async with running(worker(server.url, redis_url, given())):
        pass
    async with standing_by(server, redis_url) as (one, heard):
        with told("WARNING", of="cdc: the log of") as lines:
            await failed_over(server, one, heard)
            await until(lambda: heard.asked[ALL] == 1)
        assert ["of another timeline" in line for line in lines] == [True], lines


async def failed_over(server: PostgresServer, one: SlotWorker, heard: Heard) -> None:
    """It comes back as the next primary, with all data."""
    signal = server.directory / "data" / "standby.signal"
    signal.touch()
    shutil.chown(signal, signal.parent.owner(), signal.parent.group())
    await asyncio.to_thread(server.start)
    await tell(server.url, ["SELECT pg_promote()"])
    await tell(server.url, [PUT.format("cccc")])
    await until(lambda: heard.has("o", "cccc"), within_s=30)
    await until(lambda: one.health.ready)


async def test_who_stands_by_finds_older_data_for_one_that_began_anew(database: str, redis_url: str) -> None:
    """That one, here a lock, has nothing to compare with."""
    await tell(database, TABLE.split(";"))
    async with running(worker(database, redis_url, given())):
        pass
    lock = "SELECT pg_advisory_lock(hashtextextended('cachebus-cdc cachebus_cdc', 0))"
    one = worker(database, redis_url, given())
    async with connected(database) as other:
        await other.execute(lock)
        async with at_work(one):
            await until(lambda: one.source.older.furthest)
            await tell(database, ["UPDATE cachebus_cdc_slots SET lsn = lsn - 1"])
            await until(lambda: fetched(database, "SELECT NOT whole AND losses = 1 FROM cachebus_cdc_slots"))
