"""Reads the database's catalogue: the tables that the rules name. It is read again and again, since migrations change
it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from cachebus.consumers.cdc.rules.router import Place
from cachebus.consumers.cdc.rules.rules import Rule
from cachebus.consumers.cdc.slot.identity import (
    IDENTIFIED,
    IN_KEY,
    KEY,
    PRIMARY_KEY,
    STORED,
    UNTOLD,
    VIRTUAL,
    known_as,
    quoted,
)
from cachebus.consumers.cdc.slot.pgoutput import FIRST_OWN_TYPE
from cachebus.consumers.cdc.slot.storage import OWN_TABLES
from cachebus.consumers.worker.partitions import tree_of
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    import asyncpg

TABLES: Final = f"""
WITH RECURSIVE kin AS (
  SELECT i.inhrelid AS child, i.inhparent AS ancestor
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND NOT c.relispartition
  UNION SELECT i.inhrelid, kin.ancestor FROM kin JOIN pg_inherits i ON i.inhparent = kin.child)
SELECT c.oid::bigint, n.nspname AS schema, c.relname AS name, c.relreplident::text AS identity,
       c.relkind = 'p' AS partitioned, c.relkind = 'f' AS is_foreign, c.relpersistence = 'u' AS is_unlogged,
       c.relfilenode || '/' || c.xmin AS version,
       {IDENTIFIED} AND (c.relkind <> 'p' OR EXISTS (
         SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)) AS identified,
       {UNTOLD} AS untold, {PRIMARY_KEY} AS primary_key,
       array(SELECT ancestor::bigint FROM kin WHERE child = c.oid) AS ancestors,
       md5(string_agg(a.attnum || ' ' || a.xmin, ',' ORDER BY a.attnum)) AS definition,
       array_agg(a.attname::text ORDER BY a.attnum) AS columns,
       array_agg(CASE WHEN t.typtype = 'd' THEN (
         WITH RECURSIVE base AS (  -- a domain may be over a domain
           SELECT t.typtype AS kind, t.typbasetype AS next, t.oid UNION ALL
           SELECT b.typtype, b.typbasetype, b.oid FROM base JOIN pg_type b ON base.kind = 'd' AND b.oid = base.next)
         SELECT oid FROM base WHERE kind <> 'd') ELSE a.atttypid END ORDER BY a.attnum) AS types,
       array_agg(a.attgenerated::text ORDER BY a.attnum) AS generated,
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
GROUP BY c.oid, c.xmin, n.nspname
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
       c.relkind = 'f' AS is_foreign, c.relpersistence = 'u' AS is_unlogged, {IDENTIFIED} AS identified,
       {UNTOLD} AS untold,
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
    identified: bool = True
    """As `Table.identified`."""
    untold: str = ""
    """As `Table.untold`."""

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
    primary_key: frozenset[str] = frozenset()
    """Its columns, whatever old rows are told by; none if it is deferrable."""
    types: dict[str, str] = field(default_factory=dict)
    """By OID, the version of each value of its columns' enums, and of each composite type. It changes if that is
    renamed or altered, which changes rows that have it."""
    definition: str = ""
    """A hash of its columns. It changes if they are altered, which may change all rows."""
    version: str = ""
    """Of its file, and of its row in the catalogue."""
    untold: str = ""
    """The kind of the generated columns in its identity, as `identity.UNTOLD`."""
    generated: Mapping[str, str] = field(default_factory=dict)
    """The kind of each generated column, by name."""
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
        return known_as(self.schema, self.name)

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
    def written(self) -> Sequence[Table | Leaf]:
        """What is updated as its rows are: itself, or its partitions."""
        if not self.partitioned:
            return [self]
        return [leaf for leaf in self.leaves if not leaf.is_foreign and not leaf.is_unlogged]

    @property
    def is_publishable(self) -> bool:
        """Whether PostgreSQL allows updates and deletes of its rows by a publication that has all that can be."""
        return self.identified and all(one.identified and one.untold != VIRTUAL for one in self.written)

    @property
    def virtual(self) -> list[str]:
        """Its columns with which no REPLICA IDENTITY FULL can be."""
        return [name for name, kind in self.generated.items() if kind == VIRTUAL]

    @property
    def has_stored(self) -> bool:
        """Whether it has columns that are to be published before a REPLICA IDENTITY has them."""
        return STORED in self.generated.values()

    @property
    def told_by(self) -> str:
        """What old rows are told by."""
        return self.identity if self.identity == "f" else f"{self.identity}: {listed(self.key)}"

    @property
    def oids(self) -> tuple[int, ...]:
        """Of all that its rows are in."""
        return self.oid, *(part.oid for part in (*self.leaves, *self.branches))

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
    there = {f"{table.schema}.{table.name}" for table in tables}  # as rules name them
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
    same = ["oid", "schema", "name", "identity", "identified", "definition", "version"]
    same += ["untold", "partitioned", "is_foreign", "is_unlogged"]
    more = {name: row[name] for name in same}
    kinds = {name: kind for name, _, kind, _ in columns if kind}
    more |= {"primary_key": frozenset(row["primary_key"]), "ancestors": tuple(row["ancestors"])}
    return Table(columns=told, key=key, generated=kinds, **more)


def listed(names: Sequence[str] | frozenset[str]) -> str:
    """Names in a sentence."""
    return ", ".join(sorted(names)) or "nothing"
