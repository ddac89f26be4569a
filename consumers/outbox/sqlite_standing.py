"""Checks what a relay assumes of its tables in SQLite: what is wrong, and the SQL that repairs it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cachebus.base.clock import wall_s
from cachebus.consumers.outbox import elsewhere, inserts, remade, remedies
from cachebus.consumers.outbox.columns import LATE_S, OTHER_TIME
from cachebus.consumers.outbox.letting import Resting
from cachebus.consumers.outbox.remedies import served
from cachebus.consumers.outbox.sqlite_file import Database
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Cause, Finding
from cachebus.producers.outbox.table import SQLITE_NOW, OutboxTable

ASSUMPTIONS: Final = ("table", "columns", "removal", "namespaces")
ROWS: Final = {
    "namespace": "'cachebus'",
    "id": "",
    "command": "''",
    "created_at": SQLITE_NOW,
    "due_at": "0",
    "attempts": "0",
    "waits_for": "-1",
}
"""The columns, and SQL for what each is where it has no value."""
DEAD: Final = {
    "namespace": "'cachebus'",
    "row_id": "0",
    "command": "''",
    "reason": "''",
    "attempts": "1",
    "created_at": SQLITE_NOW,
}
FOUND_BY: Final = ("namespace", "due_at", "waits_for")
BY_DEFAULT: Final = ("created_at", "due_at", "attempts", "waits_for")
"""Writers leave these to their defaults."""


class _Column(NamedTuple):
    type: str
    not_null: bool
    default: str | None
    is_key: bool


class Standing:
    """Looks at the tables over one connection."""

    def __init__(self, database: Database, table: OutboxTable, namespace: str) -> None:
        self._database = database
        self._table = table
        self._namespace = namespace

    async def findings(self) -> list[Finding]:
        """What is wrong with the tables, and which rows nobody takes."""
        found = await self._of_table(self._table.name, ROWS, 0, stops=True)
        found += await self._of_table(f"{self._table.name}_dead", DEAD, 2, stops=False)
        if not any(finding.stops for finding in found):
            found += await self._of_namespaces()
        return found

    async def last_id(self) -> int:
        """The largest id that the table has given. It falls when the table is made anew, or restored."""
        found = await self._database.fetch("SELECT seq FROM sqlite_sequence WHERE name = ?", self._table.name)
        return found[0][0] if found and isinstance(found[0][0], int) else 0

    async def of_removal(self, resting: Resting) -> list[Finding]:
        """The finding that rows which were applied are kept, with the triggers that may do that."""
        names = [name.replace('"', '""') for name, _ in await self._triggers()]
        resting.suspect(names)
        if not resting.has_some:
            return []
        remedy = clean(" ".join(f'DROP TRIGGER "{name}";' for name in names))
        problem = "rows that were applied can't be removed, or marked: they come again and again"
        return [Finding("removal", self._table.name, problem, remedy)]

    async def warnings(self) -> list[str]:
        """What may be a mistake."""
        return list(inserts.of_sqlite(self._table, await self._triggers()))

    async def _triggers(self) -> list[tuple[str, str]]:
        """The names and the SQL of the table's triggers."""
        found = await self._database.fetch(_TRIGGERS, self._table.name)
        return [(name.decode("utf-8", "replace"), sql.decode("utf-8", "replace")) for name, sql in found]

    async def _of_table(self, name: str, needed: Mapping[str, str], made_by: int, *, stops: bool) -> list[Finding]:
        made = await self._database.fetch("SELECT type, sql FROM sqlite_master WHERE name = ?", name)
        if not made:
            remedy = remedies.made(self._table)
            return [Finding("table", name, "it is not there", remedy, stops=stops, cause=Cause.ABSENT)]
        if made[0][0] != b"table":
            remedy = f'DROP {made[0][0].decode().upper()} "{name}";'
            return [Finding("table", name, "it is no table", remedy, stops=stops)]
        there = {
            column.decode("utf-8", "replace"): _Column(
                kind.decode(), bool(not_null), None if default is None else default.decode(), key == 1
            )
            for column, kind, not_null, default, key in await self._database.fetch(_COLUMNS, name)
        }
        wrong = {column: "it is not there" for column in needed if column not in there}
        lost = dict.fromkeys(wrong, stops)
        if stops:
            if "id" in there and b"AUTOINCREMENT" not in made[0][1].upper():
                wrong["id"] = "ids are given again: a new row may be taken for one that was applied"
                lost["id"] = True
            for column in set(there).intersection(needed).difference(wrong):
                if problem := await self._of_default(column, there[column]):
                    wrong[column] = problem
        remedy = await self._made_anew(name, needed, there, made_by) if wrong else ""
        if wrong.get("due_at") == _LATE:
            remedy = f"{remedy} {_APPLIES.format(name=name)}"
        found = [Finding("columns", f"{name}.{key}", wrong[key], remedy, stops=lost.get(key, False)) for key in wrong]
        if stops and not any(finding.stops for finding in found):
            found += [
                Finding("columns", f"{name}.{key} IS NULL", "rows have null there, and are never found", sql)
                for key in FOUND_BY
                if (sql := await self._of_nulls(name, key, needed[key]))
            ]
        return found

    async def _of_default(self, key: str, column: _Column) -> str:
        """What is wrong with the default of a column; "" if nothing is."""
        value = None if column.default is None else await self._value(column.default)
        if key not in BY_DEFAULT and (key not in FOUND_BY or column.not_null):
            return ""  # it must be given, or may be: who leaves it out hears of it
        if value is None:
            if column.not_null:
                return "it has no default: rows can't be written"
            found = key not in FOUND_BY
            return f"it has no default{'' if found else ': rows that are written without it are never found'}"
        if key == "waits_for" and value not in (-1, b"-1", _UNKNOWN):
            return "it has another default than -1: rows that are written without it are not found, or wait for a shard"
        if key == "due_at":
            due_s = await self._value(_SECONDS.format(expression=column.default))
            if isinstance(due_s, int | float) and due_s > wall_s() + LATE_S:
                return _LATE
        if key == "created_at":
            created_s = await self._value(_SECONDS.format(expression=column.default))
            if isinstance(created_s, int | float) and abs(created_s - wall_s()) > LATE_S:
                return OTHER_TIME
        return ""

    async def _value(self, expression: str) -> Any:
        try:
            return (await self._database.fetch(f"SELECT ({expression})"))[0][0]
        except (sqlite3.OperationalError, OverflowError):
            return _UNKNOWN  # a function of the writers' own

    async def _of_nulls(self, name: str, key: str, otherwise: str) -> str:
        """SQL for the rows that have null in a column; "" if there are none."""
        some = await self._database.fetch(f'SELECT EXISTS (SELECT 1 FROM "{name}" WHERE {key} IS NULL)')
        return f'UPDATE "{name}" SET {key} = {otherwise} WHERE {key} IS NULL;' if some[0][0] else ""

    async def _made_anew(self, name: str, needed: Mapping[str, str], there: Mapping[str, _Column], made_by: int) -> str:
        """SQL that makes the table anew, with its rows, and the columns, indexes and triggers that it has beside:
        SQLite alters no column."""
        new = f"{name}_new"
        taken = {
            each.decode("utf-8", "replace") for (each,) in await self._database.fetch("SELECT name FROM sqlite_master")
        }
        while new in taken:
            new += "_"
        create = OutboxTable(None, new).sqlite_statements()[made_by].replace(f"{new}_dead", new)
        more = [key for key in there if key not in needed and key != "id" and (made_by == 0 or key != "died_at")]
        beside = "".join(f", {remade.column(key, *there[key][:3], given=not made_by)}" for key in more)
        keep = [key for key in needed if key != "id" or (key in there and there[key].is_key)]
        values = [self._kept(key, needed[key], there.get(key)) for key in keep] + [remade.quoted(key) for key in more]
        into = ", ".join([*keep, *map(remade.quoted, more)])
        moves = f'INSERT INTO "{new}" ({into}) SELECT {", ".join(values)} FROM "{name}"'
        index = "" if made_by else f"{self._table.sqlite_statements()[1]}; "
        first, others = remade.others(await self._database.fetch(remade.OTHERS, name, f"{self._table.name}_due"))
        create = f"{' '.join(create.split()).removesuffix(')')}{beside})"
        sql = " ".join(remade.SQL.split())
        return first + sql.format(create=create, moves=moves, name=name, new=new, index=index, others=others)

    @staticmethod
    def _kept(key: str, otherwise: str, column: _Column | None) -> str:
        if column is None or not otherwise:
            return otherwise or key
        value = f"coalesce({key}, {otherwise})"
        if key in ("due_at", "waits_for") and column.default is not None:
            return f"CASE WHEN {key} = ({column.default}) THEN {otherwise} ELSE {value} END"
        return value

    async def _of_namespaces(self) -> list[Finding]:
        """The findings about rows of other namespaces: their relays are not there, or do nothing."""
        now_s = wall_s()
        before_s = now_s - elsewhere.UNSERVED_S
        sql = _UNSERVED.format(t=self._table)
        found: Sequence[Any] = await self._database.fetch(sql, self._namespace, before_s, now_s, now_s)
        names = [each.decode("utf-8", "replace") for (each,) in found if isinstance(each, bytes)]
        return [
            Finding(
                "namespaces",
                f"{self._table.name}, namespace {clean(name)!r}",
                f"rows wait for more than {elsewhere.UNSERVED_S} s, and no relay has taken them",
                served(self._table.name, name, self._namespace),
            )
            for name in names
        ]


