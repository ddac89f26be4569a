"""Tables of an outbox that a relay's role may not see: it is told which right that takes, and not to make another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest

from cachebus.consumers.outbox import RelayOptions, create_tables, elsewhere, replay
from cachebus.consumers.outbox.database import describe
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.worker.source import Look
from tests.conftest import connected
from tests.support.caches import until
from tests.support.outbox import invalidation

ROLE: Final = "relay_that_is_shut_out"
RIGHTS: Final = f"""\
GRANT SELECT, UPDATE, DELETE ON app.cachebus_outbox TO {ROLE}; GRANT INSERT ON app.cachebus_outbox_dead TO {ROLE};
GRANT SELECT, INSERT, UPDATE ON app.cachebus_outbox_relays TO {ROLE}"""
INTO_APP: Final = "INSERT INTO app.cachebus_outbox (namespace, command) VALUES ($1, $2)"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows need not lie for long to be told, and other tables are searched for at each look."""
    monkeypatch.setattr(elsewhere, "UNSERVED_S", 0)
    monkeypatch.setattr(elsewhere, "SEARCH_S", 0.0)


@pytest.fixture
async def admin(database: str) -> AsyncIterator[asyncpg.Connection]:
    """Whoever may all, where the schema `app` has an outbox, and a relay's role finds that schema first."""
    async with connected(database) as connection:
        await connection.execute("CREATE SCHEMA app")
        await create_tables(database, "app.cachebus_outbox")
        await connection.execute(f"CREATE ROLE {ROLE} LOGIN")
        try:
            await connection.execute(f"ALTER ROLE {ROLE} SET search_path = 'App', app, \"$user\", public")
            yield connection
        finally:
            await connection.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


def source_for(database: str, table: str = "cachebus_outbox") -> PostgresOutbox:
    """The source of a relay that logs in as the role."""
    return PostgresOutbox(database.replace("//postgres@", f"//{ROLE}@"), "cachebus", RelayOptions(table))


async def look_at(database: str) -> Look:
    """What a look alone finds."""
    async with source_for(database).opened() as session:
        return await session.look()


async def test_a_table_in_a_schema_that_the_role_may_not_use_is_not_told_to_be_made(
    database: str, admin: asyncpg.Connection
) -> None:
    await admin.execute(RIGHTS)
    (found,) = (await look_at(database)).findings
    assert (found.assumption, found.stops) == ("rights", True)
    assert found.remedy == f"GRANT USAGE ON SCHEMA app TO {ROLE};"
    await admin.execute(found.remedy)
    assert (await look_at(database)).findings == []


async def test_one_that_comes_first_is_told_where_another_one_is_found_behind_it(
    database: str, admin: asyncpg.Connection
) -> None:
    """As where the relay's role has made one."""
    await create_tables(database, "public.cachebus_outbox")
    await admin.execute(f"{RIGHTS}; {RIGHTS.replace('app.', 'public.')}")
    (found,) = (await look_at(database)).findings
    assert (found.assumption, found.stops) == ("rights", False)
    assert "found as public.cachebus_outbox" in found.problem
    await admin.execute(found.remedy)
    assert (await look_at(database)).findings == []
    await admin.execute(f"REVOKE USAGE ON SCHEMA app FROM {ROLE}; ALTER ROLE {ROLE} SET search_path = public, app")
    assert (await look_at(database)).findings == [], "it comes behind"


@pytest.mark.usefixtures("admin")
async def test_who_replays_letters_there_is_not_told_to_make_a_table_either(database: str) -> None:
    url = database.replace("//postgres@", f"//{ROLE}@")
    with pytest.raises(asyncpg.UndefinedTableError) as raised:
        await replay(url, "cachebus")
    assert describe(raised.value, url).endswith(
        "; `cachebus worker check outbox --table cachebus_outbox` says what helps"
    )


async def test_one_that_the_search_path_does_not_name_is_told_before_another_one_is_made(
    database: str, admin: asyncpg.Connection
) -> None:
    await admin.execute(f"ALTER ROLE {ROLE} SET search_path = public")
    (found,) = (await look_at(database)).findings
    assert (found.assumption, found.stops) == ("table", True)
    grants = f"GRANT USAGE ON SCHEMA app TO {ROLE}; GRANT SELECT ON app.cachebus_outbox TO {ROLE};"
    assert grants in found.remedy
    assert "--table app.cachebus_outbox; else cachebus worker outbox --create-table" in found.remedy


