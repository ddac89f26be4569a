"""Debezium's PostgreSQL connector on a Kafka Connect of its own: one process, no cluster."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cachebus.cli.servers.daemon import HOST, Daemon
from cachebus.cli.servers.jars import JVM, Artifacts, classpath, find_java
from cachebus.cli.servers.kafka import VERSION as KAFKA_VERSION
from cachebus.cli.servers.kafka import KafkaServer

VERSION: Final = "3.2.0.Final"
ARTIFACTS: Final = Artifacts(
    f"debezium-{VERSION}-kafka-{KAFKA_VERSION}",
    [
        ("io.debezium", "debezium-connector-postgres", VERSION),
        ("org.apache.kafka", "connect-runtime", KAFKA_VERSION),
        ("org.apache.kafka", "connect-json", KAFKA_VERSION),
    ],
)
CONNECTOR: Final = "changes"


class DebeziumServer(Daemon):
    """Kafka Connect, standalone, with a connector that follows a PostgreSQL database; up when its task runs.

    Topics are named `{topic_prefix}.{schema}.{table}`. `tables`: with their schemas; none: all. `connector`: more of
    the connector's properties, over those here. Restarts go on where its slot stands.
    """

    name = "Debezium"
    START_TIMEOUT_S = 90.0

    def __init__(
        self, kafka: KafkaServer, postgres_url: str, *, tables: Sequence[str] = (), topic_prefix: str = "cdc",
        connector: Mapping[str, str] | None = None, worker: Mapping[str, str] | None = None, port: int | None = None,
        directory: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(port=port, directory=directory)
        self._java, self._jars = find_java(), classpath(ARTIFACTS)
        self._kafka = kafka
        self._database = urlsplit(postgres_url)
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
        name = self.topic_prefix.replace(".", "_").replace("-", "_")
        return {
            "name": CONNECTOR,
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "tasks.max": "1",
            "plugin.name": "pgoutput",
            "database.hostname": database.hostname or HOST,
            "database.port": str(database.port or 5432),
            "database.user": unquote(database.username or "postgres"),
            "database.password": unquote(database.password or ""),
            "database.dbname": database.path.lstrip("/") or "postgres",
            "topic.prefix": self.topic_prefix,
            "slot.name": f"debezium_{name}",
            "publication.name": f"debezium_{name}",
            "publication.autocreate.mode": "filtered" if self._tables else "all_tables",
            "snapshot.mode": "no_data",
            "poll.interval.ms": "20",
            "topic.creation.default.replication.factor": "1",
            "topic.creation.default.partitions": "2",
            **({"table.include.list": ",".join(self._tables)} if self._tables else {}),
            **self._connector,
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
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/connectors/{CONNECTOR}/status", timeout=2) as said:
                tasks = json.load(said).get("tasks", [])
        except (OSError, urllib.error.HTTPError, ValueError):
            return False
        return bool(tasks) and all(task.get("state") == "RUNNING" for task in tasks)
