"""What repairs a table that is not there, or that something else is in the place of."""

from __future__ import annotations

from typing import Any, Final

from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.commands import command
from cachebus.producers.outbox.table import OutboxTable

KINDS: Final = {
    "v": "VIEW",
    "m": "MATERIALIZED VIEW",
    "f": "FOREIGN TABLE",
    "S": "SEQUENCE",
    "i": "INDEX",
    "I": "INDEX",
    "c": "TYPE",
}
"""How ALTER calls what pg_class calls by a letter, and what is no table of rows."""


OPENS: Final = """\
concat_ws(' ', CASE WHEN NOT has_schema_privilege(c.relnamespace, 'USAGE') THEN
    format('GRANT USAGE ON SCHEMA %s TO %I;', c.relnamespace::regnamespace, current_user) END,
    CASE WHEN NOT has_table_privilege(c.oid, 'SELECT') THEN
    format('GRANT SELECT ON %s.%I TO %I;', c.relnamespace::regnamespace, c.relname, current_user) END)"""
"""SQL: the SQL by which this role may read the table `c` of pg_class; '' if it may."""


def put_by(name: str, row: Any) -> str:
    """SQL that frees the name, so that a table can be made."""
    return f'ALTER {KINDS.get(row["kind"], "TABLE")} {name} RENAME TO "{row["name"][:50]}_{row["oid"]}";'


def literal(text: str) -> str:
    """The text as SQL writes it."""
    return "'" + clean(text).replace("'", "''") + "'"


def served(table: str, theirs: str, ours: str) -> str:
    """What helps rows of a namespace that no relay serves. They are invalidations that some caches lack."""
    return (
        f"run a relay with --namespace {clean(theirs)}, for its caches lack what these rows say. Only where the caches "
        f"of this namespace are meant have the writers name it, and then: UPDATE {table} SET namespace = "
        f"{literal(ours)} WHERE namespace = {literal(theirs)};"
    )


def made(table: OutboxTable) -> str:
    """The command that makes the tables which are not there."""
    return command("outbox", "--create-table", options={"--table": _given(table)})


def checked(table: OutboxTable) -> str:
    """The command that says how the tables are."""
    return command("check", "outbox", options={"--table": _given(table)})


def _given(table: OutboxTable) -> str:
    return table.name if table.schema is None else f"{table.schema}.{table.name}"
