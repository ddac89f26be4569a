"""Reads the database's catalogue: the tables that the rules name. It is read again and again, since migrations change
it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from cachebus.consumers.cdc.rules.router import Place, Router
from cachebus.consumers.cdc.rules.rules import Rule
from cachebus.consumers.cdc.slot.pgoutput import FIRST_OWN_TYPE, nameable
from cachebus.consumers.cdc.slot.storage import OWN_TABLES
from cachebus.consumers.worker.partitions import tree_of
from cachebus.consumers.worker.source import Finding
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    import asyncpg

KEY: Final = """i.indisvalid AND i.indimmediate
  AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary ELSE false END"""
"""SQL: whether an index of a table `c` identifies old rows. A deferrable index does not."""
IN_KEY: Final = "a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])"
"""SQL: whether a column is told of them. Those that the index only includes are not."""
IDENTIFIED: Final = f"""
(c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND {KEY}))
"""
"""SQL: whether a table `c` allows updates and deletes once it is published."""
TABLES: Final = f"""
WITH RECURSIVE kin AS (
  SELECT i.inhrelid AS child, i.inhparent AS ancestor
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND NOT c.relispartition
  UNION SELECT i.inhrelid, kin.ancestor FROM kin JOIN pg_inherits i ON i.inhparent = kin.child)
SELECT c.oid::bigint, n.nspname AS schema, c.relname AS name, c.relreplident::text AS identity,
       c.relkind = 'p' AS partitioned, c.relkind = 'f' AS is_foreign, c.relpersistence = 'u' AS is_unlogged,
       {IDENTIFIED} AND (c.relkind <> 'p' OR EXISTS (
         SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)) AS identified,
       array(SELECT ancestor::bigint FROM kin WHERE child = c.oid) AS ancestors,
       md5(string_agg(a.attnum || ' ' || a.xmin, ',' ORDER BY a.attnum)) AS definition,
       array_agg(a.attname::text ORDER BY a.attnum) AS columns,
       array_agg(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE a.atttypid END ORDER BY a.attnum) AS types,
       array_agg(a.attgenerated <> '' ORDER BY a.attnum) AS generated,
       array_agg(coalesce({IN_KEY}, false) ORDER BY a.attnum) AS in_key
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_index i ON i.indrelid = c.oid AND {KEY}
WHERE (c.relkind IN ('r', 'p') OR c.relkind = 'f' AND c.oid IN (SELECT child FROM kin))
  AND c.relpersistence <> 't' AND NOT c.relispartition AND n.nspname !~ '^(pg_|information_schema$)'
  AND ($1::text[] IS NULL OR n.nspname || '.' || c.relname = ANY ($1)
    OR c.oid IN (SELECT kin.child FROM kin JOIN pg_class p ON p.oid = kin.ancestor JOIN pg_namespace s
                 ON s.oid = p.relnamespace WHERE s.nspname || '.' || p.relname = ANY ($1)))
GROUP BY c.oid, n.nspname, c.relname, c.relreplident, c.relkind, c.relpersistence
ORDER BY 2, 3
"""
LEAVES: Final = f"""
SELECT root.oid::bigint AS root, c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name,
       c.relreplident::text AS identity, c.relfilenode::bigint AS file, c.xmin::text AS version,
       c.relkind = 'p' AS is_branch,
       (SELECT bool_or(inhdetachpending) FROM pg_inherits WHERE inhrelid = c.oid) AS is_going,
       (SELECT md5(string_agg(attnum || ' ' || xmin, ',' ORDER BY attnum)) FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0) AS definition,
       array(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND {IN_KEY}
             WHERE i.indrelid = c.oid AND {KEY}) AS key,
       (SELECT string_agg(i.indexrelid || ':' || i.xmin, ',') FROM pg_index i
        WHERE i.indrelid = c.oid AND {KEY}) AS key_version,
       c.relkind = 'f' AS is_foreign, c.relpersistence = 'u' AS is_unlogged,
       CASE WHEN c.relkind <> 'r' OR c.oid IN (SELECT relation FROM pg_locks WHERE mode = 'AccessExclusiveLock')
         THEN c.relkind = 'p' ELSE pg_relation_size(c.oid) = 0 END AS is_empty
