"""What in the database may swallow a row that a writer inserts: the writer is told nothing, and there is no row.
Producers raise then, but anything that speaks SQL may write rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import asyncpg

from cachebus.base.log import logger
from cachebus.consumers.outbox.elsewhere import SHAPED
from cachebus.consumers.outbox.remedies import literal
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.partitions import tree_of
from cachebus.consumers.worker.source import Finding
from cachebus.producers.outbox.table import OutboxTable

ASSUMPTION: Final = "inserts"


class Warnings:
    """Warnings of one relay, over all its connections."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, warnings: Sequence[str]) -> Sequence[str]:
        """Log each of them, unless it was one of the last check; returns them."""
        for warning in warnings:
            if warning not in self._told:
                logger.warning("outbox: {}", clean(warning, 2000))
        self._told = set(warnings)
        return warnings


async def of_inserts(connection: asyncpg.Connection, table: OutboxTable) -> tuple[list[Finding], list[str]]:
    """The findings about rules that surely keep rows out of the table, and warnings of rules and triggers that may."""
    found = await connection.fetch(_KEEPERS, table.rows, f"{table.name}_notify")
    rules = [clean(row["drop"]) for row in found if row["kind"] == SURELY]
    warned = [_WARNING[row["kind"]](table.rows, row["name"], row["drop"]) for row in found if row["kind"] != SURELY]
    if not rules:
        return [], warned
    problem = (
        "a rule does nothing, or something else, instead of INSERT: rows that are written are not there, and nobody "
        "hears of it. Connections of writers that were open under it are to be opened anew once it is gone"
    )
    return [Finding(ASSUMPTION, table.rows, problem, " ".join(rules), missed=True)], warned


def of_sqlite(table: OutboxTable, triggers: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Warnings of triggers that may keep rows out of the table, given the names and the SQL of all of its triggers."""
    changes = re.compile(rf"\b(DELETE\s+FROM|UPDATE)\s+[\"`\[]?{table.name}\b", re.IGNORECASE).search
    for name, sql in triggers:
        quoted = name.replace('"', '""')
        if _on_insert(sql) and _ignores(sql):
            yield _may_swallow(f'"{table.name}"', name, f'DROP TRIGGER "{quoted}";')
        elif _on_insert(sql) and changes(sql):
            yield _comes_after(f'"{table.name}"', name, f'DROP TRIGGER "{quoted}";')


def of_those_that_are_late(rows: str, namespace: str, latest_s: float, at_once: str, far: str) -> list[str]:
    """The warning of rows that are due never, or so late that nobody may have meant it. `rows`: their table, as SQL
    names it; `latest_s`: in how many seconds the last one is due. `at_once`, `far`: SQL for such values of due_at."""
    if latest_s <= FAR_S:
        return []
    warning = (
        f"{rows}: rows are due never, or not within a year: until then nobody takes them. If nobody has meant that, "
        f"see what writes due_at, as a trigger may, and then: UPDATE {rows} SET due_at = {at_once} WHERE namespace = "
        f"{literal(namespace)} AND due_at > {far};"
    )
    return [warning]


def _may_swallow(table: str, name: str, drop: str) -> str:
    return (
        f"{table}: the trigger {name!r} may swallow rows that are inserted: producers raise then, other writers are "
        f"told nothing, and there are no rows. If it does: {drop}"
    )


def _may_swallow_by_a_rule(table: str, name: str, drop: str) -> str:
    return (
        f"{table}: the rule {name!r} may swallow rows that are inserted: their writers are told nothing then, and "
        f"there are no rows. If it does: {drop}"
    )


def _comes_after(table: str, name: str, drop: str) -> str:
    return (
        f"{table}: the trigger {name!r} runs after rows are inserted. That is as it should be, unless it removes them, "
        f"or changes when they are due: then nobody takes them, and no writer hears of it. If it does: {drop}"
    )


SURELY: Final = "surely"
_WARNING: Final = {"rule": _may_swallow_by_a_rule, "before": _may_swallow, "after": _comes_after}
FAR_S: Final = 366 * 86400.0
"""Rows that are due so much later, or never, are told."""
_on_insert = re.compile(r"\bINSERT\s+ON\b", re.IGNORECASE).search
_ignores = re.compile(r"\bRAISE\s*\(\s*IGNORE\s*\)", re.IGNORECASE).search

# A rule for some rows only may leave the others alone. One that puts them into a table like an outbox's may have a
# relay there, and `elsewhere` tells where it has none. What a function does nobody can know.
# Writers insert into the table, and so a rule counts only there; the triggers of the part that a row goes to do, too. A
# rule whose rows go to a table that inherits from this one is how tables were partitioned once.
# Most of what comes after a whole statement notifies: its text tells well enough whether it changes rows.
_KEEPERS: Final = f"""\
WITH RECURSIVE heirs (relid) AS (
    SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass($1)
    UNION SELECT inhrelid FROM pg_inherits JOIN heirs ON inhparent = relid)
SELECT rulename::text AS name, format('DROP RULE %I ON %s;', rulename, ev_class::regclass) AS drop,
    CASE WHEN ev_qual::text = '<>' AND NOT EXISTS (
        SELECT FROM pg_depend d LEFT JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
            AND (d.refclassid = 'pg_proc'::regclass OR c.oid <> ev_class AND {SHAPED})
        ) THEN '{SURELY}' ELSE 'rule' END AS kind
FROM pg_rewrite r WHERE ev_class = to_regclass($1) AND is_instead AND ev_type = '3' AND ev_enabled IN ('O', 'A')
    AND NOT EXISTS (SELECT FROM pg_depend d JOIN heirs ON heirs.relid = d.refobjid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid)
UNION ALL
SELECT tgname::text, format('DROP TRIGGER %I ON %s;', tgname, tgrelid::regclass),
    CASE WHEN tgtype & 2 = 2 THEN 'before' ELSE 'after' END
FROM pg_trigger JOIN {tree_of("to_regclass($1)")} AS parts ON relid = tgrelid JOIN pg_proc p ON p.oid = tgfoid
WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 4 = 4 AND tgparentid = 0 AND tgname <> $2
    AND (tgtype & 1 = 1 OR prosrc ~* '\\m(delete|update|truncate|merge|execute)\\M')
ORDER BY 1"""
