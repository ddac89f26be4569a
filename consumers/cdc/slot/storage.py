"""The worker's own tables, in the database that it follows, and what it remembers of its slot there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from cachebus.consumers.worker.source import Finding

SLOTS: Final = "cachebus_cdc_slots"
DEAD: Final = "cachebus_cdc_dead"
HELD: Final = "cachebus_cdc_held"
OWN_TABLES: Final = (DEAD, HELD, SLOTS)
MAKE: Final[Mapping[str, str]] = {
    SLOTS: f"""
CREATE TABLE IF NOT EXISTS {SLOTS} (
  slot text PRIMARY KEY, namespace text NOT NULL, lsn pg_lsn NOT NULL, whole boolean NOT NULL,
  losses int NOT NULL DEFAULT 0, tables jsonb NOT NULL, made_at timestamptz NOT NULL DEFAULT now())""",
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
    SLOTS: frozenset({"slot", "namespace", "lsn", "whole", "losses", "tables", "made_at"}),
    DEAD: frozenset({"id", "slot", "source", "payload", "digest", "reason", "attempts", "at"}),
    HELD: frozenset({"slot", "digest", "id", "shards", "shard", "command", "at"}),
}
_LOOK: Final = """
SELECT name, r IS NOT NULL AS there,
       (SELECT array_agg(attname::text) FROM pg_attribute
        WHERE attrelid = r AND attnum > 0 AND NOT attisdropped) AS has,
       (SELECT array_agg(needed) FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed
        WHERE r IS NOT NULL AND NOT has_table_privilege(r, needed)) AS lacks,
       (SELECT array_agg(quote_ident(rulename)) FROM pg_rewrite
        WHERE ev_class = r AND is_instead AND ev_enabled <> 'D') AS rules,
       CASE WHEN row_security_active(r) THEN NOT EXISTS (
           SELECT FROM pg_policy WHERE polrelid = r AND polpermissive AND polcmd = '*'
           AND pg_get_expr(polqual, r) = 'true' AND coalesce(pg_get_expr(polwithcheck, r), 'true') = 'true'
           AND EXISTS (SELECT FROM unnest(polroles) AS one WHERE one = 0 OR pg_has_role(one, 'USAGE')))
         OR EXISTS (SELECT FROM pg_policy WHERE polrelid = r AND NOT polpermissive) END AS hides
FROM (SELECT name, to_regclass(name) AS r FROM unnest($1::text[]) AS name) AS named
"""
_TRIGGERS: Final = """
SELECT array_agg(quote_ident(tgname) ORDER BY tgname) FROM pg_trigger
WHERE tgrelid = to_regclass($1) AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 3 = 3
"""
"""Triggers that run before a row is written."""
_RECALL: Final = f"SELECT namespace, lsn - '0/0'::pg_lsn AS lsn, whole, losses, tables FROM {SLOTS} WHERE slot = $1"
REMEMBER: Final = f"""
INSERT INTO {SLOTS} (slot, namespace, lsn, whole, tables) VALUES ($1, $2, $3::text::pg_lsn, $4, $5)
ON CONFLICT (slot) DO UPDATE SET namespace = $2, lsn = $3::text::pg_lsn, whole = $4, tables = $5
"""


def sql_of(table: str) -> str:
    """The SQL that creates the table, in one line."""
    return " ".join(MAKE[table].split())


@dataclass
class Memory:
    """What is remembered of a slot."""

    namespace: str
    """The namespace that the slot serves."""
    lsn: int
    """The slot was never advanced beyond this position."""
    whole: bool
    """Whether all changes since the slot's creation were either read or made up for."""
    losses: int = 0
    """How often it was noticed that others have read from the slot."""
    tables: dict[str, Any] = field(default_factory=dict)
    """Tables whose changes were all either read or made up for, and what they were known by then."""


async def storage_findings(connection: asyncpg.Connection, refused: Mapping[str, str]) -> list[Finding]:
    """The findings about the three tables. `refused`: why some could not be created."""
    found = []
    for row in await connection.fetch(_LOOK, list(OWN_TABLES)):
        name = row["name"]
        missing = sorted(COLUMNS[name].difference(row["has"] or ()))
        if not row["there"]:
            why = f", and this user may not make it ({refused[name]})" if name in refused else ""
            found.append(Finding("storage", name, f"it is not there{why}", f"{sql_of(name)};", stops=True))
        elif missing:
            found.append(
                Finding(
                    "storage",
                    name,
                    f"it has no column {', '.join(missing)}: it is another release's",
                    f"BEGIN; ALTER TABLE {name} RENAME TO {name}_old; {sql_of(name)}; COMMIT;",
                    stops=True,
                )
            )
        elif row["lacks"]:
            lacks = ", ".join(row["lacks"])
            remedy = f"GRANT {lacks} ON {name} TO CURRENT_USER;"
            found.append(Finding("storage", name, f"this user lacks {lacks}", remedy, stops=True))
        elif row["rules"]:
            remedy = " ".join(f"DROP RULE {rule} ON {name};" for rule in row["rules"])
            found.append(Finding("storage", name, "a rule does something else instead", remedy, stops=True))
        elif row["hides"]:
            remedy = f"CREATE POLICY cachebus ON {name} TO CURRENT_USER USING (true) WITH CHECK (true);"
            problem = "row-level security may hide rows from this worker"
            found.append(Finding("storage", name, problem, remedy, stops=True))
    return found


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


async def swallowing(connection: asyncpg.Connection, table: str, writes: Sequence[tuple[str, Any]]) -> Finding | None:
    """The finding about a table that has swallowed a row, as long as it still does. The worker's writes, each of which
    changes a row, are tried in a transaction that is rolled back."""
    trial = connection.transaction()
    await trial.start()
    try:
        for sql, given in writes:
            await change(connection, table, sql, *given)
    except (Swallowed, asyncpg.FeatureNotSupportedError):
        pass  # the latter: a rule
    else:
        return None
    finally:
        await trial.rollback()
    names = await connection.fetchval(_TRIGGERS, table) or []
    remedy = " ".join(f"ALTER TABLE {table} DISABLE TRIGGER {name};" for name in names)
    who = f"of the triggers {', '.join(names)} one gives NULL" if names else "nobody knows why"
    problem = f"what is written there is not kept, nor is it refused: {who}"
    return Finding("storage", table, problem, remedy, stops=True)


async def recall(connection: asyncpg.Connection, slot: str) -> Memory | None:
    """What is remembered of the slot; None if nothing is."""
    row = await connection.fetchrow(_RECALL, slot)
    return row and Memory(row["namespace"], int(row["lsn"]), row["whole"], row["losses"], json.loads(row["tables"]))


async def remember(connection: asyncpg.Connection, slot: str, memory: Memory) -> None:
    """Remember this of the slot: it is committed when this returns; `Swallowed`."""
    given = memory.namespace, lsn_text(memory.lsn), memory.whole, as_json(memory.tables)
    await change(connection, SLOTS, REMEMBER, slot, *given)


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