FROM unnest($1::bigint[]) AS given
JOIN pg_class root ON root.oid::bigint = given
CROSS JOIN LATERAL {tree_of("root.oid")} AS part
JOIN pg_class c ON c.oid = part.relid AND c.relkind IN ('r', 'f', 'p') AND c.relispartition
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY 3, 4
"""
TYPES: Final = f"""
WITH RECURSIVE within (table_oid, type) AS (
  SELECT attrelid, atttypid FROM pg_attribute
  WHERE attrelid::bigint = ANY ($1::bigint[]) AND attnum > 0 AND NOT attisdropped AND atttypid >= {FIRST_OWN_TYPE}
  UNION SELECT w.table_oid, part.type FROM within w JOIN pg_type t ON t.oid = w.type CROSS JOIN LATERAL (
    SELECT t.typbasetype UNION ALL SELECT t.typelem
    UNION ALL SELECT atttypid FROM pg_attribute WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped
    UNION ALL SELECT rngsubtype FROM pg_range WHERE t.oid IN (rngtypid, rngmultitypid)) AS part (type)
  WHERE part.type >= {FIRST_OWN_TYPE})
SELECT w.table_oid::bigint, e.oid::text AS part, e.xmin::text AS version
FROM within w JOIN pg_enum e ON e.enumtypid = w.type
UNION ALL
SELECT w.table_oid::bigint, t.oid::text, md5(string_agg(a.attnum || ' ' || a.xmin, ',' ORDER BY a.attnum))
FROM within w JOIN pg_type t ON t.oid = w.type JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0
GROUP BY w.table_oid, t.oid
"""
"""What the tables' columns are made of: the values of enums, and composite types, within domains, arrays and ranges."""
OTHERS: Final = """
SELECT n.nspname || '.' || c.relname AS name, c.relkind::text AS kind, c.relispartition AS is_partition
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = ANY ($1)
"""
KINDS: Final = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}


@dataclass(frozen=True)
class Leaf:
    """A partition with rows of its own, or, as a `Table.branches`, with partitions."""

    oid: int
    schema: str
    name: str
    identity: str
    file: int
    """The number of its file, which a truncate changes; at first it is the OID."""
    version: str
    """Of its row in the catalogue. It changes as it is truncated, detached, attached, or identified otherwise."""
    is_empty: bool
    key: Sequence[str] = ()
    """The columns that PostgreSQL sends of an old row, where that is not all."""
    key_version: str | None = None
    """Of the index that they are of."""
    definition: str = ""
    """A hash of its columns, which may be altered by themselves."""
    is_going: bool = False
    """Whether DETACH CONCURRENTLY has taken its rows from readers of the whole, and is not done yet."""
    is_foreign: bool = False
    is_unlogged: bool = False

    @property
    def sql_name(self) -> str:
        """As SQL needs it."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def mark(self) -> str:
        """What it is known by. It changes with anything by which changes may have been missed."""
        return f"{self.file}/{self.version}/{self.key_version}/{self.definition}/{self.is_going}"

    @property
    def is_untouched(self) -> bool:
        """Whether it never had rows but those that were told of: it is empty, and was never truncated."""
        return self.is_empty and self.file == self.oid


@dataclass(frozen=True)
class Table:
    """A table of the database."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: dict[str, int]
    """The type's number of each column, by name. Generated columns are left out: PostgreSQL does not send them."""
    key: frozenset[str]
    """The columns that PostgreSQL sends of an old row."""
    identified: bool
    """Whether PostgreSQL allows updates and deletes of its rows once it is published. For a partitioned table, that
    includes partitions that are made later: they inherit a primary key, but no REPLICA IDENTITY."""
    types: dict[str, str] = field(default_factory=dict)
    """By OID, the version of each value of its columns' enums, and of each composite type. It changes if that is
    renamed or altered, which changes rows that have it."""
    definition: str = ""
    """A hash of its columns. It changes if they are altered, which may change all rows."""
    partitioned: bool = False
    is_foreign: bool = False
    is_unlogged: bool = False
    ancestors: tuple[int, ...] = ()
    """The numbers of the tables that it INHERITS from: their rows include its own."""
    leaves: list[Leaf] = field(default_factory=list)
    branches: list[Leaf] = field(default_factory=list)
    """Partitions that are partitioned themselves."""

    @property
    def full_name(self) -> str:
        """As in "shop.orders"."""
        return f"{self.schema}.{self.name}"

    @property
    def sql_name(self) -> str:
        """As SQL needs it."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def lesser(self) -> list[Leaf]:
        """The partitions of which old rows lack columns that its own have."""
        of = [leaf for leaf in self.leaves if not leaf.is_foreign and leaf.identity != "f"]
        return of if self.identity == "f" else [leaf for leaf in of if not self.key.issubset(leaf.key)]

    @property
    def told_by(self) -> str:
        """What old rows are told by."""
        return self.identity if self.identity == "f" else f"{self.identity}: {_listed(self.key)}"

    @property
    def is_told(self) -> bool:
        """Whether PostgreSQL sends its changes at all."""
        return not self.is_foreign and not self.is_unlogged


def plain_url(url: SecretStr) -> str:
    """A database's URL, without SQLAlchemy's driver name. `ConfigError`, which does not show the URL."""
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url.get_secret_value())
    if not re.match(r"postgres(ql)?://", plain):
        raise ConfigError("the database must be a URL like postgresql://user:password@host:5432/name")
    return plain


def quoted(name: str) -> str:
    """A name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


