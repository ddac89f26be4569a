"""When the doctor says how a layout is removed: where it knows that no node lives in it, and only there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cachebus import Settings
from cachebus.core.ports import About, NodeRow
from cachebus.l2.replies import UNREADABLE
from cachebus.resp import Address
from cachebus.tools.doctor import namespace, taking_back
from cachebus.tools.doctor.facts import Facts, Server, ShardFacts, Timing

NOW_US = 60_000_000
SILENT = NodeRow(1, b"e", 1, About(5_000, 60_000))
ALIVE, AHEAD = (SILENT._replace(at_us=at_us) for at_us in (NOW_US, 2 * NOW_US))
OURS = "protocol=2 shards=4 bus=redis"


def given(shard: ShardFacts) -> Facts:
    """One shard as it was found, for settings of two."""
    server = Server(Address(), {}, "", {}, "", "app")
    return Facts(Settings(shards=2), server, Timing([], []), (shard,))


def shard(**changes: Any) -> ShardFacts:
    return replace(ShardFacts(0, {"facts": OURS}, now_us=NOW_US), **changes)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (shard(nodes={"web-1": SILENT}), ""),
        (shard(nodes={"web-1": ALIVE}), "stop the nodes that live in it"),
        (shard(nodes={"web-1": AHEAD}), "are of a time to come"),
        (shard(nodes={"web-1": UNREADABLE}), "can't be read"),
        (shard(nodes={"web-1": SILENT}, all_nodes=False), "more rows than were read"),
        (shard(nodes_refused="NOPERM HSCAN"), "not known: NOPERM HSCAN; ask the doctor as a user"),
        (shard(meta={"facts": "protocol=1 shards=4 bus=redis"}), "of another protocol"),
        (shard(meta={"facts": "somebody's"}), "of another protocol"),
    ],
)
def test_a_layout_is_removed_where_it_is_known_that_no_node_lives_in_it(found: ShardFacts, why: str) -> None:
    [finding] = namespace.layout(given(found))
    assert finding.mend == (() if why else ("DEL {cachebus:0}:meta",))
    assert (why or "in which no node lives: by the commands here") in finding.otherwise


@pytest.mark.parametrize(
    ("found", "count"),
    [
        (shard(subscribers=3, nodes={"a": ALIVE, "b": SILENT}), 2),
        (shard(subscribers=3, nodes={"a": ALIVE, "b": UNREADABLE, "c": AHEAD}), 0),
        (shard(subscribers=3, nodes_refused="NOPERM"), 0),
        (shard(subscribers=3, all_nodes=False), 0),
        (shard(nodes={"a": ALIVE}), 0),
    ],
)
def test_who_listens_is_a_stranger_where_no_row_can_be_its_own(found: ShardFacts, count: int) -> None:
    assert taking_back.strangers(given(found)) == count
