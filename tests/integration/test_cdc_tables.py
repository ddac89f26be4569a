"""Tables that PostgreSQL tells of otherwise than one thinks, or not at all: those without a key, children, unlogged and
foreign ones, and rows that are rewritten."""

from __future__ import annotations

import asyncpg
import pytest

from cachebus import Cache
from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot.publication import WITH_ROOT
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.source import Left, Session
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.cdc_slot import take
from tests.support.cdc_surroundings import Looks, at_work, gone, lived_through, put, worker
from tests.support.changes import fetched, running, tell
from tests.support.worker_health import why

HEAD = 'tenants = ["acme"]\n'
RULE = """
[[rule]]
table = "{}"
data_type = "{}"
resource_id = "{{id}}"
tenant_id = "{{tenant_id}}"
on_truncate = "all"
"""
KEYED = "CREATE TABLE {} (id int, tenant_id text, x int, PRIMARY KEY (id, tenant_id))"
PUBLISHED = (
    "SELECT string_agg(schemaname || '.' || tablename, ' ' ORDER BY schemaname, tablename) FROM pg_publication_tables"
)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


def rules(**tables: str) -> RuleFile:
    return parse_rules(HEAD + "".join(RULE.format(table, name) for name, table in tables.items()))


async def test_tables_are_published_by_their_names_alone(database: str, redis_url: str) -> None:
    """A table without a key that somebody makes beside those of the rules takes updates and deletes as before."""
    await tell(database, ["CREATE SCHEMA shop; CREATE SCHEMA pat", KEYED.format("shop.orders"), KEYED.format("pat.a")])
    one = worker(database, redis_url, rules(order="shop.orders", pat="pat.*"))
    async with Cache(quick(redis_url)) as cache, running(one):
        await tell(database, ["CREATE TABLE shop.log (x int); INSERT INTO shop.log VALUES (1)", KEYED.format("pat.b")])
        await until(lambda: _published(database, "pat.a pat.b shop.orders"))
        await tell(database, ["UPDATE shop.log SET x = 2", "DELETE FROM shop.log"])
        await until(lambda: one.health.ready)
        await put(cache, data_type="pat")
        await tell(database, ["INSERT INTO pat.b VALUES (1, 'acme', 1)"])
        await gone(cache, data_type="pat")


async def test_a_rule_that_is_new_for_a_table_is_made_up_for_and_one_that_is_as_before_is_not(
    database: str, redis_url: str
) -> None:
    """What was changed before it was there, nobody was told by it."""
    await tell(database, [KEYED.format("o")])
    first, second = rules(o="public.o"), rules(o="public.o", p="public.o")
    async with Cache(quick(redis_url)) as cache:
        async with running(worker(database, redis_url, first)):
            pass
        await put(cache, data_type="p")
        async with running(worker(database, redis_url, second)):
            await gone(cache, data_type="p")
        async with running(one := worker(database, redis_url, second)):
            looks = Looks(one)
            await put(cache, data_type="p")
            assert await looks.let_be(cache)
            assert await cache.get("p", 1, tenant_id="acme") == "old"
        async with running(worker(database, redis_url, first)):  # as in a rolling upgrade: the other one is back
            await put(cache)
            await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
            await gone(cache)
        async with running(worker(database, redis_url, second)):
            await gone(cache, data_type="p")


@pytest.mark.parametrize("between", [{"p": "public.o"}, {"p": "public.q"}], ids=["another", "none"])
async def test_rules_that_are_rolled_back_before_all_is_made_up_for_are_made_up_for(
    database: str, redis_url: str, between: dict[str, str]
) -> None:
    """As where a primary of L2 is away while the worker with the other rules takes, and goes on."""
    await tell(database, [KEYED.format("o"), KEYED.format("q")])
    first = rules(o="public.o")
    async with Cache(quick(redis_url)) as cache:
        async with running(worker(database, redis_url, first)):
            await put(cache)
        other = worker(database, redis_url, rules(**between))
        async with other.source.opened() as session:
            await take(session)
            await session.mend((await session.look()).findings)
            await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
            lsn = await fetched(database, "SELECT pg_current_wal_flush_lsn()::text")
            await tell(database, ["INSERT INTO o VALUES (2, 'acme', 1)", "INSERT INTO q VALUES (2, 'acme', 1)"])
            await until(lambda: _is_behind(session, database, lsn))
        async with running(worker(database, redis_url, first)):
            await gone(cache)


