"""Apache Kafka without an installation: one broker that is its own controller, on loopback alone."""

from __future__ import annotations

import secrets
import shutil
import struct
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cachebus.errors import ConfigError
from cachebus.tools.servers.daemon import HOST, Daemon, free_port
from cachebus.tools.servers.jars import JVM, Artifacts, classpath, find_java

VERSION: Final = "4.1.0"
ARTIFACTS: Final = Artifacts(f"kafka-{VERSION}", [("org.apache.kafka", "kafka_2.13", VERSION)])
FORMAT_TIMEOUT_S: Final = 60.0
METADATA: Final = 3
METADATA_VERSION: Final = 4


class KafkaServer(Daemon):
    """A Kafka broker in KRaft mode, without TLS or passwords. Topics are never created automatically.

    `settings`: more of `server.properties`, over those here. `listeners`: more of them by name, each with its port and
    the port that clients of it are told, as of a proxy before it. `joins`: a broker that runs, whose cluster this one
    belongs to, as a broker alone and by that `number`. Restarts keep what was acknowledged.
    """

    name = "Kafka"
    START_TIMEOUT_S = 90.0

    def __init__(
        self,
        *,
        port: int | None = None,
        directory: Path | None = None,
        settings: Mapping[str, str] | None = None,
        listeners: Mapping[str, tuple[int, int]] | None = None,
        joins: KafkaServer | None = None,
        number: int = 1,
    ) -> None:
        super().__init__(port=port, directory=directory)
        self._number = number
        self._java, self._jars = find_java(), classpath(ARTIFACTS)
        self._joins = joins
        self._controller: int = free_port(self) if joins is None else joins._controller
        self._settings = dict(settings or {})
        self._more = dict(listeners or {})

    @property
    def address(self) -> str:
        """Where clients find it: "127.0.0.1:11042"."""
        return f"{HOST}:{self.port}"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def forget(self) -> None:
        """Delete its data: the next start is that of a new broker, without topics and offsets."""
        shutil.rmtree(self._data, ignore_errors=True)

    def _properties(self) -> dict[str, str]:
        controls = self._joins is None
        controller = f"CONTROLLER://{HOST}:{self._controller}," if controls else ""
        return {
            "process.roles": "broker,controller" if controls else "broker",
            "node.id": str(self._number),
            "controller.quorum.bootstrap.servers": f"{HOST}:{self._controller}",
            "listeners": controller + self._addresses(bound=True),
            "advertised.listeners": self._addresses(bound=False),
            "listener.security.protocol.map": ",".join(
                f"{name}:PLAINTEXT" for name in ("PLAINTEXT", "CONTROLLER", *self._more)
            ),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self._data),
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "log.retention.check.interval.ms": "1000",
            "log.segment.delete.delay.ms": "1000",
            "controlled.shutdown.enable": "false",
            # A killed broker can return only after its old session has expired.
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "300",
            "num.network.threads": "2",
            "num.io.threads": "2",
            "background.threads": "2",
            **self._settings,
        }

    def _addresses(self, *, bound: bool) -> str:
        """The listeners for clients: as they are bound, or as they are advertised."""
        ports = {"PLAINTEXT": (self.port, self.port), **self._more}
        return ",".join(f"{name}://{HOST}:{mine if bound else told}" for name, (mine, told) in ports.items())

    def _prepare(self) -> None:
        properties = self.directory / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
        if not (self._data / "meta.properties").exists():
            self._format(properties)

    def _format(self, properties: Path) -> None:
        if self._joins is None:
            cluster = urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=").replace("-", "A")
            options = ["--standalone"]
        else:
            meta = (self._joins._data / "meta.properties").read_text()
            cluster = dict(line.split("=", 1) for line in meta.splitlines() if "=" in line)["cluster.id"]
            options = []
        command = [*self._jvm(), "kafka.tools.StorageTool", "format", *options, "-t", cluster, "-c", str(properties)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
        if done.returncode:
            raise ConfigError(f"Kafka's storage could not be formatted: {(done.stderr or done.stdout).strip()}")

    def _jvm(self) -> list[str]:
        return [self._java, *JVM, "-Xmx512m", f"-Dkafka.logs.dir={self.directory}", "-cp", self._jars]

    def _command(self) -> list[str]:
        return [*self._jvm(), "kafka.Kafka", str(self.directory / "server.properties")]

    def _answers(self) -> bool:
        """Whether its metadata names a broker. Its port is open some time before that."""
        question = struct.pack(">hhih", METADATA, METADATA_VERSION, 1, -1) + struct.pack(">i?", 0, False)
        try:
            with self.connected() as connection:
                connection.sendall(struct.pack(">i", len(question)) + question)
                with connection.makefile("rb") as said:
                    head = said.read(16)
        except OSError:
            return False
        # Size, correlation, throttle time, number of brokers.
        return len(head) == 16 and struct.unpack(">iiii", head)[3] > 0
