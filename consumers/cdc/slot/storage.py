"""The worker's own tables, in the database that it follows, and what it remembers of its slot there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

SLOTS: Final = "cachebus_cdc_slots"
DEAD: Final = "cachebus_cdc_dead"
HELD: Final = "cachebus_cdc_held"
OWN_TABLES: Final = (DEAD, HELD, SLOTS)
MAKE: Final[Mapping[str, str]] = {
    SLOTS: f"""
CREATE TABLE IF NOT EXISTS {SLOTS} (
  slot text PRIMARY KEY, namespace text NOT NULL, lsn pg_lsn NOT NULL, whole boolean NOT NULL,
  losses int NOT NULL DEFAULT 0, held bigint NOT NULL DEFAULT 0, tables jsonb NOT NULL,
  tables_sum int NOT NULL DEFAULT 0,
  made_at timestamptz NOT NULL DEFAULT now())""",
    DEAD: f"""
CREATE TABLE IF NOT EXISTS {DEAD} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, slot text NOT NULL, source text NOT NULL,
  payload text NOT NULL, digest text NOT NULL, reason text NOT NULL, attempts int NOT NULL,
  at timestamptz NOT NULL DEFAULT now(), UNIQUE (slot, source, digest))""",
    HELD: f"""
CREATE TABLE IF NOT EXISTS {HELD} (
  slot text NOT NULL, digest text NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, shards int NOT NULL,
  shard int NOT NULL, command text NOT NULL, at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (slot, digest), UNIQUE (slot, shard, id))""",
}
COLUMNS: Final[Mapping[str, frozenset[str]]] = {
    SLOTS: frozenset({"slot", "namespace", "lsn", "whole", "losses", "held", "tables", "tables_sum", "made_at"}),
    DEAD: frozenset({"id", "slot", "source", "payload", "digest", "reason", "attempts", "at"}),
    HELD: frozenset({"slot", "digest", "id", "shards", "shard", "command", "at"}),
}
_ARE_OURS: Final = "tables_sum = hashtext(tables::text)"
"""SQL: whether the column `tables` is what a worker has written there last. Others may have put an older state back."""


def tables_become(value: str, *, as_a_whole: bool = False) -> str:
    """SQL that sets the column `tables`, and the sum of it. If others have put an older state there, what is made of
    that is no better; a new one `as_a_whole` is."""
    new = f"hashtext(({value})::text)"
    return f"tables = {value}, tables_sum = " + (
        new if as_a_whole else f"CASE WHEN {_ARE_OURS} THEN {new} ELSE tables_sum END"
    )


_RECALL: Final = f"""
SELECT namespace, lsn - '0/0'::pg_lsn AS lsn, whole, losses,
       CASE WHEN {_ARE_OURS} THEN tables ELSE '{{}}' END AS tables,
       (SELECT relnamespace::regnamespace::text || '.' || quote_ident(relname) FROM pg_class WHERE oid = s.tableoid)
         AS lies_in
FROM {SLOTS} s WHERE slot = $1
"""
REMEMBER: Final = f"""
INSERT INTO {SLOTS} (slot, namespace, lsn, whole, tables, tables_sum)
VALUES ($1, $2, $3::text::pg_lsn, $4, $5::jsonb, hashtext($5::jsonb::text))
ON CONFLICT (slot) DO UPDATE SET namespace = $2, lsn = $3::text::pg_lsn, whole = $4,
  {tables_become("$5::jsonb", as_a_whole=True)}
"""
_TRIAL: Final = f"""
INSERT INTO {SLOTS} AS s (slot, namespace, lsn, whole, tables) VALUES ($1, $2, pg_current_wal_flush_lsn(), true, '{{}}')
ON CONFLICT (slot) DO UPDATE SET namespace = $2, lsn = excluded.lsn, whole = NOT s.whole, losses = s.losses + 1,
  tables = excluded.tables
"""


def sql_of(table: str, name: str = "") -> str:
    """The SQL that creates the table, in one line; under this name with its schema, where one is given."""
    return " ".join(MAKE[table].split()).replace(f"EXISTS {table}", f"EXISTS {name or table}")


@dataclass
class SlotMemory:
    """What is remembered of a slot."""

    namespace: str
    """The namespace that the slot serves."""
    lsn: int
    """The slot was never advanced beyond this position."""
    whole: bool
    """Whether all changes since the slot's creation were either read or made up for."""
    losses: int = 0
    """How often it was noticed that changes were missed."""
    tables: dict[str, Any] = field(default_factory=dict)
    """Tables whose changes were all either read or made up for, and what they were known by then."""
    lies_in: str = SLOTS
    """The table in which this is remembered, with its schema, as SQL names it."""


class Swallowed(Exception):
    """A row was not written, or not removed, though the database has reported no error: a trigger, a rule or a policy
    swallows it."""

    def __init__(self, table: str) -> None:
        super().__init__(f"{table}: what is written there is not kept, nor is it refused")
        self.table = table


async def change(connection: asyncpg.Connection, table: str, sql: str, *given: Any) -> None:
    """Write a row: it is committed when this returns. `Swallowed` if no row was written."""
    status = await connection.execute(sql, *given)
    if status.endswith(" 0"):
        raise Swallowed(table)


async def lose(connection: asyncpg.Connection, slot: str) -> None:
    """Remember that changes of the slot were missed: it is committed when this returns. Each is counted, so that what
    is made up for by then is not taken for what comes now."""
    await change(connection, SLOTS, f"UPDATE {SLOTS} SET whole = false, losses = losses + 1 WHERE slot = $1", slot)


async def recall(connection: asyncpg.Connection, slot: str) -> SlotMemory | None:
    """What is remembered of the slot; None if nothing is."""
    row = await connection.fetchrow(_RECALL, slot)
    if row is None:
        return None
    tables = readable(json.loads(row["tables"]))
    return SlotMemory(row["namespace"], int(row["lsn"]), row["whole"], row["losses"], tables, row["lies_in"])


def readable(tables: Any) -> dict[str, Any]:
    """What can be read of the column `tables`. A table of which that can't be counts as never looked at."""
    return {name: mark for name, mark in tables.items() if _is_mark(mark)} if isinstance(tables, dict) else {}


def _is_mark(mark: Any) -> bool:
    """Whether it has what a look compares with."""
    if not isinstance(mark, dict):
        return False
    lists = (mark.get("rules", []), mark.get("of", []))
    return (
        re.match(r"\d+/", str(mark.get("is"))) is not None
        and all(isinstance(one, dict) for one in (mark.get("parts"), mark.get("types", {})))
        and all(isinstance(one, list) and all(isinstance(item, str) for item in one) for one in lists)
    )


async def remember(connection: asyncpg.Connection, slot: str, memory: SlotMemory) -> None:
    """Remember this of the slot: it is committed when this returns; `Swallowed`."""
    given = memory.namespace, lsn_text(memory.lsn), memory.whole, as_json(memory.tables)
    await change(connection, SLOTS, REMEMBER, slot, *given)


def trial(slot: str, namespace: str) -> list[tuple[str, Any]]:
    """Writes to try, which are rolled back: of the row of the slot itself, since a trigger may be for it alone."""
    return 2 * [(_TRIAL, (slot, namespace))]


def as_json(tables: dict[str, Any]) -> str:
    """The tables as JSON, for the column `tables`."""
    return json.dumps(tables)


def lsn_of(text: str) -> int:
    """The number of an LSN."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def lsn_text(lsn: int) -> str:
    """The LSN as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