async def tables_of(connection: asyncpg.Connection, rules: Sequence[Rule]) -> list[Table]:
    """The tables that rules name, and those that inherit from them; all tables if a rule has a pattern. Tables of the
    system and of the worker are left out."""
    named = None if any(rule.is_pattern for rule in rules) else [rule.table for rule in rules]
    found = [_table(row) for row in await connection.fetch(TABLES, named) if row["name"] not in OWN_TABLES]
    if partitioned := {table.oid: table for table in found if table.partitioned}:
        for row in await connection.fetch(LEAVES, list(partitioned)):
            of = {name: value for name, value in row.items() if name not in ("root", "is_branch")}
            root = partitioned[row["root"]]
            (root.branches if row["is_branch"] else root.leaves).append(Leaf(**of))
    await _add_types(connection, found)
    return found


async def _add_types(connection: asyncpg.Connection, tables: Sequence[Table]) -> None:
    there = {table.oid: table for table in tables}
    for row in await connection.fetch(TYPES, list(there)):
        there[row["table_oid"]].types[row["part"]] = row["version"]


def kin_of(tables: Sequence[Table]) -> dict[Place, tuple[Place, ...]]:
    """The tables that inherit from others, with those others, whose rules apply to them too."""
    places = {table.oid: (table.schema, table.name) for table in tables}
    return {
        (table.schema, table.name): tuple(places[one] for one in table.ancestors if one in places)
        for table in tables
        if table.ancestors
    }


async def others_of(connection: asyncpg.Connection, rules: Sequence[Rule], tables: Sequence[Table]) -> dict[str, str]:
    """What those names in rules stand for that are no tables, such as views."""
    there = {table.full_name for table in tables}
    names = [rule.table for rule in rules if not rule.is_pattern and rule.table not in there]
    found = {}
    for row in await connection.fetch(OTHERS, names) if names else ():
        if row["is_partition"]:
            found[row["name"]] = "it is a partition, and rows are told by the name of the whole: name that in the rule"
        elif row["kind"] in KINDS:
            found[row["name"]] = f"it is {KINDS[row['kind']]}: PostgreSQL tells nothing of its rows"
    return found


def _table(row: Any) -> Table:
    columns = list(zip(row["columns"], row["types"], row["generated"], row["in_key"], strict=True))
    told = {name: oid for name, oid, generated, _ in columns if not generated}
    key = frozenset(told if row["identity"] == "f" else (name for name, _, _, in_key in columns if in_key))
    same = ("oid", "schema", "name", "identity", "identified", "definition", "partitioned", "is_foreign", "is_unlogged")
    return Table(columns=told, key=key, ancestors=tuple(row["ancestors"]), **{name: row[name] for name in same})


