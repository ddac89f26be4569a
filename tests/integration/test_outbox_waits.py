"""How many rows of an outbox wait, and for how long, where their own times do not tell: `oldest_seconds` is never 0
while one waits."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from cachebus.consumers.outbox import RelayOptions, create_tables
from cachebus.consumers.outbox.columns import OTHER_TIME
from cachebus.consumers.outbox.postgres import PostgresOutbox
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.outbox.waiting import KNOWN, FirstSeen, PutOff, RestingRow
from cachebus.consumers.worker.source import Item, Left, NotSetAside, Session
from cachebus.testing import FakeClock
from tests.conftest import connected
from tests.support.changes import tell

HOUR_S = 3600
Execute = Callable[[str], Awaitable[None]]


class Rig:
    """An outbox in one of the databases, its SQL for times, and a relay's session."""

    def __init__(self, execute: Execute, session: Session, source: PostgresOutbox | SqliteOutbox, at: str) -> None:
        self.execute = execute
        self.session = session
        self.source = source
        self._at = at

    def at(self, in_s: float) -> str:
        """SQL for the time in so many seconds."""
        return self._at.format(in_s)

    async def put(self, created_at: str, namespace: str = "cachebus") -> None:
        """Write a row."""
        columns, values = "(namespace, command, created_at)", f"('{namespace}', 'odd', {created_at})"
        await self.execute(f"INSERT INTO cachebus_outbox {columns} VALUES {values}")

    async def refuse(self) -> list[Item]:
        """Take what is due, and can neither be applied nor set aside."""
        self.session._rest_until_s = float("-inf")  # type: ignore[attr-defined]
        batch = await self.session.take(10, ())
        left = [NotSetAside(item, self.session.letter(item, "odd")) for item in batch.items]
        if batch.items:
            await self.session.acknowledge(batch, Left(not_set_aside=left))
        return batch.items

    async def waits(self) -> tuple[int | None, float]:
        """How many wait, and for how many seconds the oldest."""
        look = await self.session.look()
        assert look.oldest_s is not None
        return look.backlog, look.oldest_s


