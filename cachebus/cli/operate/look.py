"""A look at the nodes of a namespace."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from cachebus.cli.operate.layout import layout_of
from cachebus.errors import L2Unavailable
from cachebus.keys.words import shown
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.facts import ShardFacts
from cachebus.tools.doctor.hearing import apart
from cachebus.tools.doctor.namespace import shards_of
from cachebus.tools.doctor.primaries import whereabouts
from cachebus.tools.doctor.rows import Present, nodes_of

LIMIT: Final = 10_000
AsJson = Annotated[bool, typer.Option("--json", help="A JSON object a line.")]


async def shards_looked_at(settings: Settings) -> tuple[list[ShardFacts], L2Unavailable | None]:
    """The shards of the namespace, with the lines of their nodes, and what kept those out of sight that are not among
    them; `L2Unavailable` where that is all."""
    shards: list[ShardFacts] = []
    primaries, lost = await whereabouts(settings)
    troubles = [L2Unavailable(why) for why in lost.values()]
    for primary in primaries:
        try:
            async with await Asker.open(primary.address, settings.connect_timeout_s) as asker:
                found = await shards_of(asker, settings, primary.shards)
            refused = next((shard.refused for shard in found if shard.refused), "")
            if refused:
                raise L2Unavailable(f"{primary.address}: {refused}")
        except L2Unavailable as error:
            troubles.append(error)
        else:
            shards += found
    if troubles and not shards:
        raise troubles[0]
    trouble = L2Unavailable(f"that is not all: {'; '.join(map(str, troubles))}") if troubles else None
    return sorted(shards, key=lambda shard: shard.index), trouble


async def list_nodes(settings: Settings, as_json: bool, limit: int = LIMIT) -> None:
    """Write a line for each node of each shard, of those that live first of all, up to `limit` lines; `L2Unavailable`
    in the end, if some primary can't be looked at."""
    settings = (await layout_of(settings)).over(settings)
    shards, trouble = await shards_looked_at(settings)
    every = [(shard, node) for shard in shards for node in nodes_of(shard)]
    living = sum(node.alive for _, node in every)
    there, silent = min(living, limit), max(0, limit - living)
    for shard, node in every:
        if node.alive:
            there, tells = there - 1, there > 0
        else:
            silent, tells = silent - 1, silent > 0
        if tells:
            line = json.dumps(_as_dict(shard, node)) if as_json else _line(shard, node)
            sys.stdout.write(line + "\n")
    _say_what_is_left_out(shards, len(every), living, limit)
    for finding in apart(shards, settings):
        sys.stderr.write(f"cachebus: {finding.check}: {finding.says}: {finding.otherwise}\n")
    refused = next((f"{shard.nodes_refused} (shard {shard.index})" for shard in shards if shard.nodes_refused), "")
    if refused:
        raise L2Unavailable(f"rows of nodes can't be read: {refused}")
    if trouble is not None:
        raise trouble
    if not as_json and not any(shard.nodes for shard in shards):
        sys.stdout.write("no node\n")


def _as_dict(shard: ShardFacts, node: Present) -> dict[str, Any]:
    return {
        "shard": shard.index,
        "node": node.name,
        "alive": node.alive,
        "damaged": node.damaged,
        "applied": node.applied,
        "behind": node.behind,
        "silent_s": None if node.damaged else round(node.silent_s - node.ahead_s, 3),
        "bound_s": node.bound_s,
        **({} if node.hearing is None else dict(node.hearing.in_row)),
    }


def _line(shard: ShardFacts, node: Present) -> str:
    name = f"shard {shard.index}  {shown(node.name):40}"
    if node.damaged:
        return f"{name}  damaged: its row can't be read"
    state = "alive" if node.alive else "silent" if node.told_in_time else "ahead"
    heard = f"heard {node.silent_s:.1f} s ago" if node.told_in_time else f"in {node.ahead_s:.0f} s to come"
    return f"{name}  {state:6}  applied {node.applied:,}, {node.behind:,} behind, {heard}, bound {node.bound_s:g} s"


def _say_what_is_left_out(shards: Sequence[ShardFacts], rows: int, living: int, limit: int) -> None:
    if rows > limit:
        alive = max(0, living - limit)
        sys.stderr.write(f"cachebus: {rows - limit:,} rows are left out, {alive:,} of them alive: --limit {rows}\n")
    for shard in shards:
        if not shard.all_nodes and not shard.nodes_refused:
            sys.stderr.write(
                f"cachebus: shard {shard.index} has more rows than the {len(shard.nodes):,} that were read\n"
            )
