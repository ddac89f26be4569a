"""The replication slot: its state, and the findings about it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from asyncpg import InsufficientPrivilegeError, PostgresError

from cachebus.consumers.cdc.slot.commits import OpenTransaction, ended_by, named
from cachebus.consumers.cdc.slot.storage import SLOTS, SlotMemory, lsn_text
from cachebus.consumers.worker.source import Finding
from cachebus.consumers.worker.transactions import literal

if TYPE_CHECKING:
    import asyncpg

OnLostSlot = Literal["stop", "invalidate"]


@dataclass(frozen=True)
class Names:
    """The names of what is followed, and the namespace that it is for."""

    slot: str
    publication: str
    namespace: str
    on_lost: OnLostSlot


LONGEST_NAME: Final = 63
UNBEGUN: Final = "what is remembered of it is not there: no worker has begun on it"
FOLLOWED: Final = """
EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.database = r.datoid
        AND (l.classid::int8 << 32 | l.objid::int8) = hashtextextended('cachebus-cdc ' || r.slot_name, 0))
"""
"""SQL: whether a worker has the lock of the slot `r`, of whatever database that is. Between two peeks no session uses
the slot."""
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


class Hindrance(NamedTuple):
    """What is in the way of a slot that is to be made."""

    why: str = ""
    """As the end of a sentence."""
    remedy: str = ""


class Unseen(NamedTuple):
    """What may be committed and not visible yet of what the slot was passed by."""

    is_some: bool = False
    late: Sequence[OpenTransaction] = ()
    """Who it is by, once that takes long."""


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
    """The state of the slot; None if there is none, or it is yet being made."""
    row = await connection.fetchrow(LOOK, name)
    is_begun = row is not None and row["plugin"] is not None and row["confirmed"] is None
    return None if row is None or is_begun else _slot(row)


async def look_at_rights(connection: asyncpg.Connection, name: str) -> list[Finding]:
    """Whether this user may read the slot."""
    if await connection.fetchval(_MAY):
        return []
    try:
        await connection.execute(_TRIED, name)
    except InsufficientPrivilegeError:
        role = await connection.fetchval("SELECT quote_ident(current_user)")
        remedy = f"ALTER ROLE {role} REPLICATION; -- on RDS: GRANT rds_replication TO {role};"
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
    names: Names, slot: Slot | None, memory: SlotMemory | None, hindrance: Hindrance, unseen: Unseen
) -> list[Finding]:
    """The gravest finding about the slot, if any. `hindrance`: why it is not made."""
    name, namespace = names.slot, names.namespace
    if memory is not None and memory.namespace != namespace:
        return [
            Finding(
                "slot",
                name,
                f"it serves the namespace {memory.namespace!r}, and this worker is for {namespace!r}",
                "give this one a slot of its own (--slot), which is the default; or, where the other namespace is no "
                f"more: SELECT pg_drop_replication_slot({literal(name)}); DELETE FROM {memory.lies_in} WHERE slot = "
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
        return [_lost(name, lost, names.on_lost, hindrance)]
    if slot is None:
        sql = hindrance.remedy or f"{made_by(name)};"
        return [Finding("slot", name, f"it is not there{hindrance.why}", sql, stops=True)]
    if memory is None:
        return [Finding("slot", name, UNBEGUN, stops=True)]
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


def _missed(name: str, problem: str, unseen: Unseen) -> Finding:
    """What was missed is made up for once; but while some of it may be invisible, again and again."""
    if unseen.is_some:
        problem += ". Of that some may be committed and not visible yet: it waits for the transactions that ran then"
    if unseen.late:
        problem += f": {named(unseen.late)}"
    return Finding("slot", name, problem, ended_by(unseen.late), missed=True, over=not unseen.is_some)


def _lost(name: str, why: str, on_lost: OnLostSlot, hindrance: Hindrance) -> Finding:
    problem = f"lost: {why}. Changes were missed, so caches may hold old rows until they expire"
    if on_lost == "invalidate":  # made up for before the new one is made, too: that may take long
        sql = hindrance.remedy or f"{made_by(name)};"
        return Finding("slot", name, problem + hindrance.why, sql, missed=True, stops=True)
    return Finding(
        "slot",
        name,
        problem,
        "start without --on-lost-slot=stop: it makes a new slot and invalidates all that the rules name",
        stops=True,
    )


def made_by(name: str) -> str:
    """The SQL that creates the slot."""
    return f"SELECT pg_create_logical_replication_slot({literal(name)}, 'pgoutput')"


def advance(name: str, target: int) -> str:
    """The SQL that ends a transaction and advances the slot. The new position is stored durably first; if that fails,
    the slot stays. If the slot is already beyond it, another worker was there."""
    slot, lsn = literal(name), lsn_text(target)
    others = "coalesce(slot_at.at > lsn, false)"
    return (
        f"COMMIT; BEGIN; UPDATE {SLOTS} SET lsn = greatest(lsn, '{lsn}'), whole = whole AND NOT {others}, "
        f"losses = losses + {others}::int FROM (SELECT max(confirmed_flush_lsn) AS at FROM pg_replication_slots "
        f"WHERE slot_name = {slot}) AS slot_at WHERE slot = {slot}; COMMIT; "
        f"SELECT pg_replication_slot_advance({slot}, '{lsn}') FROM {SLOTS} WHERE slot = {slot} AND lsn >= '{lsn}'"
    )
