"""The replication slot: its state, and the findings about it."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from asyncpg import InsufficientPrivilegeError, PostgresError

from cachebus.consumers.cdc.slot.storage import Memory
from cachebus.consumers.worker.source import Finding

if TYPE_CHECKING:
    import asyncpg

OnLostSlot = Literal["stop", "invalidate"]
LONGEST_NAME: Final = 63
LOOK: Final = """
SELECT s.plugin, s.database, current_database() AS here, s.active_pid, s.wal_status, s.restart_lsn IS NULL AS unkept,
       s.confirmed_flush_lsn - '0/0'::pg_lsn AS confirmed, to_jsonb(s) ->> 'invalidation_reason' AS reason,
       extract(epoch FROM now() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8 AS untouched_s,
       pg_wal_lsn_diff(here.lsn, s.restart_lsn)::bigint AS retained_bytes,
       pg_wal_lsn_diff(here.lsn, s.confirmed_flush_lsn)::bigint AS behind_bytes,
       (SELECT application_name FROM pg_stat_activity WHERE pid = s.active_pid) AS active_as
FROM pg_replication_slots s,
     (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END AS lsn)
       AS here
WHERE s.slot_name = $1
"""
_MAY: Final = """
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolreplication)
  OR rolname = 'rds_replication' AND pg_has_role(oid, 'MEMBER'))