def table_findings(
    router: Router, tables: Sequence[Table], others: Mapping[str, str]
) -> tuple[list[Finding], list[str]]:
    """The findings about the tables that rules name, one for each table, and warnings.

    `others`: what those names stand for that are no tables. For a table that only matches a pattern, there is a warning
    if its rows would become dead letters, but none if PostgreSQL does not send its changes.
    """
    problems: dict[str, list[tuple[str, str]]] = defaultdict(list)
    warnings: list[str] = []
    for table in tables:
        for rule in router.rules_of(table.schema, table.name):
            problems[table.full_name] += _untold(table)
            if not table.is_told:
                continue
            wrong = list(_wrong(rule, table))
            if rule.is_pattern:
                warnings += (f"{table.full_name}: {problem}; to mend it: {remedy}" for problem, remedy in wrong)
            else:
                problems[table.full_name] += wrong
            if not wrong:
                warnings += _doubtful(rule, table)
    found = [
        Finding("tables", name, _joined(p for p, _ in wrong), _joined((r for _, r in wrong), " "), missed=True)
        for name, wrong in problems.items()
        if wrong
    ]
    known = {rule.table for table in tables for rule in router.rules_of(table.schema, table.name)}
    for rule in router.rules.rule:
        if rule.table not in known and not rule.is_pattern:
            found.append(Finding("tables", rule.table, others.get(rule.table, "there is no such table")))
        elif rule.table not in known:
            warnings.append(f"rule of {rule.table!r}: there is no such table")
    return list(dict.fromkeys(found)), list(dict.fromkeys(warnings))


def _untold(table: Table) -> Iterator[tuple[str, str]]:
    """Why PostgreSQL sends no changes of its rows, or not of all."""
    if table.is_foreign:
        yield "it is a foreign table that inherits from a rule's: PostgreSQL tells nothing of its rows", ""
    if table.is_unlogged:
        remedy = f"ALTER TABLE {table.sql_name} SET LOGGED;"
        yield "it is UNLOGGED: PostgreSQL tells nothing of its rows (or let no rule fit it)", remedy
    foreign = [leaf.name for leaf in table.leaves if leaf.is_foreign]
    if foreign:
        yield f"its partitions {_listed(foreign)} are foreign tables: PostgreSQL tells nothing of their rows", ""
    unlogged = [leaf for leaf in table.leaves if leaf.is_unlogged]
    if unlogged:
        named = _listed([leaf.name for leaf in unlogged])
        remedy = " ".join(f"ALTER TABLE {leaf.sql_name} SET LOGGED;" for leaf in unlogged)
        yield f"its partitions {named} are UNLOGGED: PostgreSQL tells nothing of their rows", remedy


def _wrong(rule: Rule, table: Table) -> Iterator[tuple[str, str]]:
    for column in sorted(rule.columns.union(rule.when)):
        if column not in table.columns:
            yield f"it has no column {column!r} (or it is generated, which PostgreSQL does not tell of)", ""
        elif column in rule.columns and not nameable(table.columns[column]):
            yield f"column {column!r} is neither text nor a whole number", ""
    full = f"ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;"
    if rule.replica_identity == "full" and table.identity != "f":
        yield 'it is not as replica_identity = "full" says', full
        return
    missing = sorted(rule.columns & table.columns.keys() - table.key)
    if "delete" in rule.operations and missing:
        needs = f"and the rule needs {_listed(missing)} (or leave deletes out of the rule's operations)"
        yield f"of a deleted row PostgreSQL tells only {_listed(table.key)}, {needs}", full
    if other := table.lesser:
        less = f"that of {_listed([leaf.name for leaf in other])} is less than the table's"
        identity = _IDENTITIES[table.identity]
        sql = " ".join(f"ALTER TABLE {leaf.sql_name} REPLICA IDENTITY {identity};" for leaf in other)
        yield f"partitions have a REPLICA IDENTITY of their own, and {less}", sql


_IDENTITIES: Final = {"f": "FULL", "d": "DEFAULT", "n": "NOTHING", "i": "USING INDEX ..."}


def _doubtful(rule: Rule, table: Table) -> Iterator[str]:
    if "update" in rule.operations and table.identity != "f" and (rule.columns - table.key or rule.when):
        yield (
            f"rule of {rule.table!r}: of an updated row of {table.full_name} PostgreSQL tells the old "
            f"{_listed(table.key)} only: what a change of another column leaves behind is not invalidated, and every "
            f"update counts; to mend it: ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;"
        )
    if table.partitioned:
        yield (
            f"{table.full_name} is partitioned: PostgreSQL tells nothing of partitions that are attached, detached, "
            "truncated or dropped; they are looked for every few seconds, and then all that the table's rules name is "
            "let go of, for the tenants at the head of the rules"
        )


def _joined(several: Iterable[str], by: str = "; ") -> str:
    return by.join(dict.fromkeys(one for one in several if one))


def _listed(names: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
