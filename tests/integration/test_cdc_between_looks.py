"""What is so for a while only, between two looks at the database, and changes that are told of meanwhile."""

from __future__ import annotations

import pytest

from cachebus import Cache
from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot.postgres import PostgresSource
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.assumptions import Assumptions
from cachebus.consumers.worker.source import Batch, Left, Session
from tests.support.caches import quick, until
from tests.support.cdc_slot import gone_on, take
from tests.support.cdc_surroundings import HEAD, RULE, Looks, at_work, given, gone, lived_through, put, worker
from tests.support.changes import fetched, running, tell
from tests.support.worker_health import why

TABLE = "CREATE TABLE o (id int PRIMARY KEY, tenant_id text, x int); ALTER TABLE o REPLICA IDENTITY FULL"
ROW = "INSERT INTO o VALUES (1, 'acme', 1)"
DEAD = "SELECT count(*) FROM cachebus_cdc_dead"
PARTS = """
CREATE TABLE o (id int, tenant_id text, x int, PRIMARY KEY (id, x)) PARTITION BY RANGE (x);
ALTER TABLE o REPLICA IDENTITY FULL;
CREATE TABLE o1 PARTITION OF o FOR VALUES FROM (0) TO (10);
CREATE TABLE o2 PARTITION OF o FOR VALUES FROM (10) TO (20);
ALTER TABLE o1 REPLICA IDENTITY FULL;
ALTER TABLE o2 REPLICA IDENTITY FULL
"""
CHILD = "CREATE TABLE o_old (PRIMARY KEY (id)) INHERITS (o); ALTER TABLE o_old REPLICA IDENTITY FULL"
LIKE = "CREATE TABLE o3 (LIKE o INCLUDING ALL); ALTER TABLE o3 REPLICA IDENTITY FULL"
ATTACH = "ALTER TABLE o ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


def unnamed() -> RuleFile:
    """Rules by which nobody can name what was missed: only what is told of is invalidated."""
    return parse_rules(RULE.format("o", "o").replace('"all"', '"ignore"'))


@pytest.mark.parametrize("changed", ["UPDATE o SET tenant_id = 'other'", "DELETE FROM o"])
async def test_a_replica_identity_that_was_less_for_a_while_is_made_up_for(
    database: str, redis_url: str, changed: str
) -> None:
    """Of the old row nothing was told but its key, and nobody looks like that any more."""
    less = ["ALTER TABLE o REPLICA IDENTITY DEFAULT", changed, "ALTER TABLE o REPLICA IDENTITY FULL"]
    await lived_through(database, redis_url, f"{TABLE}; {ROW}", less)


KEYED = "CREATE TABLE o (id int, tenant_id text NOT NULL, x int, PRIMARY KEY (id))"
BY_INDEX = "CREATE UNIQUE INDEX by ON o (id, tenant_id); ALTER TABLE o REPLICA IDENTITY USING INDEX by"
LESS = ["ALTER TABLE o REPLICA IDENTITY DEFAULT", "UPDATE o SET tenant_id = 'other'"]
OTHER_KEY = "ALTER TABLE o DROP CONSTRAINT o_pkey, ADD PRIMARY KEY ({})"
UPDATES = RULE.format("o", "o").replace('on_truncate = "all"', 'operations = ["update"]')
NOT_FULL = parse_rules(HEAD + RULE.format("o", "o").replace('replica_identity = "full"', ""))


@pytest.mark.parametrize(
    ("table", "story"),
    [
        (f"{KEYED}; {BY_INDEX}", [*LESS, "ALTER TABLE o REPLICA IDENTITY USING INDEX by"]),
        (f"{KEYED}; {BY_INDEX}", [LESS[0], "DROP INDEX by", LESS[1], *BY_INDEX.split(";")]),
        (
            f"{KEYED}; {OTHER_KEY.format('id, tenant_id')}",
            [OTHER_KEY.format("id"), LESS[1], OTHER_KEY.format("id, tenant_id")],
        ),
    ],
    ids=["index", "index anew", "key"],
)
async def test_a_replica_identity_that_never_was_full_and_was_less_for_a_while_is_made_up_for(
    database: str, redis_url: str, table: str, story: list[str]
) -> None:
    await lived_through(database, redis_url, f"{table}; {ROW}", story, NOT_FULL)


