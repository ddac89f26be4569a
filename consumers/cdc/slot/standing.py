"""Checks all that a slot's worker assumes, again and again, and compares it with what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from cachebus.consumers.cdc.rules.router import Place, Router
from cachebus.consumers.cdc.slot import own_tables, publication, slot, storage
from cachebus.consumers.cdc.slot.catalogue import Table, kin_of, others_of, tables_of
from cachebus.consumers.cdc.slot.commits import Commits, EarlierWriters, OpenTransaction, ended_by
from cachebus.consumers.cdc.slot.commits import named as named_writers
from cachebus.consumers.cdc.slot.identity import known_as
from cachebus.consumers.cdc.slot.lineage import Lineage
from cachebus.consumers.cdc.slot.making import hindrance_of
from cachebus.consumers.cdc.slot.needs import table_findings
from cachebus.consumers.cdc.slot.publication import Publication, Published
from cachebus.consumers.cdc.slot.slot import Names, Slot
from cachebus.consumers.cdc.slot.storage import SlotMemory, as_json
from cachebus.consumers.worker.source import Cause, Finding

if TYPE_CHECKING:
    from asyncpg import Connection

BRIEFLY: Final = "SET statement_timeout = '20s'"
PATIENTLY: Final = "SET statement_timeout = 0"
OWED: Final = "owed"
"""Beside what a table was known by, why what was missed of it has yet to be made up for, be it as before by now."""
HANGS: Final = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError)
"""What a look raises that waits for somebody."""


@dataclass(frozen=True)
class Doubt:
    """Changes of a table are told otherwise than the looks have it, so that some of what they touched is not told."""

    problem: str
    count: int = 1
    """How many such changes there were."""


@dataclass
class SlotStanding:
    """The result of one check."""

    slot: Slot | None = None
    memory: SlotMemory | None = None
    published: Publication | None = None
    needs: Published | None = None
    is_left_over: bool = False
    """Whether own tables are there of a worker of which nothing is remembered."""
    unseen: Sequence[OpenTransaction] = ()
    """By whom some of what the slot was passed by may be invisible yet, so that it can't be made up for."""
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    marks: dict[str, Any] = field(default_factory=dict)
    """What each table whose changes are all published is known by now."""
    doubts: dict[str, Doubt] = field(default_factory=dict)
    """Tables of which the slot had told by then what was not so at the looks."""
    unended: set[str] = field(default_factory=set)
    """Tables to which transactions wrote before they were followed as they are, and have not ended: what is made up
    for now is made up for once more."""
    hanging: list[Finding] = field(default_factory=list)
    """Those of the findings that say why the last look hangs."""
    quiet: dict[str, Any] = field(default_factory=dict)
    """Those of the tables that are to be remembered anew, though nothing was missed."""

    def is_of(self, namespace: str) -> bool:
        """Whether the slot is this namespace's, or may become it."""
        return self.memory is None or self.memory.namespace == namespace

    def kept(self, locked: Finding | None) -> SlotStanding:
        """The same, once more, as the next look hangs. What was over is not found again by it. `locked`: the own table
        for which it waits, if it is one."""
        problem = "it can't be looked at whether all is as before: the database's catalogue is locked, or too slow"
        remedy = "see who blocks: SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity;"
        hangs = Finding("tables", "the catalogue", problem, remedy)
        found = [one for one in self.findings if not one.over and one not in self.hanging]
        hanging = [locked or hangs]
        return replace(self, findings=[*found, *hanging], hanging=hanging)


@asynccontextmanager
async def briefly(connection: Connection) -> AsyncIterator[None]:
    """Wait for nobody: what hangs raises one of `HANGS`. For locks the session waits no longer anyway."""
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
    writers: EarlierWriters
    refused: Mapping[str, str]
    """SQL that this user may not run, and why."""
    doubts: Mapping[str, Doubt]
    losses: int
    """How often the log was passed by."""
    is_making: bool
    """Whether the slot is being made."""
    identity: str
    """Of the worker's L2, as `Source.identity`."""
    kept_out: Sequence[Finding] = ()
    """Findings about own tables that keep out what is written there."""
    is_check: bool = False
    """Whether no worker looks, and none is kept from starting by what one makes up for by itself."""


