"""`cachebus server KIND`: it says how it is reached, is what it says, and is gone when the command ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from cachebus import Cache
from cachebus.cli.server import ServerKind
from cachebus.tools.servers.mariadb import MariaDBServer
from tests.support.caches import quick
from tests.support.mariadb import query
from tests.support.servers import to_be_had

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "cachebus.cli.main", "server"]


@contextmanager
def running(*args: str) -> Iterator[str]:
    """What the command prints first, while it runs."""
    process = subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert said.endswith("stopped\n")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", [ServerKind.REDIS, ServerKind.SENTINEL, ServerKind.CLUSTER])
async def test_a_cache_can_use_it(kind: ServerKind) -> None:
    with running(kind.value) as url:
        async with Cache(quick(url)) as cache:
            await cache.set("config", "x", 1, tenant_id="acme")
            assert await cache.get("config", "x", tenant_id="acme", use_memory=False) == 1


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that others may enter: as root, PostgreSQL runs as another user, and pytest's own folders are private."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


async def test_postgres_keeps_its_rows_in_the_folder_it_is_given(folder: Path) -> None:
    for turn in range(2):
        with running("postgres", "--directory", str(folder)) as url:
            connection = await asyncpg.connect(url)
            await connection.execute("CREATE TABLE IF NOT EXISTS kept (turn int)")
            assert await connection.fetchval("SELECT count(*) FROM kept") == turn
            await connection.execute("INSERT INTO kept VALUES ($1)", turn)
            await connection.close()
    with pytest.raises(OSError, match=r"Connect call failed"):
        await asyncpg.connect(url)


async def test_mariadb_keeps_its_rows_in_the_folder_it_is_given(folder: Path) -> None:
    to_be_had(MariaDBServer, "MariaDB")
    for turn in range(2):
        with running("mariadb", "--directory", str(folder)) as url:
            assert query(url, "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'kept'") == (turn,)
            query(url, "CREATE DATABASE IF NOT EXISTS kept")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("cluster", "--port", "7000"), "--port is for redis, postgres, mariadb, kafka"),
        (("redis", "--directory", "."), "--directory is for postgres, mariadb, kafka"),
        (("memcached",), "Invalid value for 'KIND'"),
    ],
)
def test_what_it_can_not_do_is_told(args: tuple[str, ...], says: str) -> None:
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, cwd=ROOT, check=False, timeout=30)
    assert done.returncode == 2
    assert says in done.stderr