async def test_a_replica_identity_that_is_another_one_at_the_next_look_is_made_up_for(
    database: str, redis_url: str
) -> None:
    """No change is told of meanwhile that would tell it."""
    rule = RULE.format("o", "o").replace('on_truncate = "all"', 'operations = ["insert", "update"]')
    rules = parse_rules(HEAD + rule.replace('replica_identity = "full"', ""))
    await lived_through(database, redis_url, f"{KEYED}; {ROW}", BY_INDEX.split(";"), rules)


async def test_a_doubt_is_stored_before_the_slot_goes_behind_it(database: str, redis_url: str) -> None:
    """The worker may be killed before what was missed is made up for."""
    less = ["ALTER TABLE o REPLICA IDENTITY DEFAULT", "DELETE FROM o", "ALTER TABLE o REPLICA IDENTITY FULL"]
    await tell(database, [*TABLE.split(";"), ROW])
    async with running(worker(database, redis_url)):
        pass
    remembered = "SELECT tables ? 'public.o' FROM cachebus_cdc_slots"
    assert await fetched(database, remembered)
    await tell(database, less)
    source = worker(database, redis_url).source
    async with source.opened() as session:
        await session.look()
        batch = await take(session)
        assert [session.mean(item).problems for item in batch.items if item.raw is not None]
        await session.acknowledge(batch, Left())
        assert not await fetched(database, remembered)
        assert [one.over for one in (await session.look()).findings if one.subject == "public.o"] == [True]


@pytest.mark.parametrize("rules", [given(), unnamed()], ids=["named", "unnamed"])
async def test_what_is_told_of_a_table_under_another_name_is_told_of_it(
    database: str, redis_url: str, rules: RuleFile
) -> None:
    story = ["ALTER TABLE o RENAME TO p", "UPDATE p SET x = 2", "ALTER TABLE p RENAME TO o"]
    assert not await lived_through(database, redis_url, f"{TABLE}; {ROW}", story, rules)


async def test_a_letter_of_a_table_under_another_name_has_the_name_of_its_rules(database: str, redis_url: str) -> None:
    story = ["ALTER TABLE o RENAME TO p", "UPDATE p SET tenant_id = ''", "ALTER TABLE p RENAME TO o"]
    assert await lived_through(database, redis_url, f"{TABLE}; {ROW}", story) == 1
    assert await fetched(database, "SELECT payload::jsonb ->> 'table' FROM cachebus_cdc_dead") == "o"


@pytest.mark.parametrize("rules", [given(), unnamed()], ids=["named", "unnamed"])
@pytest.mark.parametrize("end", ["DROP TABLE o_old", "ALTER TABLE o_old NO INHERIT o"])
async def test_changes_of_a_child_count_though_it_is_none_by_now(
    database: str, redis_url: str, rules: RuleFile, end: str
) -> None:
    insert = "INSERT INTO o_old VALUES (1, 'acme', 1)"
    story = ["UPDATE o_old SET x = 2", end]
    await lived_through(database, redis_url, f"{TABLE}; {CHILD}; {insert}", story, rules)


@pytest.mark.parametrize("end", ["DROP TABLE o_old", "ALTER TABLE o_old NO INHERIT o"])
async def test_rows_that_go_with_a_child_are_made_up_for(database: str, redis_url: str, end: str) -> None:
    insert = "INSERT INTO o_old VALUES (1, 'acme', 1)"
    await lived_through(database, redis_url, f"{TABLE}; {CHILD}; {insert}", [end])


