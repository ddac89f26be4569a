"""`cachebus worker replay-dead cdc` where the database can't be had: what it says, and what it does not."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner

from cachebus.cli.main import app
from cachebus.consumers.cdc.slot import connecting
from cachebus.tools.harness.proxy import HOST
from tests.support.caches import until
from tests.support.cdc_surroundings import at_work, worker
from tests.support.changes import RULES, SCHEMA, tell
from tests.support.command import ran


async def replayed(database: str, redis_url: str, folder: Path) -> tuple[int, str]:
    """Exit status, and all that is said."""
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    files = folder / "files"
    files.mkdir()
    arguments = ("--rules", str(rules), "--database-url", database, "--url", redis_url)
    status, output, errors = await asyncio.to_thread(ran, "worker", "replay-dead", "cdc", *arguments, folder=files)
    return status, output + errors


@pytest.mark.parametrize("mark", ["/", "#", "?", "@", "["])
async def test_a_url_that_cant_be_read_shows_nothing_of_its_password(redis_url: str, tmp_path: Path, mark: str) -> None:
    url = f"postgresql://shop:hush{mark}secret@{HOST}:1/shop"
    status, said = await replayed(url, redis_url, tmp_path)
    assert status == 2
    assert "database's URL can't be read" in said or "nobody knows a host of this name" in said
    assert "hush" not in said
    assert "secret" not in said
    assert "Traceback" not in said


async def test_a_table_that_somebody_has_locked_is_told(database: str, redis_url: str, tmp_path: Path) -> None:
    await tell(database, [SCHEMA])
    async with at_work(one := worker(database, redis_url)):
        await until(lambda: one.follows)
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("BEGIN; LOCK TABLE cachebus_cdc_dead")
        status, said = await replayed(database, redis_url, tmp_path)
        assert status == 2
        assert f"SELECT pg_terminate_backend({connection.get_server_pid()});" in said
    finally:
        await connection.close()


LETTER = """
INSERT INTO cachebus_cdc_dead (slot, payload, digest, reason, source, attempts)
VALUES ('cachebus_cdc', '?', 'd', 'odd', 'a place', 1)
"""


@pytest.mark.parametrize("how", ["SELECT FROM {} FOR UPDATE", "SAVEPOINT a; UPDATE {} SET attempts = 7; RELEASE a"])
async def test_who_has_a_letter_locked_is_told(database: str, redis_url: str, tmp_path: Path, how: str) -> None:
    await tell(database, [SCHEMA])
    async with at_work(one := worker(database, redis_url)):
        await until(lambda: one.follows)
    await tell(database, [LETTER])
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(f"BEGIN; {how.format('cachebus_cdc_dead')}")
        status, said = await replayed(database, redis_url, tmp_path)
        assert status == 2
        assert f"SELECT pg_terminate_backend({connection.get_server_pid()});" in said
    finally:
        await connection.close()


async def test_a_server_that_says_nothing_is_given_up(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_S", 0.3)
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    with socket.create_server((HOST, 0)) as silent:
        url = f"postgresql://shop:hush@{HOST}:{silent.getsockname()[1]}/shop"
        arguments = ["worker", "replay-dead", "cdc", "--rules", str(rules), "--database-url", url, "--url", redis_url]
        done = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert "what was set aside can't be had: TimeoutError: no connection" in str(done.exception)
