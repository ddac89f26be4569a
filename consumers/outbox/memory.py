"""What the database remembers of the relays of a namespace: for which L2 rows were last taken, and from which table. So
one relay after the other finds what it has missed, however short the life of the one before was."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import asyncpg

from cachebus.consumers.outbox.database import ONE_MAKES
from cachebus.consumers.outbox.remedies import made, put_by
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.clean import clean, describe
from cachebus.consumers.worker.source import Finding, NotStored
from cachebus.producers.outbox.table import RELAYS, OutboxTable

ASSUMPTION: Final = "stores"


class OutboxMemory(NamedTuple):
    """The row of a namespace."""

    l2: str
    """For which L2 rows were last taken, as `Source.identity`."""
    oid: int
    """The number of the table that they were taken from; 0 where that is not known."""
    missed: int
    """How often relays for another L2 have taken rows in between, that is yet to be made up for."""


class MemoryDoubts:
    """What a relay knows, over all connections, of what it wrote to be remembered."""

    def __init__(self) -> None:
        self.some = False
        """Whether the database has swallowed or refused a write, and none has been seen to be kept since."""


class Memories:
    """Reads and writes the row of a namespace over one connection. Without the table, or rights to it, or where what is
    written is not kept, nothing is remembered."""

    def __init__(
        self, connection: asyncpg.Connection, table: OutboxTable, namespace: str, doubts: MemoryDoubts
    ) -> None:
        self._connection = connection
        self._table = table
        self._namespace = namespace
        self._doubts = doubts
        self._place = ""
        """The table as SQL names it, where it can be used."""

    @property
    def place(self) -> str:
        """The table's name with its schema; "" where it can't be used."""
        return self._place

    @property
    def usable(self) -> bool:
        """Whether the row could be read and written when this was last looked at."""
        return bool(self._place)

    async def findings(self) -> list[Finding]:
        """What keeps relays from remembering."""
        self._place = ""
        try:
            row = await self._connection.fetchrow(_TABLE, self._table.rows, _RIGHTS, _COLUMNS)
        except asyncpg.InsufficientPrivilegeError:  # its schema may not be used: `standing.findings` says so
            return []
        if row is None:  # there is no table of rows either
            return []
        place, lacking = row["place"], row["lacking"]
        if row["kind"] is None:
            problem, remedy = "it is not there", made(self._table)
        elif row["kind"] != "r" or row["columns"] < len(_COLUMNS):
            problem = "it is no table that relays can remember by"
            remedy = put_by(place, row)
        elif lacking:
            problem = f"the relay may not {' or '.join(lacking)}"
            remedy = f"GRANT {', '.join(lacking)} ON {place} TO {row['role']};"
        elif row["shut"]:
            problem, remedy = "row-level security may hide its rows", f"ALTER TABLE {place} DISABLE ROW LEVEL SECURITY;"
        else:
            self._place = place
            problem = await self._not_kept() if row["keepers"] or self._doubts.some else ""
            if not problem:
                self._doubts.some = False
                return []
            await self._is_doubtful()
            remedy = " ".join(row["keepers"] or ()) or f"see what keeps INSERT and UPDATE from working on {place}"
        problem = f"{problem}: what relays for another server have taken before is not noticed"
        return [Finding(ASSUMPTION, clean(place), problem, clean(remedy))]

    async def _not_kept(self) -> str:
        """Why what is written is not kept, "" if it is: by writes that are rolled back, the second of which surely is
        an UPDATE."""
        trial = self._connection.transaction()
        await trial.start()
        try:
            for memory in _TRIED:
                await self._connection.execute(_WRITE.format(name=self._place), self._namespace, *memory)
                if await self.read() != memory:
                    return "what is written there is not kept, nor is it refused"
        except table_locks.LOCKED:
            raise
        except asyncpg.PostgresError as error:
            return f"what is written there is refused ({describe(error)})"
        finally:
            await trial.rollback()
        return ""

    async def _is_doubtful(self) -> None:
        """Remember nothing, until a look has seen that what is written is kept."""
        self._doubts.some, self._place = True, ""
        await self._connection.reload_schema_state()  # prepared under a rule it stays nothing

    async def make(self) -> bool:
        """Make the table, where this role may; returns whether it did."""
        try:
            if not await self._connection.fetchval(_MAY_MAKE, self._table.rows):
                return False
        except asyncpg.InsufficientPrivilegeError:
            return False
        async with self._connection.transaction():
            await self._connection.execute(ONE_MAKES)
            row = await self._connection.fetchrow(_TABLE, self._table.rows, _RIGHTS, _COLUMNS)
            if row is None or row["kind"] is not None:
                return False
            await self._connection.execute(RELAYS.format(name=row["place"]))
        return True

    async def read(self) -> OutboxMemory | None:
        """What is remembered, if anything is."""
        if not self._place:
            return None
        sql = f"SELECT l2, table_oid, missed FROM {self._place} WHERE namespace = $1"
        row: Any = await self._connection.fetchrow(sql, self._namespace)
        return None if row is None else OutboxMemory(*row)

    async def write(self, memory: OutboxMemory) -> bool:
        """Remember this; returns whether it is remembered."""
        if not self._place:
            return False
        sql = _WRITE.format(name=self._place)
        try:
            async with self._connection.transaction():
                done = await self._connection.execute(sql, self._namespace, *memory)
        except table_locks.LOCKED:
            raise
        except asyncpg.PostgresError:  # the next look finds what refuses it
            done = ""
        if done == WRITTEN:
            return True
        await self._is_doubtful()
        return False

    async def made_up(self, missed: int) -> None:
        """What was missed is made up for, unless more was since. `NotStored` if that is not kept."""
        if self._place:
            sql = f"UPDATE {self._place} SET missed = 0 WHERE namespace = $1 AND missed = $2"
            await self._connection.execute(sql, self._namespace, missed)
            if (now := await self.read()) is not None and now.missed == missed:
                await self._is_doubtful()
                raise NotStored

    async def taken_from(self, oid: int) -> None:
        """Rows are taken from this table by now."""
        if self._place:
            sql = f"UPDATE {self._place} SET table_oid = $2 WHERE namespace = $1 AND table_oid <> $2"
            await self._connection.execute(sql, self._namespace, oid)
            if (now := await self.read()) is not None and now.oid != oid:
                await self._is_doubtful()


WRITTEN: Final = "INSERT 0 1"
_TRIED: Final = (OutboxMemory("", 0, 1), OutboxMemory("", 0, 2))
_RIGHTS: Final = ["SELECT", "INSERT", "UPDATE"]
_COLUMNS: Final = ["namespace", "l2", "table_oid", "missed"]
# It lies beside the table of rows, wherever the search_path finds that.
_TABLE: Final = """\
SELECT beside.place, c.oid::bigint, c.relname::text AS name, c.relkind::text AS kind, quote_ident(current_user) AS role,
    row_security_active(c.oid) AS shut,
    (SELECT array_agg(keeps ORDER BY keeps) FROM (
        SELECT format('ALTER TABLE %s DISABLE TRIGGER %I;', beside.place, tgname) AS keeps FROM pg_trigger
        WHERE tgrelid = c.oid AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 20 <> 0
        UNION ALL
        SELECT format('DROP RULE %I ON %s;', rulename, beside.place) FROM pg_rewrite
        WHERE ev_class = c.oid AND ev_type IN ('2', '3') AND ev_enabled IN ('O', 'A')) AS keepers) AS keepers,
    (SELECT array_agg(r) FROM unnest($2::text[]) r WHERE NOT has_table_privilege(c.oid, r)) AS lacking,
    (SELECT count(*) FROM pg_attribute WHERE attrelid = c.oid AND attname = ANY($3::text[]) AND NOT attisdropped
    ) AS columns
FROM pg_class rows,
    LATERAL (SELECT format('%s.%I', relnamespace::regnamespace, left(relname, 55) || '_relays') AS place) beside
    LEFT JOIN pg_class c ON c.oid = to_regclass(beside.place)
WHERE rows.oid = to_regclass($1)"""
_MAY_MAKE: Final = """\
SELECT has_schema_privilege(relnamespace, 'CREATE') FROM pg_class WHERE oid = to_regclass($1)"""
_WRITE: Final = """\
INSERT INTO {name} (namespace, l2, table_oid, missed) VALUES ($1, $2, $3, $4)
ON CONFLICT (namespace) DO UPDATE SET (l2, table_oid, missed) = (excluded.l2, excluded.table_oid, excluded.missed)"""
