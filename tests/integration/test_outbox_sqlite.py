"""An outbox in SQLite: rows of the writer's own transaction, and a relay that keeps no writer waiting."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session as SqlSession

from cachebus import Cache, ConfigError
from cachebus.cli.worker.outbox import outbox, replay_outbox
from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables, replay
from cachebus.consumers.outbox.kinds import dead_elsewhere
from cachebus.consumers.outbox.sqlite import SqliteOutbox
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.source import Left, WaitingItem
from cachebus.producers import Outbox, SyncOutboxProducer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, until
from tests.support.outbox import QUICKLY, invalidation, running, settings

GOOD = invalidation("good")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A place for one, with characters that mean something in URLs."""
    return tmp_path / "a #%20b.db"


@pytest.fixture
async def url(file: Path) -> str:
    """A database with an outbox."""
    made = f"sqlite:///{file}"
    await create_tables(made)
    await create_tables(made)
    return made


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """One that has the good row's value."""
    async with nodes(redis_url, 1) as (cache,):
        await cache.set("config", "good", "old", "acme")
        yield cache


@contextmanager
def connected(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose transactions end with each block."""
    with closing(sqlite3.connect(file)) as connection:
        yield connection


def put(file: Path, *commands: Any, **more: Any) -> None:
    """Rows by hand."""
    columns, values = ", ".join(["command", *more]), ", ".join("?" * (1 + len(more)))
    with connected(file) as connection, connection:
        sql = f"INSERT INTO cachebus_outbox ({columns}) VALUES ({values})"
        connection.executemany(sql, [(command, *more.values()) for command in commands])


def found(file: Path, sql: str) -> list[Any]:
    """What is there."""
    with connected(file) as connection:
        connection.text_factory = bytes
        return connection.execute(sql).fetchall()


async def gone(cache: Cache) -> None:
    """Until the good row was applied."""

    async def absent() -> bool:
        return await cache.get("config", "good", "acme") is None

    await until(absent, within_s=5)


def relay_of(url: str, redis_url: str) -> OutboxRelay:
    """A relay."""
    return OutboxRelay(url, settings(redis_url), options=QUICKLY)


async def test_what_is_committed_is_applied_and_what_is_not_is_not(
    url: str, file: Path, redis_url: str, cache: Cache
) -> None:
    await cache.set("config", "undone", "old", "acme")
    outbox = Outbox(settings(redis_url))
    async with running(relay_of(url, redis_url)) as relay:
        with connected(file) as connection:
            SyncOutboxProducer(connection, outbox).invalidate("config", "undone", "acme")
            connection.rollback()
            SyncOutboxProducer(connection, outbox).invalidate("config", "good", "acme")
            connection.commit()
        await gone(cache)
        await until(lambda: relay.meters.count("applied") == 1)
        assert found(file, "SELECT * FROM cachebus_outbox") == []
    assert await cache.get("config", "undone", "acme") == "old"


def test_the_write_in_the_documentation(url: str, file: Path, redis_url: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "outbox.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "sqlite3.connect" in block]
    with connected(file) as connection, connection:
        connection.execute("CREATE TABLE agent (id, config)")
    names = {"sqlite3": sqlite3, "config": "new", "outbox": Outbox(settings(redis_url))}
    exec(code.replace('"shop.db"', repr(str(file))), names | {"SyncOutboxProducer": SyncOutboxProducer})
    assert len(found(file, "SELECT * FROM cachebus_outbox")) == 1


def test_a_connection_that_commits_by_itself_is_refused(url: str, file: Path, redis_url: str) -> None:
    outbox = Outbox(settings(redis_url))
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        with pytest.raises(ConfigError, match="no transaction"):
            SyncOutboxProducer(connection, outbox).invalidate("config", "x", "acme")
        connection.execute("BEGIN")
        SyncOutboxProducer(connection, outbox).invalidate("config", "x", "acme")
        connection.execute("COMMIT")
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(file))
    with SqlSession(engine) as session, session.begin():
        SyncOutboxProducer(session, outbox).invalidate("config", "y", "acme")
    alone = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with alone, pytest.raises(ConfigError, match="no transaction"):
        SyncOutboxProducer(alone, outbox).invalidate("config", "z", "acme")

    @event.listens_for(engine, "begin")
    def begins(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.begin() as begun:
        SyncOutboxProducer(begun, outbox).invalidate("config", "z", "acme")
    engine.dispose()
    assert len(found(file, "SELECT * FROM cachebus_outbox")) == 3


ODD: dict[str, tuple[Any, dict[str, Any]]] = {
    "text in no encoding": ("raw", {}),
    "a blob": (b"\xff\xfe\x00", {}),
    "a number": (7.5, {}),
    "empty": ("", {}),
    "too large": ("[" * 300_000, {}),
    "attempts": ("nonsense", {"attempts": 9223372036854775807}),
    "attempts in words": ("nonsense", {"attempts": "many"}),
    "created never": ("nonsense", {"created_at": float("inf")}),
    "created in words": ("nonsense", {"created_at": "\u65e5\0"}),
    "due before all": ("nonsense", {"due_at": float("-inf")}),
    "waits for nobody": ("nonsense", {"waits_for": 9223372036854775807}),
    "waits for less": ("nonsense", {"waits_for": -7}),
}


@pytest.mark.parametrize(("command", "more"), ODD.values(), ids=ODD)
async def test_an_odd_row_holds_up_no_other(
    url: str, file: Path, redis_url: str, cache: Cache, command: Any, more: dict[str, Any]
) -> None:
    if command == "raw":
        with connected(file) as connection, connection:
            connection.execute("INSERT INTO cachebus_outbox (command) VALUES (CAST(x'ff7b' AS TEXT))")
    else:
        put(file, command, **more)
    put(file, GOOD)
    async with running(relay_of(url, redis_url)) as relay:
        await gone(cache)
        await until(lambda: relay.meters.count("dead") == 1)
        await until(lambda: relay.health.ready)
        assert found(file, "SELECT * FROM cachebus_outbox") == []
    ((reason,),) = found(file, "SELECT reason FROM cachebus_outbox_dead")
    assert reason.isascii()
    assert await replay(url, "nobody") == 0
    assert await dead_elsewhere(url, "nobody") == ["cachebus"]
    assert await dead_elsewhere(url, "cachebus") == []
    assert await replay(url, "cachebus") == 1
    assert len(found(file, "SELECT * FROM cachebus_outbox")) == 1
    assert found(file, "SELECT * FROM cachebus_outbox_dead") == []


async def test_no_writer_waits_while_rows_are_in_hand(url: str, file: Path, own_server: EmbeddedServer) -> None:
    async with running(relay_of(url, own_server.url)) as relay:
        await until(lambda: relay.health.ready)
        own_server.pause()
        put(file, GOOD)
        await until(lambda: not relay.health.is_up("l2"))
        with closing(sqlite3.connect(file, timeout=0)) as connection:
            for _ in range(20):
                with connection:
                    connection.execute("INSERT INTO cachebus_outbox (command) VALUES (?)", (GOOD,))
        own_server.resume()
        await until(lambda: relay.meters.count("applied") >= 21)
        await until(lambda: found(file, "SELECT * FROM cachebus_outbox") == [])


async def test_a_row_that_is_written_while_two_have_one_in_hand_is_not_taken_for_it(url: str, file: Path) -> None:
    put(file, GOOD)
    async with (
        SqliteOutbox(url, "cachebus", RelayOptions()).opened() as first,
        SqliteOutbox(url, "cachebus", RelayOptions()).opened() as second,
    ):
        batches = [await session.take(10, ()) for session in (first, second)]
        assert [len(batch.items) for batch in batches] == [1, 1]
        await first.acknowledge(batches[0], Left())
        put(file, "new")
        await second.acknowledge(batches[1], Left())
        assert found(file, "SELECT command FROM cachebus_outbox") == [(b"new",)]


async def test_rows_that_wait_and_rows_that_are_not_due(url: str, file: Path) -> None:
    put(file, GOOD)
    put(file, "tomorrow", due_at=4e9)
    async with SqliteOutbox(url, "cachebus", RelayOptions(poll_interval_s=0.001)).opened() as session:
        batch = await session.take(10, ())
        assert [item.raw.command for item in batch.items] == [GOOD.encode()]
        await session.acknowledge(batch, Left([WaitingItem(batch.items[0], [GOOD], frozenset([3]))]))
        assert not (await session.take(10, {3})).items
        look = await session.look()
        assert (look.backlog, look.held, look.findings) == (1, 1, [])
        assert look.oldest_s is not None and 0 <= look.oldest_s < 60
    async with SqliteOutbox(url, "cachebus", RelayOptions(poll_interval_s=0.001)).opened() as session:
        await session.look()
        assert not (await session.take(10, {3})).items
        assert len((await session.take(10, ())).items) == 1


async def test_what_is_wrong_is_told(url: str, file: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.05)
    async with running(relay_of(url, redis_url)) as relay:
        await until(lambda: relay.health.ready)
        with connected(file) as connection, connection:
            connection.execute("ALTER TABLE cachebus_outbox RENAME TO o")
        await until(lambda: "--create-table" in relay.health.as_dict()["parts"]["table"]["why"])
        with connected(file) as connection, connection:
            connection.execute("ALTER TABLE o DROP COLUMN attempts")
            connection.execute("ALTER TABLE o RENAME TO cachebus_outbox")
        await until(lambda: "attempts: it is not there" in relay.health.as_dict()["parts"]["columns"]["why"])
        await asyncio.to_thread(file.unlink)
        await until(lambda: not relay.health.is_up("database"))
        assert str(file) not in str(relay.health.as_dict())
        await create_tables(url)
        put(file, GOOD)
        await until(lambda: relay.meters.count("applied") == 1)
        await until(lambda: relay.health.ready)
        with connected(file) as connection, connection:
            connection.execute("DROP TABLE cachebus_outbox")
            connection.execute(
                "CREATE TABLE cachebus_outbox "
                "(namespace, id INTEGER PRIMARY KEY, command, created_at, due_at, attempts, waits_for)"
            )
        await until(lambda: "ids are given again" in relay.health.as_dict()["parts"]["columns"]["why"])


async def test_the_command_makes_and_replays_and_refuses(
    file: Path, capsys: pytest.CaptureFixture[str], redis_url: str
) -> None:
    url = f"sqlite:///{file}"
    outbox(database_url=url, print_sql=True)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(capsys.readouterr().out)
        connection.execute("INSERT INTO cachebus_outbox (command) VALUES ('')")
    for wrong, words in {
        "sqlite://": "must be a file",
        "sqlite:///:memory:": "must be a file",
        "mysql://u:s3cret@h/d": "no outbox in MySQL",
        "mariadb+aiomysql://u:s3cret@h/d": "no outbox in MariaDB",
    }.items():
        with pytest.raises(ConfigError, match=words) as told:
            OutboxRelay(wrong, settings(redis_url))
        assert "s3cret" not in str(told.value)
    with pytest.raises(ConfigError, match="NAME alone"):
        OutboxRelay(url, settings(redis_url), options=RelayOptions(table="a.b"))
    with pytest.raises(ConfigError, match="unable to open") as told:
        replay_in_thread(url)
    assert file.name not in str(told.value)


def replay_in_thread(url: str) -> None:
    """The command, which runs a loop of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        thread.submit(replay_outbox, database_url=url).result()


async def test_columns_with_values_of_other_types_hold_up_no_row(
    url: str, file: Path, redis_url: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text is behind all numbers, so no comparison with the clock finds it; a time is one, whatever its type."""
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.05)
    with connected(file) as connection, connection:
        for due, waits_for in (
            ("datetime('now', '-1 hour')", "-1"),
            ("CAST(datetime('now', '-1 hour') AS BLOB)", "-1"),
            ("0", "'soon'"),
            ("0", "1.5"),
            ("datetime('now', '-1 hour')", "'soon'"),
        ):
            sql = f"INSERT INTO cachebus_outbox (command, due_at, waits_for) VALUES (?, {due}, {waits_for})"
            connection.execute(sql, (GOOD,))
        for due in "'some day'", "x'ff'":
            connection.execute(f"INSERT INTO cachebus_outbox (command, due_at) VALUES (?, {due})", (GOOD,))
        for due in "datetime('now', '+1 day')", "9e999":
            connection.execute(f"INSERT INTO cachebus_outbox (command, due_at) VALUES (?, {due})", ("later",))
    async with running(OutboxRelay(url, settings(redis_url), options=QUICKLY)) as relay:
        await until(lambda: relay.meters.count("applied") == 5)
        await until(lambda: relay.meters.count("dead") == 2)
        latest = relay.meters.registry.get_sample_value("cachebus_worker_latest_seconds", {"worker": "outbox"})
        assert latest == float("inf")
    reasons = found(file, "SELECT CAST(reason AS BLOB) FROM cachebus_outbox_dead")
    assert set(reasons) == {(b"due_at: it is neither a number of seconds nor a time",)}
    assert found(file, "SELECT CAST(command AS BLOB) FROM cachebus_outbox") == [(b"later",), (b"later",)]


def made_anew(file: Path) -> None:
    """The outbox's table, dropped and created again."""
    made = "SELECT sql FROM sqlite_master WHERE tbl_name = 'cachebus_outbox' AND sql IS NOT NULL"
    with connected(file) as connection:
        statements = [sql for (sql,) in connection.execute(made).fetchall()]
        with connection:
            for sql in ["DROP TABLE cachebus_outbox", *statements]:
                connection.execute(sql)


async def test_a_row_that_was_given_the_number_of_one_in_hand_is_applied_too(
    url: str, file: Path, redis_url: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is made anew, or an older state of it comes back, while its rows are being applied."""
    await cache.set("config", "first", "old", "acme")
    relay = relay_of(url, redis_url)
    carry, begun, goes_on = relay._applier.carry, asyncio.Event(), asyncio.Event()

    async def waits(*given: Any, **more: Any) -> Any:
        begun.set()
        await goes_on.wait()
        return await carry(*given, **more)

    monkeypatch.setattr(relay._applier, "carry", waits)
    async with running(relay):
        await until(lambda: relay.health.ready)
        put(file, invalidation("first"))
        await begun.wait()
        made_anew(file)
        put(file, GOOD)
        assert found(file, "SELECT id FROM cachebus_outbox") == [(1,)]
        goes_on.set()
        await until(lambda: not found(file, "SELECT id FROM cachebus_outbox"))
        await until(lambda: relay.meters.count("applied") == 2)
    assert await cache.get("config", "good", "acme") is None


async def test_rows_that_went_with_their_table_are_told_as_missed(
    url: str, file: Path, redis_url: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    async with running(relay_of(url, redis_url)) as relay:
        await until(lambda: relay.health.ready)
        put(file, invalidation("other"))
        await until(lambda: relay.meters.count("applied") == 1)
        put(file, GOOD, due_at=9e9)
        await until(lambda: relay.source._known.last_id == 2)
        made_anew(file)
        await gone(cache)
        await until(lambda: relay.health.ready)
