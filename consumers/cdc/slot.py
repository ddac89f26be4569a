"""A slot and its publication: made where they are missing, or the SQL that makes them is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loguru import logger

from cachebus.errors import ConfigError
from consumers.cdc.catalogue import Table, examine, quoted, tables_of
from consumers.cdc.dead import TABLE as DEAD_TABLE
from consumers.cdc.held import TABLE as HELD_TABLE
from consumers.cdc.router import Router

if TYPE_CHECKING:
    import asyncpg

SLOTS_TABLE: Final = """
CREATE TABLE IF NOT EXISTS cachebus_cdc_slots (
  slot text PRIMARY KEY, made_at timestamptz NOT NULL DEFAULT now(), whole boolean NOT NULL)
"""
EVERY_TABLE: Final = "ALL TABLES"
LOOK: Final = """
SELECT wal_status, restart_lsn, plugin, database, current_database() AS here,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained_bytes,
       pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS behind_bytes
FROM pg_replication_slots WHERE slot_name = $1
"""


class Slot(NamedTuple):
    """How a slot stands."""

    lost: bool
    """Whether the server has removed what it was to keep: it will never give anything again."""
    retained_bytes: int
    """WAL that the server keeps for it."""
    behind_bytes: int
    """WAL that was written since what it has confirmed."""


class LostSlot(Exception):
    """Changes were missed, and nobody knows which."""


async def look(connection: asyncpg.Connection, name: str) -> Slot | None:
    """How the slot stands; None where there is none."""
    row = await connection.fetchrow(LOOK, name)
    if row is None:
        return None
    if row["plugin"] != "pgoutput":
        raise ConfigError(f"the slot {name!r} is of the plugin {row['plugin']}, not pgoutput: name another")
    if row["database"] != row["here"]:
        raise ConfigError(
            f"the slot {name!r} is of the database {row['database']!r} (a name is for a whole server): name another"
        )
    lost = row["wal_status"] == "lost" or row["restart_lsn"] is None
    return Slot(lost, row["retained_bytes"] or 0, row["behind_bytes"] or 0)


class Setup:
    """Makes sure that publication, tables and slot are there; `ConfigError` says what SQL is needed where it can't."""

    def __init__(self, connection: asyncpg.Connection, router: Router, slot: str, publication: str) -> None:
        self._connection = connection
        self._router = router
        self._slot = slot
        self._publication = publication

    async def done(self) -> None:
        """All but the slot."""
        await self._server()
        tables = [t for t in await tables_of(self._connection) if self._router.rules_of(t.schema, t.name)]
        problems, warnings = examine(self._router, tables)
        if problems:
            raise ConfigError("; ".join(problems))
        for warning in warnings:
            logger.warning("cdc: {}", warning)
        for sql in (SLOTS_TABLE, DEAD_TABLE, HELD_TABLE):
            name = sql.split()[5]
            if await self._connection.fetchval("SELECT to_regclass($1) IS NULL", name):
                await self._make(" ".join(sql.split()))
        await self._published(tables)

    async def slot(self) -> None:
        """The slot; `LostSlot` where there was one, and it is no more, or was never made up for."""
        now = await look(self._connection, self._slot)
        whole = await self._connection.fetchval("SELECT whole FROM cachebus_cdc_slots WHERE slot = $1", self._slot)
        if now is not None and now.lost:
            raise LostSlot("the server has removed WAL that the slot had not confirmed (max_slot_wal_keep_size)")
        if now is None and whole is not None:
            raise LostSlot("it is gone: dropped, or left behind by a failover or an upgrade")
        if whole is False:
            raise LostSlot("it was made anew, and what was missed before that has not been made up for")
        if now is None:
            await self._make_slot()
        await self.remember(whole=True)

    async def make_anew(self) -> None:
        """A new slot in the place of one that is lost; remembered as such until `remember(whole=True)`."""
        await self.remember(whole=False)
        now = await look(self._connection, self._slot)
        if now is not None and now.lost:
            await self._connection.execute("SELECT pg_drop_replication_slot($1)", self._slot)
            now = None
        if now is None:
            await self._make_slot()

    async def remember(self, *, whole: bool) -> None:
        """That there is this slot, and whether all since its making is either told or made up for."""
        await self._connection.execute(
            "INSERT INTO cachebus_cdc_slots (slot, whole) VALUES ($1, $2) "
            "ON CONFLICT (slot) DO UPDATE SET whole = $2 WHERE cachebus_cdc_slots.whole IS DISTINCT FROM $2",
            self._slot, whole,
        )  # fmt: skip

    async def _server(self) -> None:
        level = await self._connection.fetchval("SELECT current_setting('wal_level')")
        if level != "logical":
            raise ConfigError(
                f"wal_level is {level}, and must be logical: ALTER SYSTEM SET wal_level = 'logical'; then restart it"
            )

    async def _published(self, tables: Sequence[Table]) -> None:
        row = await self._connection.fetchrow("SELECT * FROM pg_publication WHERE pubname = $1", self._publication)
        if row is None:
            self._refuse_unidentified(tables)
            await self._make(
                f"CREATE PUBLICATION {quoted(self._publication)} FOR {self._target(tables)} "
                "WITH (publish_via_partition_root = true)"
            )
            return
        self._check_operations(row)
        there = {
            (r["schemaname"], r["tablename"])
            for r in await self._connection.fetch(
                "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1", self._publication
            )
        }
        missing = [table for table in tables if (table.schema, table.name) not in there]
        if missing:
            self._refuse_unidentified(missing)
            if self._target(missing) == EVERY_TABLE:
                raise ConfigError(
                    f"the publication {self._publication!r} leaves out {', '.join(one.full_name for one in missing)}, "
                    f"and rules with patterns need one for all tables: DROP PUBLICATION {quoted(self._publication)}; "
                    f"CREATE PUBLICATION {quoted(self._publication)} FOR ALL TABLES "
                    "WITH (publish_via_partition_root = true);"
                )
            await self._make(f"ALTER PUBLICATION {quoted(self._publication)} ADD {self._target(missing)}")
            logger.info("cdc: changes of {} are told from now on", ", ".join(table.full_name for table in missing))

    def _target(self, tables: Sequence[Table]) -> str:
        """Tables by name, or, for rules with patterns, all that may come to be."""
        patterns = [rule.table for rule in self._router.rules.rule if rule.is_pattern]
        schemas = {table.partition(".")[0] for table in (rule.table for rule in self._router.rules.rule)}
        if not patterns:
            return "TABLE " + ", ".join(table.sql_name for table in tables)
        if any(sign in schema for schema in schemas for sign in "*?["):
            return EVERY_TABLE
        return "TABLES IN SCHEMA " + ", ".join(quoted(schema) for schema in sorted(schemas))

    def _refuse_unidentified(self, tables: Sequence[Table]) -> None:
        """A published table without a key takes no update or delete any more: applications would fail."""
        for table in tables:
            if not table.identified:
                raise ConfigError(
                    f"table {table.full_name} has no primary key: once published, PostgreSQL refuses its updates and "
                    f"deletes. First: ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;"
                )

    def _check_operations(self, publication: Any) -> None:
        wanted = {operation for rule in self._router.rules.rule for operation in rule.operations}
        missing = sorted(operation for operation in wanted if not publication[f"pub{operation}"])
        if missing:
            raise ConfigError(
                f"the publication {self._publication!r} leaves out {', '.join(missing)}, which rules ask for: "
                f"ALTER PUBLICATION {quoted(self._publication)} SET (publish = 'insert, update, delete, truncate');"
            )

    async def _make_slot(self) -> None:
        literal = "'" + self._slot.replace("'", "''") + "'"
        await self._make(f"SELECT pg_create_logical_replication_slot({literal}, 'pgoutput')")
        logger.info("cdc: made the slot {}: changes are told from now on", self._slot)

    async def _make(self, sql: str) -> None:
        import asyncpg

        try:
            await self._connection.execute(sql)
        except asyncpg.DuplicateObjectError:
            pass  # another worker was faster
        except (asyncpg.InsufficientPrivilegeError, asyncpg.ObjectNotInPrerequisiteStateError) as error:
            raise ConfigError(f"{error}; have somebody who may run: {sql};") from None
