"""`cachebus server`: a real server to try things with, or several, gone when the command ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cachebus.cli.performance import Interrupted, until_signalled
from cachebus.errors import ConfigError
from cachebus.tools.servers.redis import EmbeddedServer, best_server

if TYPE_CHECKING:
    from cachebus.tools.servers.daemon import Daemon


class ServerKind(StrEnum):
    """What can be started."""

    REDIS = "redis"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"
    POSTGRES = "postgres"
    MARIADB = "mariadb"
    KAFKA = "kafka"
    DEBEZIUM = "debezium"
    DEBEZIUM_MARIADB = "debezium-mariadb"


D = TypeVar("D", bound="Daemon")
KEEPING: tuple[ServerKind, ...] = (ServerKind.POSTGRES, ServerKind.MARIADB, ServerKind.KAFKA)
"""Those that can keep what they hold."""
ONE: tuple[ServerKind, ...] = (ServerKind.REDIS, *KEEPING)
"""Those that are one server, so that a port can be chosen."""


def server(
    kind: Annotated[
        ServerKind,
        typer.Argument(
            metavar="KIND",
            help="redis (or Valkey), sentinel (a primary, two replicas, three Sentinels), cluster (three primaries, a "
            "replica each), postgres, mariadb, kafka, debezium (PostgreSQL, Kafka, and the connector between them), or "
            "debezium-mariadb (likewise).",
        ),
    ] = ServerKind.REDIS,
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="Listen here, where it is one server; a free port by default."),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--directory",
            metavar="DIR",
            file_okay=False,
            exists=True,
            show_default=False,
            help="Keep what postgres, mariadb or kafka hold in this folder; by default nothing is kept.",
        ),
    ] = None,
) -> None:
    """Run servers on this machine's loopback until Ctrl-C, and print how a cache or worker reaches them.

    They need no installing: Redis and PostgreSQL come as wheels (or from PATH), Kafka and Debezium by Maven, once, into
    the user's cache folder, and so does MariaDB where the machine has none.
    """
    if port is not None and kind not in ONE:
        raise ConfigError(f"--port is for {', '.join(ONE)}: {kind.value} takes several, and chooses them")
    if directory is not None and kind not in KEEPING:
        raise ConfigError(f"--directory is for {', '.join(KEEPING)}: {kind.value} keeps nothing")
    try:
        until_signalled(_serve(kind, port, directory))
    except Interrupted:
        typer.echo("stopped", err=True)


async def _serve(kind: ServerKind, port: int | None, directory: Path | None) -> None:
    async with AsyncExitStack() as stack:
        found = [line async for line in _started(kind, port, directory, stack)]
        for variable, value in found:
            typer.echo(value if len(found) == 1 else f"{variable}={value}")
        typer.echo(f"{kind.value} runs until Ctrl-C. In another terminal:", err=True)
        for variable, value in found:
            typer.echo(f"  export {variable}={value}", err=True)
        await asyncio.Event().wait()


async def _started(
    kind: ServerKind, port: int | None, directory: Path | None, stack: AsyncExitStack
) -> AsyncIterator[tuple[str, str]]:
    """Variables and values that reach what was started; the stack ends it."""

    async def up(daemon: D) -> D:
        stack.callback(daemon.stop)
        await asyncio.to_thread(daemon.start)
        return daemon

    if kind is ServerKind.REDIS:
        yield "CACHEBUS_URL", (await up(EmbeddedServer(best_server(), port=port))).url
    elif kind in (ServerKind.SENTINEL, ServerKind.CLUSTER):
        from cachebus.tools.servers.redis_cluster import ClusterGroup
        from cachebus.tools.servers.redis_sentinels import SentinelGroup

        group = SentinelGroup(best_server()) if kind is ServerKind.SENTINEL else ClusterGroup(best_server())
        yield "CACHEBUS_URL", (await stack.enter_async_context(group)).url
    else:
        from cachebus.tools.servers.debezium import DebeziumServer
        from cachebus.tools.servers.kafka import KafkaServer
        from cachebus.tools.servers.mariadb import MariaDBServer
        from cachebus.tools.servers.postgres import PostgresServer

        database_url = None
        if kind in (ServerKind.POSTGRES, ServerKind.DEBEZIUM):
            database_url = (await up(PostgresServer(port=port, directory=directory))).url
            yield "CACHEBUS_DATABASE_URL", database_url
        elif kind in (ServerKind.MARIADB, ServerKind.DEBEZIUM_MARIADB):
            database_url = (await up(MariaDBServer(port=port, directory=directory))).url
            yield "MARIADB_URL", database_url  # no worker follows it by itself
        if kind not in (ServerKind.POSTGRES, ServerKind.MARIADB):
            kafka = await up(KafkaServer(port=port, directory=directory))
            yield "CACHEBUS_KAFKA_BOOTSTRAP_SERVERS", kafka.address
            if database_url is not None:
                yield "CACHEBUS_CONNECT_URL", (await up(DebeziumServer(kafka, database_url))).url
