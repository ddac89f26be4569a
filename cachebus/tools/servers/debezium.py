"""Debezium's connectors for PostgreSQL and MariaDB, each in its own standalone Kafka Connect: one process, no
cluster."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from zlib import crc32

from cachebus.errors import ConfigError
from cachebus.tools.servers.daemon import HOST, Daemon
from cachebus.tools.servers.jars import JVM, Artifacts, classpath, find_java
from cachebus.tools.servers.kafka import VERSION as KAFKA_VERSION
from cachebus.tools.servers.kafka import KafkaServer

VERSION: Final = "3.2.0.Final"
CONNECT: Final = (
    ("org.apache.kafka", "connect-runtime", KAFKA_VERSION),
    ("org.apache.kafka", "connect-json", KAFKA_VERSION),
)
POSTGRES: Final = Artifacts(
    f"debezium-{VERSION}-kafka-{KAFKA_VERSION}", [("io.debezium", "debezium-connector-postgres", VERSION), *CONNECT]
)
MARIADB: Final = Artifacts(
    f"debezium-mariadb-{VERSION}-kafka-{KAFKA_VERSION}",
    [("io.debezium", "debezium-connector-mariadb", VERSION), *CONNECT],
)
CONNECTOR: Final = "changes"


class DebeziumServer(Daemon):
    """A standalone Kafka Connect with a connector that follows a database. It answers once it captures all changes.

    `database_url`: a PostgreSQL database, or a MariaDB server ("mysql://...") with all its databases. Topics are named
    `{topic_prefix}.{schema}.{table}`, with the database as the schema for MariaDB. `tables`: with their schemas; none
    for all. `connector`, `worker`: more properties, over those set here. After a restart it goes on where it was.
    """

    name = "Debezium"
    START_TIMEOUT_S = 90.0

    def __init__(
        self,
        kafka: KafkaServer,
        database_url: str,
        *,
        tables: Sequence[str] = (),
        topic_prefix: str = "cdc",
        connector: Mapping[str, str] | None = None,
        worker: Mapping[str, str] | None = None,
        port: int | None = None,
        directory: Path | None = None,
    ) -> None:
        super().__init__(port=port, directory=directory)
        self._kafka = kafka
        self._database = urlsplit(database_url)
        self._is_mariadb = self._database.scheme in ("mysql", "mariadb")
        self._java, self._jars = find_java(), classpath(MARIADB if self._is_mariadb else POSTGRES)
        self._tables = tuple(tables)
        self.topic_prefix = topic_prefix
        self._connector = dict(connector or {})
        self._worker = dict(worker or {})

    @property
    def url(self) -> str:
        """Of Kafka Connect's own interface: "http://127.0.0.1:11042"."""
        return f"http://{HOST}:{self.port}"

    def _worker_properties(self) -> dict[str, str]:
        return {
            "bootstrap.servers": self._kafka.address,
            "listeners": self.url,
            "key.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "offset.storage.file.filename": str(self.directory / "offsets"),
            "offset.flush.interval.ms": "200",
            "topic.creation.enable": "true",
            "plugin.discovery": "only_scan",
            **self._worker,
        }

    def _connector_properties(self) -> dict[str, str]:
        database = self._database
        return {
            "name": CONNECTOR,
            "tasks.max": "1",
            "database.hostname": database.hostname or HOST,
            "database.password": unquote(database.password or ""),
            "topic.prefix": self.topic_prefix,
            "snapshot.mode": "no_data",
            "poll.interval.ms": "20",
            "topic.creation.default.replication.factor": "1",
            "topic.creation.default.partitions": "2",
            **({"table.include.list": ",".join(self._tables)} if self._tables else {}),
            **(self._of_mariadb() if self._is_mariadb else self._of_postgres()),
            **self._connector,
        }

    def _of_postgres(self) -> dict[str, str]:
        name = self.topic_prefix.replace(".", "_").replace("-", "_")
        return {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "plugin.name": "pgoutput",
            "database.port": str(self._database.port or 5432),
            "database.user": unquote(self._database.username or "postgres"),
            "database.dbname": self._database.path.lstrip("/") or "postgres",
            "slot.name": f"debezium_{name}",
            "publication.name": f"debezium_{name}",
            "publication.autocreate.mode": "filtered" if self._tables else "all_tables",
        }

    def _of_mariadb(self) -> dict[str, str]:
        return {
            "connector.class": "io.debezium.connector.mariadb.MariaDbConnector",
            "database.port": str(self._database.port or 3306),
            "database.user": unquote(self._database.username or "root"),
            "database.server.id": str(2 + crc32(self.topic_prefix.encode()) // 2),  # each follower's own
            "schema.history.internal": "io.debezium.storage.file.history.FileSchemaHistory",
            "schema.history.internal.file.filename": str(self.directory / "history"),
        }

    def _prepare(self) -> None:
        self._write("worker.properties", self._worker_properties())
        self._write("connector.properties", self._connector_properties())

    def _write(self, name: str, properties: Mapping[str, str]) -> None:
        path = self.directory / name
        path.touch(mode=0o600)  # it may hold a password
        path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))

    def _command(self) -> list[str]:
        return [
            *(self._java, *JVM, "-Xmx512m", "-cp", self._jars, "org.apache.kafka.connect.cli.ConnectStandalone"),
            *(str(self.directory / name) for name in ("worker.properties", "connector.properties")),
        ]

    def _answers(self) -> bool:
        tasks = self.tasks()
        for task in tasks:
            if task.get("state") == "FAILED":
                raise ConfigError(f"the connector has ended: {_first_cause(str(task.get('trace')))}")
        runs = bool(tasks) and all(task.get("state") == "RUNNING" for task in tasks)
        # A slot exists before a task runs. A position in a binary log exists only once the tables have been read.
        return runs and (not self._is_mariadb or bool((self._asked("offsets") or {}).get("offsets")))

    def tasks(self) -> list[dict[str, Any]]:
        """The tasks, as Kafka Connect shows them: each has a "state", and a "trace" if it has "FAILED"."""
        found = (self._asked("status") or {}).get("tasks", [])
        return found if isinstance(found, list) else []

    def _asked(self, what: str) -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/connectors/{CONNECTOR}/{what}", timeout=2) as said:
                found = json.load(said)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _first_cause(trace: str) -> str:
    """The last message of a Java stack trace, which is the first cause."""
    lines = [line for line in trace.splitlines() if line and not line.startswith("\t")]
    return lines[-1].removeprefix("Caused by: ") if lines else "it does not say why"
