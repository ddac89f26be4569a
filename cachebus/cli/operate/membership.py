"""`cachebus nodes`, which lists them, and `cachebus nodes forget NAME`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cachebus.assembly.backends import redis_store
from cachebus.base.clock import monotonic
from cachebus.cli.operate.layout import layout_of
from cachebus.cli.operate.look import LIMIT, AsJson, list_nodes, shards_looked_at
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.core.ports import Caller
from cachebus.settings import Settings
from cachebus.tools.doctor.primaries import route_to

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its id, as `cachebus nodes` shows it.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="So many rows at most, those of living nodes first.")]
NOBODY = Caller("", 0, b"")
UNKNOWN = 1

nodes = typer.Typer(
    name="nodes",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@nodes.callback()
def listing(
    context: typer.Context, url: Url = None, namespace: Namespace = None, as_json: AsJson = False, limit: Limit = LIMIT
) -> None:
    """Who is alive in a namespace, how far each has applied events, and when it was last heard.

    A node that says nothing for the staleness bound has no lease: it has ended, hangs, or cannot reach the server.
    Exit status: 0, 2 if there is no such namespace, or the server could not be reached, or one of several: the nodes of
    the others are listed first.
    """
    context.obj = url, namespace
    if context.invoked_subcommand is None:
        until_signalled(list_nodes(settings_for(url, namespace), as_json, limit))


@nodes.command(short_help="Say that a node is gone, so that nobody waits for it.")
def forget(context: typer.Context, name: Name, url: Url = None, namespace: Namespace = None) -> None:
    """Take a node's row away, so that calls with `wait="nodes"` do not wait for it any more.

    For one that was killed, or is cut off for good: else they wait for it until it has been silent for a minute. Nobody
    here knows that it is gone, so for the staleness bound from now they all wait that long. One that lives comes back.

    Exit status: 0, 1 if no shard has such a node, 2 if the server could not be reached, or one of several: its row at
    the others is taken away first.
    """
    given_url, given_namespace = context.obj
    settings = settings_for(given_url if url is None else url, given_namespace if namespace is None else namespace)
    had, shards = until_signalled(_forgotten(settings, name))
    sys.stdout.write(f"{had} of {shards} shards had it\n")
    raise typer.Exit(0 if had else UNKNOWN)


async def _forgotten(settings: Settings, name: str) -> tuple[int, int]:
    """How many shards had the node, and how many there are. Where it is not, nothing is written; `L2Unavailable`."""
    settings = (await layout_of(settings)).over(settings)
    shards, trouble = await shards_looked_at(settings)
    having = [shard.index for shard in shards if name in shard.nodes or not shard.all_nodes]
    gone = 0
    if having:
        store = redis_store(settings, await route_to(settings), monotonic)
        try:
            for shard in having:
                await store.reach(shard)
                gone += await store.forget(shard, NOBODY, name, lives=True)
        finally:
            await store.close()
    if trouble is not None:
        raise trouble
    return gone, len(shards)
