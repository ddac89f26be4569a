"""The publication: whether it publishes every change of every table that the rules name, as they need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.slot.catalogue import IDENTIFIED, IN_KEY, KEY, Table, quoted
from cachebus.consumers.cdc.slot.pgoutput import FIRST_OWN_TYPE
from cachebus.consumers.worker.partitions import tree_of
from cachebus.consumers.worker.source import Finding

if TYPE_CHECKING:
    import asyncpg

PUBLICATION: Final = """
SELECT p.oid::bigint, p.xmin::text AS version, p.pubviaroot, p.puballtables,
       p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate FROM pg_publication p WHERE p.pubname = $1
"""
NAMED: Final = """
SELECT r.oid::bigint, r.prrelid::bigint AS of,
       to_jsonb(r) ->> 'prqual' IS NOT NULL AS filtered,
       (SELECT array_agg(a.attname::text) FROM pg_attribute a
        WHERE a.attrelid = r.prrelid AND to_jsonb(r) -> 'prattrs' @> to_jsonb(a.attnum)) AS columns
FROM pg_publication_rel r WHERE r.prpubid = $1
"""
"""The tables that it names. Columns and filters are looked for in JSON: PostgreSQL 14 has none. `pg_publication_tables`
would wait for a lock of each table: while one is altered, nothing could be looked at."""
SCHEMAS: Final = """
SELECT p.oid::bigint, n.oid::bigint AS number, n.nspname AS of FROM pg_publication_namespace p, pg_namespace n
WHERE pnpubid = $1 AND n.oid = pnnspid
"""
EXPOSED: Final = f"""
SELECT DISTINCT n.nspname AS schema, c.relname AS name, {IDENTIFIED} AS identified
FROM pg_publication p
JOIN pg_class whole ON whole.relkind IN ('r', 'p') AND whole.oid >= {FIRST_OWN_TYPE}
  AND (p.puballtables OR whole.relnamespace::bigint = ANY ($2::bigint[])
       OR whole.oid IN (SELECT prrelid FROM pg_publication_rel WHERE prpubid = p.oid))
CROSS JOIN LATERAL {tree_of("whole.oid")} AS part
JOIN pg_class c ON c.oid = part.relid AND c.relkind = 'r' AND c.relpersistence = 'p'
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = whole.oid AND (p.pubviaroot OR c.oid = whole.oid)
CROSS JOIN LATERAL (SELECT
  array(SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND {IN_KEY}
        WHERE i.indrelid = c.oid AND {KEY}) AS key,
  array(SELECT a.attname FROM pg_attribute a
        WHERE a.attrelid = whole.oid AND to_jsonb(r) -> 'prattrs' @> to_jsonb(a.attnum)) AS listed,
  array(SELECT a.attname FROM pg_attribute a
        JOIN regexp_matches(to_jsonb(r) ->> 'prqual', ':varattno (-?[0-9]+)', 'g') AS of ON a.attnum = of[1]::int
        WHERE a.attrelid = whole.oid) AS filtered) AS has
WHERE p.oid = $1 AND (NOT {IDENTIFIED}
  OR to_jsonb(r) ->> 'prattrs' IS NOT NULL AND (c.relreplident = 'f' OR NOT has.key <@ has.listed)
  OR c.relreplident <> 'f' AND NOT has.filtered <@ has.key)
