"""What a slot's worker assumes of the database changes while it runs, or while it is away: it is noticed, told with
what mends it, mended where that is anybody's to do, and made up for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cachebus import Cache, ConfigError
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.cdc.slot.slot import default_name
from cachebus.consumers.worker import watcher
from cachebus.tools.servers.daemon import free_port
from tests.support.caches import quick, until
from tests.support.cdc_slot import done_beside
from tests.support.cdc_surroundings import Looks, at_work, given, gone, put, worker
from tests.support.changes import fetched, running, tell
from tests.support.worker_health import why

TABLE = "CREATE TABLE {0} (id int PRIMARY KEY, tenant_id text, x int); ALTER TABLE {0} REPLICA IDENTITY FULL"
PARTS = """
CREATE TABLE o (id int, tenant_id text, x int, PRIMARY KEY (id, x)) PARTITION BY RANGE (x);
ALTER TABLE o REPLICA IDENTITY FULL;
CREATE TABLE o1 PARTITION OF o FOR VALUES FROM (0) TO (10);
CREATE TABLE o2 PARTITION OF o FOR VALUES FROM (10) TO (20);
ALTER TABLE o1 REPLICA IDENTITY FULL;
ALTER TABLE o2 REPLICA IDENTITY FULL
"""
SILENCED = """
ALTER PUBLICATION cachebus_cdc SET (publish = '');
ALTER PUBLICATION cachebus_cdc SET (publish = 'insert, update, delete, truncate')
"""
WHOLE = "SELECT whole FROM cachebus_cdc_slots"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


SWAP = f"{TABLE.format('o_new')}; BEGIN; ALTER TABLE o RENAME TO o_old; ALTER TABLE o_new RENAME TO o; COMMIT"
ANEW = f"DROP TABLE o; {TABLE.format('o')}"


@pytest.mark.parametrize("migration", [SWAP, ANEW])
async def test_a_table_that_is_another_one_is_followed_from_then_on(
    database: str, redis_url: str, migration: str
) -> None:
    await tell(database, [TABLE.format("o")])
    async with Cache(quick(redis_url)) as cache, running(worker(database, redis_url)):
        await put(cache)
        await tell(database, [migration])
        await gone(cache)  # what was changed by it is not told: all that the rule names goes
        await put(cache)
        await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
        await gone(cache)


@pytest.mark.parametrize(
    "meanwhile",
    [
        SWAP,
        ANEW,
        "ALTER PUBLICATION cachebus_cdc DROP TABLE o; ALTER PUBLICATION cachebus_cdc ADD TABLE o",
        "ALTER PUBLICATION cachebus_cdc SET TABLE o WHERE (x > 100); ALTER PUBLICATION cachebus_cdc SET TABLE o",
        SILENCED,
        "DROP PUBLICATION cachebus_cdc",
    ],
)
async def test_what_happened_to_a_table_while_the_worker_was_away_is_made_up_for(
    database: str, redis_url: str, meanwhile: str
) -> None:
    await tell(database, [TABLE.format("o")])
    async with running(worker(database, redis_url)):
        pass
    async with Cache(quick(redis_url)) as cache:
        await put(cache)
        await tell(database, meanwhile.split(";"))
        async with running(worker(database, redis_url)):
            await gone(cache)
            await put(cache)
            await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
            await gone(cache)
        await put(cache)
        async with running(worker(database, redis_url)):
            await put(cache, 2)
            await tell(database, ["INSERT INTO o VALUES (2, 'acme', 1)"])
            await gone(cache, 2)
            assert await cache.get("o", 1, tenant_id="acme") == "old", "it is made up for once"


@pytest.mark.parametrize(
    ("change", "part", "said", "remedy"),
    [
        ("ALTER PUBLICATION cachebus_cdc SET TABLE o WHERE (x > 100)", "publication", "row filter", "DROP TABLE"),
        ("ALTER PUBLICATION cachebus_cdc SET TABLE o (id, x)", "publication", "leaves out its columns tenant_id", ""),
        ("ALTER PUBLICATION cachebus_cdc SET (publish = 'insert')", "publication", "leaves out delete", "SET (publish"),
        ("ALTER TABLE o REPLICA IDENTITY DEFAULT", "tables", "not as replica_identity", 'ALTER TABLE "public"."o"'),
        ("ALTER TABLE o RENAME COLUMN tenant_id TO tenant", "tables", "no column 'tenant_id'", ""),
    ],
)
async def test_what_no_worker_may_mend_is_told_and_made_up_for(
    database: str, redis_url: str, change: str, part: str, said: str, remedy: str
) -> None:
    await tell(database, [TABLE.format("o"), TABLE.format("p")])
    one = worker(database, redis_url, given("o", "p"))
    async with Cache(quick(redis_url)) as cache, running(one):
        if "(id, x)" in change:  # else PostgreSQL refuses updates
            await tell(database, ["ALTER TABLE o REPLICA IDENTITY DEFAULT"])
        await put(cache)
        await tell(database, [change])
        await until(lambda: said in why(one, part))
        assert remedy in why(one, part)
        assert not one.health.ready
        await gone(cache)
        await put(cache, 1, "p")
        await tell(database, ["INSERT INTO p VALUES (1, 'acme', 1)"])
        await gone(cache, 1, "p")  # the others go on


async def test_a_dropped_table_stops_its_rule_alone_also_after_a_reconnect_and_a_restart(
    database: str, redis_url: str
) -> None:
    await tell(database, [TABLE.format("o"), TABLE.format("q")])
    ended = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name LIKE 'cachebus-cdc%' AND datname = current_database()
    """

    async def goes_on(one: SlotWorker, number: int) -> None:
        await until(lambda: "public.q: there is no such table" in why(one, "tables"))
        await put(cache, number)
        await tell(database, [f"INSERT INTO o VALUES ({number}, 'acme', 1)"])
        await gone(cache, number)

    async with Cache(quick(redis_url)) as cache:
        async with running(first := worker(database, redis_url, given("o", "q"))):
            await tell(database, ["DROP TABLE q"])
            await goes_on(first, 1)
            await tell(database, [ended])
            await goes_on(first, 2)
        async with at_work(second := worker(database, redis_url, given("o", "q"))):
            await goes_on(second, 3)


