"""What a slot's worker repairs of its assumptions, and how it remembers what was made up for."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

import asyncpg

from cachebus.base.log import logger
from cachebus.consumers.cdc.slot import dead, held, locks, own_tables, storage
from cachebus.consumers.cdc.slot import slot as slots
from cachebus.consumers.cdc.slot.making import SlotMaker
from cachebus.consumers.cdc.slot.publication import is_of_all
from cachebus.consumers.cdc.slot.slot import Names
from cachebus.consumers.cdc.slot.standing import OWED, Doubt, SlotStanding
from cachebus.consumers.cdc.slot.storage import SLOTS, SlotMemory, Swallowed
from cachebus.consumers.worker.clean import clean, describe
from cachebus.consumers.worker.source import Finding
from cachebus.consumers.worker.transactions import literal

REFUSED: Final = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ConfigurationLimitExceededError,
    asyncpg.InvalidParameterValueError,  # what may not be published, for a reason that is not known here
    asyncpg.FeatureNotSupportedError,
    asyncpg.LockNotAvailableError,
    asyncpg.RaiseError,  # an event trigger
)
BRIEFLY: Final = "SET LOCAL lock_timeout = '1s'"
"""A table's lock is waited for no longer than this: one that is held long, as to create an index, must not hold up
changes of other tables."""

KNOWN: Final = """
(SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each($2::jsonb) WHERE tables ? key)
"""
"""SQL: of these tables those that are still remembered."""
WHOLE: Final = f"""
UPDATE {SLOTS} SET whole = whole OR losses = $4, lsn = greatest(lsn, $3::text::pg_lsn),
  {storage.tables_become("$2::jsonb", as_a_whole=True)} WHERE slot = $1
"""
"""SQL: the slot is made up for by what the rules of this worker say of these tables: both at once, as another worker
may have more rules."""
NAMELESS: Final = """
CASE jsonb_typeof(tables) WHEN 'object' THEN (
  SELECT coalesce(jsonb_object_agg(key, CASE jsonb_typeof(value) WHEN 'object' THEN value || '{"l2": ""}' ELSE value
  END), '{}') FROM jsonb_each(tables)) ELSE '{}' END
