"""What is altered beside a table: the types of its columns, and its partitions by themselves. Its rows read otherwise
then, and PostgreSQL tells nothing of them."""

from __future__ import annotations

import asyncio

import pytest

from cachebus import Cache
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.worker import watcher
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.cdc_surroundings import HEAD, RULE, gone, lived_through, put, worker
from tests.support.changes import fetched, running, tell

ROW = "INSERT INTO o VALUES (1, 'acme', 1)"
ATTACH = "ALTER TABLE o ATTACH PARTITION o1 FOR VALUES FROM (0) TO (10)"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


ENUM = "CREATE TYPE mood AS ENUM ('good'); CREATE DOMAIN state AS mood"
WITH_ENUM = "CREATE TABLE o (id int PRIMARY KEY, tenant_id text, x {}); ALTER TABLE o REPLICA IDENTITY FULL"


WITHIN = """CREATE DOMAIN outer_state AS state;
CREATE TYPE pair AS (m mood, n int);
CREATE TYPE span AS RANGE (subtype = mood)"""
STORED = "mood GENERATED ALWAYS AS (CASE WHEN id > 0 THEN 'good'::mood END) STORED"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("mood", "'good'"),
        ("state", "'good'"),
        ("outer_state", "'good'"),
        ("mood[]", "'{good}'"),
        ("pair", "'(good,1)'"),
        ("span", "'[good,good]'"),
        ("span_multirange", "'{[good,good]}'"),
        (STORED, "DEFAULT"),
    ],
    ids=["enum", "domain", "domain of a domain", "array", "composite", "range", "multirange", "generated"],
)
async def test_an_enums_value_that_is_renamed_is_made_up_for(
    database: str, redis_url: str, column: str, value: str
) -> None:
    table = f"{ENUM}; {WITHIN}; {WITH_ENUM.format(column)}; INSERT INTO o VALUES (1, 'acme', {value})"
    await lived_through(database, redis_url, table, ["ALTER TYPE mood RENAME VALUE 'good' TO 'bad'"])


@pytest.mark.parametrize("altered", ["DROP ATTRIBUTE n", "ADD ATTRIBUTE k int"])
async def test_a_composite_type_that_is_altered_is_made_up_for(database: str, redis_url: str, altered: str) -> None:
    row = "INSERT INTO o VALUES (1, 'acme', '(good,1)')"
    story = [f"ALTER TYPE pair {altered}"]
    await lived_through(database, redis_url, f"{ENUM}; {WITHIN}; {WITH_ENUM.format('pair')}; {row}", story)


async def test_an_enums_new_value_is_not_made_up_for(database: str, redis_url: str) -> None:
    await tell(database, [*ENUM.split(";"), *WITH_ENUM.format("mood").split(";")])
    one = worker(database, redis_url)
    async with Cache(quick(redis_url)) as cache, running(one):
        await put(cache)
        await tell(database, ["ALTER TYPE mood ADD VALUE 'bad'"])
        two = "SELECT 2 = count(*) FROM cachebus_cdc_slots, jsonb_object_keys(tables -> 'public.o' -> 'types')"
        await until(lambda: fetched(database, two))
        assert await cache.get("o", 1, tenant_id="acme") == "old"


async def test_a_partition_whose_detaching_waits_for_a_reader_is_made_up_for(database: str, redis_url: str) -> None:
    """Nobody else sees its rows meanwhile. A check that holds spares the detaching one that changes its entry."""
    table = "CREATE TABLE o (id int, tenant_id text, x int, PRIMARY KEY (id, x)) PARTITION BY RANGE (x)"
    part = "CREATE TABLE o1 (LIKE o INCLUDING ALL, CHECK (x IS NOT NULL AND x >= 0 AND x < 10))"
    full = [f"ALTER TABLE {name} REPLICA IDENTITY FULL" for name in ("o", "o1")]
    await tell(database, [table, part, ATTACH, *full, ROW])
    one = worker(database, redis_url)
    async with Cache(quick(redis_url)) as cache, running(one), connected(database) as reader:
        await put(cache)
        await reader.execute("BEGIN; SELECT * FROM o")
        detaching = asyncio.create_task(tell(database, ["ALTER TABLE o DETACH PARTITION o1 CONCURRENTLY"]))
        await gone(cache)
        assert not detaching.done()
        await reader.execute("COMMIT")
        await detaching


async def test_a_partitions_own_expression_of_a_column_is_made_up_for(database: str, redis_url: str) -> None:
    async with connected(database) as connection:
        if connection.get_server_version().major < 18:
            pytest.skip("no virtual columns before PostgreSQL 18")
    table = "CREATE TABLE o (id int, tenant_id text, x int, v int GENERATED ALWAYS AS (x * 2), PRIMARY KEY (id, x))"
    part = "CREATE TABLE o1 PARTITION OF o DEFAULT; INSERT INTO o (id, tenant_id, x) VALUES (1, 'acme', 1)"
    setup = f"{table} PARTITION BY RANGE (x); {part}"
    rule = RULE.format("o", "o").replace('on_truncate = "all"', 'operations = ["insert"]')
    rules = parse_rules(HEAD + rule.replace('replica_identity = "full"', ""))
    await lived_through(database, redis_url, setup, ["ALTER TABLE o1 ALTER v SET EXPRESSION AS (x * 3)"], rules)


@pytest.mark.parametrize("name", ['"my.s".o', '"public"."o[1]"'])
async def test_a_table_whose_name_has_a_dot_or_a_bracket_is_one_like_others(
    database: str, redis_url: str, name: str
) -> None:
    table = f'CREATE SCHEMA "my.s"; CREATE TABLE {name} (id int PRIMARY KEY, tenant_id text, x int)'
    setup = f"{table}; ALTER TABLE {name} REPLICA IDENTITY FULL; {ROW.replace(' o ', f' {name} ')}"
    rules = parse_rules(
        HEAD + RULE.format("o[1]", "o").replace("public.o[1]", "*.o" if "my" in name else "public.o[1]")
    )
    await lived_through(database, redis_url, setup, [f"ALTER TABLE {name} ALTER x TYPE text USING x + 1"], rules)