@pytest.mark.parametrize("may_use_the_schema", [True, False])
async def test_rows_where_the_role_may_not_look_are_warned_of(
    database: str, admin: asyncpg.Connection, *, may_use_the_schema: bool
) -> None:
    """Writers find that table, and the relay another one."""
    if may_use_the_schema:
        await admin.execute(f"GRANT USAGE ON SCHEMA app TO {ROLE}; ALTER ROLE {ROLE} SET search_path = public")
    await create_tables(database, "public.cachebus_outbox")
    await admin.execute(f"{RIGHTS.replace('app.', 'public.')}; {RIGHTS.partition(';')[2]}")
    look = await look_at(database)
    assert list(look.warnings) == [], "it has had no rows"
    assert [one.assumption for one in look.findings] == ([] if may_use_the_schema else ["rights"])
    async with connected(database) as writer:
        await writer.execute(INTO_APP, "cachebus", invalidation("x"))

    async def is_warned_of() -> bool:
        return bool((await look_at(database)).warnings)

    await until(is_warned_of)  # the server counts rows a little later
    look = await look_at(database)
    (warning,) = look.warnings
    assert "beside app.cachebus_outbox" in warning
    await admin.execute(warning.partition("other application's: ")[2])
    look = await look_at(database)
    assert list(look.warnings) == []
    if may_use_the_schema:
        (found,) = look.findings
        assert "wait in app.cachebus_outbox" in found.problem
    else:
        assert [one.assumption for one in look.findings] == ["rights"], "the search_path finds it"


async def test_a_table_that_a_relay_serves_is_no_matter_of_another_role(
    database: str, admin: asyncpg.Connection
) -> None:
    await create_tables(database, "public.cachebus_outbox")
    await admin.execute(f"{RIGHTS.replace('app.', 'public.')}; ALTER ROLE {ROLE} SET search_path = public")
    await admin.execute(INTO_APP, "cachebus", invalidation("x"))
    await admin.execute("ANALYZE app.cachebus_outbox")
    assert len((await look_at(database)).warnings) == 1
    async with PostgresOutbox(database, "cachebus", RelayOptions("app.cachebus_outbox")).opened():
        assert (await look_at(database)).warnings == []


@pytest.mark.parametrize("path", ["app, public", "public, app"])
async def test_a_relay_that_is_shut_out_of_the_table_it_took_rows_from_is_mended_by_the_sql_that_is_told(
    database: str, admin: asyncpg.Connection, path: str
) -> None:
    """The SQL is obeyed by a role whose search_path finds the other table. Rows of other namespaces stay."""
    await admin.execute(f"{RIGHTS}; GRANT USAGE ON SCHEMA app TO {ROLE}; ALTER ROLE {ROLE} SET search_path = {path}")
    source = source_for(database)
    async with source.opened() as session:
        assert (await session.look()).findings == []
        await create_tables(database, "public.cachebus_outbox")
        await admin.execute(RIGHTS.replace("app.", "public."))
        await admin.executemany(INTO_APP, [("cachebus", invalidation("x")), ("shop", invalidation("x"))])
        await admin.execute(f"REVOKE USAGE ON SCHEMA app FROM {ROLE}; SET search_path = app, public")
        *_, found = (await session.look()).findings
        assert "another table was swapped in" in found.problem
        assert found.remedy == f"GRANT USAGE ON SCHEMA app TO {ROLE};"
        await admin.execute(found.remedy)
        if path == "public, app":
            (found, *_) = (await session.look()).findings
            assert "rows lie in app.cachebus_outbox" in found.problem
            await admin.execute(found.remedy)
        look = await session.look()
        assert [one for one in look.findings if one.assumption == "table"] == []
        assert look.backlog == 1
    assert await admin.fetchval("SELECT count(*) FROM app.cachebus_outbox WHERE namespace = 'shop'") == 1
