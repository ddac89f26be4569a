"""`cachebus worker kafka`: commands from a topic of Kafka, and those that were set aside."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.cli.worker.running import Cascades, DrainTimeout, HealthHost, HealthPort, cascades_of, run_worker
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from cachebus.consumers.worker.worker import Worker

HEALTH_PORT: Final = 9110
MISSING: Final = "commands on Kafka need {}: pip install 'cachebus[worker,kafka]'"

BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        metavar="HOST:PORT,...",
        show_default=False,
        help="Of Kafka; by default CACHEBUS_KAFKA_BOOTSTRAP_SERVERS, as TLS and SASL from CACHEBUS_KAFKA_*.",
    ),
]
Topic = Annotated[
    str | None,
    typer.Option(
        "--topic",
        metavar="NAME",
        show_default=False,
        help="Where commands come from; by default CACHEBUS_KAFKA_COMMANDS_TOPIC, or cachebus.commands.",
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        "--group",
        metavar="NAME",
        envvar="CACHEBUS_COMMANDS_GROUP",
        show_default=False,
        help="The consumer group; by default the namespace (cachebus).",
    ),
]
DeadTopic = Annotated[
    str | None,
    typer.Option(
        "--dead-topic",
        metavar="NAME",
        envvar="CACHEBUS_COMMANDS_DEAD_TOPIC",
        show_default=False,
        help="Where what can't be applied is set aside; by default the topic with .NAMESPACE.dead behind it.",
    ),
]


def kafka(
    bootstrap_servers: BootstrapServers = None,
    topic: Topic = None,
    group: Group = None,
    dead_topic: DeadTopic = None,
    url: Url = None,
    namespace: Namespace = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, max=100_000, envvar="CACHEBUS_COMMANDS_BATCH", help="Messages in hand at a time, at most."
        ),
    ] = 2000,
    session_timeout_s: Annotated[
        float,
        typer.Option(
            "--session-timeout",
            min=1.0,
            max=300.0,
            metavar="SECONDS",
            envvar="CACHEBUS_COMMANDS_SESSION_TIMEOUT_S",
            help="So long after a worker vanished without a word others take its partitions over.",
        ),
    ] = 10.0,
    cascades: Cascades = None,
    health_port: HealthPort = HEALTH_PORT,
    health_host: HealthHost = "127.0.0.1",
    drain_timeout_s: DrainTimeout = 25.0,
) -> None:
    """Apply the commands that others have written to Kafka (see `producers.KafkaProducer`).

    They are taken, applied in Redis, and only then committed: killed anywhere it loses nothing. Several may run at once
    and share the partitions. What can't be applied is set aside in a topic of its own, with the reason. SIGTERM: it
    finishes what it has in hand, and ends.

    Exit status: 0 drained, 1 ended before that, 2 if it could not start.
    """
    _installed()
    known = settings_for(url, namespace, kafka_bootstrap_servers=bootstrap_servers, kafka_commands_topic=topic)
    followed = cascades_of(cascades)

    def make() -> Worker:
        from cachebus.consumers.kafka import CommandsWorker, WorkerOptions

        return CommandsWorker(known, followed, WorkerOptions(group, batch, session_timeout_s, dead_topic))

    starts = f"reads commands for the namespace {known.namespace} in {known.kafka_commands_topic}, for {known.safe_url}"
    run_worker(make, starts, health_port=health_port, health_host=health_host, drain_timeout_s=drain_timeout_s)


def replay_kafka(
    bootstrap_servers: BootstrapServers = None,
    topic: Topic = None,
    group: Group = None,
    dead_topic: DeadTopic = None,
    namespace: Namespace = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, show_default=False, help="At most so many, the oldest; all by default."),
    ] = None,
) -> None:
    """Bring commands that a worker has set aside back into their topic, to be tried once more.

    Each keeps its signature and the count of its attempts; one that is still refused is set aside again. How far this
    has come is kept as the offsets of the group NAME-replay; nothing is removed from the topic of the dead.
    """
    _installed()
    from cachebus.consumers.kafka import TROUBLE, WorkerOptions, replay

    known = settings_for(None, namespace, kafka_bootstrap_servers=bootstrap_servers, kafka_commands_topic=topic)
    try:
        done = asyncio.run(replay(known, WorkerOptions(group, dead_topic=dead_topic), limit=limit))
    except TROUBLE as error:
        raise ConfigError(f"what was set aside can't be had: {type(error).__name__}: {error}") from None
    typer.echo(f"{done} commands are back in {known.kafka_commands_topic}")


def _installed() -> None:
    try:
        import cachebus.consumers.kafka  # noqa: F401 -- looked for, so that one line can say what is missing
    except ImportError as missing:
        raise ConfigError(MISSING.format(missing.name)) from None
