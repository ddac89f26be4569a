"""Who keeps rows locked, where the database tells that badly: those who share a row, one of several, a transaction
whose begin a role may not see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from cachebus import ConfigError
from cachebus.consumers.outbox import RelayOptions, create_tables, locked, replay
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.source import Finding
from tests.conftest import connected
from tests.support.caches import until
from tests.support.changes import tell
from tests.support.outbox import invalidation, put

INSERTS = "INSERT INTO cachebus_outbox (namespace, command) VALUES ('more', 'c')"
SHARE = "SELECT FROM cachebus_outbox WHERE namespace = 'cachebus' FOR {}"
LITTLE = (
    "CREATE ROLE sees_little LOGIN",
    "GRANT SELECT, UPDATE, DELETE ON cachebus_outbox TO sees_little",
    "GRANT INSERT ON cachebus_outbox_dead TO sees_little",
    "GRANT SELECT, INSERT, UPDATE ON cachebus_outbox_relays TO sees_little",
)


@pytest.fixture
async def rows(database: str) -> str:
    """The database, with a row."""
    await create_tables(database)
    async with connected(database) as connection:
        await put(connection, invalidation("x"))
    return database


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has locked rows is told at once."""
    monkeypatch.setattr(locked, "LOCKED_S", 0.0)


@pytest.fixture
async def little(rows: str) -> AsyncIterator[str]:
    """The database for a role that may not see when others' transactions began."""
    await tell(rows, LITTLE)
    yield rows.replace("//postgres@", "//sees_little@")
    await tell(rows, ["DROP OWNED BY sees_little", "DROP ROLE sees_little"])


@asynccontextmanager
async def opened(url: str, *, checks: bool = False) -> AsyncIterator[PostgresSession]:
    """A relay's session; `checks`: that of a check, which looks once."""
    source = PostgresOutbox(url, "cachebus", RelayOptions(poll_interval_s=0.001))
    if checks:
        source.look_once()
    async with source.opened() as session:
        assert isinstance(session, PostgresSession)
        yield session


async def found(session: PostgresSession) -> list[Finding]:
    """What a look finds of locks."""
    return [finding for finding in (await session.look()).findings if finding.assumption == "locks"]


async def pid_of(connection: asyncpg.Connection) -> int:
    """The number of its process."""
    pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid


@pytest.mark.parametrize("savepoint", ["", "SAVEPOINT a; "])
@pytest.mark.usefixtures("soon")
async def test_those_who_share_a_row_are_told_and_no_writer_beside_them(rows: str, savepoint: str) -> None:
    async with opened(rows) as session, connected(rows) as one, connected(rows) as other, connected(rows) as writes:
        await writes.execute(f"BEGIN; {INSERTS}")
        await one.execute(f"BEGIN; {savepoint}{SHARE.format('SHARE')}")
        await other.execute(f"BEGIN; {savepoint}{SHARE.format('KEY SHARE')}")
        told = await found(session)
        pids = {await pid_of(one), await pid_of(other)}
        assert {finding.remedy for finding in told} == {f"SELECT pg_terminate_backend({pid});" for pid in pids}
        await other.execute("COMMIT")
        assert [finding.remedy for finding in await found(session)] == [
            f"SELECT pg_terminate_backend({await pid_of(one)});"
        ]
        await one.execute("COMMIT")
        assert await found(session) == []


@pytest.mark.usefixtures("soon")
async def test_what_ends_one_of_several_is_told_as_alternatives(rows: str) -> None:
    """Who pastes all of it ends none that has done nothing."""
    async with opened(rows) as session, connected(rows) as keeps, connected(rows) as writes:
        await writes.execute(f"BEGIN; {INSERTS}")
        await keeps.execute(f"BEGIN; SAVEPOINT a; {SHARE.format('UPDATE')}; RELEASE a")
        (told,) = await found(session)
        each = [f"SELECT pg_terminate_backend({await pid_of(one)})" for one in (writes, keeps)]
        assert told.remedy == f"{table_locks.ONE_BY_ONE}{each[0]}; or {each[1]};"
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await tell(rows, [told.remedy.removeprefix(table_locks.ONE_BY_ONE)])
        assert await writes.fetchval("SELECT 1") == 1


