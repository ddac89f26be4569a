"""Checks all that a slot's worker assumes, again and again, and compares it with what is remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from cachebus.consumers.cdc.rules.router import Place, Router
from cachebus.consumers.cdc.slot import publication, slot, storage
from cachebus.consumers.cdc.slot.catalogue import Table, kin_of, others_of, table_findings, tables_of
from cachebus.consumers.cdc.slot.commits import Commits
from cachebus.consumers.cdc.slot.lineage import Lineage
from cachebus.consumers.cdc.slot.publication import Publication, Published
from cachebus.consumers.cdc.slot.slot import OnLostSlot, Slot
from cachebus.consumers.cdc.slot.storage import Memory, as_json
from cachebus.consumers.worker.source import Finding

if TYPE_CHECKING:
    from asyncpg import Connection

BRIEFLY: Final = "SET lock_timeout = '1s'; SET statement_timeout = '20s'"
PATIENTLY: Final = "RESET lock_timeout; SET statement_timeout = 0"
HANGS: Final = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError)
"""What a look raises that waits for somebody."""


@dataclass(frozen=True)
class Names:
    """The names of what is followed, and the namespace that it is for."""

    slot: str
    publication: str
    namespace: str
    on_lost: OnLostSlot


@dataclass(frozen=True)
class Doubt:
    """Changes of a table are told otherwise than the looks have it, so that some of what they touched is not told."""

    problem: str
    count: int = 1
    """How many such changes there were."""


@dataclass
class Standing:
    """The result of one check."""

    slot: Slot | None = None
    memory: Memory | None = None
    published: Publication | None = None
    needs: Published | None = None
    unseen: bool = False
    """Whether some of what the slot was passed by may be invisible yet, so that it can't be made up for."""
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    marks: dict[str, Any] = field(default_factory=dict)
    """What each table whose changes are all published is known by now."""
    doubts: dict[str, Doubt] = field(default_factory=dict)
    """Tables of which the slot had told by then what was not so at the looks."""
    quiet: dict[str, Any] = field(default_factory=dict)
    """Those of the tables that are to be remembered anew, though nothing was missed."""

    def kept(self) -> Standing:
        """The same, once more, as the next look hangs. What was over is not found again by it."""
        problem = "it can't be looked at whether all is as before: the database's catalogue is locked, or too slow"
        remedy = "see who blocks: SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity;"
        hangs = Finding("tables", "the catalogue", problem, remedy)
        lasting = [one for one in self.findings if not one.over and one.problem != problem]
        return replace(self, findings=[*lasting, hangs])


@asynccontextmanager
async def briefly(connection: Connection) -> AsyncIterator[None]:
    """Wait for nobody's locks: what hangs raises one of `HANGS`."""
    await connection.execute(BRIEFLY)
    try:
        yield
    except HANGS:
        await connection.execute(PATIENTLY)
        raise
    await connection.execute(PATIENTLY)


@dataclass(frozen=True)
class Before:
    """What is known before a look, over all connections."""

    lineage: Lineage
    commits: Commits
    refused: Mapping[str, str]
    """SQL that this user may not run, and why."""
    doubts: Mapping[str, Doubt]
    losses: int
    """How often the log was passed by."""
    swallowing: Sequence[Finding] = ()
    """Findings about own tables."""


async def look(connection: Connection, router: Router, names: Names, before: Before) -> Standing:
    """Check everything. Raises the driver's errors."""
    found = Standing(doubts=dict(before.doubts))
    await _look_at_slot(connection, names, before, found)
    tables = await tables_of(connection, router.rules.rule)
    others = await others_of(connection, router.rules.rule, tables)
    known = {} if found.memory is None else found.memory.tables
    router.learn(before.lineage.seen(tables, known, found.slot))
    found.needs = Published(router, names.publication, tables)
    found.published = await publication.look(connection, names.publication)
    wrong, found.warnings = table_findings(router, tables, others)
    found.warnings += found.needs.warnings(found.published)
    told = found.needs.findings(found.published, before.refused)
    followed = [table for table in tables if router.rules_of(table.schema, table.name)]
    found.marks = _marks(found.published, followed, [*wrong, *told], kin_of(tables), router)
    found.findings += (one._replace(missed=one.missed or one.subject in known) for one in wrong)
    found.findings += told
    if found.memory is not None:
        _compare(found, followed, known)
    return found