ORDER BY 1, 2 LIMIT 20
"""
"""Tables whose updates and deletes PostgreSQL refuses: one without an identity, one whose column list has less than its
identity (with FULL that is any list), and one whose row filter looks at more than that."""
SCHEMAS_SINCE: Final = 15
WITH_ROOT: Final = "WITH (publish_via_partition_root = true)"


@dataclass(frozen=True)
class Publication:
    """What is published now."""

    oid: int
    version: str
    via_root: bool
    operations: frozenset[str]
    filtered: frozenset[int]
    """The OIDs of the tables that have a row filter."""
    columns: Mapping[int, frozenset[str]]
    """The columns that are published, of the tables that have a column list."""
    named: Mapping[int, int]
    """The number of each table's entry in the publication, which changes if the table is dropped from it and added
    again."""
    schemas: Mapping[str, int]
    everything: bool = False
    """Whether it is FOR ALL TABLES, so also for tables that are made later."""
    exposed: Sequence[tuple[str, str, bool]] = ()
    """Published tables whose updates and deletes PostgreSQL refuses, and whether they have a REPLICA IDENTITY."""

    def has(self, table: Table) -> bool:
        """Whether this table's changes are published, directly or with its parent."""
        return self.everything or table.oid in self.named or table.schema in self.schemas

    def mark(self, table: Table) -> str:
        """What the table and its publication are known by. It changes with anything by which changes may have been
        missed."""
        entry = self.named.get(table.oid) or self.schemas.get(table.schema) or 0
        return f"{table.oid}/{self.oid}/{self.version}/{entry}"


async def look(connection: asyncpg.Connection, name: str) -> Publication | None:
    """The publication; None if there is none."""
    row = await connection.fetchrow(PUBLICATION, name)
    if row is None:
        return None
    named = await connection.fetch(NAMED, row["oid"])
    schemas = []
    if connection.get_server_version().major >= SCHEMAS_SINCE:
        schemas = await connection.fetch(SCHEMAS, row["oid"])
    operations = frozenset(one for one in ("insert", "update", "delete", "truncate") if row[f"pub{one}"])
    refuses = not operations.isdisjoint({"update", "delete"})
    numbers = [one["number"] for one in schemas]
    exposed = await connection.fetch(EXPOSED, row["oid"], numbers) if refuses else []
    return Publication(
        row["oid"],
        row["version"],
        row["pubviaroot"],
        operations,
        frozenset(one["of"] for one in named if one["filtered"]),
        {one["of"]: frozenset(one["columns"]) for one in named if one["columns"] is not None},
        {one["of"]: one["oid"] for one in named},
        {one["of"]: one["oid"] for one in schemas},
        row["puballtables"],
        [(one["schema"], one["name"], one["identified"]) for one in exposed],
    )