async def test_a_check_tells_who_keeps_rows_though_it_cant_see_for_how_long(rows: str, little: str) -> None:
    async with connected(rows) as other:
        await other.execute("UPDATE cachebus_outbox SET created_at = now() - interval '1 h'")
        await other.execute(f"BEGIN; {SHARE.format('UPDATE')}")
        async with opened(little, checks=True) as session:
            (told,) = await found(session)
        ends = f"SELECT pg_terminate_backend({await pid_of(other)});"
        assert told.remedy == f"{ends} {locked.UNSEEN.format('sees_little')}"
        for url in (rows, little):  # one that began just now, and one of whom the next look tells
            async with opened(url, checks=url == rows) as session:
                assert await found(session) == []


async def test_who_keeps_a_row_is_told_once_it_waits_for_a_minute_also_where_nobody_sees_for_how_long(
    rows: str, little: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is seen from the first look on, and not only once the row has waited for so long."""
    now_s = 0.0
    monkeypatch.setattr(locked, "monotonic", lambda: now_s)
    async with connected(rows) as other, opened(little) as session:
        await other.execute("UPDATE cachebus_outbox SET created_at = clock_timestamp() - interval '57 s'")
        await other.execute(f"BEGIN; {SHARE.format('UPDATE')}")
        assert await found(session) == []
        now_s = 60.0

        async def told() -> bool:
            return bool(await found(session))

        await until(told, within_s=20)


async def test_who_keeps_rows_is_told_that_were_written_at_a_time_to_come(rows: str) -> None:
    """As the database's clock was put back."""
    async with connected(rows) as other, opened(rows) as session:
        await other.execute("UPDATE cachebus_outbox SET created_at = now() + interval '1 year'")
        await other.execute(f"BEGIN; {SHARE.format('UPDATE')}")
        assert await found(session) == []
        session._locked._seen_from_s = dict.fromkeys(session._locked._seen_from_s, -1e9)
        (told,) = await found(session)
        assert str(await pid_of(other)) in told.remedy


async def test_a_lock_that_is_refused_is_told_until_it_is_tried_again(
    rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time alone frees it not: nothing is tried while L2 is away."""
    monkeypatch.setattr(table_locks, "FORGET_S", 1e-9)
    async with opened(rows) as session, connected(rows) as other:
        assert await found(session) == []
        await other.execute("SELECT pg_advisory_lock(hashtext('cachebus takers'), hashtext($1))", session._what())
        for _ in range(2):
            session._rest_until_s = float("-inf")
            assert not (await session.take(10, ())).items
            await session.look()
        (told,) = await found(session)
        assert table_locks.UNTOLD in told.problem
        await other.execute("SELECT pg_advisory_unlock_all()")
        session._rest_until_s = float("-inf")
        assert (await session.take(10, ())).items
        session._busy.release()
        assert await found(session) == []


async def test_who_shares_a_letter_is_told_where_it_cant_be_brought_back_and_no_writer_beside(rows: str) -> None:
    """Nor one that had another letter before."""
    columns = "(namespace, row_id, command, reason, attempts, created_at)"
    letter = f"INSERT INTO cachebus_outbox_dead {columns} VALUES ('cachebus', 1, 'c', 'r', 1, now())"
    shares = "SELECT FROM cachebus_outbox_dead WHERE id = 1 FOR SHARE"
    await tell(rows, [letter, letter])
    async with connected(rows) as one, connected(rows) as other, connected(rows) as writes:
        await writes.execute(
            "BEGIN; SAVEPOINT a; SELECT FROM cachebus_outbox_dead WHERE id = 2 FOR UPDATE; ROLLBACK TO a"
        )
        await writes.execute(letter)
        for sharer in (one, other):
            await sharer.execute(f"BEGIN; {shares}")
        with pytest.raises(ConfigError) as refused:
            await replay(rows, "cachebus")
        ends = " ".join(
            f"SELECT pg_terminate_backend({pid});" for pid in sorted([await pid_of(one), await pid_of(other)])
        )
        assert str(refused.value).endswith(ends)
