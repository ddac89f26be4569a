"""`cachebus worker outbox` as operators run it: a process with variables, endpoints, signals and an exit status."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typer.testing import CliRunner

from cachebus import ConfigError, producers
from cachebus.cli.worker.command import worker
from cachebus.cli.worker.outbox import outbox, replay_outbox
from cachebus.consumers.outbox import RelayOptions, create_tables
from cachebus.consumers.outbox.postgres import PostgresSession
from cachebus.consumers.worker.source import Left
from cachebus.producers.command import Invalidate, parse
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.redis import EmbeddedServer
from tests.conftest import connected
from tests.support.caches import until
from tests.support.command import cachebus
from tests.support.outbox import invalidation, put, waiting
from tests.support.pages import run_inside
from tests.support.worker_health import health

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "outbox.md").read_text()


async def test_it_makes_its_tables_works_tells_how_it_is_and_drains(
    database: str,
    own_server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    monkeypatch.setenv("CACHEBUS_DATABASE_URL", database)
    monkeypatch.setenv("CACHEBUS_URL", own_server.url)
    monkeypatch.setenv("CACHEBUS_HEALTH_PORT", str(port))
    with cachebus("worker", "outbox", "--poll", "0.05", folder=tmp_path) as command:
        await until(lambda: "--create-table" in health(port)[1])
        assert health(port)[0] == 503
        await asyncio.to_thread(outbox, database_url=database, create_table=True, notify=False)
        assert capsys.readouterr().err == "cachebus_outbox, cachebus_outbox_dead and cachebus_outbox_relays are there\n"
        async with connected(database) as connection:
            await put(connection, invalidation("x"), "nonsense")
        await until(lambda: health(port)[0] == 200)
        await until(lambda: _none(database))
        figures = health(port, "/metrics")[1]
        for line in (
            'cachebus_worker_messages_total{outcome="applied",worker="outbox"} 1.0',
            'cachebus_worker_messages_total{outcome="dead",worker="outbox"} 1.0',
            'cachebus_worker_lag_seconds_count{worker="outbox"} 1.0',
            'cachebus_worker_up{part="database",worker="outbox"} 1.0',
            'cachebus_worker_up{part="l2",worker="outbox"} 1.0',
        ):
            assert line in figures, line
        own_server.pause()
        await until(lambda: health(port)[0] == 503)
        assert not json.loads(health(port)[1])["parts"]["l2"]["up"]
        assert health(port, "/health/live")[0] == 200
        status, errors = command.signal(signal.SIGTERM)
    assert status == 0, errors
    assert "row 2 is set aside: Invalid JSON" in errors
    assert "drained" in errors
    first = (
        f"outbox: reads rows of the namespace cachebus in cachebus_outbox, for {own_server.url}; health and metrics on"
    )
    assert f"{first} 127.0.0.1:{port}\n" in errors.splitlines(keepends=True)[0]


async def _none(database: str) -> bool:
    return await waiting(database) == 0


def test_what_is_wrong_is_told_without_secrets() -> None:
    nobody = f"postgresql://cachebus:s3cret@127.0.0.1:{free_port()}/x"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "which database?"),
        ({"table": "x; drop table y", "print_sql": True}, "lower-case letters"),
        ({"database_url": "oracle://s3cret"}, "must be a URL like"),
        ({"database_url": "mysql://s3cret"}, "no outbox in MySQL"),
        ({"database_url": nobody, "create_table": True}, "could not be made"),
    ]
    for arguments, words in wrong:
        with pytest.raises(ConfigError, match=re.escape(words)) as told:
            outbox(**arguments)
        assert "s3cret" not in str(told.value)


async def test_the_dead_are_brought_back(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(
            "INSERT INTO cachebus_outbox_dead (namespace, row_id, command, reason, attempts, created_at) "
            "SELECT 'cachebus', n, 'nonsense', '', 3, now() FROM generate_series(1, 5) n"
        )
        for limit, left in ((2, 3), (None, 0), (None, 0)):
            await asyncio.to_thread(replay_outbox, database_url=database, limit=limit)
            assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox_dead") == left
        assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox WHERE attempts = 3") == 5
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["2", "3", "0"]
    with pytest.raises(ConfigError, match="could not be brought back"):
        await asyncio.to_thread(replay_outbox, database_url=database, table="nowhere")


async def test_a_namespace_that_is_mistyped_is_told_whose_there_are(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute(
            "INSERT INTO cachebus_outbox_dead (namespace, row_id, command, reason, attempts, created_at) "
            "VALUES ('cachebus', 1, 'x', 'y', 1, now())"
        )
    await asyncio.to_thread(replay_outbox, database_url=database, namespace="cachebsu")
    assert "no row of the namespace cachebsu is set aside; there are some of cachebus" in capsys.readouterr().err
    assert "outbox" in CliRunner().invoke(worker, ["replay-dead", "--help"]).output


# -- what the documentation says -----------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    """The blocks of code of a language."""
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def migration() -> list[str]:
    """The SQL of the migration in the documentation, in order, down to where it goes back."""
    (block,) = [block for block in blocks("python") if "op.execute" in block]
    said: list[str] = []

    class Operations:
        def execute(self, sql: str) -> None:
            said.append(sql.strip())

    scope: dict[str, Any] = {"op": Operations()}
    exec(block, scope)
    scope["upgrade"]()
    return said


async def test_the_migration_in_the_documentation_makes_what_the_command_makes(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox(print_sql=True)
    out = capsys.readouterr().out
    by_command = [" ".join(sql.replace('"', "").split()) for sql in re.split(r";\n(?=CREATE|\Z)", out) if sql]
    assert [" ".join(sql.split()) for sql in migration()] == by_command
    async with connected(database) as connection:
        for sql in (*migration(), *migration()):
            await connection.execute(sql)
        await put(connection, invalidation("x"))
        assert await connection.fetchval("SELECT count(*) FROM cachebus_outbox") == 1


class Base(DeclarativeBase):
    """Tables of the application's."""


