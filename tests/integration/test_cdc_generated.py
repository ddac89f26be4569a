"""Generated columns of tables that a slot's worker publishes. From 18 on PostgreSQL refuses updates and deletes of a
published table whose REPLICA IDENTITY has some that are not published."""

from __future__ import annotations

import asyncpg
import pytest

from cachebus import Cache
from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.worker import watcher
from tests.support.caches import quick, until
from tests.support.cdc_surroundings import HEAD, RULE, at_work, given, gone, put, worker
from tests.support.changes import fetched, running, tell
from tests.support.require import require
from tests.support.worker_health import why

FULL = "ALTER TABLE o REPLICA IDENTITY FULL"
PLAIN = "CREATE TABLE o (id int PRIMARY KEY, tenant_id text NOT NULL, x int)"
ADDED = "ALTER TABLE o ADD COLUMN g int GENERATED ALWAYS AS (x * 10) "
OF_INDEX = "CREATE UNIQUE INDEX by ON o (id, tenant_id, g); ALTER TABLE o REPLICA IDENTITY USING INDEX by"
IDENTITIES = {
    "FULL": [PLAIN, FULL, ADDED + "STORED"],
    "the key": [
        PLAIN.replace(" PRIMARY KEY", ""),
        ADDED.replace("x *", "id *") + "STORED, ADD PRIMARY KEY (id, tenant_id, g)",
    ],
    "an index": [PLAIN, ADDED.replace("x *", "id *") + "STORED NOT NULL", OF_INDEX],
    "FULL, of partitions": [
        f"{PLAIN} PARTITION BY RANGE (id)",
        "CREATE TABLE o1 PARTITION OF o DEFAULT",
        ADDED + "STORED",
        *(FULL, FULL.replace(" o ", " o1 ")),
    ],
}
PUBLISHED = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'o'"
ROWS = "INSERT INTO o VALUES (1, 'acme', 1), (2, 'acme', 1)"


@pytest.fixture(autouse=True)
async def _looks_often(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    number = int(await fetched(database, "SHOW server_version_num"))
    require(number >= 180000, "PostgreSQL 18 or newer", "pip install 'cachebus[postgres-server]'")


def rules(says: str = 'replica_identity = "full"') -> RuleFile:
    return parse_rules(HEAD + RULE.format("o", "o").replace('replica_identity = "full"', says))


async def written(database: str) -> None:
    """The application goes on."""
    await tell(database, ["UPDATE o SET x = x + 1", "DELETE FROM o WHERE id = 2"])


async def refused(database: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match="cannot update"):
        await tell(database, ["UPDATE o SET x = x + 1"])


@pytest.mark.parametrize("identity", IDENTITIES)
async def test_a_table_whose_identity_has_generated_columns_takes_updates_and_deletes_once_it_is_published(
    database: str, redis_url: str, identity: str
) -> None:
    await tell(database, [*IDENTITIES[identity], ROWS])
    async with Cache(quick(redis_url)) as cache, running(one := worker(database, redis_url, rules(""))):
        assert await fetched(database, PUBLISHED)
        await put(cache)
        await written(database)
        await gone(cache)
        assert one.health.ready


async def test_a_generated_column_that_comes_later_stops_no_write(database: str, redis_url: str) -> None:
    await tell(database, [PLAIN, FULL, ROWS])
    async with Cache(quick(redis_url)) as cache, running(worker(database, redis_url, rules())):
        await tell(database, [ADDED + "STORED"])
        await written(database)
        await put(cache)
        await tell(database, ["UPDATE o SET x = 5"])
        await gone(cache)


@pytest.mark.parametrize("of", ["TABLE o", "TABLE o, log", "ALL TABLES"])
async def test_a_publication_that_leaves_them_out_is_mended(database: str, redis_url: str, of: str) -> None:
    """As one that was made before the server was PostgreSQL 18; also for a table that no rule is for."""
    await tell(database, [PLAIN, FULL, ADDED + "STORED", ROWS])
    await tell(database, [one.replace(" o ", " log ") for one in (PLAIN, FULL, ADDED + "STORED")])
    await tell(database, [f"CREATE PUBLICATION cachebus_cdc FOR {of}"])
    await refused(database)
    async with running(one := worker(database, redis_url, rules())):
        await written(database)
        await tell(database, ["INSERT INTO log VALUES (1, 'acme', 1)"])
        if of != "TABLE o":
            await tell(database, ["UPDATE log SET x = 2"])
        assert one.health.is_up("publication")


async def test_who_may_not_mend_the_publication_says_the_sql(database: str, redis_url: str) -> None:
    role = "cdc_" + database.rpartition("/")[2]
    await tell(database, [f"CREATE ROLE {role} LOGIN REPLICATION SUPERUSER", PLAIN, FULL, ADDED + "STORED", ROWS])
    await tell(
        database, ["CREATE PUBLICATION cachebus_cdc FOR TABLE o", "ALTER PUBLICATION cachebus_cdc OWNER TO postgres"]
    )
    of_role = database.replace("postgres@", f"{role}@")
    async with running(worker(of_role, redis_url, rules())):
        pass
    await tell(database, ["ALTER PUBLICATION cachebus_cdc SET (publish_generated_columns = none)"])
    await tell(database, [f"ALTER ROLE {role} NOSUPERUSER", f"GRANT SELECT ON o TO {role}"])
    async with at_work(one := worker(of_role, redis_url, rules())):
        await until(lambda: "refuses the application's updates and deletes" in why(one, "publication"))
        assert "must be owner of publication" in why(one, "publication")
        await tell(database, [why(one, "publication").partition("to mend it: ")[2]])
        await written(database)
        await until(lambda: one.health.is_up("publication"))
    await tell(database, [f"REASSIGN OWNED BY {role} TO postgres", f"DROP OWNED BY {role}", f"DROP ROLE {role}"])


async def test_a_table_with_virtual_columns_is_published_once_an_index_identifies_its_rows(
    database: str, redis_url: str
) -> None:
    await tell(database, [PLAIN, ADDED + "VIRTUAL", FULL, ROWS])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(database, redis_url, rules(""))):
        await until(lambda: "virtual columns (g)" in why(one, "publication") and one.follows)
        await written(database)
        assert not await fetched(database, PUBLISHED)
        await tell(database, [why(one, "publication").partition("to mend it: ")[2]])
        await until(lambda: one.health.ready)
        await put(cache)
        await written(database)
        await gone(cache)