"""
_TRIED: Final = "SELECT pg_replication_slot_advance($1, '0/0')"
"""A position that does not exist. Advancing to it fails in any case, with another error if the user has the right
to."""
REASONS: Final = {
    "wal_removed": "the server has removed WAL that the slot had not confirmed (max_slot_wal_keep_size)",
    "rows_removed": "rows that the slot needed were removed",
    "wal_level_insufficient": "wal_level was lowered",
    "idle_timeout": "no worker had used it for longer than idle_replication_slot_timeout",
}


PASSED: Final = (
    "it was made anew, others have read from it, or some of it was passed by, and what was missed was not made up for"
)


class Slot(NamedTuple):
    """The state of a slot."""

    lost: str
    """Why it will never return changes again; "" if it works."""
    foreign: str
    """Why it is not a slot for this worker."""
    confirmed: int
    retained_bytes: int
    """How much WAL the server keeps for it."""
    behind_bytes: int
    """How much WAL was written since its confirmed position."""
    wal_status: str
    active_pid: int | None
    active_as: str
    untouched_s: float
    """How long nobody has used it, in seconds, where the server tells."""


def default_name(namespace: str) -> str:
    """The default name of slot and publication: one for each namespace, with the characters of slot names only. It is
    "cachebus_cdc" for the namespace "cachebus"."""
    plain = re.sub(r"[^a-z0-9_]", "_", namespace.lower())
    if plain != namespace or len(plain) + len("_cdc") > LONGEST_NAME:
        digest = hashlib.md5(namespace.encode(), usedforsecurity=False).hexdigest()[:8]
        plain = f"{plain[:40]}_{digest}"
    return f"{plain}_cdc"


async def look(connection: asyncpg.Connection, name: str) -> Slot | None:
    """The state of the slot; None if there is none."""
    row = await connection.fetchrow(LOOK, name)
    return row and _slot(row)


async def look_at_rights(connection: asyncpg.Connection, name: str) -> list[Finding]:
    """Whether this user may read the slot."""
    if await connection.fetchval(_MAY):
        return []
    try:
        await connection.execute(_TRIED, name)
    except InsufficientPrivilegeError:
        role = await connection.fetchval("SELECT quote_ident(current_user)")
        remedy = f"ALTER ROLE {role} REPLICATION; (on RDS: GRANT rds_replication TO {role};)"
        return [Finding("slot", name, "this user may not read it: its role lacks REPLICATION", remedy, stops=True)]
    except PostgresError:
        pass
    return []


def _slot(row: Any) -> Slot:
    lost = ""
    if row["reason"]:
        lost = f"{REASONS.get(row['reason'], 'the server has invalidated it')} (invalidation_reason {row['reason']})"
    elif row["wal_status"] == "lost" or row["unkept"]:
        lost = f"{REASONS['wal_removed']} (wal_status {row['wal_status']})"
    foreign = ""
    if row["plugin"] != "pgoutput":
        foreign = f"it is of the plugin {row['plugin']}, not pgoutput"
    elif row["database"] != row["here"]:
        foreign = f"it is of the database {row['database']!r}, and a name is for a whole server"
    return Slot(
        lost,
        foreign,
        int(row["confirmed"] or 0),
        row["retained_bytes"] or 0,
        row["behind_bytes"] or 0,
        row["wal_status"] or "",
        row["active_pid"],
        row["active_as"] or "",
        row["untouched_s"] or 0.0,
    )


def slot_findings(
    name: str,
    slot: Slot | None,
    memory: Memory | None,
    namespace: str,
    on_lost: OnLostSlot,
    refused: str,
    *,
    unseen: bool = False,
) -> list[Finding]:
    """The gravest finding about the slot, if any. `refused`: why the slot could not be created. `unseen`: whether some
    of what was missed may be invisible yet."""
    if memory is not None and memory.namespace != namespace:
        return [
            Finding(
                "slot",
                name,
                f"it serves the namespace {memory.namespace!r}, and this worker is for {namespace!r}",
                "give this one a slot of its own (--slot), which is the default; or, where the other namespace is no "
                f"more: SELECT pg_drop_replication_slot({literal(name)}); DELETE FROM cachebus_cdc_slots WHERE slot = "
                f"{literal(name)};",
                stops=True,
            )
        ]
    if slot is not None and slot.foreign:
        return [Finding("slot", name, slot.foreign, "name another (--slot)", stops=True)]
    lost = "" if slot is None else slot.lost
    if slot is None and memory is not None:
        lost = "it is gone: dropped, or left behind by a failover or an upgrade"
    if lost:
        return [_lost(name, lost, on_lost)]
    if slot is None:
        why = f", and this user may not make it ({refused})" if refused else ""
        return [Finding("slot", name, f"it is not there{why}", f"{made_by(name)};", stops=True)]
    if memory is None:
        return [Finding("slot", name, "what is remembered of it is not there: no worker has begun on it", stops=True)]
    if not memory.whole:
        return [_missed(name, PASSED, unseen)]
    if slot.confirmed > memory.lsn:
        return [
            _missed(
                name, "it is further than any worker has gone: it was made anew, or others have read from it", unseen
            )
        ]
    if slot.wal_status == "unreserved":
        return [
            Finding(
                "slot",
                name,
                "the next checkpoint may remove WAL that it needs (wal_status unreserved)",
                "a larger max_slot_wal_keep_size, or less that holds this worker up",
            )
        ]
    return []


def _missed(name: str, problem: str, unseen: bool) -> Finding:
    """What was missed is made up for once; but while some of it may be invisible, again and again."""
    if unseen:
        problem += ". Of that some may be committed and not visible yet: it waits for the transactions that ran then"
    return Finding("slot", name, problem, missed=True, over=not unseen)


def _lost(name: str, why: str, on_lost: OnLostSlot) -> Finding:
    problem = f"lost: {why}. Changes were missed, so caches may hold old rows until they expire"
    if on_lost == "invalidate":
        return Finding("slot", name, problem, f"{made_by(name)};", stops=True)
    return Finding(
        "slot",
        name,
        problem,
        "start with --on-lost-slot=invalidate: it makes a new slot and invalidates all that the rules name",
        stops=True,
    )


def made_by(name: str) -> str:
    """The SQL that creates the slot."""
    return f"SELECT pg_create_logical_replication_slot({literal(name)}, 'pgoutput')"


def literal(text: str) -> str:
    """The text, quoted as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