_UNKNOWN: Final = object()
_LATE: Final = "by its default rows are not due"
_SECONDS: Final = """\
CASE typeof({expression}) WHEN 'text' THEN (julianday({expression}) - 2440587.5) * 86400.0 ELSE {expression} END"""
# Rows that a writer wants at a time are among them, and stay: what they say twice does no harm.
_APPLIES: Final = (
    'INSERT INTO "{name}" (namespace, command, created_at) SELECT namespace, command, created_at FROM "{name}" '
    f"WHERE waits_for = -1 AND (due_at > {SQLITE_NOW} OR julianday(due_at) > julianday('now'));"
)
_TRIGGERS: Final = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE"
_COLUMNS: Final = 'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)'
_UNSERVED: Final = f"""\
WITH RECURSIVE names (namespace, n) AS (
    SELECT min(namespace), 1 FROM {{t.rows}}
    UNION ALL
    SELECT (SELECT min(o.namespace) FROM {{t.rows}} o WHERE o.namespace > names.namespace), n + 1
    FROM names WHERE names.namespace IS NOT NULL AND n < {elsewhere.OTHERS})
SELECT namespace FROM names WHERE namespace <> ? AND ? > (
    SELECT CASE WHEN created_at <= ? THEN max(created_at, due_at) ELSE due_at END FROM {{t.rows}} o
    WHERE o.namespace = names.namespace AND o.waits_for = -1 AND o.due_at <= ? ORDER BY o.due_at, o.id LIMIT 1)"""