EATEN = """
SELECT count(*) FROM pg_logical_slot_get_binary_changes(
  'cachebus_cdc', NULL, NULL, 'proto_version', '1', 'publication_names', 'cachebus_cdc')
"""


@pytest.mark.parametrize(
    ("while_away", "sql"),
    [
        (True, "SELECT pg_drop_replication_slot('cachebus_cdc')"),
        (True, EATEN),
        (False, "SELECT pg_replication_slot_advance('cachebus_cdc', pg_current_wal_insert_lsn())"),
    ],
)
async def test_a_slot_that_is_further_than_any_worker_went_is_made_up_for(
    database: str, redis_url: str, while_away: bool, sql: str
) -> None:
    await tell(database, [TABLE.format("o")])
    one = worker(database, redis_url, poll_s=0.005 if while_away else 60.0)
    async with Cache(quick(redis_url)) as cache:
        async with running(one):
            if not while_away:
                await put(cache)
                await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
                await until(lambda: done_beside(database, sql))
                await gone(cache)
        await put(cache)
        await tell(database, ["INSERT INTO o VALUES (2, 'acme', 1)", sql] if while_away else [])
        if "drop" in sql:
            await tell(database, ["SELECT pg_create_logical_replication_slot('cachebus_cdc', 'pgoutput')"])
        if while_away:
            async with running(worker(database, redis_url)):
                await gone(cache)
                await until(lambda: fetched(database, WHOLE))


