"""The publication: whether it publishes every change of every table that the rules name, as they need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import Rule
from cachebus.consumers.cdc.slot.catalogue import Table
from cachebus.consumers.cdc.slot.identity import (
    GENERATED_SINCE,
    IDENTIFIED,
    IN_KEY,
    KEY,
    STORED,
    UNTOLD,
    VIRTUAL,
    WITH_GENERATED,
    known_as,
    quoted,
)
from cachebus.consumers.cdc.slot.needs import as_stored, full_identity
from cachebus.consumers.cdc.slot.pgoutput import FIRST_OWN_TYPE
from cachebus.consumers.cdc.slot.slot import Names
from cachebus.consumers.worker.source import Cause, Finding

if TYPE_CHECKING:
    import asyncpg

PUBLICATION: Final = """
SELECT p.oid::bigint, p.xmin::text AS version, p.pubviaroot, p.puballtables, to_jsonb(p) ->> 'pubgencols' AS generated,
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
WITH RECURSIVE part (whole, oid, kind) AS (
  SELECT c.oid, c.oid, c.relkind FROM pg_class c
  WHERE c.relkind IN ('r', 'p') AND c.oid >= {FIRST_OWN_TYPE}
    AND ($3 OR c.relnamespace::bigint = ANY ($2::bigint[])
         OR c.oid IN (SELECT prrelid FROM pg_publication_rel WHERE prpubid = $1))
  UNION ALL SELECT part.whole, c.oid, c.relkind FROM part
  JOIN pg_inherits i ON i.inhparent = part.oid JOIN pg_class c ON c.oid = i.inhrelid WHERE part.kind = 'p')
SELECT DISTINCT n.nspname AS schema, c.relname AS name, {IDENTIFIED} AS identified,
       CASE WHEN e.columns IS NULL THEN {UNTOLD} ELSE '' END AS untold
FROM part
JOIN pg_class c ON c.oid = part.oid AND c.relkind = 'r' AND c.relpersistence = 'p'
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
  SELECT nullif(to_jsonb(r) -> 'prattrs', 'null') AS columns, to_jsonb(r) ->> 'prqual' AS filter
  FROM pg_publication_rel r WHERE r.prrelid = part.whole AND r.prpubid = $1) AS e ON $4 OR c.oid = part.whole
WHERE CASE WHEN NOT {IDENTIFIED} OR e.columns IS NULL AND {UNTOLD} > $5 THEN true
           WHEN e.columns IS NULL AND e.filter IS NULL THEN false ELSE (
  SELECT e.columns IS NOT NULL AND (c.relreplident = 'f' OR NOT key <@ listed)
         OR c.relreplident <> 'f' AND NOT filtered <@ key
  FROM (SELECT
    array(SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND {IN_KEY}
          WHERE i.indrelid = c.oid AND {KEY}) AS key,
    array(SELECT a.attname FROM pg_attribute a
          WHERE a.attrelid = part.whole AND e.columns @> to_jsonb(a.attnum)) AS listed,
    array(SELECT a.attname FROM pg_attribute a
          JOIN regexp_matches(e.filter, ':varattno (-?[0-9]+)', 'g') AS of ON a.attnum = of[1]::int
          WHERE a.attrelid = part.whole) AS filtered) AS has) END
ORDER BY 1, 2 LIMIT 20
"""
"""Tables whose updates and deletes PostgreSQL refuses: one without an identity, one whose column list has less than its
identity (with FULL that is any list), one whose row filter looks at more than that, and one whose identity has
generated columns that are not published ($5: the kind that is)."""
SCHEMAS_SINCE: Final = 15
WITH_ROOT: Final = "WITH (publish_via_partition_root = true)"


class Exposed(NamedTuple):
    """A published table whose updates and deletes PostgreSQL refuses."""

    schema: str
    name: str
    identified: bool
    """Whether it has a REPLICA IDENTITY."""
    untold: str
    """The kind of the generated columns in that."""


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
    exposed: Sequence[Exposed] = ()
    generated: str | None = None
    """The kind of the generated columns that it publishes; None where the server can't."""

    @property
    def lacks_generated(self) -> bool:
        """Whether it could publish generated columns, and does not."""
        return self.generated is not None and self.generated != STORED

    def has(self, table: Table) -> bool:
        """Whether this table's changes are published, directly or with its parent."""
        return self.everything or table.oid in self.named or table.schema in self.schemas

    def mark(self, table: Table) -> str:
        """What the table and its publication are known by. It changes with anything by which changes may have been
        missed."""
        entry = self.named.get(table.oid) or self.schemas.get(table.schema) or 0
        return f"{table.oid}/{self.oid}/{self.version}/{entry}"

    def mark_of_row(self, table: Table) -> str:
        """What the table's own row in the catalogue is known by, where it may be UNLOGGED, or in another schema, for a
        while and is told of no more. PostgreSQL refuses that of a table, or tells of it, that is published by name."""
        return "" if table.oid in self.named else table.version


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
    told = STORED if row["generated"] == STORED else ""
    of = row["oid"], numbers, row["puballtables"], row["pubviaroot"], told
    exposed = await connection.fetch(EXPOSED, *of) if refuses else []
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
        [Exposed(one["schema"], one["name"], one["identified"], one["untold"]) for one in exposed],
        row["generated"],
    )


