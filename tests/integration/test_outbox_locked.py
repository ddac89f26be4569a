"""Rows that another session keeps locked are told, with who keeps them, and freed by what is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from cachebus import ConfigError
from cachebus.consumers.outbox import RelayOptions, create_tables, locked, replay
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.source import Batch, Left, NotSetAside
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import until
from tests.support.changes import tell
from tests.support.outbox import invalidation, put, waiting

LOCKS = {
    "FOR UPDATE": "SELECT FROM cachebus_outbox FOR UPDATE",
    "FOR SHARE": "SELECT FROM cachebus_outbox FOR SHARE",
    "behind a savepoint": "SAVEPOINT a; SELECT FROM cachebus_outbox FOR UPDATE",
    "removed": "DELETE FROM cachebus_outbox",
    "waiting": "UPDATE cachebus_outbox SET attempts = 7",
    "behind a savepoint that is released": "SAVEPOINT a; SELECT FROM cachebus_outbox FOR UPDATE; RELEASE a",
    "changed before that": "SAVEPOINT a; UPDATE cachebus_outbox SET attempts = 7; RELEASE a",
    "removed before that": "SAVEPOINT a; DELETE FROM cachebus_outbox; RELEASE a",
}
INSERTS = "INSERT INTO cachebus_outbox (namespace, command) VALUES ('{}', 'c')"


@pytest.fixture
async def session(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresSession]:
    """A relay's, of a table with a row."""
    monkeypatch.setattr(locked, "LOCKED_S", 0.0)
    await create_tables(database)
    async with connected(database) as connection:
        await put(connection, invalidation("x"))
    async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as opened:
        assert isinstance(opened, PostgresSession)
        yield opened


async def taken(session: PostgresSession) -> bool:
    """Whether it takes the row."""
    return bool((await session.take(10, ())).items)


@pytest.mark.parametrize("how", LOCKS)
async def test_a_session_that_keeps_rows_is_named_and_ended_by_what_is_told(
    database: str, session: PostgresSession, how: str
) -> None:
    assert (await session.look()).findings == []
    async with connected(database) as other:
        pid = await other.fetchval("SELECT pg_backend_pid()")
        await other.execute(f"SET application_name = 'psql'; BEGIN; {LOCKS[how]}")
        assert not await taken(session)
        (found,) = (await session.look()).findings
        assert (found.assumption, found.stops) == ("locks", False)
        assert f"the session {pid} (psql)" in found.subject + found.problem
        assert ("if nobody else" in found.problem) == ("RELEASE" in LOCKS[how])
        await tell(database, [found.remedy])
    await until(lambda: taken(session))


async def test_several_that_share_the_rows_are_all_named(database: str, session: PostgresSession) -> None:
    async with connected(database) as one, connected(database) as other:
        for sharer in (one, other):
            await sharer.execute("BEGIN; SELECT FROM cachebus_outbox FOR SHARE")
        assert not await taken(session)
        found = (await session.look()).findings
        assert len(found) == 2
        for sharer in (one, other):
            pid = await sharer.fetchval("SELECT pg_backend_pid()")
            (named,) = (finding for finding in found if f"the session {pid} (" in finding.subject)
            assert named.remedy == f"SELECT pg_terminate_backend({pid});"
        await tell(database, [finding.remedy for finding in found])
    await until(lambda: taken(session))


async def test_also_by_a_relay_that_may_not_see_since_when(database: str, session: PostgresSession) -> None:
    async with connected(database) as other:
        await other.execute(
            "CREATE ROLE sees_little LOGIN; GRANT SELECT, UPDATE, DELETE ON cachebus_outbox TO sees_little"
        )
        try:
            await other.execute("GRANT INSERT ON cachebus_outbox_dead TO sees_little")
            await other.execute("GRANT SELECT, INSERT, UPDATE ON cachebus_outbox_relays TO sees_little")
            await other.execute("BEGIN; SELECT FROM cachebus_outbox FOR UPDATE")
            url = database.replace("//postgres@", "//sees_little@")
            async with PostgresOutbox(url, "cachebus", RelayOptions()).opened() as little:
                (found,) = (await little.look()).findings
            assert str(await other.fetchval("SELECT pg_backend_pid()")) in found.remedy
        finally:
            await other.execute("ROLLBACK; DROP OWNED BY sees_little; DROP ROLE sees_little")