async def _is_behind(session: Session, database: str, lsn: str) -> bool:
    """All that was written until then is taken, and the slot is behind it."""
    if (batch := await take(session)).items:
        await session.acknowledge(batch, Left())
    sql = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots"
    return bool(await fetched(database, sql, lsn))


async def _published(database: str, names: str) -> bool:
    return bool(await fetched(database, PUBLISHED) == names)


async def test_a_table_without_a_key_that_a_pattern_fits_is_left_out_told_and_made_up_for(
    database: str, redis_url: str
) -> None:
    one = worker(database, redis_url, rules(pat="public.p*"))
    async with Cache(quick(redis_url)) as cache, running(one):
        await tell(database, ["CREATE TABLE plain (id int, tenant_id text); INSERT INTO plain VALUES (1, 'acme')"])
        await until(lambda: "has no primary key: once published" in why(one, "publication"))
        said = why(one, "publication")
        assert "public.plain: the publication 'cachebus_cdc' leaves it out" in said
        assert 'ALTER TABLE "public"."plain" REPLICA IDENTITY FULL; ALTER PUBLICATION "cachebus_cdc" ADD TABLE' in said
        await put(cache, data_type="pat")
        await tell(database, ["UPDATE plain SET id = 2", "ALTER TABLE plain REPLICA IDENTITY FULL"])
        await gone(cache, data_type="pat")
        await until(lambda: one.health.ready)
        assert await _published(database, "public.plain")


async def test_a_table_that_is_locked_waits_to_be_published_and_no_other_waits_for_it(
    database: str, redis_url: str
) -> None:
    await tell(database, [KEYED.format("o"), KEYED.format("q"), "CREATE PUBLICATION cachebus_cdc FOR TABLE o"])
    one = worker(database, redis_url, rules(o="public.o", q="public.q"))
    async with Cache(quick(redis_url)) as cache, connected(database) as indexing:
        await indexing.execute("BEGIN; LOCK TABLE q IN SHARE MODE")
        async with at_work(one):
            await until(lambda: "lock timeout" in why(one, "publication") and one.follows)
            await put(cache)
            await put(cache)
            await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
            await gone(cache)
            await indexing.execute("COMMIT")
            await until(lambda: one.health.ready)
            assert await _published(database, "public.o public.q")


LOCKED = "BEGIN; LOCK TABLE q IN ACCESS EXCLUSIVE MODE"
PARTED = "CREATE TABLE q (id int, tenant_id text, PRIMARY KEY (id, tenant_id)) PARTITION BY RANGE (id)"
PARTS = "CREATE TABLE q1 PARTITION OF q DEFAULT"


@pytest.mark.parametrize("tables", [[KEYED.format("q")], [PARTED, PARTS]], ids=["table", "partitions"])
@pytest.mark.parametrize("of", ["TABLE o, q", "TABLES IN SCHEMA public", "ALL TABLES"])
async def test_no_look_waits_for_a_table_that_is_locked(
    database: str, redis_url: str, tables: list[str], of: str
) -> None:
    """As by ALTER TABLE ... TYPE, or as long as that waits for a reader."""
    await tell(database, [KEYED.format("o"), *tables, f"CREATE PUBLICATION cachebus_cdc FOR {of} {WITH_ROOT}"])
    one = worker(database, redis_url, rules(o="public.o", q="public.q"))
    async with Cache(quick(redis_url)) as cache, connected(database) as altering, running(one):
        await altering.execute(LOCKED)
        looks = Looks(one)
        await until(lambda: looks.count > 1)
        assert one.health.ready
        await put(cache)
        await tell(database, ["ALTER TABLE o ALTER x TYPE bigint"])  # a look finds this
        await gone(cache)