def made_with(connection: asyncpg.Connection) -> str:
    """How a publication is to be made on this server. Generated columns are published before any is in a REPLICA
    IDENTITY: from that moment on PostgreSQL refuses the application's updates and deletes otherwise."""
    if connection.get_server_version().major < GENERATED_SINCE:
        return WITH_ROOT
    return f"{WITH_ROOT.removesuffix(')')}, {WITH_GENERATED})"


def is_of_all(finding: Finding, names: Names) -> bool:
    """Whether it is about all tables. The publication's name may read like a table's."""
    if finding.assumption == "publication":
        return finding.subject == names.publication
    return finding.assumption != "tables"


class Published:
    """Compares what is published with what the rules need.

    The worker publishes tables by name, and only those that allow updates and deletes then. It does not publish
    schemas: tables that others make there might not allow them.
    """

    def __init__(self, router: Router, name: str, tables: Sequence[Table], made_with: str) -> None:
        self._router = router
        self._name = name
        self._made_with = made_with
        self._tables = [table for table in tables if table.is_told and router.rules_of(table.schema, table.name)]

    def findings(self, found: Publication | None, refused: Mapping[str, str]) -> list[Finding]:
        """The findings. `refused`: SQL that this user may not run, and why."""
        if found is None:
            sql = self.creation()
            return [
                Finding("publication", self._name, f"it is not there{_why(refused, sql)}", f"{sql};", stops=True),
                *(self._left_out(table, refused) for table in self._tables if not table.is_publishable),
            ]
        of_all = self._of_all(found)
        told = [] if of_all is None else [of_all]
        for table in self._tables:
            told += self._of_table(found, table, refused)
        return [*told, *self._exposed(found, refused)]

    def warnings(self, found: Publication | None) -> list[str]:
        """What may go wrong later: a new table may fail the application's updates without any warning."""
        if found is None:
            return []
        told = []
        if found.lacks_generated:
            told.append(
                f"the publication {self._name!r} leaves out generated columns: PostgreSQL refuses updates and deletes "
                f"of a table whose REPLICA IDENTITY gets one; to mend it: {self._with_generated()};"
            )
        return [*told, *self._of_whole_schemas(found)]

    def _of_whole_schemas(self, found: Publication) -> list[str]:
        if not (found.everything or found.schemas):
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
            return [self._left_out(table, refused, found)]
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

    def _left_out(self, table: Table, refused: Mapping[str, str], found: Publication | None = None) -> Finding:
        """The finding that changes of a table go unnoticed. There is none if the table lacks what its rules need, since
        its changes would name nothing."""
        sql, cause = self.addition(table), Cause.OTHER
        rules = self._router.rules_of(table.schema, table.name)
        if table.is_publishable:
            first, why, cause = "", _why(refused, sql), Cause.UNPUBLISHED
            if found is not None and self._must_be_altered(found, [table]):
                first, cause = f"{self._with_generated()}; ", Cause.OTHER
                why = _why(refused, self._with_generated()) or why
        else:
            first, why = _unpublishable(table, rules)
            if any(rule.is_pattern for rule in rules):
                why += " (or let no pattern fit it)"
        missed = any(rule.columns <= table.columns.keys() for rule in rules)
        said = f"the publication {self._name!r} leaves it out{why}"
        return Finding("publication", table.full_name, said, f"{first}{sql};", missed=missed, cause=cause)

    def _exposed(self, found: Publication, refused: Mapping[str, str]) -> Iterator[Finding]:
        ours = {(table.schema, table.name) for table in self._tables}
        for schema, name, identified, untold in found.exposed:
            sql_name = f"{quoted(schema)}.{quoted(name)}"
            out = f"ALTER PUBLICATION {quoted(self._name)} DROP TABLE {sql_name};"
            if not identified:
                lacks = "it, and it has no primary key and no REPLICA IDENTITY"
                remedy = f"ALTER TABLE {sql_name} REPLICA IDENTITY FULL;"
                if (schema, name) not in ours:
                    remedy += f" or, since no rule is for it: {out}"
            elif untold == VIRTUAL:
                lacks = "it, and its REPLICA IDENTITY has virtual columns, which are never published"
                remedy = f"ALTER TABLE {sql_name} REPLICA IDENTITY DEFAULT; or, where it has no primary key: {out}"
            elif untold and found.lacks_generated:
                why = _why(refused, self._with_generated())
                lacks = f"it without the generated columns of its REPLICA IDENTITY{why}"
                remedy = f"{self._with_generated()};"
            else:
                lacks = (
                    "it with a column list that lacks some of its REPLICA IDENTITY, or a row filter by other columns"
                )
                remedy = f"BEGIN; {out} {out.replace(' DROP ', ' ADD ')} COMMIT; or another REPLICA IDENTITY"
            yield Finding(
                "publication",
                known_as(schema, name),
                f"the publication {self._name!r} has {lacks}: PostgreSQL refuses the application's updates and deletes "
                "of its rows",
                remedy,
            )

    def creation(self) -> str:
        """The SQL that creates the publication, with the tables that may be published now, maybe none."""
        names = ", ".join(f"ONLY {table.sql_name}" for table in self._tables if table.is_publishable)
        of = f" FOR TABLE {names}" if names else ""
        return f"CREATE PUBLICATION {quoted(self._name)}{of} {self._made_with}"

    def addition(self, table: Table) -> str:
        """The SQL that adds a table. ONLY leaves out tables that inherit from it, which may have no key."""
        return f"ALTER PUBLICATION {quoted(self._name)} ADD TABLE ONLY {table.sql_name}"

    def mends(self, found: Publication | None) -> list[str]:
        """The SQL that the worker may run itself. None of it takes anything from anybody."""
        if found is None:
            return [self.creation()]
        if self._must_be_altered(found, self._tables) or any(one.untold == STORED for one in found.exposed):
            first = [self._with_generated()] if found.lacks_generated else []
        else:
            first = []
        missing = [table for table in self._tables if table.is_publishable and not found.has(table)]
        return first + [self.addition(table) for table in missing if not self._must_be_altered(found, [table])]

    def _must_be_altered(self, found: Publication, tables: Sequence[Table]) -> bool:
        """Whether generated columns of these tables are to be published first."""
        return found.lacks_generated and any(table.has_stored for table in tables)

    def _with_generated(self) -> str:
        return f"ALTER PUBLICATION {quoted(self._name)} SET ({WITH_GENERATED})"


