"""Changes of rows to follow, and what a worker that follows them asks L2 for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.worker import Worker
from cachebus.keys.key import GIVEN
from cachebus.keys.plan import Plan
from tests.support.caches import until

ROOT = Path(__file__).parents[2]
RULES = """
tenants = ["acme", "globex"]

[[rule]]
table = "shop.orders"
data_type = "order"
resource_id = "{id}"
tenant_id = "{tenant_id}"
scopes = [{ data_type = "order_list" }]
related = [{ data_type = "customer", resource_id = "{customer_id}" }]
replica_identity = "full"
on_truncate = "all"

[[rule]]
table = "shop.notes"
data_type = "note"
resource_id = "{code}"
tenant_id = "{tenant_id}"
collection_id = "{folder}"
tags = ["note:{code}"]
when = ["title", "text"]
replica_identity = "full"
on_truncate = ["acme"]

[[rule]]
table = "*.settings"
data_type = "system"
resource_id = "{name}"
operations = ["insert", "update", "delete"]

[[cascade]]
data_type = "order"
to = [["embedding", "order:{resource_id}"]]
"""
SCHEMA = """
CREATE SCHEMA shop;
CREATE SCHEMA other;
CREATE TABLE shop.orders (
  id bigint, tenant_id text NOT NULL, customer_id int, note text, at timestamptz DEFAULT now(), PRIMARY KEY (id));
CREATE TABLE shop.notes (
  code uuid PRIMARY KEY, tenant_id varchar(20) NOT NULL, folder int, title text, text text, seen int DEFAULT 0);
CREATE TABLE other.settings (name text PRIMARY KEY, value text);
CREATE TABLE shop.settings (name text PRIMARY KEY, value text);
CREATE TABLE shop.unruled (id int PRIMARY KEY);
ALTER TABLE shop.orders REPLICA IDENTITY FULL;
ALTER TABLE shop.notes REPLICA IDENTITY FULL;
ALTER TABLE shop.notes ALTER COLUMN text SET STORAGE EXTERNAL;
"""
TABLES = ("shop.orders", "shop.notes", "shop.settings", "other.settings", "shop.unruled")
CODE = "00000000-0000-0000-0000-0000000000"
LARGE = "repeat('large ', 2000)"
ORDERS = "shop.orders (id, tenant_id, customer_id, note)"
NOTES = "shop.notes (code, tenant_id, folder, title, text)"
MANY = "generate_series(1000, 4000) g"
STORY: Sequence[str] = (
    f"INSERT INTO {ORDERS} VALUES (1, 'acme', 10, 'a'), (2, 'globex', NULL, 'b')",
    "UPDATE shop.orders SET note = 'c' WHERE id = 1",
    "UPDATE shop.orders SET id = 3 WHERE id = 1",
    "UPDATE shop.orders SET tenant_id = 'globex' WHERE id = 3",
    "UPDATE shop.orders SET customer_id = 11 WHERE id = 2",
    "DELETE FROM shop.orders WHERE id = 3",
    f"INSERT INTO {NOTES} VALUES ('{CODE}01', 'acme', 7, 't', {LARGE}), ('{CODE}02', 'acme', NULL, 't', {LARGE})",
    f"UPDATE shop.notes SET seen = 1 WHERE code = '{CODE}01'",
    f"UPDATE shop.notes SET title = 'u' WHERE code = '{CODE}01'",
    f"UPDATE shop.notes SET folder = 8 WHERE code = '{CODE}01'",
    f"UPDATE shop.notes SET text = 'short' WHERE code = '{CODE}02'",
    "INSERT INTO other.settings VALUES ('theme', 'dark'); INSERT INTO shop.settings VALUES ('limit', '5')",
    "UPDATE other.settings SET name = 'colour' WHERE name = 'theme'",
    f"BEGIN; INSERT INTO {ORDERS} VALUES (90, 'acme', 1, ''); DELETE FROM shop.notes; ROLLBACK",
    "INSERT INTO shop.unruled VALUES (1)",
    f"""BEGIN; INSERT INTO {ORDERS} VALUES (5, 'acme', 1, ''); UPDATE shop.orders SET id = 6 WHERE id = 5;
    DELETE FROM shop.orders WHERE id = 6; COMMIT""",
    f"INSERT INTO {ORDERS} SELECT g, 'acme', g % 7, 'many' FROM {MANY}",
    "TRUNCATE shop.orders; TRUNCATE shop.notes",
    "DELETE FROM other.settings; TRUNCATE shop.settings",
    f"INSERT INTO {ORDERS} VALUES (99, 'acme', NULL, 'the end')",
)
END = ("order", "99")


def rules() -> RuleFile:
    """Those of the story."""
    return parse_rules(RULES)


async def tell(database: str, story: Sequence[str] = STORY) -> None:
    """Have it happen."""
    connection = await asyncpg.connect(database)
    try:
        for statements in story:
            await connection.execute(statements)
    finally:
        await connection.close()


async def fetched(database: str, sql: str, *arguments: Any) -> Any:
    """What this asks for, alone."""
    connection = await asyncpg.connect(database)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()


class Heard:
    """What a worker has asked L2 for: how often each key, scope and tag."""

    def __init__(self, worker: Any) -> None:
        self.asked: Counter[str] = Counter()
        self._carry = worker._applier.carry
        worker._applier.carry = self._noted

    async def _noted(self, plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        carried: Carried = await self._carry(plans, within_s)
        left = carried.away | carried.late | carried.failed.keys()
        self._note([plan for at, plan in enumerate(plans) if at not in left])
        return carried

    def _note(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            self.asked.update(f"K {key.l2}" for key in plan.keys)
            self.asked.update(name.replace(GIVEN, " ") for name in plan.scopes)

    def has(self, data_type: str, resource_id: str, tenant_id: str = "acme") -> bool:
        """Whether it has asked for this key."""
        return bool(self.asked[f"K {tenant_id}:{data_type}:{resource_id}"])


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """The worker at work; drained at the end."""
    task = asyncio.create_task(worker.run())
    try:
        try:
            await until(lambda: task.done() or _works(worker))
        except AssertionError:
            raise AssertionError(f"it does not work: {worker.health.as_dict()}") from None
        if task.done():
            task.result()
        yield task
        worker.drain()
        await asyncio.wait_for(task, 20)
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _works(worker: Worker) -> bool:
    health = worker.health  # not whether it is live: nobody here keeps it beating
    return all(map(health.is_up, health.parts)) and (not isinstance(worker, SlotWorker) or worker.follows)


async def fetched_is(database: str, wanted: Any, sql: str, *arguments: Any) -> bool:
    """Whether the database answers so."""
    return bool(await fetched(database, sql, *arguments) == wanted)


def keys(heard: Heard) -> dict[str, int]:
    """How often each key and tag was asked for; of scopes, only which: their number depends on how changes are cut."""
    return {name: count if name[0] in "KG" else 1 for name, count in heard.asked.items()}
