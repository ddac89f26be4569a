"""What a relay assumes of its tables in SQLite: told while it is not so, and mended by what is told."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cachebus.cli.worker.command import worker
from cachebus.consumers.outbox import RelayOptions, create_tables, elsewhere
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.worker.source import Finding
from tests.support.outbox import invalidation

STEPS = 3
LIES = {
    "waits_for without a default": (r"waits_for INTEGER NOT NULL DEFAULT -1", "waits_for INTEGER"),
    "due_at without a default": (r"due_at REAL NOT NULL DEFAULT 0", "due_at REAL"),
    "namespace without a default": (r"namespace TEXT NOT NULL DEFAULT 'cachebus'", "namespace TEXT"),
    "due_at far": (r"due_at REAL NOT NULL DEFAULT 0", "due_at REAL NOT NULL DEFAULT 99999999999"),
    "due_at tomorrow": (r"due_at REAL NOT NULL DEFAULT 0", "due_at REAL DEFAULT (strftime('%s', 'now', '+1 day') + 0)"),
    "due_at in words": (r"due_at REAL NOT NULL DEFAULT 0", "due_at REAL DEFAULT (datetime('now', '+1 day'))"),
    "due_at never": (r"due_at REAL NOT NULL DEFAULT 0", "due_at REAL NOT NULL DEFAULT (9e999)"),
}
BROKEN = {
    "created_at long ago": (r"created_at REAL NOT NULL DEFAULT \(.*\),", "created_at REAL NOT NULL DEFAULT 0,"),
    "created_at without a default": (r"created_at REAL NOT NULL DEFAULT \(.*\),", "created_at REAL,"),
    "attempts must be given": (r"attempts INTEGER NOT NULL DEFAULT 0", "attempts INTEGER NOT NULL"),
    "waits_for must be given": (r"waits_for INTEGER NOT NULL DEFAULT -1", "waits_for INTEGER NOT NULL"),
    "waits_for of a shard": (r"DEFAULT -1", "DEFAULT 7"),
    "no attempts": (r"attempts INTEGER NOT NULL DEFAULT 0,", ""),
    "ids again": (r"AUTOINCREMENT", ""),
    "an id that is no key": (r"id INTEGER PRIMARY KEY AUTOINCREMENT", "id INTEGER"),
}
FINE = {
    "due_at now": (r"due_at REAL NOT NULL DEFAULT 0", "due_at NOT NULL DEFAULT (datetime('now'))"),
    "waits_for as text": (r"DEFAULT -1", "DEFAULT '-1'"),
    "namespace must be given": (r"namespace TEXT NOT NULL DEFAULT 'cachebus'", "namespace TEXT NOT NULL"),
    "a column more": (r"namespace TEXT", "more TEXT, namespace TEXT"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the outbox is."""
    return tmp_path / "o.db"


async def findings(file: Path) -> list[Finding]:
    """What a relay finds that is started now."""
    async with SqliteOutbox(f"sqlite:///{file}", "cachebus", RelayOptions()).opened() as session:
        return (await session.look()).findings


async def obeyed(file: Path, redis_url: str) -> int:
    """Do all that is told until nothing is; returns how many times that was needed."""
    told: set[Finding] = set()
    for step in range(STEPS):
        found = await findings(file)
        if not found:
            return step
        assert not told.intersection(found), "it is told once more, though it was obeyed"
        told.update(found)
        for remedy in dict.fromkeys(finding.remedy for finding in found):
            if remedy.startswith("cachebus worker "):
                env = {"CACHEBUS_DATABASE_URL": f"sqlite:///{file}", "CACHEBUS_URL": redis_url}
                done = await asyncio.to_thread(CliRunner().invoke, worker, shlex.split(remedy)[2:], env=env)
                assert done.exit_code == 0, done.output
            else:
                execute(file, remedy)
    raise AssertionError(await findings(file))


def execute(file: Path, sql: str) -> None:
    """Run statements, as the sqlite3 command does."""
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(sql)


