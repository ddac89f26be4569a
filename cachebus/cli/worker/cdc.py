"""`cachebus worker cdc`: follow the changes of a database, and invalidate what the rules say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from pydantic import SecretStr

from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.cli.worker import cdc_options as options
from cachebus.cli.worker.running import DrainTimeout, HealthHost, HealthPort, run_worker
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.settings import Settings

if TYPE_CHECKING:
    from cachebus.consumers.worker.source_worker import SourceWorker
    from cachebus.consumers.worker.worker import Worker

HEALTH_PORT: Final = 9109


def cdc(
    rules: options.RulesFile = None,
    source: options.From = options.ChangeOrigin.POSTGRES,
    check: options.Check = None,
    sample: options.Sample = None,
    database_url: options.Database = None,
    slot: options.SlotName = None,
    publication: options.Publication = None,
    poll_s: options.Poll = 0.02,
    wal_warning_mb: options.WalWarning = 1024,
    on_lost_slot: options.WhenLost = options.LostSlotChoice.INVALIDATE,
    bootstrap_servers: options.BootstrapServers = None,
    topics: options.Topics = None,
    group: options.Group = None,
    dead_topic: options.DeadTopic = None,
    session_timeout_s: options.SessionTimeout = 10.0,
    batch: options.BatchSize = 5000,
    url: Url = None,
    namespace: Namespace = None,
    health_port: HealthPort = HEALTH_PORT,
    health_host: HealthHost = "127.0.0.1",
    drain_timeout_s: DrainTimeout = 25.0,
) -> None:
    """Turn changes of a database's rows into invalidations, until SIGTERM.

    --check FILE looks at rules without running; the exit status is 2 where they are wrong.
    """
    if check is not None:
        from cachebus.consumers.cdc.rules.check import checked

        typer.echo(checked(check, sample), nl=False)
        return
    if sample is not None:
        raise ConfigError("--sample goes with --check")
    if rules is None:
        raise ConfigError("--rules is missing (CACHEBUS_CDC_RULES)")
    from cachebus.consumers.cdc.rules.rules import load_rules

    loaded, settings = load_rules(rules), settings_for(url, namespace)

    def slot_worker() -> Worker:
        from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker

        given = SlotSource(
            SecretStr(database_url or ""), slot, publication, batch, poll_s, wal_warning_mb << 20, on_lost_slot.value
        )
        return _by(rules, SlotWorker(settings, loaded, given))

    def topics_worker() -> Worker:
        from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker

        given = KafkaSource(bootstrap_servers or "", topics or "", group, batch, session_timeout_s, dead_topic)
        return _by(rules, TopicsWorker(settings, loaded, replace(given, clients=_security(settings))))

    _complete(source, database_url, bootstrap_servers)
    in_kafka = source is options.ChangeOrigin.KAFKA
    if in_kafka and not topics:
        raise ConfigError("--topics is missing (CACHEBUS_CDC_TOPICS)")
    starts = _starts(f"the topics {topics}" if in_kafka else f"the slot {slot}", settings)
    make = topics_worker if in_kafka else slot_worker
    run_worker(make, starts, health_port=health_port, health_host=health_host, drain_timeout_s=drain_timeout_s)


def _starts(where: str, settings: Settings) -> str:
    return f"reads changes in {where}, for the namespace {settings.namespace} in {settings.safe_url}"


def _by(rules: Path, worker: SourceWorker) -> SourceWorker:
    """The worker, which tells people the file of its rules where commands need it."""
    worker.source.options = {"--rules": str(rules.absolute()), **worker.source.options}
    return worker


def _security(settings: Settings) -> Mapping[str, Any]:
    """How to be let in by brokers: the settings of TLS and SASL are those of everything that speaks to Kafka."""
    from cachebus.bus.kafka.client import kafka_access

    return kafka_access(settings).security


def _complete(source: options.ChangeOrigin, database_url: str | None, bootstrap_servers: str | None) -> None:
    """Whether what is needed to reach the source is given, and installed."""
    try:
        if source is options.ChangeOrigin.KAFKA:
            import cachebus.consumers.cdc.topics.kafka
        else:
            import cachebus.consumers.cdc.slot.postgres  # noqa: F401 -- looked for, so that one line can say what is missing
    except ImportError as missing:
        extra = "kafka" if source is options.ChangeOrigin.KAFKA else "outbox"
        raise ConfigError(f"this source needs {missing.name}: pip install 'cachebus[worker,{extra}]'") from None
    if source is options.ChangeOrigin.KAFKA and not bootstrap_servers:
        raise ConfigError("--bootstrap-servers is missing (CACHEBUS_KAFKA_BOOTSTRAP_SERVERS)")
    if source is options.ChangeOrigin.POSTGRES and not database_url:
        raise ConfigError("--database-url is missing (CACHEBUS_DATABASE_URL)")


def replay_cdc(
    rules: options.RulesFile = None,
    source: options.From = options.ChangeOrigin.POSTGRES,
    database_url: options.Database = None,
    slot: options.SlotName = None,
    bootstrap_servers: options.BootstrapServers = None,
    group: options.Group = None,
    dead_topic: options.DeadTopic = None,
    topics: options.Topics = None,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Try the changes that were set aside once more, by the rules as they are now: of a slot, or of Debezium's topics.

    What is applied is removed from where it was set aside; what is refused again stays, with the new reason. The exit
    status is 1 if some stay.
    """
    del topics  # as the worker was started; what was set aside has a topic of its own
    if rules is None:
        raise ConfigError("--rules is missing (CACHEBUS_CDC_RULES)")
    from cachebus.consumers.cdc.rules.rules import load_rules

    loaded, settings = load_rules(rules), settings_for(url, namespace)
    _complete(source, database_url, bootstrap_servers)
    brokers = _security(settings) if source is options.ChangeOrigin.KAFKA else {}

    async def main() -> tuple[int, int]:
        from cachebus.consumers.cdc.rules.router import Router
        from cachebus.consumers.monitoring.health import WorkerHealth
        from cachebus.consumers.monitoring.meters import Meters
        from cachebus.consumers.worker.apply import PATIENCE_S, Applier

        health = WorkerHealth("cdc", ("l2",))
        async with Applier(settings, health, Meters(health), loaded.cascades).opened(PATIENCE_S) as applier:
            if source is options.ChangeOrigin.POSTGRES:
                from cachebus.consumers.cdc.slot.connecting import OUT_OF_REACH, describe
                from cachebus.consumers.cdc.slot.postgres import SlotSource
                from cachebus.consumers.cdc.slot.replay import replay

                dsn = SecretStr(database_url or "")
                names = SlotSource(dsn, slot).names(settings.namespace)
                try:
                    return await replay(dsn, names.slot, Router(loaded, settings.shards), applier)
                except L2Unavailable:
                    raise
                except OUT_OF_REACH as error:
                    raise ConfigError(f"what was set aside can't be had: {describe(error)}") from None
            from cachebus.consumers.cdc.topics.kafka import KafkaSource
            from cachebus.consumers.cdc.topics.replay import replay_topic

            given = KafkaSource(
                bootstrap_servers or "", "", group, dead_topic=dead_topic, clients=brokers, namespace=settings.namespace
            )
            return await replay_topic(given, Router(loaded, settings.shards), applier)

    try:
        applied, dead = asyncio.run(main())
    except Exception as error:
        if not _is_out_of_reach(error):
            raise
        raise ConfigError(f"what was set aside can't be had: {type(error).__name__}: {error}") from None
    typer.echo(f"{applied} applied, {dead} still set aside")
    raise typer.Exit(1 if dead else 0)


def _is_out_of_reach(error: Exception) -> bool:
    """Whether it is the brokers that have failed: their driver is there only where it is used."""
    if isinstance(error, L2Unavailable):
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "aiokafka"