async def test_a_slot_that_others_read_from_between_two_looks_is_made_up_for(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next look the worker itself may be further than they were: it sees it when it advances the slot."""
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 3600.0)
    await tell(database, [TABLE.format("o")])
    one = worker(database, redis_url)
    goes_on, paused, step = asyncio.Event(), asyncio.Event(), one._step

    async def stepped(session: Any) -> None:
        if not goes_on.is_set():
            paused.set()
        await goes_on.wait()
        await step(session)

    async def is_whole(wanted: bool) -> bool:
        return await fetched(database, WHOLE) is wanted

    async with Cache(quick(redis_url)) as cache:
        goes_on.set()
        one._step = stepped  # type: ignore[method-assign]
        async with running(one):
            goes_on.clear()
            await paused.wait()
            await put(cache)
            await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)", EATEN, "INSERT INTO o VALUES (2, 'acme', 1)"])
            goes_on.set()
            await until(lambda: is_whole(False))
        async with running(worker(database, redis_url)):
            await gone(cache)
            await until(lambda: is_whole(True))


async def test_partitions_that_are_truncated_detached_or_dropped_are_noticed(database: str, redis_url: str) -> None:
    await tell(database, [*PARTS.strip().split(";\n")])
    one = worker(database, redis_url)
    async with Cache(quick(redis_url)) as cache, running(one):
        await put(cache)
        await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
        await gone(cache)
        for happens in (
            "TRUNCATE o1",
            "ALTER TABLE o DETACH PARTITION o1",
            "INSERT INTO o1 VALUES (5, 'acme', 5); ALTER TABLE o ATTACH PARTITION o1 FOR VALUES FROM (0) TO (10)",
            "DROP TABLE o2",
        ):
            await put(cache)
            await tell(database, [happens])
            await gone(cache)
        await put(cache)
        await tell(database, ["CREATE TABLE o3 PARTITION OF o FOR VALUES FROM (20) TO (30)"])
        await until(lambda: "that of o3 is less than the table's" in why(one, "tables"))
        assert 'ALTER TABLE "public"."o3" REPLICA IDENTITY FULL;' in why(one, "tables")
        await tell(database, ["ALTER TABLE o3 REPLICA IDENTITY FULL"])
        await until(lambda: one.health.ready or not why(one, "tables"))
        await tell(database, ["ALTER PUBLICATION cachebus_cdc SET (publish_via_partition_root = false)"])
        await until(lambda: "by the names of partitions" in why(one, "publication"))


async def test_two_namespaces_follow_one_database_each_by_a_slot_of_its_own(database: str, redis_url: str) -> None:
    await tell(database, [TABLE.format("o")])
    one, two = worker(database, redis_url, namespace="one"), worker(database, redis_url, namespace="two")
    async with (
        Cache(quick(redis_url, namespace="one")) as first,
        Cache(quick(redis_url, namespace="two")) as second,
        running(one),
        running(two),
    ):
        await put(first)
        await put(second)
        await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
        await gone(first)
        await gone(second)


async def test_a_slot_of_another_namespace_is_refused(database: str, redis_url: str) -> None:
    await tell(database, [TABLE.format("o")])
    async with running(worker(database, redis_url, namespace="one", slot="s")):
        pass
    async with Cache(quick(redis_url, namespace="one")) as cache:
        await put(cache)
        await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
        async with at_work(two := worker(database, redis_url, namespace="two", slot="s")):
            await until(lambda: "it serves the namespace 'one', and this worker is for 'two'" in why(two, "slot"))
        async with running(worker(database, redis_url, namespace="one", slot="s")):
            await gone(cache)


@pytest.mark.parametrize("name", ["CacheBus", "cache-bus", "a,b", 'say "it"'])
async def test_a_publications_name_is_taken_as_it_is(database: str, redis_url: str, name: str) -> None:
    await tell(database, [TABLE.format("o")])
    async with Cache(quick(redis_url)) as cache, running(worker(database, redis_url, publication=name)):
        await put(cache)
        await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
        await gone(cache)
        assert await fetched(database, "SELECT pubname FROM pg_publication") == name


@pytest.mark.parametrize("name", ["my.pub", "public.o", "a.b.c"])
async def test_a_publications_name_is_not_taken_for_a_tables(database: str, redis_url: str, name: str) -> None:
    await tell(database, [TABLE.format("o")])
    said = f"""ALTER PUBLICATION "{name}" SET (publish = '{{}}')"""
    async with Cache(quick(redis_url)) as cache, running(one := worker(database, redis_url, publication=name)):
        await put(cache)
        await tell(database, [said.format("insert")])
        await until(lambda: "leaves out" in why(one, "publication"))
        await gone(cache)
        looks = Looks(one)
        await until(lambda: looks.let_be(cache))  # it is made up for every ten seconds, and not at each look
        await tell(database, [said.format("insert, update, delete, truncate")])
        await gone(cache)
        await until(lambda: one.health.ready)


async def test_nothing_of_a_url_is_told(database: str, redis_url: str) -> None:
    secret = "s3cret"
    for host, name in ((f"127.0.0.1:{free_port()}", "x"), (database.partition("@")[2].partition("/")[0], "nowhere")):
        one = worker(f"postgresql://nobody:{secret}@{host}/{name}", redis_url)
        task = asyncio.create_task(one.run())
        await until(lambda one=one: ": " in why(one, "database"))
        said = json.dumps(one.health.as_dict())
        assert not any(part in said for part in (secret, "127.0.0.1", "nobody", "nowhere"))
        one.drain()
        await asyncio.wait_for(task, 20)
    with pytest.raises(ConfigError) as raised:
        await worker("postgresql://nobody:s3cret@127.0.0.1:port/x", redis_url).run()
    assert str(raised.value) == "the database's URL can't be read"


def test_default_names() -> None:
    assert default_name("cachebus") == "cachebus_cdc"
    several = [default_name(name) for name in ("shop-a", "shop_a", "Shop_a", "x" * 80, "x" * 81)]
    assert len(set(several)) == len(several)
    assert all(len(name) <= 63 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_") for name in several)
