"""What identifies old rows of a table, and what PostgreSQL asks of that before a published table may be written to."""

from __future__ import annotations

from collections.abc import Set
from typing import Final
from zlib import crc32

KEY: Final = """i.indisvalid AND i.indimmediate
  AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary ELSE false END"""
"""SQL: whether an index of a table `c` identifies old rows. A deferrable index does not."""
IN_KEY: Final = "a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])"
"""SQL: whether a column is told of them. Those that the index only includes are not."""
IDENTIFIED: Final = f"""
(c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND {KEY}))
"""
"""SQL: whether a table `c` has what PostgreSQL asks for to update and delete its rows once it is published."""
PRIMARY_KEY: Final = f"""
array(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND {IN_KEY}
      WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
"""
"""SQL: the columns of the primary key of `c`, whatever identifies its old rows. One that is deferrable is left out."""
STORED, VIRTUAL = "s", "v"
GENERATED_SINCE: Final = 18
UNTOLD: Final = f"""
(SELECT coalesce(max(a.attgenerated::text), '') FROM pg_attribute a
 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''
   AND current_setting('server_version_num')::int >= {GENERATED_SINCE}0000
   AND (c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND {KEY} AND {IN_KEY})))
"""
"""SQL: the kind of the generated columns among what identifies old rows of `c`; "" if there are none. PostgreSQL 18 and
newer refuse updates and deletes of a published table until these are published, too: `STORED` ones where the
publication asks for it, `VIRTUAL` ones never are. Of both kinds it is the latter, which comes last."""
WITH_GENERATED: Final = "publish_generated_columns = stored"
"""What a publication must have for the former."""


def quoted(name: str) -> str:
    """A name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def known_as(schema: str, name: str) -> str:
    """What a table is known by. It is no other one's: a part that has a dot is quoted."""
    return ".".join(quoted(one) if {".", '"'}.intersection(one) else one for one in (schema, name))


def by_index(table: str, oid: int, key: Set[str], more: Set[str]) -> str:
    """The SQL that has old rows of a table identified by its primary key, and by more columns. Without the former it
    would forbid rows that differ elsewhere alone. `table`: its name as SQL needs it."""
    names = [quoted(one) for one in sorted(key | more)]
    index = f"cachebus_identity_{oid}_{crc32(','.join(names).encode()):x}"  # another one for other rules
    kept = ", ".join(f"ALTER COLUMN {quoted(one)} SET NOT NULL" for one in sorted(more - key))
    return (
        f"ALTER TABLE {table} {kept}; CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} ({', '.join(names)}); "
        f"ALTER TABLE {table} REPLICA IDENTITY USING INDEX {index};"
    )
