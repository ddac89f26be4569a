"""A look at the nodes of a namespace, and `cachebus tail`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated

import typer

from cachebus.assembly.backends import channels_of, kafka_bus
from cachebus.base.clock import monotonic
from cachebus.bus.redis import RedisBus
from cachebus.cli.operate.events import Filter, line_of, shown
from cachebus.cli.operate.layout import layout_of
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.core.ports import Bus, Listener
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.observe import Counters
from cachebus.settings import Settings
from cachebus.tools.doctor.facts import ASK_TIMEOUT_S, Asker, ShardFacts
from cachebus.tools.doctor.namespace import nodes_of, shards_of
from cachebus.tools.doctor.primaries import route_to, whereabouts

AsJson = Annotated[bool, typer.Option("--json", help="A JSON object a line.")]
Count = Annotated[int, typer.Option("--count", min=0, help="End after so many events; 0: not by itself.")]
LOOK_S = 0.2


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


async def list_nodes(settings: Settings, as_json: bool) -> None:
    """Write a line for each node of each shard; `L2Unavailable` in the end, if some primary can't be looked at."""
    shards, trouble = await shards_looked_at((await layout_of(settings)).over(settings))
    for shard in shards:
        for node in nodes_of(shard):
            alive = node.alive
            told = {
                "shard": shard.index,
                "node": node.name,
                "alive": alive,
                "applied": node.applied,
                "behind": node.behind,
                "silent_s": round(node.silent_s - node.ahead_s, 3),
                "bound_s": node.bound_s,
            }
            state = "alive" if alive else "silent" if node.told_in_time else "ahead"
            heard = f"heard {node.silent_s:.1f} s ago" if node.told_in_time else f"in {node.ahead_s:.0f} s to come"
            line = (
                f"shard {shard.index}  {shown(node.name):40}  {state:6}  applied {node.applied:,}, "
                f"{node.behind:,} behind, {heard}, bound {node.bound_s:g} s"
            )
            sys.stdout.write((json.dumps(told) if as_json else line) + "\n")
    if trouble is not None:
        raise trouble
    if not as_json and not any(shard.nodes for shard in shards):
        sys.stdout.write("no node\n")


def tail(url: Url = None, namespace: Namespace = None, count: Count = 0, as_json: AsJson = False) -> None:
    """Show invalidations and writes as they happen: when, seq, who, which keys, which scopes and tags.

    Only listens: nothing is written. What happened before is shown by `cachebus log`. Ends with Ctrl-C.
    Exit status: 0 after --count, 2 if the server could not be reached or was lost.
    """
    until_signalled(_tail(settings_for(url, namespace), count, as_json))


async def _tail(settings: Settings, count: int, as_json: bool) -> None:
    layout = await layout_of(settings)
    if layout.bus != settings.bus:
        raise ConfigError(f"the events of {settings.namespace} go over {layout.bus}: set CACHEBUS_BUS={layout.bus}")
    settings, shards = layout.over(settings), layout.shards
    heard: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    bus = await _listening(settings, lambda shard, message: heard.put_nowait((shard, message)))
    try:
        await bus.connect()
        sys.stderr.write(f"listening to {shards} shard{'s' * (shards > 1)} of {settings.namespace}\n")
        shown = 0
        while not count or shown < count:
            found = await _next(heard, bus)
            line = line_of(*found, Filter(), as_json=as_json)
            if line:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
                shown += 1
    finally:
        await bus.close()


async def _listening(settings: Settings, listener: Listener) -> Bus:
    """Where the settings say that events go, not yet connected."""
    if settings.bus == "kafka":
        return kafka_bus(settings, monotonic, listener, Counters())
    return RedisBus(
        await route_to(settings),
        channels_of(settings),
        listener,
        timeout_s=ASK_TIMEOUT_S,
        connect_timeout_s=settings.connect_timeout_s,
        clock=monotonic,
    )


async def _next(heard: asyncio.Queue[tuple[int, bytes]], bus: Bus) -> tuple[int, bytes]:
    """What is heard next; `L2Unavailable` once nothing can be."""
    while True:
        try:
            return await asyncio.wait_for(heard.get(), LOOK_S)
        except TimeoutError:
            if not bus.connected:
                raise L2Unavailable("lost the server that was listened to") from None