class Published:
    """Compares what is published with what the rules need.

    The worker publishes tables by name, and only those that allow updates and deletes then. It does not publish
    schemas: tables that others make there might not allow them.
    """

    def __init__(self, router: Router, name: str, tables: Sequence[Table]) -> None:
        self._router = router
        self._name = name
        self._tables = [table for table in tables if table.is_told and router.rules_of(table.schema, table.name)]

    def findings(self, found: Publication | None, refused: Mapping[str, str]) -> list[Finding]:
        """The findings. `refused`: SQL that this user may not run, and why."""
        if found is None:
            sql = self.creation()
            return [
                Finding("publication", self._name, f"it is not there{_why(refused, sql)}", f"{sql};", stops=True),
                *(self._left_out(table, refused) for table in self._tables if not table.identified),
            ]
        told = [self._of_all(found)] if self._of_all(found) else []
        for table in self._tables:
            told += self._of_table(found, table, refused)
        by_subject = {one.subject: one for one in told if one is not None}
        for one in self._exposed(found):
            also = by_subject.get(one.subject)  # a subject has one finding: this must not hide what is missed
            problem = one.problem if also is None else f"{also.problem}; {one.problem}"
            by_subject[one.subject] = one._replace(problem=problem, missed=also is not None and also.missed)
        return list(by_subject.values())

    def warnings(self, found: Publication | None) -> list[str]:
        """What may go wrong later: a new table may fail the application's updates without any warning."""
        if found is None or not (found.everything or found.schemas):
            return []
        name, schemas = quoted(self._name), ", ".join(map(quoted, sorted(found.schemas)))
        what = "all tables" if found.everything else f"whole schemas ({schemas})"
        remedy = f"BEGIN; DROP PUBLICATION {name}; {self.creation()}; COMMIT;"
        said = f"the publication {self._name!r} is for {what}: of a table that is made there without a primary key"
        return [f"{said} PostgreSQL refuses updates and deletes; to mend it: {remedy}"]

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
        name = quoted(self._name)
        if not found.has(table):
            return [self._left_out(table, refused)]
        out, back = (f"ALTER PUBLICATION {name} {verb} TABLE ONLY {table.sql_name}" for verb in ("DROP", "ADD"))
        again = f"BEGIN; {out}; {back}; COMMIT;"
        if table.oid in found.filtered:
            said = f"the publication {self._name!r} has a row filter for it: rows beyond it are not told"
            return [Finding("publication", table.full_name, said, again, missed=True)]
        columns = found.columns.get(table.oid)
        if columns is not None and (missing := sorted((self._needed(table) & table.columns.keys()) - columns)):
            said = f"the publication {self._name!r} leaves out its columns {', '.join(missing)}"
            return [Finding("publication", table.full_name, said, again, missed=True)]
        return []

    def _needed(self, table: Table) -> set[str]:
        rules = self._router.rules_of(table.schema, table.name)
        return {column for rule in rules for column in (*rule.columns, *rule.when)}

    def _left_out(self, table: Table, refused: Mapping[str, str]) -> Finding:
        """The finding that changes of a table go unnoticed. There is none if the table lacks what its rules need, since
        its changes would name nothing."""
        sql, first, why = self.addition(table), "", ""
        if table.identified:
            why = _why(refused, sql)
        elif table.partitioned:
            why = (
                ", and it has no primary key that its partitions take over: once published, PostgreSQL refuses updates "
                "and deletes in those that have no REPLICA IDENTITY, also in those that are made later"
            )
            first = f"give {table.sql_name} a primary key; "
        else:
            why = ", and it has no primary key: once published, PostgreSQL refuses its updates and deletes"
            first = f"ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL; "
        rules = self._router.rules_of(table.schema, table.name)
        if not table.identified and any(rule.is_pattern for rule in rules):
            why += " (or let no pattern fit it)"
        missed = any(rule.columns <= table.columns.keys() for rule in rules)
        said = f"the publication {self._name!r} leaves it out{why}"
        return Finding("publication", table.full_name, said, f"{first}{sql};", missed=missed)

    def _exposed(self, found: Publication) -> Iterator[Finding]:
        ours = {(table.schema, table.name) for table in self._tables}
        for schema, name, identified in found.exposed:
            sql_name = f"{quoted(schema)}.{quoted(name)}"
            out = f"ALTER PUBLICATION {quoted(self._name)} DROP TABLE {sql_name};"
            if identified:
                lacks = (
                    "it with a column list that lacks some of its REPLICA IDENTITY, or a row filter by other columns"
                )
                remedy = f"BEGIN; {out} {out.replace(' DROP ', ' ADD ')} COMMIT; or another REPLICA IDENTITY"
            else:
                lacks = "it, and it has no primary key and no REPLICA IDENTITY"
                remedy = f"ALTER TABLE {sql_name} REPLICA IDENTITY FULL;"
                if (schema, name) not in ours:
                    remedy += f" or, since no rule is for it: {out}"
            yield Finding(
                "publication",
                f"{schema}.{name}",
                f"the publication {self._name!r} has {lacks}: PostgreSQL refuses the application's updates and deletes "
                "of its rows",
                remedy,
            )

    def creation(self) -> str:
        """The SQL that creates the publication, with the tables that may be published now, maybe none."""
        names = ", ".join(f"ONLY {table.sql_name}" for table in self._tables if table.identified)
        of = f" FOR TABLE {names}" if names else ""
        return f"CREATE PUBLICATION {quoted(self._name)}{of} {WITH_ROOT}"

    def addition(self, table: Table) -> str:
        """The SQL that adds a table. ONLY leaves out tables that inherit from it, which may have no key."""
        return f"ALTER PUBLICATION {quoted(self._name)} ADD TABLE ONLY {table.sql_name}"

    def mends(self, found: Publication | None) -> list[str]:
        """The SQL that the worker may run itself. None of it takes anything from anybody."""
        if found is None:
            return [self.creation()]
        return [self.addition(table) for table in self._tables if table.identified and not found.has(table)]


def _why(refused: Mapping[str, str], sql: str) -> str:
    return f", and this user may not mend it ({refused[sql]})" if sql in refused else ""