async def _look_at_slot(connection: Connection, names: Names, before: Before, found: Standing) -> None:
    """The slot, the worker's own tables, and what is remembered in them."""
    level = await connection.fetchval("SELECT current_setting('wal_level')")
    if level != "logical":
        found.findings.append(
            Finding(
                "slot",
                names.slot,
                f"wal_level is {level}, and must be logical",
                "ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
                stops=True,
            )
        )
    lacking = await storage.storage_findings(connection, before.refused)
    known_of = {one.subject for one in lacking}
    found.findings += [*lacking, *(one for one in before.swallowing if one.subject not in known_of)]
    # The slot before what is remembered: that is always written before the slot moves.
    found.slot = await slot.look(connection, names.slot)
    if not any(one.subject == storage.SLOTS for one in found.findings):
        found.memory = await storage.recall(connection, names.slot)
    if level == "logical":
        why = before.refused.get(slot.made_by(names.slot), "")
        found.unseen = await before.commits.are_unseen(connection, before.losses, owed=_is_owed(found))
        told = slot.slot_findings(
            names.slot, found.slot, found.memory, names.namespace, names.on_lost, why, unseen=found.unseen
        )
        found.findings += (one._replace(state=_losses(found, before.losses)) for one in told if one.missed)
        found.findings += (one for one in told if not one.missed)
    if found.slot is not None and not any(one.assumption == "slot" for one in found.findings):
        found.findings += await slot.look_at_rights(connection, names.slot)


def _is_owed(found: Standing) -> bool:
    """Whether changes of the slot are to be made up for."""
    if found.memory is None or found.slot is None:
        return False
    return not found.memory.whole or found.slot.confirmed > found.memory.lsn


def _losses(found: Standing, passed: int) -> str:
    """What tells a loss of the slot from an earlier one. It is not told by how far the worker itself has gone."""
    is_beyond = found.memory is not None and found.slot is not None and found.slot.confirmed > found.memory.lsn
    noticed = f"{passed}/{found.memory.losses if found.memory else 0}"
    return f"{noticed}/{found.slot.confirmed}" if is_beyond and found.slot else noticed


def _marks(
    found: Publication | None,
    tables: list[Table],
    wrong: list[Finding],
    kin: Mapping[Place, Sequence[Place]],
    router: Router,
) -> dict[str, Any]:
    unwell = {one.subject for one in wrong if one.missed}
    if found is None or any(one.assumption == "publication" and "." not in one.subject for one in wrong if one.missed):
        return {}
    return {
        table.full_name: {
            "is": found.mark(table),
            "columns": table.definition,
            "identity": table.told_by,
            "parts": {str(part.oid): part.mark for part in (*table.leaves, *table.branches)},
            "types": table.types,
            "rules": router.said_of(table.schema, table.name),
            "of": sorted(".".join(place) for place in kin.get((table.schema, table.name), ())),
        }
        for table in tables
        if table.full_name not in unwell and found.has(table)
    }


def _compare(found: Standing, tables: list[Table], known: Mapping[str, Any]) -> None:
    """Find tables that are not the same as before: changes may have been missed in between."""
    there = {table.full_name: table for table in tables}
    unwell = {one.subject for one in found.findings}
    for name, mark in found.marks.items():
        if name in found.doubts:
            continue
        before = known.get(name)
        if problem := _difference(there[name], before, mark):
            _over(found, name, problem, as_json(mark))
        elif before != mark:
            found.quiet[name] = mark
    for name in known.keys() - there.keys() - unwell - found.doubts.keys():
        _over(found, name, "it was dropped or renamed")
    missed = {one.subject for one in found.findings if one.assumption == "tables" and one.missed}
    for name in found.doubts.keys() - missed:
        _over(found, name, found.doubts[name].problem, str(found.doubts[name].count))


def _difference(table: Table, before: Mapping[str, Any] | None, mark: Mapping[str, Any]) -> str:
    """What has happened to a table by which changes may have been missed; "" if nothing has."""
    if before is None:
        return "it is followed from now on, and what was changed before was not told"
    if before["is"] != mark["is"]:
        return "it is another table than before, or its publication is another one"
    if before.get("columns") != mark["columns"]:
        return "its columns were altered: PostgreSQL tells nothing of rows that are rewritten"
    if before.get("identity") != mark["identity"]:
        return "its REPLICA IDENTITY is another one: old rows may have been told with less than rules need"
    if before.get("of") != mark["of"]:
        return "it inherits from other tables than before"
    if _lacks(before.get("types", {}), mark["types"]):
        return "types of its columns, or values of enums, were altered: PostgreSQL tells nothing of rows that have them"
    if _lacks(before["parts"], mark["parts"]):
        return "partitions of it were truncated, detached or altered, of which PostgreSQL tells nothing"
    if any(not leaf.is_untouched for leaf in table.leaves if str(leaf.oid) not in before["parts"]):
        return "partitions with rows were attached, of which PostgreSQL tells nothing"
    if not set(mark["rules"]) <= set(before.get("rules", ())):
        return "rules say another thing of it than before, and what was changed before was not told by them"
    return ""


def _lacks(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether something is gone, or another than before."""
    return any(now.get(one) != version for one, version in before.items())


def _over(found: Standing, name: str, problem: str, state: str = "") -> None:
    found.findings.append(Finding("tables", name, problem, missed=True, over=True, state=state))
