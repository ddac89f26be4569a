"""What a database says of the tables that the rules name: looked at when the worker starts, before a row is lost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from cachebus.errors import ConfigError

if TYPE_CHECKING:
    import asyncpg

TABLES: Final = """
SELECT c.oid, c.relkind = 'p' AS partitioned, n.nspname AS schema, c.relname AS name, c.relreplident::text AS identity,
       array_agg(a.attname::text ORDER BY a.attnum) AS columns,
       array_agg(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE a.atttypid END ORDER BY a.attnum) AS types,
       array_agg(a.attgenerated <> '' ORDER BY a.attnum) AS generated,
       array_agg(coalesce(a.attnum = ANY (i.indkey), false) ORDER BY a.attnum) AS in_key
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_index i ON i.indrelid = c.oid
  AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary ELSE false END
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
  AND NOT c.relispartition AND n.nspname !~ '^(pg_|information_schema$)'
GROUP BY 1, 2, 3, 4, 5
ORDER BY 3, 4
"""
OWN_TABLES: Final = ("cachebus_cdc_dead", "cachebus_cdc_held", "cachebus_cdc_slots")


@dataclass(frozen=True)
class Table:
    """A table of the database."""

    schema: str
    name: str
    identity: str
    columns: dict[str, int]
    """By name: the type's number. Columns that are generated are not told of by PostgreSQL, so not here."""
    key: frozenset[str]
    """The columns that PostgreSQL tells of an old row."""
    oid: int = 0
    partitioned: bool = False

    @property
    def full_name(self) -> str:
        """As in "shop.orders"."""
        return f"{self.schema}.{self.name}"

    @property
    def sql_name(self) -> str:
        """As SQL needs it."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def identified(self) -> bool:
        """Whether PostgreSQL lets rows of it be updated and deleted once they are published."""
        return bool(self.key)


def plain_url(url: SecretStr) -> str:
    """A database's URL, without what SQLAlchemy puts into it; `ConfigError`, which does not show it."""
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url.get_secret_value())
    if not re.match(r"postgres(ql)?://", plain):
        raise ConfigError("the database must be a URL like postgresql://user:password@host:5432/name")
    return plain


def quoted(name: str) -> str:
    """A name as SQL takes it literally."""
    return '"' + name.replace('"', '""') + '"'


async def tables_of(connection: asyncpg.Connection) -> list[Table]:
    """All tables of the database, less the system's and the worker's own."""
    found = []
    for row in await connection.fetch(TABLES):
        if row["name"] in OWN_TABLES:
            continue
        columns = list(zip(row["columns"], row["types"], row["generated"], row["in_key"], strict=True))
        told = {name: oid for name, oid, generated, _ in columns if not generated}
        key = frozenset(told if row["identity"] == "f" else (name for name, _, _, in_key in columns if in_key))
        found.append(Table(row["schema"], row["name"], row["identity"], told, key, row["oid"], row["partitioned"]))
    return found
