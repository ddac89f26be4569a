"""The options of `cachebus worker cdc`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ChangeOrigin(StrEnum):
    """Where changes are heard of."""

    POSTGRES = "postgres"
    KAFKA = "kafka"


class LostSlotChoice(StrEnum):
    """What to do when changes were missed."""

    STOP = "stop"
    INVALIDATE = "invalidate"


RulesFile = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE", envvar="CACHEBUS_CDC_RULES", show_default=False, help="The rules."),
]
From = Annotated[
    ChangeOrigin,
    typer.Option(
        "--source",
        envvar="CACHEBUS_CDC_SOURCE",
        help="postgres: a slot of the database itself; kafka: what Debezium writes there.",
    ),
]
Check = Annotated[
    Path | None,
    typer.Option(
        "--check",
        metavar="FILE",
        show_default=False,
        help="Only look whether this rules file is right, and (with --sample) what it does.",
    ),
]
Sample = Annotated[
    Path | None,
    typer.Option(
        "--sample",
        metavar="FILE",
        show_default=False,
        help="With --check: a Debezium envelope, or a change as plain JSON (op, schema, table, new, old).",
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        envvar="CACHEBUS_DATABASE_URL",
        show_default=False,
        help="postgresql://user:password@host:5432/name (source postgres). Beware: what is given here is seen by all "
        "users of the machine; the variable is not.",
    ),
]
SlotName = Annotated[
    str | None,
    typer.Option(
        "--slot",
        metavar="NAME",
        envvar="CACHEBUS_CDC_SLOT",
        show_default=False,
        help="The slot; made where missing. By default the namespace with _cdc behind it (cachebus_cdc).",
    ),
]
Publication = Annotated[
    str | None,
    typer.Option(
        "--publication",
        metavar="NAME",
        envvar="CACHEBUS_CDC_PUBLICATION",
        show_default=False,
        help="The publication; made likewise, and named likewise by default.",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch", min=1, max=1_000_000, metavar="N", help="Changes that are looked at together.")
]
Poll = Annotated[
    float,
    typer.Option("--poll", min=0.001, max=60, metavar="SECONDS", help="Pause before a quiet slot is looked at again."),
]
WalWarning = Annotated[
    int,
    typer.Option(
        "--wal-warning-mb", min=1, metavar="MB", help="Warn when the slot makes the server keep more WAL than this."
    ),
]
WhenLost = Annotated[
    LostSlotChoice,
    typer.Option(
        "--on-lost-slot",
        help="When the slot is lost, and changes with it. invalidate: make a new one, and invalidate all that the "
        "rules name; stop: wait, health red.",
    ),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        metavar="HOST:PORT,...",
        envvar="CACHEBUS_KAFKA_BOOTSTRAP_SERVERS",
        show_default=False,
        help="Of Kafka (source kafka).",
    ),
]
Topics = Annotated[
    str | None,
    typer.Option(
        "--topics",
        metavar="REGEX",
        envvar="CACHEBUS_CDC_TOPICS",
        show_default=False,
        help=r"Topics to read, as in 'shop\.public\..*' (source kafka).",
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        "--group",
        metavar="NAME",
        envvar="CACHEBUS_CDC_GROUP",
        show_default=False,
        help="The consumer group (source kafka); by default the namespace with -cdc behind it (cachebus-cdc).",
    ),
]
DeadTopic = Annotated[
    str | None,
    typer.Option(
        "--dead-topic",
        metavar="NAME",
        envvar="CACHEBUS_CDC_DEAD_TOPIC",
        show_default=False,
        help="Where what can't be used is set aside (source kafka); by default the namespace with .cdc.dead behind it.",
    ),
]
SessionTimeout = Annotated[
    float,
    typer.Option(
        "--session-timeout",
        min=1.0,
        metavar="SECONDS",
        envvar="CACHEBUS_CDC_SESSION_TIMEOUT_S",
        help="So long after a worker vanished without a word others take its partitions over (source kafka).",
    ),
]