@pytest.mark.parametrize(
    "story",
    [
        ["ALTER TABLE o DETACH PARTITION o1", "UPDATE o1 SET x = 2", ATTACH.format("o1", 0, 10)],
        ["ALTER TABLE o1 REPLICA IDENTITY DEFAULT", "DELETE FROM o", "ALTER TABLE o1 REPLICA IDENTITY FULL"],
        [LIKE, "INSERT INTO o3 VALUES (3, 'acme', 20)", ATTACH.format("o3", 20, 30)],
        [LIKE, "INSERT INTO o3 VALUES (3, 'acme', 20)", ATTACH.format("o3", 20, 30), "TRUNCATE o3"],
    ],
    ids=["detached", "identity", "attached", "attached and truncated"],
)
async def test_partitions_that_look_as_before_are_made_up_for(database: str, redis_url: str, story: list[str]) -> None:
    await lived_through(database, redis_url, f"{PARTS}; {ROW}", [part for one in story for part in one.split(";")])


P = """CREATE TABLE p (id int, tenant_id text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
ALTER TABLE p REPLICA IDENTITY FULL"""


async def test_a_worker_that_takes_over_writes_back_nothing_of_before(database: str, redis_url: str) -> None:
    """1. One stands by, and its look finds a new partition, which it is to remember.
    2. The other stores a doubt, and is killed before it makes up for it.
    3. The first takes over."""
    await tell(database, [*TABLE.split(";"), ROW, *P.split(";")])
    rules = given("o", "p")
    async with running(worker(database, redis_url, rules)):
        pass
    remembered = "SELECT tables ? 'public.o' FROM cachebus_cdc_slots"
    second = worker(database, redis_url, rules).source
    async with second.opened() as after:
        async with worker(database, redis_url, rules).source.opened() as session:
            await session.look()
            await take(session)
            await tell(database, ["CREATE TABLE p1 PARTITION OF p DEFAULT; ALTER TABLE p1 REPLICA IDENTITY FULL"])
            await after.look()
            less = ["ALTER TABLE o REPLICA IDENTITY DEFAULT", "DELETE FROM o", "ALTER TABLE o REPLICA IDENTITY FULL"]
            await tell(database, less)
            batch = await until(lambda: _taken(session))
            assert [session.mean(item).problems for item in batch.items if item.raw is not None]
            await session.acknowledge(batch, Left())
            assert not await fetched(database, remembered)

        async def leads() -> bool:
            await take(after)
            return second.leading

        await until(leads)
        await take(after)
        assert not await fetched(database, remembered)
        assert [one.over for one in (await after.look()).findings if one.subject == "public.o"] == [True]


async def _taken(session: Session) -> Batch | None:
    batch = await take(session)
    return batch if batch.items else None


READ_BY_OTHERS = "SELECT count(*) FROM pg_logical_slot_get_binary_changes('cachebus_cdc', NULL, NULL, {})"
PLUGIN = "'proto_version', '1', 'publication_names', 'cachebus_cdc'"
LOSS = f"INSERT INTO o VALUES (3, 'acme', 3); {READ_BY_OTHERS.format(PLUGIN)}"


@pytest.mark.parametrize(
    ("first", "second"), [("TRUNCATE o1", "TRUNCATE o2"), (LOSS, LOSS.replace("3", "4"))], ids=["partitions", "slot"]
)
async def test_a_second_loss_is_due_though_the_first_is_still_being_made_up_for(
    database: str, redis_url: str, first: str, second: str
) -> None:
    """As where a primary of L2 is away. What is remembered once both are made up for is what the last look saw."""
    await tell(database, PARTS.split(";"))
    names = PostgresSource.assumptions
    watched = Assumptions("test", names, WorkerHealth("test", names))
    async with gone_on(lambda: worker(database, redis_url)) as session:
        await tell(database, first.split(";"))
        assert watched.update((await session.look()).findings)
        assert not watched.update((await session.look()).findings), "it is under way"
        await tell(database, second.split(";"))
        due = watched.update((await session.look()).findings)
        assert due
        await session.made_up(due)
        assert not (await session.look()).findings