async def test_who_writes_beside_who_keeps_rows_may_be_the_one_if_nobody_can_tell(
    database: str, session: PostgresSession
) -> None:
    async with connected(database) as keeps, connected(database) as writes, connected(database) as reads:
        await writes.execute(f"BEGIN; {INSERTS.format('more')}")
        await reads.execute("BEGIN; SELECT FROM cachebus_outbox WHERE false FOR UPDATE")
        await keeps.execute(f"BEGIN; {LOCKS['changed before that']}")
        (found,) = (await session.look()).findings
        assert "one of these" in found.problem
        for one, named in ((keeps, True), (writes, True), (reads, False)):
            pid = await one.fetchval("SELECT pg_backend_pid()")
            assert (f"the session {pid} (" in found.problem) is named
        await writes.execute("ROLLBACK")
        (found,) = (await session.look()).findings
        assert found.remedy == f"SELECT pg_terminate_backend({await keeps.fetchval('SELECT pg_backend_pid()')});"


@pytest.mark.parametrize("savepoint", ["", "SAVEPOINT a; "])
async def test_who_writes_is_not_told_for_rows_that_nobody_keeps_any_more(
    database: str, session: PostgresSession, savepoint: str
) -> None:
    async with connected(database) as kept, connected(database) as writes:
        await kept.execute(f"BEGIN; {savepoint}SELECT FROM cachebus_outbox FOR UPDATE; ROLLBACK")
        assert await writes.fetchval("SELECT xmax::text FROM cachebus_outbox") != "0"
        await writes.execute(f"BEGIN; {INSERTS.format('more')}")
        assert (await session.look()).findings == []


@pytest.mark.parametrize("savepoint", ["", "SAVEPOINT a; "])
async def test_a_prepared_transaction_is_named_too(monkeypatch: pytest.MonkeyPatch, savepoint: str) -> None:
    monkeypatch.setattr(locked, "LOCKED_S", 0.0)
    with PostgresServer(settings={"max_prepared_transactions": "2"}) as server:
        await create_tables(server.url, notify=False)
        async with connected(server.url) as other:
            await put(other, invalidation("x"))
            await other.execute(f"BEGIN; {savepoint}SELECT FROM cachebus_outbox FOR UPDATE")
            await other.execute("PREPARE TRANSACTION 'it''s'")
        async with PostgresOutbox(server.url, "cachebus", RelayOptions()).opened() as session:
            (found,) = (await session.look()).findings
            database = server.url.rpartition("/")[2].partition("?")[0]
            sql = f"else, in the database {database}: COMMIT PREPARED 'it''s'; or ROLLBACK PREPARED 'it''s';"
            assert found.remedy == f"let the coordinator of 'it''s' decide; {sql}"
            await tell(server.url, ["ROLLBACK PREPARED 'it''s'"])
            assert (await session.look()).findings == []
            assert len((await session.take(10, ())).items) == 1


async def xmax(database: str) -> str:
    """The number of whoever has locked the row last."""
    async with connected(database) as connection:
        found: str = await connection.fetchval("SELECT xmax::text FROM cachebus_outbox")
        return found