def write(file: Path, resource_id: str, columns: str = "command", values: str = "") -> None:
    """A row, as the page of the outbox has it."""
    execute(file, f"INSERT INTO cachebus_outbox ({columns}) VALUES ('{invalidation(resource_id)}'{values})")


async def made(file: Path, change: tuple[str, str]) -> None:
    """The tables, of which one was made by others: with a row, and another one where that can be."""
    await create_tables(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection:
        ((sql,),) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'cachebus_outbox'").fetchall()
        other, count = re.subn(*change, sql)
        assert count == 1
        connection.execute("DROP TABLE cachebus_outbox")
        connection.execute(other)


async def taken(file: Path) -> list[str]:
    """The rows that are taken."""
    async with SqliteOutbox(f"sqlite:///{file}", "cachebus", RelayOptions()).opened() as session:
        await session.look()
        batch = await session.take(10, ())
        return sorted(json.loads(item.raw.command)["resource_id"] for item in batch.items)


@pytest.mark.parametrize("how", LIES)
async def test_a_default_by_which_rows_are_not_found_is_told_and_rows_that_lie_are_found_again(
    file: Path, redis_url: str, how: str
) -> None:
    await made(file, LIES[how])
    write(file, "one")
    assert await taken(file) == []
    first = await findings(file)
    assert {finding.assumption for finding in first} == {"columns"}
    assert not any(finding.stops for finding in first)
    assert await obeyed(file, redis_url) > 0
    write(file, "two")
    assert await taken(file) == ["one", "two"]


@pytest.mark.parametrize("how", BROKEN)
async def test_what_is_wrong_is_mended_by_what_is_told(file: Path, redis_url: str, how: str) -> None:
    await made(file, BROKEN[how])
    if "must be given" not in how:
        write(file, "one")
    assert await obeyed(file, redis_url) > 0
    write(file, "two")
    assert "two" in await taken(file)
    assert "must be given" in how or "one" in await taken(file)


@pytest.mark.parametrize("how", FINE)
async def test_what_is_as_good_is_not_told(file: Path, how: str) -> None:
    await made(file, FINE[how])
    write(file, "one", "command, namespace", ", 'cachebus'")
    assert await findings(file) == []
    assert await taken(file) == ["one"]


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE cachebus_outbox RENAME TO b; CREATE VIEW cachebus_outbox AS SELECT * FROM b",
        "DROP TABLE cachebus_outbox_dead",
        "ALTER TABLE cachebus_outbox_dead DROP COLUMN reason",
        "DROP TABLE cachebus_outbox; CREATE TABLE cachebus_outbox (a)",
    ],
)
async def test_other_tables_are_mended_by_what_is_told(file: Path, redis_url: str, sql: str) -> None:
    await create_tables(f"sqlite:///{file}")
    execute(file, f"INSERT INTO cachebus_outbox_dead VALUES (3, 'cachebus', 1, 'x', 'why', 1, 0.0, 0.0); {sql}")
    assert await obeyed(file, redis_url) > 0
    write(file, "one")
    assert await taken(file) == ["one"]


async def test_rows_of_a_namespace_that_nobody_takes_are_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await create_tables(f"sqlite:///{file}")
    for name in ("prod", "prod", "b'"):
        write(file, "one", "command, namespace", f", '{name.replace(chr(39), chr(39) * 2)}'")
    write(file, "own")
    assert await findings(file) == []
    monkeypatch.setattr(elsewhere, "UNSERVED_S", 0)
    found = await findings(file)
    assert [(one.assumption, one.stops) for one in found] == [("namespaces", False)] * 2
    assert "'prod'" in found[1].subject
    for finding in found:
        assert "delete" not in finding.remedy.lower()
        execute(file, finding.remedy[finding.remedy.index("UPDATE") :])
    assert await findings(file) == []
    assert await taken(file) == ["one", "one", "one", "own"]