async def test_what_others_read_while_what_they_read_before_is_made_up_for_is_owed_once_more(
    database: str, redis_url: str
) -> None:
    """The worker goes on meanwhile, and so is beyond what they have read."""
    await tell(database, [*TABLE.split(";"), ROW])
    async with gone_on(lambda: worker(database, redis_url)) as session:
        await tell(database, LOSS.split(";"))
        due = [one for one in (await session.look()).findings if one.assumption == "slot"]
        assert due
        await tell(database, LOSS.replace("3", "4").split(";"))
        await tell(database, [ROW.replace("(1,", "(5,")])
        await until(lambda: _applied(session))
        await session.made_up(due)
        due = [one for one in (await session.look()).findings if one.assumption == "slot"]
        assert due, "it is owed: what was let go of before does not count"
        await session.made_up(due)
        assert not [one for one in (await session.look()).findings if one.assumption == "slot"]


async def _applied(session: Session) -> bool:
    """Something was taken, and the slot is behind it."""
    batch = await take(session)
    if batch.items:
        await session.acknowledge(batch, Left())
    return bool(batch.items)


async def test_a_branch_that_was_detached_for_a_while_is_made_up_for(database: str, redis_url: str) -> None:
    branch = """CREATE TABLE o3 PARTITION OF o FOR VALUES FROM (20) TO (40) PARTITION BY RANGE (x);
    CREATE TABLE o4 PARTITION OF o3 DEFAULT; ALTER TABLE o4 REPLICA IDENTITY FULL"""
    story = ["ALTER TABLE o DETACH PARTITION o3", "INSERT INTO o3 VALUES (1, 'acme', 20)", ATTACH.format("o3", 20, 40)]
    await lived_through(database, redis_url, f"{PARTS}; {branch}", story)


async def test_a_partition_that_is_new_and_empty_is_not_made_up_for(database: str, redis_url: str) -> None:
    await tell(database, PARTS.split(";"))
    one = worker(database, redis_url)
    async with Cache(quick(redis_url)) as cache, running(one):
        await put(cache)
        await tell(database, ["CREATE TABLE o3 PARTITION OF o DEFAULT; ALTER TABLE o3 REPLICA IDENTITY FULL"])
        seen = "SELECT tables -> 'public.o' -> 'parts' ? 'o3'::regclass::oid::text FROM cachebus_cdc_slots"
        await until(lambda: fetched(database, seen))
        assert await cache.get("o", 1, tenant_id="acme") == "old"


async def test_what_a_partition_does_not_tell_of_an_old_row_is_not_taken_for_null(
    database: str, redis_url: str
) -> None:
    """The stream says that old rows are whole, as the table says, and has nulls for what the partition leaves out."""
    rules = parse_rules(HEAD + RULE.format("o*", "o").replace('replica_identity = "full"', ""))
    await tell(database, [*PARTS.split(";"), "ALTER TABLE o1 REPLICA IDENTITY DEFAULT", ROW])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(database, redis_url, rules)):
        await until(lambda: one.follows)
        await put(cache)
        await tell(database, ["UPDATE o SET id = 3"])  # of that the new row tells the tenant
        await gone(cache)
        assert not await fetched(database, DEAD)
        await tell(database, ["DELETE FROM o"])
        await until(lambda: fetched(database, DEAD))
        payload = await fetched(database, "SELECT payload::jsonb -> 'old' FROM cachebus_cdc_dead")
        assert payload == '{"x": 1, "id": 3}'