@pytest.mark.parametrize("beside", ["nobody", "a writer of a moment", "a relay"])
async def test_a_look_locks_no_row_unless_somebody_may_have_it_for_long(
    database: str, session: PostgresSession, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    """It would write WAL, and hide the row from relays meanwhile."""
    async with connected(database) as other:
        await other.execute("UPDATE cachebus_outbox SET created_at = now() - interval '1 h'")
        await other.execute("BEGIN; SELECT FROM cachebus_outbox FOR UPDATE; ROLLBACK")
        before = await xmax(database)
        if beside != "nobody":
            await other.execute(f"BEGIN; {INSERTS.format('more')}")
        if beside == "a relay":
            await other.execute(f"SET application_name = '{locked.APPLICATION}'")
        monkeypatch.setattr(locked, "LOCKED_S", 60.0 if "moment" in beside else 0.0)
        assert (await session.look()).findings == []
        assert await xmax(database) == before


async def test_rows_that_a_look_has_found_free_are_not_locked_by_the_next(
    database: str, session: PostgresSession
) -> None:
    async with connected(database) as writes, connected(database) as keeps:
        await writes.execute("BEGIN; SELECT FROM cachebus_outbox FOR UPDATE; ROLLBACK")
        await writes.execute(f"BEGIN; {INSERTS.format('more')}")
        first = await xmax(database)
        assert (await session.look()).findings == []
        assert (own := await xmax(database)) != first
        assert (await session.look()).findings == []
        assert await xmax(database) == own
        await keeps.execute(f"BEGIN; {LOCKS['behind a savepoint that is released']}")
        (found,) = (await session.look()).findings
        assert str(await keeps.fetchval("SELECT pg_backend_pid()")) in found.remedy


async def test_a_short_transaction_and_another_relay_are_not_told(
    database: str, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as other:
        await other.take(10, ())
        assert (await session.look()).findings == []
    monkeypatch.setattr(locked, "LOCKED_S", 60.0)
    async with connected(database) as writer:
        await writer.execute("UPDATE cachebus_outbox SET created_at = now() - interval '1 h'")
        await writer.execute("BEGIN; SELECT FROM cachebus_outbox FOR UPDATE")
        assert (await session.look()).findings == []


TABLES = {
    "ACCESS EXCLUSIVE": "LOCK TABLE cachebus_outbox IN ACCESS EXCLUSIVE MODE",
    "SHARE": "LOCK TABLE cachebus_outbox IN SHARE MODE",
    "of what relays remember": "LOCK TABLE cachebus_outbox_relays IN ACCESS EXCLUSIVE MODE",
    "a row of that": "SELECT FROM cachebus_outbox_relays FOR UPDATE",
    "a row that is changed": "SAVEPOINT a; UPDATE cachebus_outbox_relays SET missed = missed; RELEASE a",
}


@pytest.mark.parametrize("how", TABLES)
async def test_a_table_that_is_locked_is_told_and_freed_by_what_is_told(
    database: str, session: PostgresSession, how: str
) -> None:
    assert (await session.look()).findings == []
    async with connected(database) as other:
        pid = await other.fetchval("SELECT pg_backend_pid()")
        await other.execute("INSERT INTO cachebus_outbox_relays VALUES ('cachebus', 'before', 0, 0)")
        await other.execute(f"SET application_name = 'psql'; BEGIN; {TABLES[how]}")
        batch = await session.take(10, ())
        if batch.items:  # only their removal waits
            await session.acknowledge(batch, Left())
        (found,) = (await session.look()).findings
        assert (found.assumption, found.stops) == ("locks", False)
        assert re.search(rf"the session {pid} \(psql\)(, if nobody else,)? has locked it", found.problem)
        await tell(database, [found.remedy])
    await until(session_is_sound(session))
    session._rest_until_s = float("-inf")
    await session.acknowledge(await session.take(10, ()), Left())
    assert await waiting(database) == 0


def session_is_sound(session: PostgresSession) -> Callable[[], Awaitable[bool]]:
    """Whether a look finds nothing."""

    async def sound() -> bool:
        return not (await session.look()).findings

    return sound


async def test_who_keeps_somebody_from_locking_the_table_is_told(database: str, session: PostgresSession) -> None:
    """Everybody waits behind the one who waits."""
    async with connected(database) as reads, connected(database) as alters:
        pid = await reads.fetchval("SELECT pg_backend_pid()")
        await reads.execute("BEGIN; SELECT FROM cachebus_outbox")
        altering = asyncio.create_task(alters.execute("ALTER TABLE cachebus_outbox ADD COLUMN more text"))
        await until(lambda: is_waiting(reads))
        (found,) = (await session.look()).findings
        assert f"the session {pid} (" in found.problem
        assert "has the session" in found.problem
        await tell(database, [found.remedy])
        await altering
    await until(session_is_sound(session))


async def is_waiting(connection: asyncpg.Connection) -> bool:
    """Whether somebody waits for a lock."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))


async def test_a_table_of_the_dead_that_is_locked_is_told(database: str, session: PostgresSession) -> None:
    (item,) = (await session.take(10, ())).items
    async with connected(database) as other:
        await other.execute("BEGIN; LOCK TABLE cachebus_outbox_dead IN ACCESS EXCLUSIVE MODE")
        letter = session.letter(item, "odd")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await session.set_aside([letter])
        await session.acknowledge(Batch([item]), Left(not_set_aside=[NotSetAside(item, letter)]))
        (found,) = (await session.look()).findings
        assert "can't be set aside" in found.problem
        await tell(database, [found.remedy])
    await until(session_is_sound(session))


async def test_what_is_locked_by_who_knows_whom_is_told_once_it_is_refused_twice(
    database: str, session: PostgresSession
) -> None:
    assert (await session.look()).findings == []
    async with connected(database) as other:
        await other.execute("SELECT pg_advisory_lock(hashtext('cachebus takers'), hashtext($1))", session._what())
        assert not await taken(session)
        assert (await session.look()).findings == []
        assert (await session.look()).findings == []
        session._rest_until_s = float("-inf")
        assert not await taken(session)
        for _ in range(2):
            (found,) = (await session.look()).findings
            assert (found.assumption, found.stops) == ("locks", False)
            assert table_locks.UNTOLD in found.problem
        assert str(await other.fetchval("SELECT pg_backend_pid()")) not in found.problem
    session._rest_until_s = float("-inf")
    assert await taken(session)
    await session.acknowledge(Batch(list(session._in_hand.values())), Left())
    assert (await session.look()).findings == []


async def test_who_may_be_about_to_remember_is_told_once_a_lock_is_refused_twice(
    database: str, session: PostgresSession
) -> None:
    assert (await session.look()).findings == []
    async with connected(database) as other:
        await other.execute("BEGIN; INSERT INTO cachebus_outbox_relays VALUES ('cachebus', 'another', 0, 0)")
        for _ in range(2):
            session._rest_until_s = float("-inf")
            assert not await taken(session)
            found = (await session.look()).findings
        assert f"the session {await other.fetchval('SELECT pg_backend_pid()')} (" in found[0].problem
        await tell(database, [found[0].remedy])
    session._rest_until_s = float("-inf")
    assert await taken(session)


async def test_a_relay_that_begins_looks_whether_its_row_is_locked(database: str, session: PostgresSession) -> None:
    assert (await session.look()).findings == []
    assert await taken(session)
    async with connected(database) as other:
        await other.execute(f"BEGIN; {TABLES['a row that is changed']}")
        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as later:
            (found,) = (await later.look()).findings
            assert str(await other.fetchval("SELECT pg_backend_pid()")) in found.remedy


async def test_who_locks_another_namespaces_row_is_not_told_once_its_own_is_free(
    database: str, session: PostgresSession
) -> None:
    remembers = "SELECT FROM cachebus_outbox_relays WHERE namespace = '{}' FOR UPDATE"
    assert (await session.look()).findings == []
    async with connected(database) as one, connected(database) as other:
        await one.execute("INSERT INTO cachebus_outbox_relays VALUES ('cachebus', 'before', 0, 0), ('more', 'x', 0, 0)")
        await other.execute(f"BEGIN; {remembers.format('more')}")
        await one.execute(f"BEGIN; {remembers.format('cachebus')}")
        assert not await taken(session)
        await one.execute("COMMIT")
        assert (await session.look()).findings == []


SET_ASIDE = """
INSERT INTO cachebus_outbox_dead (namespace, row_id, command, reason, attempts, created_at)
VALUES ('cachebus', 1, 'c', 'r', 1, now())
"""
REPLAYED = {
    "the table of the dead": "LOCK TABLE cachebus_outbox_dead IN SHARE MODE",
    "the table of rows": "LOCK TABLE cachebus_outbox IN ACCESS EXCLUSIVE MODE",
    "a row": "SELECT FROM cachebus_outbox_dead WHERE id = 1 FOR UPDATE",
    "a row behind a savepoint": "SAVEPOINT a; UPDATE cachebus_outbox_dead SET attempts = 7 WHERE id = 1; RELEASE a",
}


@pytest.mark.parametrize("how", REPLAYED)
async def test_who_keeps_rows_from_being_brought_back_is_told_and_ended_by_what_is_told(
    database: str, session: PostgresSession, how: str
) -> None:
    """The others are brought back."""
    others = 2 if how.startswith("a row") else 0
    async with connected(database) as connection, connected(database) as other:
        for _ in range(3):
            await connection.execute(SET_ASIDE)
        pid = await other.fetchval("SELECT pg_backend_pid()")
        await other.execute(f"SET application_name = 'psql'; BEGIN; {REPLAYED[how]}")
        with pytest.raises(ConfigError, match=rf"the session {pid} \(psql\)") as refused:
            await replay(database, "cachebus")
        said = str(refused.value)
        assert (f"{others} rows are back" in said) == bool(others)
        await tell(database, [said[said.index("SELECT pg_terminate") :]])
        assert await replay(database, "cachebus") == 3 - others


async def test_who_has_dead_rows_for_a_moment_only_is_waited_for(database: str, session: PostgresSession) -> None:
    """As another one has who brings them back."""
    async with connected(database) as connection, connected(database) as other:
        await connection.execute(SET_ASIDE)
        await other.execute("BEGIN; DELETE FROM cachebus_outbox_dead")
        again = asyncio.create_task(replay(database, "cachebus"))
        await until(lambda: is_waiting(connection))
        await other.execute("COMMIT")
        assert await again == 0