async def look(connection: Connection, router: Router, names: Names, before: Before) -> SlotStanding:
    """Check everything. Raises the driver's errors."""
    found = SlotStanding(doubts=dict(before.doubts))
    await _look_at_slot(connection, names, before, found)
    tables = await tables_of(connection, router.rules.rule)
    others = await others_of(connection, router.rules.rule, tables)
    known = {} if found.memory is None else found.memory.tables
    router.learn(before.lineage.seen(tables, known, found.slot))
    await asyncio.sleep(0)  # of thousands of tables each of these takes a while, and others use the loop
    found.needs = Published(router, names.publication, tables, publication.made_with(connection))
    found.published = await publication.look(connection, names.publication)
    wrong, found.warnings = table_findings(router, tables, others)
    await asyncio.sleep(0)
    found.warnings += found.needs.warnings(found.published)
    told = found.needs.findings(found.published, before.refused)
    followed = [table for table in tables if router.rules_of(table.schema, table.name)]
    await asyncio.sleep(0)
    lacks = any(one.missed and publication.is_of_all(one, names) for one in told)
    found.marks = _marks(None if lacks else found.published, followed, [*wrong, *told], kin_of(tables), router)
    for name, mark in found.marks.items():
        mark["l2"] = before.identity or known.get(name, {}).get("l2", "")
    found.findings += (one._replace(missed=one.missed or one.subject in known) for one in wrong)
    found.findings += told
    if found.memory is not None:
        await _compare(connection, found, followed, before.writers)
        if before.is_check:
            await _warn_of_what_starting_mends(connection, names, found, followed)
    return found


async def _look_at_slot(connection: Connection, names: Names, before: Before, found: SlotStanding) -> None:
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
    lacking = await own_tables.storage_findings(connection, before.refused)
    known_of = {one.subject for one in lacking}
    found.findings += [*lacking, *(one for one in before.kept_out if one.subject not in known_of)]
    # The slot before what is remembered: that is always written before the slot moves.
    found.slot = await slot.look(connection, names.slot)
    is_read = not any(one.subject == storage.SLOTS for one in found.findings)
    if is_read:
        found.memory = await storage.recall(connection, names.slot)
    if found.memory is None:
        found.is_left_over = await own_tables.are_left_over(connection, lacking)
    if level == "logical":
        refused = before.refused.get(slot.made_by(names.slot), "")
        is_there, is_under_way = found.slot is not None, before.is_making and found.slot is None
        hindrance = await hindrance_of(connection, names.slot, refused, is_there=is_there, is_under_way=is_under_way)
        losses = _losses(found, before.losses)
        found.unseen = await before.commits.unseen(connection, losses, owed=_is_owed(found))
        unseen = slot.Unseen(bool(found.unseen), found.unseen if before.commits.are_late else ())
        told = slot.slot_findings(names, found.slot, found.memory, hindrance, unseen)
        if not is_read:  # nobody knows what is remembered of it
            told = [one for one in told if one.problem != slot.UNBEGUN]
        found.findings += (one._replace(state=losses) for one in told if one.missed)
        found.findings += (one for one in told if not one.missed)
    if found.slot is not None and not any(one.assumption == "slot" for one in found.findings):
        found.findings += await slot.look_at_rights(connection, names.slot)


def _is_owed(found: SlotStanding) -> bool:
    """Whether changes of the slot are to be made up for."""
    if found.memory is None or found.slot is None:
        return False
    return not found.memory.whole or found.slot.confirmed > found.memory.lsn


def _losses(found: SlotStanding, passed: int) -> str:
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
    if found is None:
        return {}
    return {
        table.full_name: {
            "is": found.mark(table),
            "row": found.mark_of_row(table),
            "columns": table.definition,
            "identity": table.told_by,
            "parts": {str(part.oid): part.mark for part in (*table.leaves, *table.branches)},
            "types": table.types,
            "rules": router.said_of(table.schema, table.name),
            "of": sorted(known_as(*place) for place in kin.get((table.schema, table.name), ())),
        }
        for table in tables
        if table.full_name not in unwell and found.has(table)
    }