async def test_what_a_partitions_index_does_not_tell_of_an_old_row_is_not_taken_for_null(
    database: str, redis_url: str
) -> None:
    """The stream says that old rows have the table's key, and has a null for what the partition's index leaves out."""
    rule = RULE.replace("{{id}}", "{{x}}").replace("{{tenant_id}}", "acme").replace('replica_identity = "full"', "")
    less = "CREATE UNIQUE INDEX only_id ON o1 (id); ALTER TABLE o1 REPLICA IDENTITY USING INDEX only_id"
    keyed = [f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT" for name in ("o", "o2")]
    await tell(database, [*PARTS.split(";"), *keyed, less, ROW])
    async with at_work(one := worker(database, redis_url, parse_rules(HEAD + rule.format("o*", "o")))):
        await until(lambda: one.follows)
        await tell(database, ["DELETE FROM o"])
        await until(lambda: fetched(database, DEAD))
        assert await fetched(database, "SELECT payload::jsonb -> 'old' FROM cachebus_cdc_dead") == '{"id": 1}'


INDEXED = """
CREATE TABLE o (id int NOT NULL, tenant_id text NOT NULL, x int NOT NULL) PARTITION BY RANGE (x);
ALTER TABLE o ADD PRIMARY KEY (id, tenant_id, x);
CREATE TABLE o1 PARTITION OF o DEFAULT;
CREATE UNIQUE INDEX of_whole ON o (id, tenant_id, x);
ALTER TABLE o REPLICA IDENTITY USING INDEX of_whole;
CREATE UNIQUE INDEX of_part ON o1 (id);
ALTER TABLE o1 REPLICA IDENTITY USING INDEX {}
"""


async def test_a_partition_whose_index_has_less_than_its_tables_is_told(database: str, redis_url: str) -> None:
    """Both say USING INDEX. The old row of an update has no tenant then."""
    await tell(database, [*INDEXED.format("of_part").split(";"), ROW])
    async with Cache(quick(redis_url)) as cache, at_work(one := worker(database, redis_url, NOT_FULL)):
        await until(lambda: one.follows)
        await until(lambda: "that of o1 is less than the table's" in why(one, "tables"))
        await put(cache)
        await tell(database, ["UPDATE o SET tenant_id = 'other'"])
        await tell(database, ["ALTER TABLE o1 REPLICA IDENTITY USING INDEX o1_id_tenant_id_x_idx"])
        await until(lambda: one.health.ready)
        await gone(cache)


async def test_a_partition_identified_by_another_kind_of_index_that_has_no_less_is_in_order(
    database: str, redis_url: str
) -> None:
    await tell(database, [*INDEXED.format("of_part").split(";"), "ALTER TABLE o1 REPLICA IDENTITY DEFAULT"])
    async with running(one := worker(database, redis_url, NOT_FULL)):
        looks = Looks(one)
        await until(lambda: looks.count > 1)
        assert one.health.ready


async def test_a_row_that_moves_to_another_partition_is_updated(database: str, redis_url: str) -> None:
    """It is told as a delete and an insert."""
    await tell(database, [*PARTS.split(";"), ROW])
    async with Cache(quick(redis_url)) as cache, running(worker(database, redis_url, parse_rules(HEAD + UPDATES))):
        await put(cache)
        await put(cache, 2)
        await tell(database, ["UPDATE o SET id = 2, x = 15"])
        await gone(cache, 1)
        await gone(cache, 2)


async def test_a_move_whose_old_row_is_not_told_is_no_letter(database: str, redis_url: str) -> None:
    """As of any update there: the table is warned of."""
    less = [f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT" for name in ("o", "o1", "o2")]
    rules = parse_rules(HEAD + UPDATES.replace('replica_identity = "full"', ""))
    await tell(database, [*PARTS.split(";"), *less, ROW])
    async with Cache(quick(redis_url)) as cache, running(worker(database, redis_url, rules)):
        await put(cache)
        await tell(database, ["UPDATE o SET x = 15"])
        await gone(cache)
        assert not await fetched(database, DEAD)
