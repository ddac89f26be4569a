"""Rows for a relay's caches that lie where neither it nor another relay takes them: in another table, or for another
namespace."""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from cachebus.base.clock import monotonic
from cachebus.consumers.outbox.remedies import OPENS, literal, served
from cachebus.consumers.outbox.rows import SINCE
from cachebus.consumers.outbox.serving import is_served
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.partitions import tree_of
from cachebus.consumers.worker.source import Finding
from cachebus.producers.outbox.table import OutboxTable

UNSERVED_S: Final = 60
"""Rows that nobody takes are reported if they are older than this."""
OTHERS: Final = 20
"""So many tables or namespaces are told, at most."""
SEARCH_S: Final = 60.0
"""How often other tables are searched for: rows in them are reported late enough."""


class RowsElsewhere:
    """Looks, over one connection, for tables of an outbox in which nobody takes the namespace's rows."""

    def __init__(self, connection: asyncpg.Connection, table: OutboxTable, namespace: str) -> None:
        self._connection = connection
        self._table = table
        self._namespace = namespace
        self._others: list[Any] = []
        self._search_at_s = float("-inf")
        self._waits: dict[str, bool] = {}
        """In which of the others rows waited when that was last seen."""
        self.unread: list[str] = []
        """Warnings of other tables that may not be read, so that nobody can tell whether rows wait there."""

    async def of_the_one_before(self, before: int | None, oid: int, here: str) -> list[Finding]:
        """The finding that another table, at the place `here`, has the name now: nobody takes the rows of the previous
        one."""
        if before in (None, oid):
            return []
        row = await self._connection.fetchrow(_BEFORE, before)
        if row is None:
            problem = "it was dropped, and made anew: rows that it still had are gone"
            return [Finding("table", self._table.rows, problem, missed=True, over=True, state=str(oid))]
        place = clean(row["place"])
        if row["opens"]:  # by that the search_path may find it again
            problem = f"another table was swapped in, and whether rows lie in {place} this role may not see"
            return [Finding("table", self._table.rows, problem, clean(row["opens"]))]
        try:
            sql = f"SELECT EXISTS (SELECT FROM {row['place']} WHERE namespace = $1)"
            some = await self._connection.fetchval(sql, self._namespace)
        except asyncpg.PostgresError:
            some = True
        if not some:
            return []
        problem = f"another table was swapped in, and rows lie in {place}"
        return [Finding("table", self._table.rows, problem, self._moves(row["place"], here))]

    async def of_others(self, here: str, before: int | None) -> list[Finding]:
        """The findings about other tables in which a writer writes, or has written. `here`: the table's place;
        `before`: the table that rows were last taken from, of which `of_the_one_before` tells."""
        if monotonic() >= self._search_at_s:
            self._others = await self._connection.fetch(_OTHERS, self._table.name)
            unread = await self._connection.fetch(_UNREAD, self._table.name, self._namespace, here)
            self.unread = [self._of_unread(row) for row in unread if row["oid"] != before]
            self._search_at_s = monotonic() + SEARCH_S
        return [
            self._of(row, here)
            for row in self._others
            if row["place"] != here and row["oid"] != before and await self._waits_in(row["place"])
        ]

    async def of_namespaces(self, place: str) -> list[Finding]:
        """The findings about rows in the table at `place` that no relay serves: their writers use a namespace that no
        relay has."""
        sql = _UNSERVED.format(t=self._table)
        return [
            Finding(
                "namespaces",
                f"{self._table.rows}, namespace {clean(row['namespace'])!r}",
                f"rows wait for more than {UNSERVED_S} s, and no relay is there for them",
                served(self._table.rows, row["namespace"], self._namespace),
            )
            for row in await self._connection.fetch(sql, self._namespace, place, float(UNSERVED_S))
        ]

    async def _waits_in(self, place: str) -> bool:
        try:
            sql = _WAITING.format(place=place)
            self._waits[place] = await self._connection.fetchval(sql, self._namespace, float(UNSERVED_S), place)
        except table_locks.LOCKED:
            pass  # as it was
        except asyncpg.PostgresError:
            self._waits[place] = False  # it has gone, or may not be read
        return self._waits.get(place, False)

    def _of(self, row: Any, here: str) -> Finding:
        place = clean(row["place"])
        subject = f"{self._table.rows} beside {place}"
        wait = f"rows for this namespace wait in {place} for more than {UNSERVED_S} s, where no relay is"
        if row["named"] and self._table.schema is None:
            remedy = (
                f"give the table its schema, as in --table {place}, or mend the search_path of this role, or of writers"
            )
            return Finding("table", subject, f"it is found as {clean(here)}, and {wait}", remedy)
        problem = f"{wait}: that table may have been in this one's place, or lacks a relay of its own (--table {place})"
        return Finding("table", subject, problem, self._moves(row["place"], here))

    def _of_unread(self, row: Any) -> str:
        return (
            f"{self._table.rows} beside {clean(row['place'])}: that is an outbox's table with rows, or had some, and "
            "this role may not read it: whether rows for this namespace wait there nobody is told. If it is no other "
            f"application's: {clean(row['opens'])}"
        )

    def _moves(self, place: str, here: str) -> str:
        """SQL that moves the namespace's rows: those of others have a relay there, or a finding of their own."""
        return (
            f"WITH moved AS (DELETE FROM {clean(place)} WHERE namespace = {literal(self._namespace)} "
            "RETURNING namespace, command, created_at, due_at, attempts) "
            f"INSERT INTO {clean(here)} (namespace, command, created_at, due_at, attempts) SELECT * FROM moved;"
        )