"""
UNNAMED: Final = f"UPDATE {SLOTS} SET {storage.tables_become(NAMELESS)} WHERE slot = $1"
ANOTHERS: Final = "a worker by other rules, or for another Redis, has followed it while it could not be looked at"


class Mending:
    """The repairs of one worker on one slot. `refused`: SQL that this user may not run, and why."""

    def __init__(self, names: Names, maker: SlotMaker) -> None:
        self._names, self._maker = names, maker
        self.refused: dict[str, str] = {}
        self.has_begun = False
        """Whether something was remembered of the slot as this worker looked."""
        self._was_used: bool | None = None
        """Whether something of an earlier worker was there as this one looked for the first time."""
        self.suspects = set[str]()
        """Own tables that may have swallowed something, or refused it."""
        self.doubts: dict[str, Doubt] = {}
        """Tables whose changes must be made up for, by what the slot has told of them."""
        self._doubted = set[str]()
        """Those of them of which that is stored."""
        self._is_nameless = False
        """Whether changes were applied while nobody could tell which L2 it is."""
        self._has_unnamed = False
        """Whether that is stored."""

    async def mend(self, connection: asyncpg.Connection, found: SlotStanding) -> bool:
        """Repair what can be repaired; returns whether anything was. Raises the driver's errors."""
        made = False
        for finding in found.findings:
            if finding.assumption == "storage" and finding.subject in storage.MAKE and "not there" in finding.problem:
                made |= await self._run(connection, storage.sql_of(finding.subject), finding.subject)
        if made:
            return True  # looked at again before anything else is done
        for sql in found.needs.mends(found.published) if found.needs else ():
            made |= await self._run(connection, sql, briefly=True)
        if made or any(one.assumption == "storage" and one.stops for one in found.findings):
            return made
        if found.memory is None:
            return await self._begin(connection, found)
        if found.memory.namespace != self._names.namespace:
            return False
        await self._forget(connection, found)
        return await self._slot_anew(connection, found)

    async def _run(self, connection: asyncpg.Connection, sql: str, name: str = "", *, briefly: bool = False) -> bool:
        async def run() -> bool:
            if briefly:
                async with connection.transaction():
                    await connection.execute(BRIEFLY)
                    await connection.execute(sql)
            else:
                await connection.execute(sql)
            return True

        return await self._tried(run(), sql, name)

    async def _make_slot(self) -> bool:
        """Make it, or go on with that; returns whether it is made."""
        return await self._tried(self._maker.made(), slots.made_by(self._names.slot))

    async def _tried(self, doing: Awaitable[bool], sql: str, name: str = "") -> bool:
        try:
            if not await doing:
                return False
        except asyncpg.DuplicateObjectError:
            return True  # another worker was faster
        except REFUSED as error:
            self.refused[name or sql] = describe(error) if error.context else clean(error.args[0])
            return False
        self.refused.pop(name or sql, None)
        logger.info("cdc: mended: {}", clean(sql))
        return True

    async def _begin(self, connection: asyncpg.Connection, found: SlotStanding) -> bool:
        """Remember a slot of which nothing is remembered:

        1. This worker has seen that something was: somebody has removed it, maybe with the slot. It counts as lost.
        2. The slot is there already. Not all of the tables need have been published from its beginning on, nor need it
           be as it was made: all is made up for once.
        3. It is made now, and an earlier worker has left its publication or tables: the slot that it had is lost.
        4. It is made now, behind all that ran. There is nothing to make up for from before.
        """
        name, namespace = self._names.slot, self._names.namespace
        if self.has_begun:
            logger.error("cdc: what was remembered of the slot {} is gone, and counts as lost", name)
            await storage.remember(connection, name, SlotMemory(namespace, 0, False))
            return True
        stops = [one for one in found.findings if one.assumption in ("slot", "publication") and one.stops]
        if any("not there" not in one.problem for one in stops) or found.published is None:
            return False
        is_new = found.slot is None or self._maker.is_under_way
        if is_new and not await self._make_slot():
            return False
        made = await slots.look(connection, name)
        if made is None or made.lost:
            return False
        is_whole = is_new and not self._was_used
        if is_new and self._was_used:
            logger.warning("cdc: the slot {} was not there, but its publication or tables: it counts as lost", name)
        memory = SlotMemory(namespace, made.confirmed, is_whole, tables=found.marks if is_whole else {})
        await storage.remember(connection, name, memory)
        return True

    def saw(self, found: SlotStanding) -> None:
        """A look has found this."""
        self.has_begun |= found.memory is not None and found.memory.namespace == self._names.namespace
        if self._was_used is None:
            self._was_used = found.published is not None or found.is_left_over

    async def _forget(self, connection: asyncpg.Connection, found: SlotStanding) -> None:
        """Remember that changes of these tables go unnoticed, until they are made up for."""
        memory = found.memory
        if memory is None:
            return
        everything = any(
            one.assumption == "publication" and one.missed and is_of_all(one, self._names) for one in found.findings
        )
        lost = {one.subject for one in found.findings if one.missed and not one.over} - found.unended
        known = [name for name in memory.tables if everything or name in lost]
        gone_on = found.slot is not None and found.slot.confirmed > memory.lsn
        if known:
            await self._forget_tables(connection, known)
        await self._owe(connection, found)
        if gone_on and memory.whole:
            await self._lose(connection, memory)

    async def _owe(self, connection: asyncpg.Connection, found: SlotStanding) -> None:
        """Remember what is to be made up for before anything is taken: it stays so where a worker with the rules of
        before takes over meanwhile, by which all is as it was."""
        known = {} if found.memory is None else found.memory.tables
        of = [
            one for one in found.findings if one.assumption == "tables" and (one.over or one.subject in found.unended)
        ]
        owed = {
            one.subject: {**known[one.subject], OWED: one.problem}
            for one in of
            if one.subject in known and OWED not in known[one.subject]
        }
        if owed:
            await self._mark(connection, owed)

    async def _slot_anew(self, connection: asyncpg.Connection, found: SlotStanding) -> bool:
        """Create a new slot in place of a lost one. That is remembered until it is made up for."""
        names = self._names
        if found.slot is not None:  # made since the last look
            await self._maker.stop()
        lost = [one.problem for one in found.findings if one.assumption == "slot" and one.problem.startswith("lost: ")]
        if names.on_lost != "invalidate" or not lost:
            return False
        if found.memory is not None and found.memory.whole:
            await self._lose(connection, found.memory)
        if found.slot is not None and not await self._run(
            connection, f"SELECT pg_drop_replication_slot({literal(names.slot)})"
        ):
            return False
        made = await slots.look(connection, names.slot) if await self._make_slot() else None
        if made is None:
            return False
        sql = f"UPDATE {SLOTS} SET lsn = $2::text::pg_lsn, whole = false, losses = losses + 1 WHERE slot = $1"
        await storage.change(connection, SLOTS, sql, names.slot, storage.lsn_text(made.confirmed))
        logger.error("cdc: the slot {} is made anew, and all is let go of that rules name: {}", names.slot, lost[0])
        return True

    async def made_up(
        self, connection: asyncpg.Connection, found: SlotStanding, findings: Sequence[Finding], *, whole: bool
    ) -> None:
        """The scopes of these findings are invalidated: what is over need not be found again. `whole`: nothing more was
        lost of the slot since they were found, and all that was is visible."""
        memory = await storage.recall(connection, self._names.slot)
        if memory is None or memory.namespace != self._names.namespace:
            return
        for name in {one.subject for one in findings}.intersection(found.doubts) - found.unended:
            if self.doubts.get(name) == found.doubts[name]:  # none came after the look
                del self.doubts[name]
                self._doubted.discard(name)
        tables = {name: found.quiet.get(name, mark) for name, mark in memory.tables.items()}
        for one in findings:
            if one.assumption in ("tables", "publication") and one.subject not in found.unended:
                tables.pop(one.subject, None)
                if one.subject in found.marks and one.over:
                    tables[one.subject] = found.marks[one.subject]
        tables = self._named({name: mark for name, mark in tables.items() if name not in self.doubts})
        if whole and found.slot is not None and any(one.assumption == "slot" and one.over for one in findings):
            known = -1 if found.memory is None else found.memory.losses
            confirmed = storage.lsn_text(found.slot.confirmed)
            await storage.change(connection, SLOTS, WHOLE, self._names.slot, storage.as_json(tables), confirmed, known)
        elif tables != memory.tables:
            sql = f"UPDATE {SLOTS} SET {storage.tables_become('$2::jsonb', as_a_whole=True)} WHERE slot = $1"
            await storage.change(connection, SLOTS, sql, self._names.slot, storage.as_json(tables))

    async def keep(self, connection: asyncpg.Connection, found: SlotStanding) -> None:
        """Remember changes of tables by which nothing was missed."""
        quiet, found.quiet = found.quiet, {}
        await self._mark(connection, self._named(quiet))

    async def owe_others(self, connection: asyncpg.Connection, found: SlotStanding, identity: str) -> None:
        """Nothing can be looked at, and this worker is to go on where another one was. Remember that of tables of which
        that one has told more than this one tells, or at another L2, something is missed. `identity`: of this L2."""
        memory = await storage.recall(connection, self._names.slot)
        tables = {} if memory is None else memory.tables
        owed = {
            name: {**mark, OWED: ANOTHERS}
            for name, mark in tables.items()
            if OWED not in mark and not _tells_all(found.marks.get(name), mark, identity)
        }
        if owed:
            await self._mark(connection, owed)

    def doubt(self, table: str, problem: str) -> None:
        """The slot has told of a table what was not so at any look."""
        known = self.doubts.get(table)
        if known is None:
            logger.warning("cdc: {}: {}", clean(table), problem)
        self.doubts[table] = Doubt(problem, 1 if known is None else known.count + 1)

    @property
    def has_new_doubts(self) -> bool:
        """Whether there are doubts that are not stored yet, of tables or of where their changes were applied."""
        return not self._doubted.issuperset(self.doubts) or (self._is_nameless and not self._has_unnamed)

    def applied(self, identity: str) -> None:
        """Changes are applied, and done with. `identity`: of this L2, "" if that can't be told: its primary of the
        first shard is away since this worker began. Who goes on at any other one, or at one that has a name by then,
        must know."""
        self._is_nameless |= not identity

    def looked(self, identity: str) -> None:
        """A look has compared with what is stored by this."""
        if identity and self._has_unnamed:
            self._is_nameless = self._has_unnamed = False

    def began(self) -> None:
        """A session has begun: what was stored before, this database need not have."""
        self._doubted.clear()
        self._has_unnamed = False

    async def keep_doubts(self, connection: asyncpg.Connection) -> None:
        """Store that these tables are to be made up for: they count as if they had never been looked at. Those whose
        changes were applied at an L2 without a name have that of none."""
        if new := self.doubts.keys() - self._doubted:
            await self._forget_tables(connection, sorted(new))
            self._doubted |= new
        await self.keep_unnamed(connection)

    async def keep_unnamed(self, connection: asyncpg.Connection) -> None:
        """Store that changes were applied at an L2 without a name, if any were."""
        if self._is_nameless and not self._has_unnamed:
            await storage.change(connection, SLOTS, UNNAMED, self._names.slot)
            self._has_unnamed = True

    def _named(self, marks: dict[str, Any]) -> dict[str, Any]:
        """These marks, which a look may have found before it was stored that the L2 has no name."""
        return {name: {**mark, "l2": ""} for name, mark in marks.items()} if self._has_unnamed else marks

    async def _forget_tables(self, connection: asyncpg.Connection, names: Sequence[str]) -> None:
        kept = "CASE jsonb_typeof(tables) WHEN 'object' THEN tables - $2::text[] ELSE '{}' END"
        sql = f"UPDATE {SLOTS} SET {storage.tables_become(kept)} WHERE slot = $1"
        await storage.change(connection, SLOTS, sql, self._names.slot, names)

    async def _mark(self, connection: asyncpg.Connection, marks: dict[str, Any]) -> None:
        """Remember these of the tables that are still remembered."""
        sql = f"UPDATE {SLOTS} SET {storage.tables_become(f'tables || {KNOWN}')} WHERE slot = $1"
        await storage.change(connection, SLOTS, sql, self._names.slot, storage.as_json(marks))

    async def _lose(self, connection: asyncpg.Connection, memory: SlotMemory) -> None:
        """Remember what a look has found: by that it is made up for, unless more is missed by then."""
        await storage.lose(connection, self._names.slot)
        memory.whole, memory.losses = False, memory.losses + 1

    def suspect(self, error: BaseException) -> bool:
        """Something could not be written, nor need it have been an own table that refused it: the next look tries.
        Returns whether it does."""
        if isinstance(error, Swallowed):
            self.suspects.add(error.table)
        elif isinstance(error, asyncpg.PostgresError) and not isinstance(error, own_tables.NOT_NOW):
            self.suspects.update(storage.OWN_TABLES)
        else:
            return False
        return True

    async def look_at_suspects(self, connection: asyncpg.Connection) -> list[Finding]:
        """Try the tables again that keep out what is written, and forget those that do not."""
        names, found = self._names, dict[str, Finding]()
        trials = {
            SLOTS: storage.trial(names.slot, names.namespace),
            storage.HELD: held.trial(names.slot),  # the row of the slot has a sum of it
            storage.DEAD: dead.trial(names.slot),
        }
        for table, writes in trials.items():
            if table not in self.suspects or (table == storage.HELD and SLOTS in found):
                continue
            try:
                finding = await own_tables.keeping_out(connection, table, writes)
            except locks.LOCKED:
                continue  # the slot may be about to go on; who else has it locked is told by what waits for it
            if finding is None:
                self.suspects.discard(table)
            else:
                found[table] = finding
        return list(found.values())


def _tells_all(mark: Mapping[str, Any] | None, before: Mapping[str, Any], identity: str) -> bool:
    """Whether a table's changes are told by all rules by which they were before, and at the same L2."""
    told = set(before.get("rules", ()))
    return mark is not None and told <= set(mark["rules"]) and identity in ("", before.get("l2", ""))