async def _compare(
    connection: Connection, found: SlotStanding, tables: Sequence[Table], writers: EarlierWriters
) -> None:
    """Find tables that are not the same as before: changes may have been missed in between."""
    known = {} if found.memory is None else found.memory.tables
    there = {table.full_name: table for table in tables}
    unwell = {one.subject for one in found.findings}
    changed = {}
    for name, mark in found.marks.items():
        before, doubt = known.get(name), found.doubts.get(name)
        if problem := _difference(there[name], before, mark) if doubt is None else doubt.problem:
            changed[name] = problem
        elif before != mark:
            found.quiet[name] = mark
    states = {name: as_json(found.marks[name]) for name in changed}
    left = await writers.left(connection, {name: (state, there[name].oids) for name, state in states.items()})
    found.unended = set(left)
    states |= {name: f"{found.doubts[name].count} {states[name]}" for name in found.doubts.keys() & states.keys()}
    for name, problem in changed.items():
        if name in left:
            found.findings.append(_unended(name, problem, states[name], left[name], late=writers.are_late(name)))
        else:
            _over(found, name, problem, states[name])
    for name in known.keys() - there.keys() - unwell - found.doubts.keys():
        _over(found, name, "it was dropped or renamed, or no rule is for it any more")
    missed = {one.subject for one in found.findings if one.assumption == "tables" and one.missed}
    for name in found.doubts.keys() - missed:
        _over(found, name, found.doubts[name].problem, str(found.doubts[name].count))


def _unended(name: str, problem: str, state: str, writing: Sequence[OpenTransaction], *, late: bool) -> Finding:
    """What was missed is made up for again and again, until all have ended who wrote before. Each that ends makes
    another state of it: what it wrote is seen from then on."""
    state = f"{state} {[one.xid for one in writing]}"
    if not late:
        return Finding("tables", name, problem, missed=True, over=True, state=state)
    problem += f". Until they end, nobody tells what open transactions wrote to it before: {named_writers(writing)}"
    return Finding("tables", name, problem, ended_by(writing), missed=True, state=state)


_ANOTHER: Final = {
    "is": "it is another table than before, or its publication is another one",
    "row": "it was altered: of what is changed while it is UNLOGGED, or in another schema, PostgreSQL tells nothing",
    "columns": "its columns were altered: PostgreSQL tells nothing of rows that are rewritten",
    "identity": "its REPLICA IDENTITY is another one: old rows may have been told with less than rules need",
    "of": "it inherits from other tables than before",
    "l2": "what was told of it before was applied at another Redis, or that one has lost all since",
}
"""What it means that a part of a mark is not as before."""


def _difference(table: Table, before: Mapping[str, Any] | None, mark: Mapping[str, Any]) -> str:
    """What has happened to a table by which changes may have been missed; "" if nothing has."""
    if before is None:
        return "it is followed from now on, and what was changed before was not told"
    if OWED in before:
        return str(before[OWED])
    for part, problem in _ANOTHER.items():
        if before.get(part, "") != mark[part]:
            return problem
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


def _over(found: SlotStanding, name: str, problem: str, state: str = "") -> None:
    found.findings.append(Finding("tables", name, problem, missed=True, over=True, state=state))


_MAY_ADD: Final = """
SELECT c.oid::bigint FROM pg_publication p, pg_class c WHERE p.pubname = $1 AND c.oid::bigint = ANY ($2::bigint[])
  AND pg_has_role(p.pubowner, 'USAGE') AND pg_has_role(c.relowner, 'USAGE')
"""


async def _warn_of_what_starting_mends(
    connection: Connection, names: Names, found: SlotStanding, tables: Sequence[Table]
) -> None:
    """Have that be warnings which nobody need mend, as where the rules are new: what was missed of tables and is over,
    and tables that a worker adds to the publication."""
    oids = {table.full_name: table.oid for table in tables}
    left_out = {one.subject: oids[one.subject] for one in found.findings if one.cause is Cause.UNPUBLISHED}
    may = {row["oid"] for row in await connection.fetch(_MAY_ADD, names.publication, list(left_out.values()))}
    for one in found.findings.copy():
        is_added = one.cause is Cause.UNPUBLISHED and left_out[one.subject] in may
        if is_added or (one.assumption == "tables" and one.over):
            found.findings.remove(one)
            found.warnings.append(f"{one.subject}: {one.problem}: a worker that starts sees to it, and makes up for it")
