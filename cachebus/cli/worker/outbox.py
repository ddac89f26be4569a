"""`cachebus worker outbox`: the relay, and its tables."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.cli.worker.running import Cascades, DrainTimeout, HealthHost, HealthPort, cascades_of, run_worker
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from cachebus.consumers.worker.worker import Worker

HEALTH_PORT: Final = 9108
MISSING: Final = "the outbox needs {}: pip install 'cachebus[worker,outbox]'"
NO_DATABASE: Final = (
    "which database? give --database-url or CACHEBUS_DATABASE_URL, as postgresql://user@host:5432/name, or "
    "sqlite:////PATH"
)
NO_DEAD: Final = (
    "there is no {0}_dead, so no relay of {0} has set anything aside: which is the outbox's table? give --table or "
    "CACHEBUS_OUTBOX_TABLE"
)

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        metavar="URL",
        envvar="CACHEBUS_DATABASE_URL",
        show_default=False,
        show_envvar=True,
        help="The database that has the outbox: postgresql://user:password@host:5432/name, or sqlite:////PATH. Beware: "
        "what is given here is seen by all users of the machine; the variable is not.",
    ),
]
Table = Annotated[
    str,
    typer.Option(
        "--table",
        metavar="[SCHEMA.]NAME",
        envvar="CACHEBUS_OUTBOX_TABLE",
        help="The outbox's table; the dead are in NAME_dead beside it.",
    ),
]


Batch = Annotated[
    int,
    typer.Option("--batch", min=1, max=10_000, envvar="CACHEBUS_OUTBOX_BATCH", help="Rows in hand at a time, at most."),
]
PollS = Annotated[
    float,
    typer.Option(
        "--poll",
        min=0.001,
        max=3600.0,
        metavar="SECONDS",
        envvar="CACHEBUS_OUTBOX_POLL_S",
        help="How often to look for rows unasked; with the table's trigger new ones are notified besides.",
    ),
]
HoldS = Annotated[
    float,
    typer.Option(
        "--hold",
        min=0.05,
        max=300.0,
        metavar="SECONDS",
        envvar="CACHEBUS_OUTBOX_HOLD_S",
        help="How long rows may be in hand while Redis does not answer, before they are freed.",
    ),
]
CreateTable = Annotated[
    bool, typer.Option("--create-table", help="Make the tables where they are not there yet, and end.")
]
PrintSql = Annotated[
    bool, typer.Option("--print-sql", help="Print the SQL that makes them, and end; nothing is connected to.")
]
Notify = Annotated[
    bool,
    typer.Option(
        "--notify/--no-notify",
        help="Of the tables made: with a trigger that wakes relays up, or without (one that is "
        "there is removed). Transactions that notify commit one after the other.",
    ),
]


def outbox(
    database_url: DatabaseUrl = "",
    url: Url = None,
    namespace: Namespace = None,
    table: Table = "cachebus_outbox",
    batch: Batch = 500,
    poll_s: PollS = 0.25,
    hold_s: HoldS = 5.0,
    cascades: Cascades = None,
    health_port: HealthPort = HEALTH_PORT,
    health_host: HealthHost = "127.0.0.1",
    drain_timeout_s: DrainTimeout = 25.0,
    create_table: CreateTable = False,
    print_sql: PrintSql = False,
    notify: Notify = True,
) -> None:
    """Carry on what committed transactions have written into an outbox (see `producers.OutboxProducer`).

    Rows are taken, applied in Redis, and only then removed: killed anywhere it loses nothing. Several may run at once
    and share the work. What can't be applied is moved to NAME_dead with the reason. SIGTERM: it finishes what it has
    in hand, and ends.

    Exit status: 0 drained, 1 ended before that, 2 if it could not start.
    """
    if print_sql:
        from cachebus.producers.outbox import OutboxTable

        made = OutboxTable.of(table)
        lite = database_url.startswith("sqlite")
        for statement in made.sqlite_statements() if lite else made.statements(notify=notify):
            sys.stdout.write(f"{statement};\n")
        return
    if not database_url:
        raise ConfigError(NO_DATABASE)
    try:
        from cachebus.consumers.outbox.kinds import is_sqlite
    except ImportError as missing:
        raise ConfigError(MISSING.format(missing.name)) from None
    is_sqlite(database_url)  # or refused, before anything is begun
    if create_table:
        _create(database_url, table, notify=notify)
        return
    known, followed = settings_for(url, namespace), cascades_of(cascades)

    def make() -> Worker:
        from cachebus.consumers.outbox import OutboxRelay, RelayOptions

        options = RelayOptions(table=table, batch=batch, poll_interval_s=poll_s, hold_s=hold_s)
        return OutboxRelay(database_url, known, followed, options)

    starts = f"reads rows of the namespace {known.namespace} in {table}, for {known.safe_url}"
    run_worker(make, starts, health_port=health_port, health_host=health_host, drain_timeout_s=drain_timeout_s)


def _create(database_url: str, table: str, *, notify: bool) -> None:
    from cachebus.consumers.outbox import create_tables
    from cachebus.consumers.outbox.kinds import TROUBLE, describe, is_sqlite

    try:
        asyncio.run(create_tables(database_url, table, notify=notify))
    except TROUBLE as error:
        raise ConfigError(f"the tables could not be made: {describe(error, database_url, table)}") from None
    lite = is_sqlite(database_url)
    sys.stderr.write(
        f"{table} and {table}_dead are there\n" if lite else f"{table}, {table}_dead and {table}_relays are there\n"
    )


def replay_outbox(
    database_url: DatabaseUrl = "",
    namespace: Namespace = None,
    table: Table = "cachebus_outbox",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, show_default=False, help="At most so many, the oldest; all by default."),
    ] = None,
) -> None:
    """Bring rows that a relay has set aside back into the outbox, to be tried once more.

    Each keeps its time and the count of its attempts; one that is still refused is set aside again.
    """
    if not database_url:
        raise ConfigError(NO_DATABASE)
    try:
        from cachebus.consumers.outbox import replay
        from cachebus.consumers.outbox.kinds import TROUBLE, dead_elsewhere, describe, is_missing
        from cachebus.consumers.worker.clean import clean
    except ImportError as missing:
        raise ConfigError(MISSING.format(missing.name)) from None
    try:
        name = settings_for(None, namespace).namespace
        done = asyncio.run(replay(database_url, name, table, limit=limit))
        others = [] if done else asyncio.run(dead_elsewhere(database_url, name, table))
    except TROUBLE as error:
        told = NO_DEAD.format(table) if is_missing(error) else describe(error, database_url)
        raise ConfigError(f"the rows could not be brought back: {told}") from None
    typer.echo(f"{done} rows are back in {table}")
    if others:
        named = ", ".join(clean(other) for other in others[:20])
        typer.echo(f"no row of the namespace {name} is set aside; there are some of {named} (--namespace)", err=True)
