"""What a database says of a slot, its publication and the tables that rules name: gathered, and judged elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from consumers.cdc.catalogue import Table, tables_of
from consumers.cdc.router import Router

if TYPE_CHECKING:
    import asyncpg

SLOTS_TABLE: Final = """
CREATE TABLE IF NOT EXISTS cachebus_cdc_slots (
  slot text PRIMARY KEY, namespace text NOT NULL, made_at timestamptz NOT NULL DEFAULT now(), whole boolean NOT NULL,
  confirmed pg_lsn, seen jsonb NOT NULL DEFAULT '{}')
"""
SETTINGS: Final = """
SELECT current_setting('wal_level') AS wal_level, current_setting('server_version_num')::int AS version,
  coalesce((SELECT setting::bigint FROM pg_settings WHERE name = 'idle_replication_slot_timeout'), 0) AS idle_s
"""
SLOT: Final = """
SELECT *, current_database() AS here, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained_bytes,
  pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS behind_bytes,
  pg_wal_lsn_diff(confirmed_flush_lsn, (SELECT confirmed FROM {slots} WHERE slot = $1::text))::bigint AS beyond_bytes
FROM pg_replication_slots WHERE slot_name = $1::text
"""
NO_TABLE: Final = "(SELECT NULL::text AS slot, NULL::pg_lsn AS confirmed) AS none"
REMEMBERED: Final = "SELECT namespace, whole, seen FROM cachebus_cdc_slots WHERE slot = $1"
MISSING: Final = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NULL"
PARTITIONS: Final = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relreplident::text AS identity,
  pg_relation_filenode(c.oid) AS file
FROM pg_partition_tree($1::oid) AS tree
JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE tree.isleaf AND c.oid <> $1::oid
"""


@dataclass(frozen=True)
class Partition:
    """A leaf of a table."""

    oid: int
    schema: str
    name: str
    identity: str
    file: int
    """Another one after a truncate, and after all of it was written anew."""


@dataclass
class Facts:
    """All of it, as of one look."""

    settings: Mapping[str, Any]
    missing: list[str]
    """Of the worker's own tables."""
    slot: Mapping[str, Any] | None
    namespace: str | None
    """That of the worker whose slot it is, by what it has noted."""
    whole: bool | None
    """Whether what was ever missed has been made up for; None of a slot that was never noted."""
    seen: dict[str, Any]
    """What was noted of tables: by name their number and their partitions."""
    tables: list[Table]
    partitions: dict[int, list[Partition]] = field(default_factory=dict)
    """By the number of their root."""
    publication: Mapping[str, Any] | None = None
    published: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)

    @property
    def lost(self) -> str:
        """Why the slot will never give anything again, in the server's words; "" where it will."""
        if self.slot is None:
            return ""
        reason = self.slot.get("invalidation_reason")
        if self.slot["wal_status"] == "lost" or reason or self.slot["restart_lsn"] is None:
            return str(reason or "wal_removed")
        return ""

    @property
    def now_seen(self) -> dict[str, Any]:
        """What there is to note of the tables."""
        return {
            table.full_name: {
                "oid": table.oid, "parts": {str(one.oid): one.file for one in self.partitions.get(table.oid, ())},
            } for table in self.tables
        }  # fmt: skip


async def gathered(
    connection: asyncpg.Connection, router: Router, slot: str, publication: str, own: Mapping[str, str]
) -> Facts:
    """Look. Raises what the driver does. `own`: the worker's own tables, by name the SQL that makes them."""
    missing = [row["name"] for row in await connection.fetch(MISSING, list(own))]
    noted = None
    if "cachebus_cdc_slots" not in missing:
        noted = await connection.fetchrow(REMEMBERED, slot)
    found = await connection.fetchrow(SLOT.format(slots=NO_TABLE if noted is None else "cachebus_cdc_slots"), slot)
    tables = [t for t in await tables_of(connection) if router.rules_of(t.schema, t.name)]
    facts = Facts(
        dict(await connection.fetchrow(SETTINGS)), missing, None if found is None else dict(found),
        noted and noted["namespace"], None if noted is None else noted["whole"],
        json.loads(noted["seen"]) if noted else {}, tables,
    )  # fmt: skip
    for table in tables:
        if table.partitioned:
            rows = await connection.fetch(PARTITIONS, table.oid)
            facts.partitions[table.oid] = [Partition(*row) for row in rows]
    row = await connection.fetchrow("SELECT * FROM pg_publication WHERE pubname = $1", publication)
    if row is not None:
        facts.publication = dict(row)
        rows = await connection.fetch("SELECT * FROM pg_publication_tables WHERE pubname = $1", publication)
        facts.published = {(one["schemaname"], one["tablename"]): dict(one) for one in rows}
    return facts