async def test_a_look_that_hangs_ends_nothing(database: str, redis_url: str) -> None:
    """The catalogue itself is locked."""
    await tell(database, [KEYED.format("o")])
    one = worker(database, redis_url, rules(o="public.o"))
    async with Cache(quick(redis_url)) as cache, connected(database) as vacuuming, running(one):
        looks = Looks(one)
        await until(lambda: looks.count > 1)
        await vacuuming.execute("BEGIN; LOCK TABLE pg_inherits IN ACCESS EXCLUSIVE MODE")
        await until(lambda: "the database's catalogue is locked" in why(one, "tables"))
        assert one.follows
        await put(cache)
        await tell(database, ["INSERT INTO o VALUES (1, 'acme', 1)"])
        await gone(cache)
        await vacuuming.execute("COMMIT")
        await until(lambda: one.health.ready)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (f"{KEYED.format('o')}; ALTER TABLE o REPLICA IDENTITY NOTHING", "has no primary key"),
        ("CREATE TABLE o (id int PRIMARY KEY DEFERRABLE, tenant_id text)", "has no primary key"),
        (
            """CREATE TABLE o (id int, tenant_id text) PARTITION BY RANGE (id); ALTER TABLE o REPLICA IDENTITY FULL;
            CREATE TABLE o1 PARTITION OF o DEFAULT; ALTER TABLE o1 REPLICA IDENTITY FULL""",
            "also in those that are made later",
        ),
    ],
)
async def test_what_would_refuse_its_writes_once_published_is_not(
    database: str, redis_url: str, table: str, says: str
) -> None:
    await tell(database, [table, "INSERT INTO o VALUES (1, 'acme')"])
    one = worker(database, redis_url, rules(o="public.o"))
    async with at_work(one):
        await until(lambda: says in why(one, "publication") and one.follows)
        await tell(database, ["UPDATE o SET id = 2", "DELETE FROM o"])


@pytest.mark.parametrize("of", ["ALL TABLES", "TABLE shop.log, o"])
async def test_a_table_whose_writes_fail_since_others_have_published_it_is_told(
    database: str, redis_url: str, of: str
) -> None:
    await tell(database, ["CREATE SCHEMA shop; CREATE TABLE shop.log (x int)", KEYED.format("o")])
    await tell(database, [f"CREATE PUBLICATION cachebus_cdc FOR {of}"])
    one = worker(database, redis_url, rules(o="public.o"))
    async with at_work(one):
        await until(lambda: "refuses the application's updates and deletes" in why(one, "publication"))
        assert 'ALTER PUBLICATION "cachebus_cdc" DROP TABLE "shop"."log"' in why(one, "publication")
        await tell(database, ["DROP TABLE shop.log"])
        await until(lambda: one.health.ready)


@pytest.mark.parametrize(
    ("identity", "published"),
    [("FULL", "o (id, tenant_id)"), ("DEFAULT", "o WHERE (x > 0)"), ("USING INDEX by", "o (id, tenant_id)")],
)
async def test_a_table_whose_writes_fail_by_its_column_list_or_row_filter_is_told(
    database: str, redis_url: str, identity: str, published: str
) -> None:
    table = [KEYED.format("o").replace("x int", "x int NOT NULL"), "CREATE UNIQUE INDEX by ON o (x)"]
    await tell(database, [*table, f"ALTER TABLE o REPLICA IDENTITY {identity}", "INSERT INTO o VALUES (1, 'acme', 1)"])
    await tell(database, [f"CREATE PUBLICATION cachebus_cdc FOR TABLE {published}"])
    with pytest.raises(asyncpg.PostgresError):
        await tell(database, ["UPDATE o SET x = 2"])
    async with at_work(one := worker(database, redis_url, rules(p="public.p"))):
        await until(lambda: "refuses the application's updates and deletes" in why(one, "publication"))
        await tell(database, ["ALTER PUBLICATION cachebus_cdc SET TABLE o (id, tenant_id)"])
        await tell(database, ["ALTER TABLE o REPLICA IDENTITY DEFAULT", "UPDATE o SET x = 2"])
        await until(lambda: one.health.is_up("publication"))


