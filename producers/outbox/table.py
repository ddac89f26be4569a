"""The outbox's tables: their names, and the SQL that creates them."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

from cachebus.errors import ConfigError

DEFAULT: Final = "cachebus_outbox"
LARGEST_BYTES: Final = 256 * 1024
"""The largest command. A longer one is refused when it is written, and set aside when it is read."""
# PostgreSQL cuts names at 63 bytes: 55 leave room for suffixes. No character has a meaning in SQL.
_plain = re.compile(r"[a-z_][a-z0-9_]{0,54}").fullmatch


class OutboxTable(NamedTuple):
    """The table `name` in `schema` (None: the connection's search_path finds it), and `NAME_dead` for dead letters."""

    schema: str | None
    name: str

    @classmethod
    def of(cls, name: str) -> Self:
        """The table of a name: "cachebus_outbox" or "schema.cachebus_outbox"; `ConfigError` for what is no plain
        name."""
        schema, dot, table = str(name).rpartition(".")
        if not _plain(table) or (dot and not _plain(schema)):
            raise ConfigError(
                "the outbox's table must be NAME or SCHEMA.NAME of lower-case letters, digits and _, at most 55 each"
            )
        return cls(schema if dot else None, table)

    @property
    def rows(self) -> str:
        """The table of rows that wait, as SQL names it."""
        return self._quoted(self.name)

    @property
    def dead(self) -> str:
        """The table of rows that were set aside, as SQL names it."""
        return self._quoted(f"{self.name}_dead")

    @property
    def relays(self) -> str:
        """The table in which relays remember for which L2 rows were last taken, as SQL names it."""
        return self._quoted(f"{self.name}_relays")

    @property
    def channel(self) -> str:
        """The channel that is notified when rows are inserted."""
        return self.name

    def statements(self, *, notify: bool = True) -> list[str]:
        """The SQL statements that create the tables; they may be run again. `notify`: create a trigger that wakes
        relays; without it, an existing trigger is removed."""
        tables = [_ROWS.format(t=self), _DEAD.format(t=self), RELAYS.format(name=self.relays)]
        return [*tables, *(self._trigger() if notify else self._no_trigger())]

    def sqlite_statements(self) -> list[str]:
        """As `statements`, for SQLite; `ConfigError` for a table in a schema."""
        if self.schema is not None:
            raise ConfigError("in SQLite the outbox's table must be NAME alone")
        return [statement.format(t=self) for statement in _SQLITE]

    def _quoted(self, name: str) -> str:
        return f'"{name}"' if self.schema is None else f'"{self.schema}"."{name}"'

    def _trigger(self) -> list[str]:
        function, trigger = self._quoted(f"{self.name}_notify"), f'"{self.name}_notify"'
        wakes_up = (
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS\n"
            f"$$ BEGIN PERFORM pg_notify('{self.channel}', ''); RETURN NULL; END $$"
        )
        is_called = (
            f"CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT ON {self.rows}\n"
            f"    FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        )
        return [wakes_up, is_called]

    def _no_trigger(self) -> list[str]:
        return [
            f'DROP TRIGGER IF EXISTS "{self.name}_notify" ON {self.rows}',
            f"DROP FUNCTION IF EXISTS {self._quoted(f'{self.name}_notify')}()",
        ]


# command: text and not jsonb, so that a mistake in it fails no business transaction, and is kept as it was written.
# created_at: when the row was written. now() is when its transaction began, which would count as the relay's lag.
# due_at: before all times, unless a writer sets it. Only then is it compared with the clock, so a clock that is set
#   back, or another machine's after a failover, holds up no row.
# waits_for: the shard of a primary that was away; the relay sets it.
# The key begins with the columns that rows are searched by. So due rows are found at its head, however many others
#   there are, and a row costs its writer one index. Ids are out of order, since a transaction may commit long after it
#   took one: nothing relies on them.
# The table is empty most of the time, and has many dead rows when it is busy: so their number triggers a vacuum.
_ROWS: Final = """\
CREATE TABLE IF NOT EXISTS {t.rows} (
    namespace text NOT NULL DEFAULT 'cachebus',
    id bigint GENERATED ALWAYS AS IDENTITY,
    command text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at timestamptz NOT NULL DEFAULT '-infinity',
    attempts integer NOT NULL DEFAULT 0,
    waits_for integer NOT NULL DEFAULT -1,
    PRIMARY KEY (namespace, waits_for, due_at, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)"""
_DEAD: Final = """\
CREATE TABLE IF NOT EXISTS {t.dead} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text NOT NULL,
    row_id bigint NOT NULL,
    command text NOT NULL,
    reason text NOT NULL,
    attempts integer NOT NULL,
    created_at timestamptz NOT NULL,
    died_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""
RELAYS: Final = """\
CREATE TABLE IF NOT EXISTS {name} (
    namespace text PRIMARY KEY,
    l2 text NOT NULL,
    table_oid bigint NOT NULL,
    missed integer NOT NULL
)"""
"""SQL for the table of this name: a row for each namespace, that says which L2's relays have taken its rows last."""
# AUTOINCREMENT gives each id once. Two relays may take the same row: the slower one then deletes no other row by its
# id. Times are Unix seconds.
SQLITE_NOW: Final = "(julianday('now') - 2440587.5) * 86400.0"
_SQLITE: Final = (
    f"""\
CREATE TABLE IF NOT EXISTS {{t.rows}} (
    namespace TEXT NOT NULL DEFAULT 'cachebus',
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    command TEXT NOT NULL,
    created_at REAL NOT NULL DEFAULT ({SQLITE_NOW}),
    due_at REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    waits_for INTEGER NOT NULL DEFAULT -1
)""",
    """\
CREATE INDEX IF NOT EXISTS "{t.name}_due" ON {t.rows} (namespace, waits_for, due_at, id)""",
    f"""\
CREATE TABLE IF NOT EXISTS {{t.dead}} (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    row_id INTEGER NOT NULL,
    command TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    created_at REAL NOT NULL,
    died_at REAL NOT NULL DEFAULT ({SQLITE_NOW})
)""",
)
