"""A table of SQLite that is made anew by what a relay tells: nothing goes with the one before, whoever names it. And a
file that somebody has locked."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from cachebus.consumers.outbox import RelayOptions, create_tables
from cachebus.consumers.outbox.relay import OutboxRelay
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.outbox.sqlite_file import BUSY_S, WHO_LOCKS
from cachebus.consumers.worker.preflight import preflight
from cachebus.consumers.worker.source import Finding
from tests.support.outbox import settings

LATE = """CREATE TABLE cachebus_outbox (
    namespace TEXT NOT NULL DEFAULT 'cachebus', id INTEGER PRIMARY KEY AUTOINCREMENT, command TEXT NOT NULL,
    created_at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0), "of whom" TEXT DEFAULT ('a  b'),
    due_at REAL NOT NULL DEFAULT (99999999999.0), attempts INTEGER NOT NULL DEFAULT 0,
    waits_for INTEGER NOT NULL DEFAULT -1)"""
BESIDE = {
    "a trigger": """CREATE TRIGGER mine AFTER INSERT ON cachebus_outbox
        WHEN new.command <> 'a  b' BEGIN INSERT INTO audit VALUES (new.id); END""",
    "an index": 'CREATE INDEX mine ON cachebus_outbox (created_at, "of whom")',
    "a view": "CREATE VIEW mine AS SELECT id FROM cachebus_outbox",
    "another's trigger": """CREATE TRIGGER mine AFTER INSERT ON shop BEGIN
        INSERT INTO cachebus_outbox (command) VALUES (new.x); END""",
}
ODD = {
    "a comment": "CREATE TRIGGER mine AFTER INSERT ON cachebus_outbox BEGIN -- why\nDELETE FROM audit; END",
    "lines": "CREATE TRIGGER mine AFTER INSERT ON cachebus_outbox BEGIN INSERT INTO audit VALUES ('a\nb'); END",
    "another script": "CREATE TRIGGER mine AFTER INSERT ON cachebus_outbox BEGIN SELECT '\u65e5'; END",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the outbox is."""
    return tmp_path / "o.db"


@pytest.fixture
async def connection(file: Path) -> AsyncIterator[sqlite3.Connection]:
    """One to a file whose rows are by their default not due, and have been given ids up to 7."""
    await create_tables(f"sqlite:///{file}")
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0.1)) as opened:
        for sql in "DROP TABLE cachebus_outbox", LATE, "CREATE TABLE audit (x)", "CREATE TABLE shop (x)":
            opened.execute(sql)
        opened.execute("INSERT INTO cachebus_outbox (id, command) VALUES (7, 'a')")
        opened.execute("DELETE FROM cachebus_outbox")
        opened.execute("INSERT INTO cachebus_outbox (id, command, \"of whom\") VALUES (3, 'a', 'me')")
        yield opened


async def told(source: SqliteOutbox) -> list[Finding]:
    """What a look finds."""
    async with source.opened() as session:
        return (await session.look()).findings


def made(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """What is made beside the outbox's own."""
    sql = "SELECT type, name, tbl_name FROM sqlite_master WHERE name IN ('mine', 'cachebus_outbox_due') ORDER BY name"
    return connection.execute(sql).fetchall()


@pytest.mark.parametrize("beside", BESIDE)
async def test_what_names_the_table_is_there_afterwards(
    file: Path, connection: sqlite3.Connection, beside: str
) -> None:
    connection.execute(BESIDE[beside])
    (before,) = made(connection)
    source = SqliteOutbox(f"sqlite:///{file}", "cachebus", RelayOptions())
    (found,) = await told(source)
    assert found.subject == "cachebus_outbox.due_at"
    connection.executescript(found.remedy)
    assert not connection.in_transaction
    assert await told(source) == [], "no id is given again either"
    assert before in made(connection)
    assert len(made(connection)) == 2
    (row,) = connection.execute('SELECT id, "of whom", due_at FROM cachebus_outbox WHERE id = 3').fetchall()
    assert row == (3, "me", 0.0)
    connection.execute("INSERT INTO cachebus_outbox (command) VALUES ('x')")
    last = connection.execute('SELECT id, "of whom" FROM cachebus_outbox ORDER BY id DESC LIMIT 1').fetchone()
    assert last == (8, "a  b")
    assert connection.execute("SELECT count(*) FROM audit").fetchone()[0] == (beside == "a trigger")


@pytest.mark.parametrize("how", ODD)
async def test_what_cant_be_told_in_one_line_is_to_be_kept_first(
    file: Path, connection: sqlite3.Connection, how: str
) -> None:
    connection.execute(ODD[how])
    source = SqliteOutbox(f"sqlite:///{file}", "cachebus", RelayOptions())
    (found,) = await told(source)
    first, remade, rest = found.remedy.partition("PRAGMA")
    kept = connection.execute(first.partition(": ")[2]).fetchall()
    connection.executescript(remade + rest)
    for (sql,) in kept:
        connection.execute(sql)
    assert connection.execute("SELECT sql FROM sqlite_master WHERE name = 'mine'").fetchall() == [(ODD[how],)]
    assert await told(source) == []


async def test_a_check_finds_a_file_that_is_locked_and_says_what_helps(file: Path, redis_url: str) -> None:
    url = f"sqlite:///{file}"
    await create_tables(url)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        checked = await preflight(OutboxRelay(url, settings(redis_url)), BUSY_S + 20)
        (found,) = next(one.findings for one in checked if one.what == "database")
        assert "database is locked" in found.problem
        assert found.problem.endswith(WHO_LOCKS)
        other.execute("ROLLBACK")
        before = other.execute("PRAGMA data_version").fetchall()
        assert not any(one.findings for one in await preflight(OutboxRelay(url, settings(redis_url))))
        assert other.execute("PRAGMA data_version").fetchall() == before