@pytest.fixture(params=["postgres", "sqlite"])
async def rig(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """One in each database."""
    source: PostgresOutbox | SqliteOutbox
    options = RelayOptions(poll_interval_s=0.001)
    if request.param == "postgres":
        url = database
        source, at = PostgresOutbox(url, "cachebus", options), "clock_timestamp() + interval '{} s'"

        async def execute(sql: str) -> None:
            await tell(url, [sql])
    else:
        url = f"sqlite:///{tmp_path / 'o.db'}"
        source, at = SqliteOutbox(url, "cachebus", options), "(julianday('now') - 2440587.5) * 86400.0 + {}"

        async def execute(sql: str) -> None:
            with closing(sqlite3.connect(tmp_path / "o.db", isolation_level=None)) as connection:
                connection.execute(sql)

    await create_tables(url)
    async with source.opened() as session:
        yield Rig(execute, session, source, at)


async def test_what_can_be_neither_applied_nor_set_aside_waits_though_it_rests(rig: Rig) -> None:
    await rig.put(rig.at(-HOUR_S))
    for _ in range(2):
        assert len(await rig.refuse()) == 1
        assert not (await rig.session.take(10, ())).items, "it rests"
        backlog, oldest_s = await rig.waits()
        assert (backlog, oldest_s) == (1, pytest.approx(HOUR_S, abs=60))
        await rig.execute(f"UPDATE cachebus_outbox SET due_at = {rig.at(-0.001)}")  # its minute is over
        backlog, oldest_s = await rig.waits()
        assert (backlog, oldest_s) == (1, pytest.approx(HOUR_S, abs=60))
    await rig.session.acknowledge(await rig.session.take(10, ()), Left())
    assert await rig.waits() == (0, 0.0)


async def test_what_another_relay_has_done_rests_no_more(rig: Rig) -> None:
    await rig.put(rig.at(-HOUR_S))
    await rig.refuse()
    await rig.execute("DELETE FROM cachebus_outbox")
    assert await rig.waits() == (0, 0.0)
    assert rig.source._known.put_off.rows == []


@pytest.mark.parametrize("created", ["to come", "never", "before all", "long ago"])
async def test_what_was_written_at_a_time_that_cant_be_right_waits_since_it_was_seen(rig: Rig, created: str) -> None:
    of_sqlite = isinstance(rig.source, SqliteOutbox)
    never, always, ago = (
        ("9e999", "-9e999", "978307200") if of_sqlite else ("'infinity'", "'-infinity'", "'2001-01-01'")
    )
    sql = {"to come": rig.at(HOUR_S), "never": never, "before all": always, "long ago": ago}[created]
    clock = FakeClock()
    rig.source._known.first_seen = FirstSeen(clock)
    await rig.put(sql)
    assert await rig.waits() == (1, pytest.approx(0.0, abs=1))
    clock.advance(100)
    await rig.put(sql)
    await rig.put(rig.at(-10))
    assert await rig.waits() == (3, pytest.approx(100, abs=1))
    clock.advance(100)
    await rig.execute("DELETE FROM cachebus_outbox WHERE id = 1")
    assert await rig.waits() == (2, pytest.approx(100, abs=1))
    await rig.execute("DELETE FROM cachebus_outbox WHERE id = 2")
    assert await rig.waits() == (1, pytest.approx(10, abs=60))


async def test_rows_that_nobody_takes_are_told_though_they_were_written_at_a_time_to_come(rig: Rig) -> None:
    await rig.put(rig.at(HOUR_S), "other")
    (told,) = (await rig.session.look()).findings
    assert told.assumption == "namespaces"


@pytest.mark.parametrize("in_s", [365 * 86400, -365 * 86400])
@pytest.mark.parametrize("rig", ["postgres"], indirect=True)
async def test_a_default_by_which_rows_are_written_at_another_time_is_told(rig: Rig, in_s: int) -> None:
    await rig.execute(f"ALTER TABLE cachebus_outbox ALTER created_at SET DEFAULT now() + interval '{in_s} s'")
    (told,) = (await rig.session.look()).findings
    assert (told.problem, told.stops) == (OTHER_TIME, False)
    await rig.execute(told.remedy)
    assert (await rig.session.look()).findings == []


@pytest.mark.parametrize("default", ["'infinity'", "'-infinity'", "'2001-01-01'"])
async def test_rows_that_have_such_a_default_are_mended_with_it(database: str, default: str) -> None:
    await create_tables(database)
    async with connected(database) as connection, PostgresOutbox(database, "cachebus", RelayOptions()).opened() as one:
        await connection.execute(f"ALTER TABLE cachebus_outbox ALTER created_at SET DEFAULT {default}")
        await connection.execute("INSERT INTO cachebus_outbox (command) VALUES ('x')")
        (told,) = (await one.look()).findings
        await connection.execute(told.remedy)
        look = await one.look()
        assert (look.findings, look.backlog) == ([], 1)
        sql = "SELECT abs(extract(epoch FROM created_at - now()))::float8 FROM cachebus_outbox"
        assert await connection.fetchval(sql) < HOUR_S


def test_rows_that_wait_behind_others_are_as_old_as_they_are() -> None:
    """One after the other is done: to count from when each was the first would have them always young."""
    clock = FakeClock()
    seen = FirstSeen(clock)
    for number in range(5000):
        assert seen.age_s(1, number + 1) == number
        clock.advance(1)
    assert seen.age_s(2500, 5000) == pytest.approx(2500, abs=50)
    assert seen.age_s(5000, 5000) <= 50
    assert seen.age_s(None, None) == 0
    assert seen.age_s(3, 3) == 0


def test_what_is_put_off_is_bounded_and_has_a_real_time() -> None:
    put_off = PutOff()
    for number in range(KNOWN + 10):
        put_off.note(number, RestingRow(number, -1, 0.0), 2e9)
    assert len(put_off.rows) == KNOWN
    assert put_off.seen([3, 4]) == 2e9
    put_off.done([3])
    assert [row.id for row in put_off.rows] == [4]
