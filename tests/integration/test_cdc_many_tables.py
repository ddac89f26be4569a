"""Thousands of tables under patterns, as with a schema for each tenant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cachebus.consumers.cdc.slot.publication import EXPOSED
from tests.conftest import connected

KEYED = "CREATE TABLE {} (id int, tenant_id text, x int, PRIMARY KEY (id, tenant_id))"


async def test_a_look_at_the_publication_compares_no_table_with_all_others(database: str) -> None:
    count = 300
    async with connected(database) as connection:
        for number in range(count):
            await connection.execute(KEYED.format(f"o{number}"))
        names = ", ".join(f"o{number}" for number in range(count))
        await connection.execute(f"CREATE PUBLICATION p FOR TABLE {names}")
        oid = await connection.fetchval("SELECT oid::bigint FROM pg_publication")
        sql = f"EXPLAIN (ANALYZE, TIMING off, FORMAT json) {EXPOSED}"
        plan = json.loads(await connection.fetchval(sql, oid, [], False, True, ""))
    assert max(_read(plan[0]["Plan"])) < 20 * count


def _read(node: dict[str, Any]) -> Iterator[float]:
    """How many rows each node of a plan has read."""
    removed = node.get("Rows Removed by Join Filter", 0) + node.get("Rows Removed by Filter", 0)
    yield node["Actual Loops"] * (node["Actual Rows"] + removed)
    for part in node.get("Plans", ()):
        yield from _read(part)
