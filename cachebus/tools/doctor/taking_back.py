"""Whether a namespace's layout can be taken back: removed, so that the next node lays the namespace out anew.

It would end the shards' histories under all nodes that live in it. So the doctor gives the commands only where it knows
that none does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cachebus.core.ports import PROTOCOL
from cachebus.l2.names import ShardNames
from cachebus.tools.doctor.facts import Facts, ShardFacts
from cachebus.tools.doctor.rows import nodes_of

_FACT: Final = re.compile(r"(\w+)=(\w+)")


def stated(said: str) -> dict[str, str]:
    """What the facts in a shard's meta say, by name."""
    return dict(_FACT.findall(said))


def strangers(facts: Facts) -> int:
    """How many listen to a shard's events and can have no row there: those that it refuses are among them."""
    known = [shard for shard in facts.shards if shard.all_nodes and not shard.nodes_refused]
    return max((_without_row(shard) for shard in known), default=0)


def _without_row(shard: ShardFacts) -> int:
    return max(0, (shard.subscribers or 0) - sum(node.perhaps_alive for node in nodes_of(shard)))


def commands(facts: Facts, which: Sequence[int]) -> tuple[str, ...]:
    """Those that remove the layout of these shards; none unless it is known that no node lives in it."""
    if _is_inhabited(facts) or _untold(facts):
        return ()
    return tuple(f"DEL {ShardNames(facts.settings.namespace, shard).meta}" for shard in which)


def way(facts: Facts) -> str:
    """How a layout is taken back, behind what else may be done."""
    if _is_inhabited(facts):
        return "; to take the layout back, stop the nodes that live in it, and ask the doctor again"
    if why := _untold(facts):
        return f"; whether a node lives in the layout is not known: {why}"
    return "; or take the layout back, in which no node lives: by the commands here, behind which a new epoch begins"


def _is_inhabited(facts: Facts) -> bool:
    return any(node.alive for shard in facts.shards for node in nodes_of(shard))


def _untold(facts: Facts) -> str:
    """Why rows do not tell whether a node lives in a layout, and what would; "" if they tell."""
    for shard in facts.shards:
        said = shard.meta.get("facts")
        if said and stated(said).get("protocol") != str(PROTOCOL):
            return "its rows are of another protocol, and only the doctor of a version that has it can read them"
        if shard.refused or shard.nodes_refused:
            return f"{shard.refused or shard.nodes_refused}; ask the doctor as a user who may read the nodes' rows"
        if not shard.all_nodes:
            return "it has more rows than were read; remove those of nodes that are gone, and ask the doctor again"
        if any(node.perhaps_alive and not node.alive for node in nodes_of(shard)):
            return "rows can't be read, or are of a time to come; see to these, and ask the doctor again"
    return ""
