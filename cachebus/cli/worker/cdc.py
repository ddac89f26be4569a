"""`cachebus worker cdc`: follow the changes of a database, and invalidate what the rules say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer
from pydantic import SecretStr

from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.cli.worker import cdc_options as options
from cachebus.cli.worker.running import DrainTimeout, HealthHost, HealthPort, run_worker
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from consumers.worker import Worker

HEALTH_PORT: Final = 9109


def cdc(
    rules: options.RulesFile = None,
    source: options.From = options.Source.POSTGRES,
    check: options.Check = None,
    sample: options.Sample = None,
    database: options.Database = None,
    slot: options.SlotName = "cachebus_cdc",
    publication: options.Publication = "cachebus_cdc",
    poll_s: options.Poll = 0.02,
    wal_warning_mb: options.WalWarning = 1024,
    on_lost_slot: options.WhenLost = options.OnLostSlot.STOP,
    bootstrap_servers: options.BootstrapServers = None,
    topics: options.Topics = None,
    group: options.Group = "cachebus-cdc",
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
        from consumers.cdc.check import checked

        typer.echo(checked(check, sample), nl=False)
        return
    if sample is not None:
        raise ConfigError("--sample goes with --check")
    if rules is None:
        raise ConfigError("--rules is missing (CACHEBUS_CDC_RULES)")
    from consumers.cdc.rules import load_rules

    loaded, settings = load_rules(rules), settings_for(url, namespace)

    def slot_worker() -> Worker:
        from consumers.cdc.postgres import SlotSource, SlotWorker

        given = SlotSource(
            SecretStr(database or ""), slot, publication, batch, poll_s, wal_warning_mb << 20, on_lost_slot.value
        )
        return SlotWorker(settings, loaded, given)

    def topics_worker() -> Worker:
        from consumers.cdc.kafka import KafkaSource, TopicsWorker

        given = KafkaSource(bootstrap_servers or "", topics or "", group, batch, session_timeout_s)
        return TopicsWorker(settings, loaded, given)

    in_kafka = source is options.Source.KAFKA
    if not in_kafka and not database:
        raise ConfigError("--database is missing (CACHEBUS_DATABASE_URL)")
    if in_kafka and not bootstrap_servers:
        raise ConfigError("--bootstrap-servers is missing (CACHEBUS_KAFKA_BOOTSTRAP_SERVERS)")
    if in_kafka and not topics:
        raise ConfigError("--topics is missing (CACHEBUS_CDC_TOPICS)")
    run_worker(
        topics_worker if in_kafka else slot_worker,
        health_port=health_port,
        health_host=health_host,
        drain_timeout_s=drain_timeout_s,
    )