BY = """
[[rule]]
table = "public.o"
data_type = "{0}"
resource_id = "{1}"
tenant_id = "{{tenant_id}}"
"""


@pytest.mark.parametrize(
    ("told", "by"),
    [
        (BY.format("customer", "{x}"), "USING INDEX"),
        (BY.format("o", "{id}") + BY.format("customer", "{x}"), "USING INDEX"),
        (BY.format("o", "all").replace("{tenant_id}", "acme"), "DEFAULT"),
    ],
    ids=["rows share the column", "two rules", "no column"],
)
async def test_what_identifies_rows_beside_virtual_columns_serves_all_rules_and_forbids_no_row(
    database: str, redis_url: str, told: str, by: str
) -> None:
    await tell(database, [PLAIN, ADDED + "VIRTUAL", FULL, ROWS])
    async with at_work(one := worker(database, redis_url, parse_rules(HEAD + told))):
        await until(lambda: "virtual columns (g)" in why(one, "publication") and one.follows)
        remedy = why(one, "publication").partition("to mend it: ")[2]
        assert f"REPLICA IDENTITY {by}" in remedy
        await tell(database, [remedy, "INSERT INTO o VALUES (3, 'acme', 1)"])
        await until(lambda: one.health.ready)
        await written(database)


async def test_what_identifies_rows_is_made_anew_for_another_rule_and_once_more_for_the_same(
    database: str, redis_url: str
) -> None:
    await tell(database, [PLAIN, ADDED + "VIRTUAL", ROWS])
    for rule in ("o", "customer", "o"):
        await tell(database, ["ALTER TABLE o REPLICA IDENTITY DEFAULT"] if rule == "o" else [])
        told = rules("") if rule == "o" else parse_rules(HEAD + BY.format("customer", "{x}"))
        await mended(database, redis_url, told)


async def mended(database: str, redis_url: str, told: RuleFile) -> None:
    async with at_work(one := worker(database, redis_url, told)):
        await until(lambda: "of a deleted row PostgreSQL tells only" in why(one, "tables") and one.follows)
        await tell(database, [why(one, "tables").partition("to mend it: ")[2]])
        await until(lambda: one.health.ready)
        await written(database)


async def test_without_a_primary_key_virtual_columns_are_to_be_stored(database: str, redis_url: str) -> None:
    await tell(database, [PLAIN.replace(" PRIMARY KEY", ""), ADDED + "VIRTUAL", ROWS])
    async with at_work(one := worker(database, redis_url, rules(""))):
        await until(lambda: "it has no primary key" in why(one, "publication") and one.follows)
        remedy = why(one, "publication").partition("to mend it: ")[2].replace("...", "int GENERATED ALWAYS AS (x * 10)")
        assert "REPLICA IDENTITY FULL;" in remedy
        await tell(database, [remedy])
        await until(lambda: one.health.ready)
        await written(database)


async def test_what_mends_a_table_with_virtual_columns_is_not_a_full_identity(database: str, redis_url: str) -> None:
    await tell(database, [PLAIN, ADDED + "VIRTUAL", ROWS])
    await mended(database, redis_url, rules(""))


async def test_virtual_columns_of_a_table_that_others_have_published_are_told(database: str, redis_url: str) -> None:
    await tell(database, [PLAIN, ADDED + "VIRTUAL", FULL, ROWS, "CREATE PUBLICATION cachebus_cdc FOR ALL TABLES"])
    await refused(database)
    async with at_work(one := worker(database, redis_url, given("p"))):
        await until(lambda: "has virtual columns, which are never published" in why(one, "publication"))
        await tell(database, [why(one, "publication").partition("to mend it: ")[2].partition(" or,")[0]])
        await until(lambda: one.health.is_up("publication"))
        await written(database)


async def test_a_table_is_left_out_while_a_partition_of_it_has_no_identity(database: str, redis_url: str) -> None:
    await tell(database, [f"{PLAIN} PARTITION BY RANGE (id)", "CREATE TABLE o1 PARTITION OF o DEFAULT", ROWS])
    await tell(database, ["ALTER TABLE o1 REPLICA IDENTITY NOTHING"])
    async with at_work(one := worker(database, redis_url, rules('operations = ["insert", "update", "truncate"]'))):
        await until(lambda: "its partitions o1 have no REPLICA IDENTITY" in why(one, "publication") and one.follows)
        await written(database)
        await tell(database, [why(one, "publication").partition("to mend it: ")[2]])
        await until(lambda: one.health.is_up("publication"))
        await written(database)
