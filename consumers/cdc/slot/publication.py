"""The publication: whether it tells of every change of every table that the rules name, as they need it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import Rule
from cachebus.consumers.cdc.slot.catalogue import Table, quoted
from cachebus.consumers.worker.source import Finding

if TYPE_CHECKING:
    import asyncpg

PUBLICATION: Final = """
SELECT p.oid::bigint, p.xmin::text AS version, p.pubviaroot,
       p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate FROM pg_publication p WHERE p.pubname = $1
"""
PUBLISHED: Final = """
SELECT schemaname AS schema, tablename AS name, to_jsonb(t) ->> 'rowfilter' AS filter,
       (to_jsonb(t) -> 'attnames')::text AS columns
FROM pg_publication_tables t WHERE pubname = $1
"""
NAMED: Final = "SELECT oid::bigint, prrelid::bigint AS of FROM pg_publication_rel WHERE prpubid = $1"
SCHEMAS: Final = """
SELECT p.oid::bigint, n.nspname AS of FROM pg_publication_namespace p, pg_namespace n
WHERE pnpubid = $1 AND n.oid = pnnspid
"""
EVERY_TABLE: Final = "ALL TABLES"
SCHEMAS_SINCE: Final = 15
WITH_ROOT: Final = "WITH (publish_via_partition_root = true)"


@dataclass(frozen=True)
class Publication:
    """What is published now."""

    oid: int
    version: str
    via_root: bool
    operations: frozenset[str]
    filters: Mapping[tuple[str, str], str | None]
    """By table that is published: the row filter."""
    columns: Mapping[tuple[str, str], frozenset[str] | None]
    named: Mapping[int, int]
    """By number of the table: the number of its being published, another one after it was taken out and put back."""
    schemas: Mapping[str, int]

    def has(self, table: Table) -> bool:
        """Whether changes of this table's rows are told, by whichever name."""
        return (table.schema, table.name) in self.filters or table.oid in self.named or table.schema in self.schemas

    def mark(self, table: Table) -> str:
        """Other than before if anything has happened to table or publication by which changes may have been missed."""
        entry = self.named.get(table.oid) or self.schemas.get(table.schema) or 0
        return f"{table.oid}/{self.oid}/{self.version}/{entry}"


async def look(connection: asyncpg.Connection, name: str) -> Publication | None:
    """The publication; None where there is none."""
    row = await connection.fetchrow(PUBLICATION, name)
    if row is None:
        return None
    there = await connection.fetch(PUBLISHED, name)
    named = await connection.fetch(NAMED, row["oid"])
    schemas = []
    if connection.get_server_version().major >= SCHEMAS_SINCE:
        schemas = await connection.fetch(SCHEMAS, row["oid"])
    operations = frozenset(one for one in ("insert", "update", "delete", "truncate") if row[f"pub{one}"])
    return Publication(
        row["oid"],
        row["version"],
        row["pubviaroot"],
        operations,
        {(one["schema"], one["name"]): one["filter"] for one in there},
        {(one["schema"], one["name"]): _columns(one["columns"]) for one in there},
        {one["of"]: one["oid"] for one in named},
        {one["of"]: one["oid"] for one in schemas},
    )


def _columns(told: str | None) -> frozenset[str] | None:
    names = None if told is None else json.loads(told)
    return None if names is None else frozenset(names)