async def test_what_is_missed_is_made_up_for_though_writes_fail_too(database: str, redis_url: str) -> None:
    await tell(database, [KEYED.format("o"), "ALTER TABLE o REPLICA IDENTITY FULL"])
    await tell(database, ["CREATE PUBLICATION cachebus_cdc FOR TABLE o (id)"])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(database, redis_url, rules(o="public.o"))):
        await until(lambda: "leaves out its columns tenant_id" in why(one, "publication"))
        assert "refuses the application's updates and deletes" in why(one, "publication")
        await put(cache)
        await tell(database, ["ALTER PUBLICATION cachebus_cdc SET TABLE o"])
        await gone(cache)


CHILD = "CREATE TABLE o_old (PRIMARY KEY (id, tenant_id)) INHERITS (o)"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_child_falls_under_the_rules_of_its_parents(database: str, redis_url: str, when: str) -> None:
    """`SELECT ... FROM o` gives a child's rows, too."""
    await tell(database, [KEYED.format("o"), *([CHILD] if when == "before" else [])])
    one = worker(database, redis_url, rules(o="public.o"))
    async with Cache(quick(redis_url)) as cache, running(one):
        if when == "meanwhile":
            await put(cache)
            await tell(database, [CHILD, "CREATE TABLE o_older (PRIMARY KEY (id, tenant_id)) INHERITS (o_old)"])
            await gone(cache)
            await until(lambda: _published(database, "public.o public.o_old public.o_older"))
            await tell(database, ["INSERT INTO o_older VALUES (2, 'acme', 1)"])
        await tell(database, ["INSERT INTO o_old VALUES (1, 'acme', 1)"])
        await put(cache, 1)
        await put(cache, 2)
        await tell(database, ["UPDATE o SET x = 2"])
        await gone(cache, 1)
        if when == "meanwhile":
            await gone(cache, 2)
        await until(lambda: one.health.ready)


async def test_a_child_without_a_key_is_not_published_with_its_parent(database: str, redis_url: str) -> None:
    await tell(database, [KEYED.format("o"), "CREATE TABLE o_old () INHERITS (o)"])
    one = worker(database, redis_url, rules(o="public.o"))
    async with Cache(quick(redis_url)) as cache, at_work(one):
        await until(lambda: "public.o_old: the publication 'cachebus_cdc' leaves it out" in why(one, "publication"))
        await until(lambda: one.follows)
        await put(cache)
        await tell(database, ["INSERT INTO o_old VALUES (1, 'acme', 1)", "UPDATE o SET x = 2", "DELETE FROM o"])
        assert await fetched(database, PUBLISHED) == "public.o"


@pytest.mark.parametrize(
    "altered",
    ["ALTER x TYPE bigint USING x * 100", "ALTER x TYPE int USING x * 100", "ADD y uuid DEFAULT gen_random_uuid()"],
)
async def test_rows_that_are_rewritten_are_made_up_for(database: str, redis_url: str, altered: str) -> None:
    await tell(database, [KEYED.format("o"), "INSERT INTO o VALUES (1, 'acme', 1)"])
    one = worker(database, redis_url, rules(o="public.o"))
    async with Cache(quick(redis_url)) as cache, running(one):
        await put(cache)
        await tell(database, [f"ALTER TABLE o {altered}"])
        await gone(cache)
        await until(lambda: one.health.ready)


async def test_what_changes_no_row_is_not_made_up_for(database: str, redis_url: str) -> None:
    await tell(database, [KEYED.format("o"), KEYED.format("p"), "INSERT INTO o VALUES (1, 'acme', 1)"])
    one = worker(database, redis_url, rules(o="public.o", p="public.p"))
    async with Cache(quick(redis_url)) as cache, running(one):
        await put(cache)
        await put(cache, data_type="p")
        await tell(database, ["VACUUM FULL o", "ANALYZE o", "CREATE INDEX ON o (x)", "ALTER TABLE p ADD y int"])
        await gone(cache, data_type="p")
        assert await cache.get("o", 1, tenant_id="acme") == "old"