class Agent(Base):
    """What is written."""

    __tablename__ = "agent"
    id: Mapped[str] = mapped_column(primary_key=True)
    config: Mapped[str] = mapped_column(default="")


@pytest.mark.parametrize("where", ["docs/outbox.md"])
async def test_the_write_in_the_documentation_is_followed_by_its_invalidation(database: str, where: str) -> None:
    text = (ROOT / where).read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "OutboxProducer(session" in block
    ]
    code = code.replace("cascades=[...]", "cascades=[]")
    await create_tables(database)
    engine = create_async_engine(database.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    names = {
        "Outbox": producers.Outbox,
        "OutboxProducer": producers.OutboxProducer,
        "AsyncSession": AsyncSession,
        "engine": engine,
        "agent": Agent(id="a7"),
        "config": "new",
    }
    await run_inside(code, names)
    await engine.dispose()
    async with connected(database) as connection:
        command = parse(await connection.fetchval("SELECT command FROM cachebus_outbox"))
    assert command == Invalidate(tenant_id="acme", data_type="agent_config", resource_id="a7")


async def test_the_sql_in_the_documentation_runs(database: str) -> None:
    async with connected(database) as connection:
        for sql in migration():
            await connection.execute(sql)
        await connection.execute("CREATE TABLE agent (id int, config text)")
        await connection.execute("CREATE ROLE app_of_docs")
        await connection.execute("CREATE ROLE relay_of_docs")
        try:
            for block in blocks("sql"):
                for statement in block.split(";\n"):
                    if statement.strip():
                        # Roles are the whole server's.
                        await connection.execute(re.sub(r"TO (app|relay)$", r"TO \1_of_docs", statement.strip()))
            # Rights that are enough: the app's for a row, the relay's for its work.
            await connection.execute("SET ROLE app_of_docs")
            await put(connection, invalidation("by the app"))
            await connection.execute("SET ROLE relay_of_docs")
            session = PostgresSession(connection, "cachebus", RelayOptions())
            await session.begin()
            batch = await session.take(100, ())
            assert len(batch.items) == 4  # one is not due yet
            await session.set_aside([session.letter(batch.items[0], "a reason")])
            await session.acknowledge(batch, Left())
            look = await session.look()
            assert (look.backlog, look.findings) == (0, [])
            assert all(parse(command) for item in batch.items for command in session.mean(item).commands)
        finally:
            await connection.execute("RESET ROLE")
            await connection.execute("DROP OWNED BY app_of_docs, relay_of_docs")
            await connection.execute("DROP ROLE app_of_docs, relay_of_docs")