class Published:
    """Compares what is published with what the rules need."""

    def __init__(self, router: Router, name: str, tables: Sequence[Table]) -> None:
        self._router = router
        self._name = name
        self._all = tables
        self._tables = [table for table in tables if router.rules_of(table.schema, table.name)]

    def findings(self, found: Publication | None, refused: Mapping[str, str]) -> list[Finding]:
        """What is not as it must be; `refused`: why somebody else has to run some SQL."""
        if found is None:
            sql = self.creation()
            why = _why(refused, sql) or self._unfit(self._tables)
            none = sql.endswith(f"FOR TABLE  {WITH_ROOT}")
            remedy = "make the rules' tables first" if none else self._remedy(sql)
            return [Finding("publication", self._name, f"it is not there{why}", remedy, stops=True)]
        told = [self._of_all(found)] if self._of_all(found) else []
        for table in self._tables:
            told += self._of_table(found, table, refused)
        return [one for one in told if one is not None]

    def _of_all(self, found: Publication) -> Finding | None:
        wanted = {operation for rule in self._router.rules.rule for operation in rule.operations}
        problems, sets = [], []
        if missing := sorted(wanted - found.operations):
            problems.append(f"it leaves out {', '.join(missing)}, which rules ask for")
            sets.append("publish = 'insert, update, delete, truncate'")
        if not found.via_root and any(table.partitioned for table in self._tables):
            problems.append("it tells of rows by the names of partitions, which rules do not know")
            sets.append("publish_via_partition_root = true")
        if not problems:
            return None
        remedy = f"ALTER PUBLICATION {quoted(self._name)} SET ({', '.join(sets)});"
        return Finding("publication", self._name, "; ".join(problems), remedy, missed=True)

    def _of_table(self, found: Publication, table: Table, refused: Mapping[str, str]) -> list[Finding]:
        name, place = quoted(self._name), (table.schema, table.name)
        if not found.has(table):
            sql = self.addition(table)
            why = _why(refused, sql) or self._unfit([table])
            return [
                Finding(
                    "publication",
                    table.full_name,
                    f"the publication {self._name!r} leaves it out{why}",
                    self._remedy(sql),
                    missed=True,
                )
            ]
        out, back = (f"ALTER PUBLICATION {name} {verb} TABLE {table.sql_name}" for verb in ("DROP", "ADD"))
        again = f"BEGIN; {out}; {back}; COMMIT;"
        if found.filters.get(place):
            said = f"the publication {self._name!r} has a row filter for it: rows beyond it are not told"
            return [Finding("publication", table.full_name, said, again, missed=True)]
        needed = {
            column for rule in self._router.rules_of(*place) for column in (*rule.columns, *rule.when)
        } & table.columns.keys()
        columns = found.columns.get(place)
        if columns is not None and (missing := sorted(needed - columns)):
            said = f"the publication {self._name!r} leaves out its columns {', '.join(missing)}"
            return [Finding("publication", table.full_name, said, again, missed=True)]
        return []

    def creation(self) -> str:
        """The SQL that makes it."""
        target = self._target(self._tables, self._router.rules.rule)
        return f"CREATE PUBLICATION {quoted(self._name)} FOR {target} {WITH_ROOT}"

    def addition(self, table: Table) -> str:
        """The SQL that adds a table; of one for all tables the SQL that makes it anew, so that nothing is lost between:
        what a slot tells of a time without its publication is nothing."""
        target = self._target([table])
        if target == EVERY_TABLE:
            name = quoted(self._name)
            return f"BEGIN; DROP PUBLICATION {name}; CREATE PUBLICATION {name} FOR {EVERY_TABLE} {WITH_ROOT}; COMMIT"
        return f"ALTER PUBLICATION {quoted(self._name)} ADD {target}"

    def mends(self, found: Publication | None) -> list[str]:
        """What the worker may run itself: never what would take something from somebody."""
        if found is None:
            may = self._tables or any(rule.is_pattern for rule in self._router.rules.rule)
            return [self.creation()] if may and not self._unfit(self._tables) else []
        missing = [table for table in self._tables if not found.has(table) and not self._unfit([table])]
        return list(dict.fromkeys(sql for sql in map(self.addition, missing) if not sql.startswith("BEGIN")))

    def _target(self, tables: Sequence[Table], rules: Sequence[Rule] = ()) -> str:
        """Tables by name, or, for rules with patterns, all that may come to be."""
        rules = rules or [rule for table in tables for rule in self._router.rules_of(table.schema, table.name)]
        if not any(rule.is_pattern for rule in rules):
            return "TABLE " + ", ".join(table.sql_name for table in tables)
        schemas = {rule.table.partition(".")[0] for rule in self._router.rules.rule}
        if any(sign in schema for schema in schemas for sign in "*?["):
            return EVERY_TABLE
        return "TABLES IN SCHEMA " + ", ".join(quoted(schema) for schema in sorted(schemas))

    def _unfit(self, tables: Sequence[Table]) -> str:
        """Why these must not be published as they are: applications would fail."""
        target = self._target(tables, () if tables else self._router.rules.rule)
        meant = tables if target.startswith("TABLE ") else self._all
        keyless = [table.full_name for table in meant if not table.identified]
        refuses = "has no primary key: once published, PostgreSQL refuses its updates and deletes"
        return f", and {', '.join(keyless[:5])} {refuses}" if keyless else ""

    def _remedy(self, sql: str) -> str:
        wide = " ALL TABLES" in sql or " IN SCHEMA" in sql
        keyless = [table for table in self._all if not table.identified and (wide or table.sql_name in sql)]
        first = "".join(f"ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL; " for table in keyless[:5])
        return f"{first}{sql};"


def _why(refused: Mapping[str, str], sql: str) -> str:
    return f", and this user may not mend it ({refused[sql]})" if sql in refused else ""