def _unpublishable(table: Table, rules: Sequence[Rule]) -> tuple[str, str]:
    """What is to be done first of all, and why: the end of a sentence."""
    if not table.identified and table.partitioned:
        return f"give {table.sql_name} a primary key; ", (
            ", and it has no primary key that its partitions take over: once published, PostgreSQL refuses updates "
            "and deletes in those that have no REPLICA IDENTITY, also in those that are made later"
        )
    if not table.identified:
        why = ", and it has no primary key: once published, PostgreSQL refuses its updates and deletes"
        return f"{full_identity(rules, table)} ", why
    if bare := [one for one in table.written if not one.identified]:
        first = "".join(f"ALTER TABLE {one.sql_name} REPLICA IDENTITY DEFAULT; " for one in bare)
        named = ", ".join(one.name for one in bare)
        why = f", and its partitions {named} have no REPLICA IDENTITY: once published, PostgreSQL refuses their updates"
        return first, why + " and deletes"
    first = f"{as_stored(table) if table.partitioned else full_identity(rules, table)} "
    return first, (
        f", and its REPLICA IDENTITY has virtual columns ({', '.join(table.virtual)}), which PostgreSQL does not "
        "publish: once published, it refuses its updates and deletes"
    )


def _why(refused: Mapping[str, str], sql: str) -> str:
    return f", and this user may not mend it ({refused[sql]})" if sql in refused else ""