UNLOGGED = "CREATE UNLOGGED TABLE {} (id int, tenant_id text, x int, PRIMARY KEY (id, tenant_id))"
ALL = f"CREATE PUBLICATION cachebus_cdc FOR ALL TABLES {WITH_ROOT}"
IN_SCHEMA = f"CREATE PUBLICATION cachebus_cdc FOR TABLES IN SCHEMA public {WITH_ROOT}"
FOR_A_WHILE = ["ALTER TABLE o SET UNLOGGED", "UPDATE o SET x = 2", "ALTER TABLE o SET LOGGED"]
ELSEWHERE = ["ALTER TABLE o SET SCHEMA away", "UPDATE away.o SET x = 2", "ALTER TABLE away.o SET SCHEMA public"]


@pytest.mark.parametrize(
    ("of", "story"), [(ALL, FOR_A_WHILE), (IN_SCHEMA, FOR_A_WHILE), (IN_SCHEMA, ELSEWHERE)], ids=range(3)
)
async def test_a_table_that_was_told_of_no_more_for_a_while_is_made_up_for(
    database: str, redis_url: str, of: str, story: list[str]
) -> None:
    """Where it is published with all others, PostgreSQL does not refuse that."""
    table = f"{KEYED.format('o')}; INSERT INTO o VALUES (1, 'acme', 1); CREATE SCHEMA away; {of}"
    await lived_through(database, redis_url, table, story, rules(o="public.o"))


WRAPPER = "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w"
WHOLE = "CREATE TABLE o (id int, tenant_id text, x int, PRIMARY KEY (id, tenant_id)) PARTITION BY RANGE (id)"
FOREIGN_WHOLE = "CREATE TABLE o (id int, tenant_id text, x int) PARTITION BY RANGE (id)"


@pytest.mark.parametrize(
    ("table", "made", "says", "remedy"),
    [
        ("public.o", [UNLOGGED.format("o")], "public.o: it is UNLOGGED", 'ALTER TABLE "public"."o" SET LOGGED'),
        ("public.*", [UNLOGGED.format("o")], "public.o: it is UNLOGGED", 'ALTER TABLE "public"."o" SET LOGGED'),
        (
            "public.o",
            [WHOLE, "CREATE UNLOGGED TABLE o1 PARTITION OF o DEFAULT"],
            "its partitions o1 are UNLOGGED",
            'ALTER TABLE "public"."o1" SET LOGGED',
        ),
        (
            "public.o",
            [FOREIGN_WHOLE, WRAPPER, "CREATE FOREIGN TABLE o1 PARTITION OF o DEFAULT SERVER s"],
            "its partitions o1 are foreign tables",
            "",
        ),
        (
            "public.o",
            [KEYED.format("o"), WRAPPER, "CREATE FOREIGN TABLE o1 () INHERITS (o) SERVER s"],
            "public.o1: it is a foreign table that inherits from a rule's",
            "",
        ),
        ("public.o", [KEYED.format("q"), "CREATE VIEW o AS SELECT * FROM q"], "public.o: it is a view", ""),
        ("public.o1", [WHOLE, "CREATE TABLE o1 PARTITION OF o DEFAULT"], "it is a partition, and rows are told by", ""),
    ],
)
async def test_what_postgresql_tells_nothing_of_is_told_by_the_worker(
    database: str, redis_url: str, table: str, made: list[str], says: str, remedy: str
) -> None:
    await tell(database, made)
    one = worker(database, redis_url, rules(o=table))
    async with at_work(one):
        await until(lambda: says in why(one, "tables"))
        assert remedy in why(one, "tables")
        assert not one.health.ready


async def test_tables_whose_names_have_dots_are_remembered_each_by_itself(database: str, redis_url: str) -> None:
    schemas = "CREATE SCHEMA x", 'CREATE SCHEMA "x.y"'
    await tell(database, [*schemas, KEYED.format('"x.y".z'), KEYED.format('x."y.z"')])
    async with running(one := worker(database, redis_url, rules(o="x*.*z"))):
        await until(lambda: one.health.ready)
        count = "SELECT count(*) = 2 FROM cachebus_cdc_slots, jsonb_object_keys(tables)"
        await until(lambda: fetched(database, count))
