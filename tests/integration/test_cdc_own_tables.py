"""The tables of a slot's worker: where they lie, what is told where they are not as they must be, and what others take
from them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from cachebus.consumers.cdc.slot import own_tables
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.preflight import preflight
from tests.support.caches import until
from tests.support.cdc_surroundings import TABLE, Away, Looks, at_work, following, worker
from tests.support.changes import Heard, fetched, tell
from tests.support.worker_health import why

PUT = "INSERT INTO o VALUES ('{}', 'acme')"
ALL = "D acme o"
HELD = "SELECT count(*) FROM cachebus_cdc_held"
ENDS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-cdc%'"
EATS = "CREATE FUNCTION app.eats() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


class Admin:
    """Obeys what a worker says of its tables, word by word and once: as another role, with another search_path."""

    def __init__(self, one: SlotWorker, database: str) -> None:
        self._one, self._database = one, database
        self.obeyed = set[str]()

    async def is_done(self) -> bool:
        """Whether the worker is ready."""
        known = self._one._watcher._assumptions._known.values()
        said = {one.finding.remedy for one in known if one.finding.assumption == "storage" and one.finding.remedy}
        for remedy in said - self.obeyed:
            self.obeyed.add(remedy)
            connection = await asyncpg.connect(self._database)
            try:
                await connection.execute("SET search_path = pg_catalog")
                await connection.execute(remedy)
            finally:
                await connection.close()
        return not said and self._one.health.ready


@pytest.mark.parametrize(
    "taken",
    [
        "DROP TABLE cachebus_cdc_held",
        "TRUNCATE cachebus_cdc_held",
        "DELETE FROM cachebus_cdc_held WHERE id = (SELECT min(id) FROM cachebus_cdc_held)",
        "ALTER TABLE cachebus_cdc_held DROP COLUMN command",
    ],
    ids=["dropped", "truncated", "deleted", "another release's"],
)
async def test_held_commands_that_others_have_removed_are_made_up_for(
    database: str, redis_url: str, taken: str
) -> None:
    async with following(database, redis_url) as (one, heard, away):
        admin = Admin(one, database)
        await tell(database, [PUT.format("first")])
        await until(lambda: heard.has("o", "first"))
        away.lasts, before = True, heard.asked[ALL]
        await tell(database, [PUT.format("a"), PUT.format("b")])
        await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 2"))
        await tell(database, [taken])
        away.lasts = False

        async def is_made_up() -> bool:
            await admin.is_done()
            return heard.asked[ALL] > before

        await until(is_made_up)
        await until(lambda: one.health.ready)
        await until(lambda: fetched(database, "SELECT held = 0 FROM cachebus_cdc_slots"))
        times, looks = heard.asked[ALL], Looks(one)
        await tell(database, [PUT.format("behind")])
        await until(lambda: heard.has("o", "behind"))
        await until(lambda: looks.count > 3)
        assert heard.asked[ALL] == times, "it is let go of once"


async def test_held_commands_that_others_have_replaced_by_as_many_are_made_up_for(
    database: str, redis_url: str
) -> None:
    """The table is restored to a state of before, when as many were held."""
    async with following(database, redis_url) as (one, heard, away):
        away.lasts = True
        await tell(database, [PUT.format("a"), PUT.format("b")])
        await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 2"))
        await tell(database, ["CREATE TABLE saved AS TABLE cachebus_cdc_held"])
        away.lasts = False
        await until(lambda: fetched(database, "SELECT count(*) = 0 FROM cachebus_cdc_held"))
        away.lasts, before = True, heard.asked[ALL]
        await tell(database, [PUT.format("c"), PUT.format("d")])
        await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 2"))
        restored = "INSERT INTO cachebus_cdc_held OVERRIDING SYSTEM VALUE TABLE saved"
        await tell(database, [f"BEGIN; DELETE FROM cachebus_cdc_held; {restored}; COMMIT"])
        away.lasts = False
        await until(lambda: heard.asked[ALL] > before)
        await until(lambda: fetched(database, "SELECT held = 0 FROM cachebus_cdc_slots"))
        times, looks = heard.asked[ALL], Looks(one)
        await until(lambda: looks.count > 3)
        assert heard.asked[ALL] == times, "it is let go of once"


async def test_held_commands_that_are_let_go_of_in_order_are_not(database: str, redis_url: str) -> None:
    async with following(database, redis_url) as (one, heard, away):
        away.lasts, before = True, heard.asked[ALL]
        await tell(database, [PUT.format("a"), PUT.format("b"), "UPDATE o SET tenant_id = 'acme'"])
        await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 2"))
        await tell(database, [ENDS])
        away.lasts = False
        await until(lambda: fetched(database, "SELECT count(*) = 0 FROM cachebus_cdc_held"), within_s=20)
        looks = Looks(one)
        await until(lambda: looks.count > 3)
        assert heard.has("o", "a")
        assert heard.asked[ALL] == before


@pytest.mark.parametrize("taken", ["DROP TABLE cachebus_cdc_slots", "TRUNCATE cachebus_cdc_slots"])
async def test_what_was_owed_where_all_that_is_remembered_is_gone_is_made_up_for(
    database: str, redis_url: str, taken: str
) -> None:
    """A worker has followed the slot, which is there: it is not begun with as if it were new."""
    await tell(database, TABLE)
    async with at_work(one := worker(database, redis_url)):
        await until(lambda: one.follows and one.health.ready)
    await tell(database, ["UPDATE cachebus_cdc_slots SET whole = false", taken])
    one = worker(database, redis_url)
    heard = Heard(one)
    async with at_work(one):
        await until(lambda: heard.asked[ALL])
        await until(lambda: fetched(database, "SELECT whole FROM cachebus_cdc_slots"))


async def test_a_slot_that_is_removed_as_documented_while_its_worker_runs_is_made_up_for(
    database: str, redis_url: str
) -> None:
    await tell(database, TABLE)
    one = worker(database, redis_url)
    heard = Heard(one)
    async with at_work(one):
        await until(lambda: one.follows and one.health.ready)
        assert not heard.asked[ALL]
        gone = "SELECT pg_drop_replication_slot('cachebus_cdc')", "DELETE FROM cachebus_cdc_slots"
        await until(lambda: removed(database, gone))
        await until(lambda: heard.asked[ALL], within_s=20)


async def removed(database: str, sql: Sequence[str]) -> bool:
    """Whether it could be: the worker has the slot in use now and then."""
    connection = await asyncpg.connect(database)
    try:
        async with connection.transaction():
            for one in sql:
                await connection.execute(one)
    except asyncpg.ObjectInUseError:
        return False
    finally:
        await connection.close()
    return True


@pytest.mark.parametrize(
    "tables",
    [
        "jsonb_set(tables, '{public.o}', (tables -> 'public.o') - 'parts')",
        "jsonb_set(tables, '{public.o}', (tables -> 'public.o') || '{\"rules\": [{}]}')",
        "'[]'",
        "'null'",
        "'{\"public.o\": 1}'",
    ],
)
async def test_what_is_remembered_and_cant_be_read_was_never_looked_at(
    database: str, redis_url: str, tables: str
) -> None:
    await tell(database, TABLE)
    async with at_work(one := worker(database, redis_url)):
        await until(lambda: one.follows and one.health.ready)
    summed = "UPDATE cachebus_cdc_slots SET tables_sum = hashtext(tables::text)"  # as another release may do
    await tell(database, [f"UPDATE cachebus_cdc_slots SET tables = {tables}", summed])
    checked = {one.what: one for one in await preflight(worker(database, redis_url))}
    assert "what was changed before was not told" in str(checked["database"].warnings)
    one = worker(database, redis_url)
    heard = Heard(one)
    async with at_work(one):
        await tell(database, [PUT.format("behind")])
        await until(lambda: heard.has("o", "behind"))
        await until(lambda: heard.asked[ALL])
        await until(lambda: one.health.ready)
        await until(lambda: fetched(database, "SELECT tables -> 'public.o' ? 'parts' FROM cachebus_cdc_slots"))


async def test_another_search_path_hides_nothing(database: str, redis_url: str) -> None:
    """What is held stays in the tables that are there, and no others are made."""
    await tell(database, [*TABLE, "CREATE SCHEMA app"])
    one = worker(database, redis_url)
    heard, away = Heard(one), Away(one)
    async with at_work(one):
        away.lasts = False
        await until(lambda: one.follows and one.health.ready)
        away.lasts, before = True, heard.asked[ALL]
        await tell(database, [PUT.format("a")])
        await until(lambda: fetched(database, f"{HELD} HAVING count(*) = 1"))
        name = database.rpartition("/")[2]
        await tell(database, [f'ALTER DATABASE "{name}" SET search_path = app', ENDS])
        await until(lambda: not one.follows)
        await until(lambda: one.follows, within_s=20)
        away.lasts = False
        await until(lambda: heard.has("o", "a"))
        assert await fetched(database, "SELECT to_regclass('app.cachebus_cdc_held')") is None
        assert heard.asked[ALL] == before


async def test_what_is_applied_is_counted_though_the_slot_may_not_go_behind_it(database: str, redis_url: str) -> None:
    await tell(database, TABLE)
    one = worker(database, redis_url)
    heard = Heard(one)
    async with at_work(one):
        await until(lambda: one.follows and one.health.ready)
        # Until then the slot moves, as it does where a worker has just begun.
        when = "BEGIN IF EXISTS (SELECT FROM o WHERE id = ''a'') THEN RETURN NULL; END IF; RETURN NEW; END"
        eats = EATS.replace("app.", "").replace("BEGIN RETURN NULL; END", when)
        trigger = "CREATE TRIGGER eats BEFORE UPDATE ON cachebus_cdc_slots FOR EACH ROW EXECUTE FUNCTION eats()"
        await tell(database, [eats, trigger, PUT.format("first")])
        await until(lambda: one.meters.count("applied") == 1)
        await tell(database, [PUT.format("a")])
        await until(lambda: heard.has("o", "a") and why(one, "storage"))
        await tell(database, ["DROP TRIGGER eats ON cachebus_cdc_slots"])
        await until(lambda: one.health.ready)
        await tell(database, [PUT.format("b")])
        await until(lambda: heard.has("o", "b"))
        await until(lambda: one.meters.count("applied") == 3)
        assert heard.asked["K acme:o:a"] == 1


async def test_letters_that_lie_there_are_a_figure_also_after_a_restart(database: str, redis_url: str) -> None:
    await tell(database, TABLE)
    first = worker(database, redis_url)
    async with at_work(first):
        await until(lambda: first.follows and first.health.ready)
        await tell(database, [PUT.format("q" * 600)])
        await until(lambda: first.meters.registry.get_sample_value("cachebus_cdc_dead_letters") == 1)
    async with at_work(one := worker(database, redis_url)):
        await until(lambda: one.meters.registry.get_sample_value("cachebus_cdc_dead_letters") == 1)
        assert one.meters.count("dead") == 0
        await tell(database, ["DELETE FROM cachebus_cdc_dead"])
        await until(lambda: one.meters.registry.get_sample_value("cachebus_cdc_dead_letters") == 0)


async def test_a_slot_of_another_name_that_nobody_follows_is_warned_of(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_tables, "LEFT_BYTES", -1)
    await tell(database, TABLE)
    before, one = worker(database, redis_url, slot="before"), worker(database, redis_url)
    async with at_work(one):
        async with at_work(before):
            await until(lambda: before.follows and one.follows)
            looks = Looks(one)
            await until(lambda: looks.count > 2)
            assert not one.source._warned, "it is followed"
        await until(lambda: one.source._warned)
        [warning] = one.source._warned
        assert warning.startswith("the slot before of the namespace 'cachebus' keeps WAL as well")
        await tell(database, [warning.partition("where none will, ")[2]])
        await until(lambda: not one.source._warned)


# -- remedies ----------------------------------------------------------------------------------------------------------

SECURED = "ALTER TABLE cachebus_cdc_held ENABLE ROW LEVEL SECURITY"
OWN = "cachebus_cdc_slots", "cachebus_cdc_held", "cachebus_cdc_dead"


@pytest.fixture
async def role(database: str) -> AsyncIterator[str]:
    """A role that may do the least, and whose tables lie in a schema of their own."""
    name = f"Cdc {database.rpartition('_')[2]}"
    quoted = f'"{name}"'
    await tell(
        database,
        [
            *TABLE,
            "CREATE SCHEMA app",
            f"CREATE ROLE {quoted} LOGIN REPLICATION",
            f"ALTER ROLE {quoted} SET search_path = app",
            f"GRANT USAGE, CREATE ON SCHEMA app TO {quoted}",
            "CREATE PUBLICATION cachebus_cdc FOR TABLE o WITH (publish_via_partition_root = true)",
        ],
    )
    yield name
    await tell(database, [f"DROP OWNED BY {quoted}", f"DROP ROLE {quoted}"])


@pytest.mark.parametrize(
    "broken",
    [
        *(f"DROP TABLE {name}; REVOKE CREATE ON SCHEMA app FROM {{}}" for name in OWN),
        *(f"ALTER TABLE {name} DROP COLUMN {column}" for name, column in zip(OWN, ("held", "at", "at"), strict=True)),
        *(f"ALTER TABLE {name} DROP COLUMN {column}" for name, column in zip(OWN, ("tables", "id", "id"), strict=True)),
        *(f"REVOKE UPDATE, DELETE ON {name} FROM {{}}" for name in OWN),
        "REVOKE USAGE ON SCHEMA app FROM {}",
        "CREATE RULE eats AS ON UPDATE TO cachebus_cdc_slots DO INSTEAD NOTHING",
        SECURED,
        f'{SECURED}; CREATE POLICY "cachebus {{0[1]}}" ON cachebus_cdc_held USING (false)',
        f"{SECURED}; CREATE POLICY dba ON cachebus_cdc_held AS RESTRICTIVE USING (shard > 100)",
        f"{EATS}; CREATE TRIGGER eats BEFORE UPDATE ON cachebus_cdc_slots FOR EACH ROW EXECUTE FUNCTION app.eats()",
    ],
)
async def test_each_remedy_mends_it_whoever_obeys(database: str, redis_url: str, role: str, broken: str) -> None:
    theirs = database.replace("postgres@", f"{role.replace(' ', '%20')}@")
    first = worker(theirs, redis_url)
    async with at_work(first):
        await until(lambda: first.follows and first.health.ready)
    quoted = f'"{role}"'
    given = [f"ALTER TABLE app.{name} OWNER TO postgres; GRANT ALL ON app.{name} TO {quoted}" for name in OWN]
    sql = broken.replace("{0[1]}", role).replace("{}", quoted)
    await tell(database, [*given, f"SET search_path = app; {sql}"])
    one = worker(theirs, redis_url)
    heard, admin = Heard(one), Admin(one, database)
    async with at_work(one):
        await tell(database, [PUT.format("behind")])
        await until(lambda: not one.health.ready or heard.has("o", "behind"))
        assert why(one, "storage") or not heard.has("o", "behind")
        await until(admin.is_done, within_s=20)
        await until(lambda: heard.has("o", "behind"), within_s=20)
        assert not why(one, "storage")
        assert await fetched(database, "SELECT count(*) FROM pg_tables WHERE tablename = ANY ($1)", list(OWN)) == 3


READS = (
    "ALTER TABLE app.cachebus_cdc_slots ENABLE ROW LEVEL SECURITY;"
    "CREATE POLICY reads ON app.cachebus_cdc_slots FOR SELECT USING (true)"
)


@pytest.mark.parametrize(
    "broken",
    [
        ["REVOKE UPDATE ON app.cachebus_cdc_slots FROM {}"],
        ["REVOKE INSERT ON app.cachebus_cdc_slots FROM {}"],
        [READS],
        [READS, "REVOKE UPDATE ON app.cachebus_cdc_slots FROM {}"],
    ],
    ids=["no update", "no insert", "rows that are shown alone", "both"],
)
async def test_what_keeps_a_worker_from_writing_is_told_and_nothing_of_the_slot_that_nobody_has_read(
    database: str, redis_url: str, role: str, broken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds that by a write, before a look does."""
    theirs = database.replace("postgres@", f"{role.replace(' ', '%20')}@")
    quoted = f'"{role}"'
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 60.0)
    one = worker(theirs, redis_url)
    heard, admin = Heard(one), Admin(one, database)
    async with at_work(one):
        await until(lambda: one.follows and one.health.ready)
        monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)
        given = [f"ALTER TABLE app.{name} OWNER TO postgres; GRANT ALL ON app.{name} TO {quoted}" for name in OWN]
        await tell(database, [*given, broken[0].format(quoted)])
        if "INSERT" in broken[0]:  # of which it needs none now
            await tell(database, [ENDS])
        await tell(database, [PUT.format("before")])
        if broken[1:]:
            await until(lambda: one.source.mending.suspects)
            await tell(database, [sql.format(quoted) for sql in broken[1:]])
            await until(lambda: "lacks UPDATE" in why(one, "storage"))
        await until(lambda: "to mend it: " in why(one, "storage"))
        assert not why(one, "slot")
        found = {checked.what: checked.findings for checked in await preflight(worker(theirs, redis_url))}
        assert found["storage"] and not found["slot"]
        await until(admin.is_done, within_s=20)
        await tell(database, [PUT.format("behind")])
        await until(lambda: heard.has("o", "before") and heard.has("o", "behind"))


async def test_a_backup_of_what_is_remembered_is_not_taken_for_it(database: str, redis_url: str) -> None:
    """It has gone as far, and its schema comes first by name."""
    await tell(database, TABLE)
    async with at_work(one := worker(database, redis_url)):
        await until(lambda: one.follows and one.health.ready)
    copy = "CREATE SCHEMA a_backup; CREATE TABLE a_backup.cachebus_cdc_slots AS TABLE cachebus_cdc_slots"
    await tell(database, [copy])
    checked = await preflight(worker(database, redis_url))
    assert not [one for one in checked if one.what == "storage" and one.findings]
