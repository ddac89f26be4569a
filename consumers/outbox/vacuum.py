"""Rows that are gone, and that the database can't forget: each look for the next row passes all of them."""

from __future__ import annotations

from typing import Final

import asyncpg

from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.partitions import tree_of
from cachebus.consumers.worker.source import Finding
from cachebus.consumers.worker.transactions import ends_either
from cachebus.producers.outbox.table import OutboxTable

ASSUMPTION: Final = "vacuum"
MOST: Final = 1_000_000
"""Of them: they cost each look from two tenths of a second to a whole one."""
OLD_S: Final = 60.0
"""A snapshot that is older is likely to be what keeps them."""
WHO: Final = (
    "see who has an old snapshot (SELECT pid, state, xact_start, query FROM pg_stat_activity "
    "ORDER BY age(backend_xmin) DESC NULLS LAST; pg_prepared_xacts and pg_replication_slots have an xmin, too), "
    "end it, and VACUUM again"
)


async def findings(connection: asyncpg.Connection, table: OutboxTable) -> list[Finding]:
    """Whether there are too many, and who keeps them, as far as this role may see that."""
    gone = await connection.fetchval(_GONE, table.rows)
    if gone < MOST:
        return []
    keeper = await connection.fetchrow(_KEEPER, OLD_S)
    problem = f"about {gone} rows that are gone were not vacuumed away, and each look passes them"
    if keeper is None:
        return [Finding(ASSUMPTION, table.rows, problem, f"VACUUM {table.rows}; where that does not help, {WHO}")]
    problem = f"{problem}: {clean(keeper['who'])} keeps them"
    ends = keeper["ends"] or ends_either(keeper["pid"], keeper["gid"], keeper["database"])
    return [Finding(ASSUMPTION, table.rows, problem, f"{ends} VACUUM {table.rows};")]


_GONE: Final = f"""\
SELECT coalesce(sum(pg_stat_get_dead_tuples(relid)), 0)::bigint FROM {tree_of("to_regclass($1)")} AS parts"""

_KEEPER: Final = """\
SELECT who, ends, pid, gid, current_database() AS database FROM (
    SELECT format('a transaction of the session %s (%s), begun %s', pid,
            coalesce(nullif(application_name, ''), usename), xact_start::timestamp(0)) AS who,
        NULL::text AS ends, pid, NULL::text AS gid,
        greatest(age(backend_xid), age(backend_xmin)) AS age, xact_start AS begun
    FROM pg_stat_activity
    -- One that has written, and is idle in its transaction, has a backend_xid alone. VACUUM itself keeps nothing.
    WHERE coalesce(backend_xid, backend_xmin) IS NOT NULL AND backend_type = 'client backend'
        AND datname = current_database() AND query !~* '^\\s*vacuum'
        AND xact_start < statement_timestamp() - make_interval(secs => $1)
    UNION ALL
    SELECT format('the standby of %s (hot_standby_feedback)', coalesce(nullif(application_name, ''), usename)),
        'end what runs there;', NULL, NULL, age(backend_xmin), NULL
    FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND backend_type = 'walsender'
    UNION ALL
    SELECT format('the prepared transaction %s', gid), NULL, NULL, gid, age(transaction), prepared
    FROM pg_prepared_xacts
    WHERE database = current_database() AND prepared < statement_timestamp() - make_interval(secs => $1)
    UNION ALL
    SELECT format('the replication slot %s', slot_name),
        CASE WHEN active THEN 'end what runs on the standby that uses it;'
            ELSE format('SELECT pg_drop_replication_slot(%L);', slot_name) END,
        NULL, NULL, age(xmin), NULL
    FROM pg_replication_slots WHERE xmin IS NOT NULL) AS keepers
-- A snapshot keeps what the transactions that run as it is taken keep: of equals the first is the cause.
ORDER BY age DESC, begun NULLS LAST LIMIT 1"""
