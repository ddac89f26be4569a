"""`cachebus worker NAME`: one sub-command a worker, each in a module of its own."""

from __future__ import annotations

import typer

from cachebus.cli.worker.cdc import cdc

worker = typer.Typer(
    name="worker",
    help="Run a worker until SIGTERM: it carries committed writes on to every cache, at least once.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
worker.command(short_help="Changes of a database's rows, by rules.")(cdc)