_PLACE: Final = "c.relnamespace::regnamespace || '.' || quote_ident(c.relname) AS place"
# In a database that was restored anything may have the number.
_BEFORE: Final = f"""\
SELECT {_PLACE}, {OPENS} AS opens FROM pg_class c WHERE oid = $1 AND relkind IN ('r', 'p') AND 3 = (
    SELECT count(*) FROM pg_attribute WHERE attrelid = c.oid AND attname IN ('namespace', 'command', 'waits_for')
    AND NOT attisdropped)"""
# A table that a writer of the outbox can write to: a copy by CREATE TABLE AS has no defaults.
SHAPED: Final = """\
relkind IN ('r', 'p') AND NOT relispartition AND relpersistence <> 't'
    AND 2 = (SELECT count(*) FROM pg_attribute WHERE attrelid = c.oid AND attname IN ('waits_for', 'due_at')
        AND atthasdef AND NOT attisdropped)
    AND 4 = (SELECT count(*) FROM pg_attribute WHERE attrelid = c.oid
        AND attname IN ('namespace', 'command', 'created_at', 'attempts') AND NOT attisdropped)"""
"""SQL: the table `c` of pg_class is like an outbox's."""
_OTHERS: Final = f"""\
SELECT oid::bigint, {_PLACE}, relname = $1 AS named
FROM pg_class c WHERE {SHAPED} AND {OPENS} = ''
ORDER BY relname = $1 DESC, 1 LIMIT {OTHERS}"""
# How many rows a table has had everybody may see.
_UNREAD: Final = f"""\
SELECT * FROM (
    SELECT oid::bigint, {_PLACE}, {OPENS} AS opens FROM pg_class c WHERE {SHAPED} AND {OPENS} <> '' AND EXISTS (
        SELECT FROM {tree_of("c.oid")} AS tree JOIN pg_class p ON p.oid = tree.relid
        WHERE p.reltuples > 0 OR pg_stat_get_tuples_inserted(p.oid) > 0)
    ORDER BY relname = $1 DESC, 2 LIMIT {OTHERS}) AS others
WHERE place <> $3 AND NOT {is_served("$2 || ' ' || place")}"""
_WAITING: Final = f"""\
SELECT NOT {is_served("$1 || ' ' || $3")} AND EXISTS (
    SELECT FROM {{place}} WHERE namespace = $1 AND due_at <= statement_timestamp()
    AND {SINCE} < statement_timestamp() - make_interval(secs => $2))"""

_UNSERVED: Final = f"""\
WITH RECURSIVE names AS (
    (SELECT namespace, 1 AS n FROM {{t.rows}} ORDER BY namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT o.namespace FROM {{t.rows}} o WHERE o.namespace > names.namespace ORDER BY o.namespace LIMIT 1),
        n + 1
    FROM names WHERE names.namespace IS NOT NULL AND n < {OTHERS}),
heads AS (
    SELECT namespace, (SELECT {SINCE} FROM {{t.rows}} o
        WHERE o.namespace = names.namespace AND o.waits_for = -1 AND o.due_at <= statement_timestamp()
        ORDER BY o.due_at, o.id LIMIT 1) AS since
    FROM names WHERE namespace <> $1)
SELECT namespace FROM heads WHERE since < statement_timestamp() - make_interval(secs => $3)
AND NOT {is_served("namespace || ' ' || $2")}"""
