"""What a slot's worker assumes, broken while it runs and while it is away: told with its remedy, and made up for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from cachebus import Cache
from cachebus.cli.embedded import EmbeddedServer
from cachebus.cli.servers.postgres import PostgresServer
from consumers import watcher
from consumers.cdc.postgres import SlotSource, SlotWorker, name_for
from consumers.cdc.rules import parse_rules
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.changes import running, tell

RULE = """
[[rule]]
table = "public.{0}"
data_type = "{0}"
resource_id = "{{id}}"
tenant_id = "{{tenant_id}}"
replica_identity = "full"
on_truncate = "all"
"""
RULES = 'tenants = ["acme"]\n' + RULE.format("o") + RULE.format("p")
TABLE = "CREATE TABLE {0} (id int PRIMARY KEY, tenant_id text, x int); ALTER TABLE {0} REPLICA IDENTITY FULL;"
PARTED = """
CREATE TABLE o (id int, tenant_id text, x int, PRIMARY KEY (id, x)) PARTITION BY RANGE (x);
CREATE TABLE o1 PARTITION OF o FOR VALUES FROM (0) TO (10);
CREATE TABLE o2 PARTITION OF o FOR VALUES FROM (10) TO (20);
ALTER TABLE o REPLICA IDENTITY FULL; ALTER TABLE o1 REPLICA IDENTITY FULL; ALTER TABLE o2 REPLICA IDENTITY FULL;
"""
PUBLICATION = "cachebus_cdc"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


def worker(database: str, redis_url: str, rules: str = RULES, **more: Any) -> SlotWorker:
    settings = quick(redis_url, **{name: more.pop(name) for name in ("namespace", "l2_timeout_s") if name in more})
    return SlotWorker(settings, parse_rules(rules), replace(SlotSource(SecretStr(database), poll_s=0.005), **more))


class Seen:
    """A cache, and what becomes of what it holds when rows change."""

    def __init__(self, cache: Cache, database: str) -> None:
        self._cache = cache
        self._database = database

    async def gone(self, what: str, number: int = 1, data_type: str = "o") -> None:
        """It has a value, and that goes when this is done."""
        await self._cache.set(data_type, number, "old", "acme")
        await tell(self._database, [what])
        await self.absent(number, data_type)

    async def absent(self, number: int = 1, data_type: str = "o") -> None:
        """Until it has none."""

        async def is_absent() -> bool:
            return await self._cache.get(data_type, number, "acme", use_memory=False) is None

        await until(is_absent)

    async def fill(self, number: int = 1, data_type: str = "o") -> None:
        """Give it a value."""
        await self._cache.set(data_type, number, "old", "acme")


@asynccontextmanager
async def seen(database: str, redis_url: str, sql: str = TABLE.format("o") + TABLE.format("p")) -> AsyncIterator[Seen]:
    """The tables, and a cache without memory."""
    await tell(database, [sql])
    async with Cache(quick(redis_url, use_memory_cache=False)) as cache:
        yield Seen(cache, database)


async def told(one: SlotWorker, part: str, says: str) -> None:
    """Until the worker is not ready, and says why."""
    await until(lambda: says in one.health.told()["parts"][part]["why"] and not one.health.ready)


def part_that(one: SlotWorker, says: str) -> str | None:
    """The part of its health that says so."""
    return next((name for name, part in one.health.told()["parts"].items() if says in part["why"]), None)


async def well(one: SlotWorker) -> None:
    """Until it is ready."""
    await until(lambda: one.health.ready)


SWAP = TABLE.format("o_new") + "BEGIN; ALTER TABLE o RENAME TO o_old; ALTER TABLE o_new RENAME TO o; COMMIT"
ANEW = "DROP TABLE o; " + TABLE.format("o")
OUT = f"ALTER PUBLICATION {PUBLICATION} DROP TABLE o"
COLUMN_BACK = "ALTER TABLE o RENAME tenant TO tenant_id"
SLOT_ANEW = (
    "SELECT pg_drop_replication_slot('cachebus_cdc')", "UPDATE o SET x = 2",
    "SELECT pg_create_logical_replication_slot('cachebus_cdc', 'pgoutput')",
)  # fmt: skip
SLOT_READ = (
    "UPDATE o SET x = 2",
    (
        "SELECT count(*) FROM pg_logical_slot_get_binary_changes("
        "'cachebus_cdc', NULL, NULL, 'proto_version', '1', 'publication_names', 'cachebus_cdc')"
    ),
)


@pytest.mark.parametrize(
    "what", [SWAP, ANEW, f"ALTER PUBLICATION {PUBLICATION} DROP TABLE o"], ids=["swap", "anew", "out"]
)
async def test_a_table_that_is_not_published_any_more_is_published_again_and_made_up_for(
    database: str, redis_url: str, what: str
) -> None:
    async with seen(database, redis_url) as cache:
        one = worker(database, redis_url)
        async with running(one):
            await cache.gone("INSERT INTO o VALUES (1, 'acme', 1)")
            await cache.gone(what)
            await cache.gone("INSERT INTO o VALUES (2, 'acme', 1)", 2)
            await well(one)
        await cache.fill()
        await tell(database, [what.replace("o_old", "o_older"), "INSERT INTO o VALUES (3, 'acme', 1)"])
        async with running(worker(database, redis_url)):
            await cache.absent()


async def test_a_publication_that_is_dropped_while_it_runs_is_made_again(database: str, redis_url: str) -> None:
    async with seen(database, redis_url) as cache:
        one = worker(database, redis_url, on_lost_slot="invalidate")
        async with running(one):
            await cache.gone("INSERT INTO o VALUES (1, 'acme', 1)")
            await cache.gone(f"DROP PUBLICATION {PUBLICATION}; UPDATE o SET x = 2")
            await well(one)
            await cache.gone("UPDATE o SET x = 3")


@pytest.mark.parametrize(
    ("changed", "says", "mends"),
    [
        (f"ALTER PUBLICATION {PUBLICATION} SET TABLE o WHERE (x > 100), p", "a row filter hides some of its rows", ""),
        (f"ALTER PUBLICATION {PUBLICATION} SET TABLE o (id, x), p", "a column list hides tenant_id", ""),
        (f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert')", "it leaves out delete, truncate, update", ""),
        ("ALTER TABLE o REPLICA IDENTITY DEFAULT", 'it is not as replica_identity = "full" says', ""),
        ("ALTER TABLE o RENAME tenant_id TO tenant", "it has no column 'tenant_id'", COLUMN_BACK),
        ("DROP TABLE o", "there is no such table", TABLE.format("o")),
    ],
    ids=["filter", "columns", "operations", "identity", "column", "table"],
)  # fmt: skip
async def test_one_rule_that_is_wrong_is_told_and_the_others_go_on(
    database: str, redis_url: str, changed: str, says: str, mends: str
) -> None:
    """While it runs, after its sessions have ended, and after a restart; and its remedy mends it."""
    async with seen(database, redis_url) as cache:
        one = worker(database, redis_url)
        async with running(one):
            await cache.gone("INSERT INTO o VALUES (1, 'acme', 1); INSERT INTO p VALUES (1, 'acme', 1)")
            await tell(database, [changed])
            part = await until(
                lambda: next((p for p, t in one.health.told()["parts"].items() if says in t["why"]), None)
            )
            await cache.gone("INSERT INTO p VALUES (2, 'acme', 1)", 2, "p")
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-cdc%'"
            await tell(database, [ended])
            await cache.gone("INSERT INTO p VALUES (3, 'acme', 1)", 3, "p")
            await told(one, part, says)
        again = worker(database, redis_url)
        task = asyncio.create_task(again.run())
        await cache.gone("INSERT INTO p VALUES (4, 'acme', 1)", 4, "p")
        await told(again, part, says)
        remedy = mends or again.health.told()["parts"][part]["why"].partition("to mend it: ")[2]
        await tell(database, [remedy])
        await well(again)
        await cache.gone("INSERT INTO o VALUES (5, 'acme', 1)", 5)
        again.drain()
        await asyncio.wait_for(task, 20)


@pytest.mark.parametrize("moved", [SLOT_ANEW, SLOT_READ], ids=["made anew", "read by others"])
@pytest.mark.parametrize("runs", [True, False])
async def test_a_slot_that_others_have_moved_is_told_and_made_up_for(
    database: str, redis_url: str, moved: tuple[str, ...], runs: bool
) -> None:
    async def happens() -> None:
        for statement in moved:
            while True:
                try:
                    await tell(database, [statement])
                    break
                except asyncpg.ObjectInUseError:  # the worker has it at that moment
                    continue

    async with seen(database, redis_url) as cache:
        async with running(worker(database, redis_url)):
            await cache.gone("INSERT INTO o VALUES (1, 'acme', 1)")
            if runs:
                await cache.fill()
                await happens()
                await cache.absent()
                return
        await cache.fill()
        await happens()
        async with running(worker(database, redis_url)):
            await cache.absent()


@pytest.mark.parametrize("what", ["TRUNCATE o1", "DROP TABLE o2", "ALTER TABLE o DETACH PARTITION o2"])
async def test_what_partitions_do_by_themselves_is_made_up_for(database: str, redis_url: str, what: str) -> None:
    async with seen(database, redis_url, PARTED + TABLE.format("p")) as cache:
        one = worker(database, redis_url)
        async with running(one):
            await cache.gone("INSERT INTO o VALUES (1, 'acme', 1), (2, 'acme', 11)")
            await cache.gone("INSERT INTO o2 VALUES (3, 'acme', 11)", 3)
            await cache.gone(what, 2)
            await well(one)
            await cache.gone("INSERT INTO o VALUES (4, 'acme', 2)", 4)
        await cache.fill()
        await tell(database, ["CREATE TABLE o3 PARTITION OF o FOR VALUES FROM (20) TO (30)"])
        two = worker(database, redis_url)
        task = asyncio.create_task(two.run())
        await cache.absent()
        await told(two, "identity", "this partition of public.o has a replica identity of its own")
        await tell(database, ['ALTER TABLE "public"."o3" REPLICA IDENTITY FULL;'])
        await well(two)
        two.drain()
        await asyncio.wait_for(task, 20)


async def test_partitions_that_are_told_of_by_their_own_names_are_a_problem(database: str, redis_url: str) -> None:
    async with seen(database, redis_url, PARTED + TABLE.format("p")) as cache:
        await tell(database, [f"CREATE PUBLICATION {PUBLICATION} FOR TABLE o, p"])
        one = worker(database, redis_url)
        task = asyncio.create_task(one.run())
        await told(one, "publication", "its changes are told by the names of its partitions")
        await tell(database, [one.health.told()["parts"]["publication"]["why"].partition("to mend it: ")[2]])
        await well(one)
        await cache.gone("INSERT INTO o VALUES (1, 'acme', 1)")
        one.drain()
        await asyncio.wait_for(task, 20)


@pytest.mark.parametrize("name", ["CacheBus", "cache-bus", "a,b", 'say "so"', "\u65e5"])
async def test_a_publication_is_named_as_it_is(database: str, redis_url: str, name: str) -> None:
    async with seen(database, redis_url) as cache, running(worker(database, redis_url, publication=name)):
        await cache.gone("INSERT INTO o VALUES (1, 'acme', 1)")


async def test_each_namespace_has_a_slot_of_its_own_and_none_takes_another_ones(database: str, redis_url: str) -> None:
    await tell(database, [TABLE.format("o") + TABLE.format("p")])
    billing, search = (worker(database, redis_url, namespace=name) for name in ("billing", "search"))
    async with running(billing), running(search):
        assert billing.source.slot == "cachebus_cdc_billing" != search.source.slot
        await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
        await until(lambda: billing.meters.count("applied") == search.meters.count("applied") == 1)
        thief = worker(database, redis_url, namespace="thief", slot=billing.source.slot)
        task = asyncio.create_task(thief.run())
        await told(thief, "slot", "it serves the namespace 'billing'")
        assert not thief.follows
        thief.drain()
        await asyncio.wait_for(task, 20)


def test_names_for_namespaces_are_names_and_differ() -> None:
    names = [name_for(one) for one in ("cachebus", "a", "A", "a-b", "a_b", "x" * 200, "x" * 201, "\u65e5", "")]
    assert len(set(names)) == len(names)
    assert all(len(one) <= 63 and one.replace("_", "").isalnum() and one == one.lower() for one in names)


async def test_one_transaction_larger_than_l2_can_do_in_time_is_done_all_the_same(
    database: str, redis_url: str
) -> None:
    async with seen(database, redis_url) as cache:
        one = worker(database, redis_url, l2_timeout_s=0.2)
        one._hold_s = 0.3
        async with running(one):
            send, busy = one._applier._producer.send, asyncio.Lock()
            sent = 0

            async def slowly(plan: Any, wait: str | None = None) -> Any:
                nonlocal sent
                async with busy:
                    await asyncio.sleep(0.04 * len(plan.keys) / 100)
                sent += len(plan.keys)
                return await send(plan, wait)

            one._applier._producer.send = slowly  # type: ignore[method-assign]
            await cache.fill(3000)
            await tell(database, ["INSERT INTO o SELECT g, 'acme', 0 FROM generate_series(1, 3000) g"])
            await cache.absent(3000)
            assert sent < 3 * 3000, "what was applied is not applied again and again"
            confirmed = "SELECT pg_current_wal_lsn() - confirmed_flush_lsn < 10000 FROM pg_replication_slots"

            async def passed() -> bool:
                async with connected(database) as connection:
                    return bool(await connection.fetchval(f"{confirmed} WHERE slot_name = 'cachebus_cdc'"))

            await until(passed)


async def test_a_server_that_drops_idle_slots_keeps_that_of_a_worker(redis_url: str) -> None:
    with PostgresServer() as server:
        async with connected(server.url) as connection:
            knows = await connection.fetchval("SELECT 1 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'")
            if not knows:
                pytest.skip("this PostgreSQL has no idle_replication_slot_timeout")
            await connection.execute(TABLE.format("o") + TABLE.format("p"))
            async with running(worker(server.url, redis_url)):
                since = "SELECT inactive_since FROM pg_replication_slots"
                at = await connection.fetchval(since)

                async def used() -> bool:
                    return await connection.fetchval(since) not in (at, None)

                await until(used, within_s=30)


async def test_l2_that_is_away_when_something_is_to_be_made_up_for_gets_it_later(
    database: str, own_server: EmbeddedServer
) -> None:
    async with seen(database, own_server.url) as cache:
        async with running(worker(database, own_server.url)):
            await cache.gone("INSERT INTO o VALUES (1, 'acme', 1)")
        await cache.fill()
        await tell(database, [SWAP])
        own_server.pause()
        one = worker(database, own_server.url)
        task = asyncio.create_task(one.run())
        await until(lambda: not one.health.is_up("l2"))
        await asyncio.sleep(0.3)
        own_server.resume()
        await cache.absent()
        one.drain()
        await asyncio.wait_for(task, 20)
