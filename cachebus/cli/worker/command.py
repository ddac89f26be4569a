"""`cachebus worker NAME`: one sub-command a worker, each in a module of its own."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from cachebus.cli.worker.cdc import cdc, replay_cdc
from cachebus.cli.worker.checking import begin, looks
from cachebus.cli.worker.kafka import kafka, replay_kafka
from cachebus.cli.worker.outbox import outbox, replay_outbox


def _group(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


worker = _group("worker", "Run a worker until SIGTERM: it carries committed writes on to every cache, at least once.")
replay_dead = _group("replay-dead", "Bring back what a worker has set aside, to be tried once more.")
worker.add_typer(replay_dead, short_help="Bring back what was set aside.")
replay_dead.command("outbox", short_help="Into an outbox.")(replay_outbox)
replay_dead.command("kafka", short_help="Of commands on Kafka, into their topic.")(replay_kafka)
replay_dead.command("cdc", short_help="Of changes of rows, by the rules as they are now.")(replay_cdc)
checks = _group("check", "Look at all that a worker needs and assumes, without starting it.")
worker.add_typer(checks, short_help="Look at all that a worker assumes, without starting it.")
worker.command(short_help="From an outbox in PostgreSQL or SQLite.")(outbox)
worker.command(short_help="From commands in a topic of Kafka.")(kafka)
worker.command(short_help="From the changes of a database's rows, by rules.")(cdc)


@checks.callback()
def _check(as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False) -> None:
    """Look at all that a worker assumes, without starting it: with the options of the worker itself.

    L2, the database or the brokers, tables, rights, publications, slots, topics, offsets: each is ok or a problem, with
    what mends it. What may be a mistake is a warning. Nothing is changed, but a namespace
    of L2 that is new is begun. Exit status: 0, also with warnings; 1 if something is wrong, 2 if nothing could be
    looked at.
    """
    begin(as_json=as_json)


_OUTBOX: Final = "Look at an outbox as its relay does, without starting it: L2, the database, tables, rights, triggers."
_KAFKA: Final = "Look at commands on Kafka as their worker does, without starting it: L2, brokers, the topic, offsets."
_CDC: Final = "Look at a source of changes as its worker does, without starting it: L2, the source, what rules need."
checks.command("outbox", short_help="An outbox, its tables and triggers.")(
    looks(outbox, _OUTBOX, without=("create_table", "print_sql", "notify"))
)
checks.command("kafka", short_help="The commands' topic and the group's offsets.")(looks(kafka, _KAFKA))
checks.command("cdc", short_help="Rules, publication, slot and tables; or topics and offsets.")(
    looks(cdc, _CDC, without=("check", "sample"))
)
