"""What a slot's worker repairs of its assumptions, and how it remembers what was made up for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from cachebus.base.log import logger
from cachebus.consumers.cdc.slot import dead, held, storage
from cachebus.consumers.cdc.slot import slot as slots
from cachebus.consumers.cdc.slot.slot import literal
from cachebus.consumers.cdc.slot.standing import Doubt, Names, Standing
from cachebus.consumers.cdc.slot.storage import SLOTS, Memory
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Finding

REFUSED: Final = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ConfigurationLimitExceededError,
    asyncpg.InvalidParameterValueError,  # what may not be published, for a reason that is not known here
    asyncpg.FeatureNotSupportedError,
    asyncpg.LockNotAvailableError,
)
BRIEFLY: Final = "SET LOCAL lock_timeout = '1s'"
"""A table's lock is waited for no longer than this: one that is held long, as to create an index, must not hold up
changes of other tables."""

KNOWN: Final = """
(SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each($2::jsonb) WHERE tables ? key)
"""
"""SQL: of these tables those that are still remembered."""


class Mending:
    """The repairs of one worker on one slot. `refused`: SQL that this user may not run, and why."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self.refused: dict[str, str] = {}
        self.suspects = set[str]()
        """Own tables that have swallowed something."""
        self.doubts: dict[str, Doubt] = {}
        """Tables whose changes must be made up for, by what the slot has told of them."""
        self._doubted = set[str]()
        """Those of them of which that is stored."""

    async def mend(self, connection: asyncpg.Connection, found: Standing) -> bool:
        """Repair what can be repaired; returns whether anything was. Raises the driver's errors."""
        made = False
        for finding in found.findings:
            if finding.assumption == "storage" and finding.subject in storage.MAKE and "not there" in finding.problem:
                made |= await self._run(connection, storage.sql_of(finding.subject), finding.subject)
        if made:
            return True  # looked at again before anything else is done
        for sql in found.needs.mends(found.published) if found.needs else ():
            made |= await self._run(connection, sql, briefly=True)
        if made or any(one.assumption == "storage" for one in found.findings):
            return made
        if found.memory is None:
            return await self._begin(connection, found)
        if found.memory.namespace != self._names.namespace:
            return False
        await self._forget(connection, found)
        return await self._slot_anew(connection, found)

    async def _run(self, connection: asyncpg.Connection, sql: str, name: str = "", *, briefly: bool = False) -> bool:
        try:
            if briefly:
                async with connection.transaction():
                    await connection.execute(BRIEFLY)
                    await connection.execute(sql)
            else:
                await connection.execute(sql)
        except asyncpg.DuplicateObjectError:
            return True  # another worker was faster
        except REFUSED as error:
            self.refused[name or sql] = clean(error.args[0])
            return False
        self.refused.pop(name or sql, None)
        logger.info("cdc: mended: {}", clean(sql))
        return True

    async def _begin(self, connection: asyncpg.Connection, found: Standing) -> bool:
        """Remember that the slot is new: there is nothing to make up for from before."""
        if (
            any(
                one.assumption in ("slot", "publication") and one.stops and "not there" not in one.problem
                for one in found.findings
            )
            or found.published is None
        ):
            return False
        if found.slot is None and not await self._run(connection, slots.made_by(self._names.slot)):
            return False
        made = await slots.look(connection, self._names.slot)
        if made is None or made.lost:
            return False
        await storage.remember(
            connection, self._names.slot, Memory(self._names.namespace, made.confirmed, True, tables=found.marks)
        )
        return True

    async def _forget(self, connection: asyncpg.Connection, found: Standing) -> None:
        """Remember that changes of these tables go unnoticed, until they are made up for."""
        memory = found.memory
        if memory is None:
            return
        everything = any(
            one.assumption == "publication" and one.missed and one.subject == self._names.publication
            for one in found.findings
        )
        lost = {one.subject for one in found.findings if one.missed and not one.over}
        known = [name for name in memory.tables if everything or name in lost]
        gone_on = found.slot is not None and found.slot.confirmed > memory.lsn
        if known:
            await self._forget_tables(connection, known)
        if gone_on and memory.whole:
            await self._unwhole(connection)

    async def _slot_anew(self, connection: asyncpg.Connection, found: Standing) -> bool:
        """Create a new slot in place of a lost one. That is remembered until it is made up for."""
        names = self._names
        if names.on_lost != "invalidate" or not any(one.problem.startswith("lost: ") for one in found.findings):
            return False
        await self._unwhole(connection)
        if found.slot is not None and not await self._run(
            connection, f"SELECT pg_drop_replication_slot({literal(names.slot)})"
        ):
            return False
        if not await self._run(connection, slots.made_by(names.slot)):
            return False
        made = await slots.look(connection, names.slot)
        confirmed = 0 if made is None else made.confirmed
        sql = f"UPDATE {SLOTS} SET lsn = $2::text::pg_lsn WHERE slot = $1"
        await storage.change(connection, SLOTS, sql, names.slot, storage.lsn_text(confirmed))
        logger.error("cdc: the slot {} was lost, and a new one is made: all that rules name is let go of", names.slot)
        return True

    async def made_up(
        self, connection: asyncpg.Connection, found: Standing, findings: Sequence[Finding], *, whole: bool
    ) -> None:
        """The scopes of these findings are invalidated: what is over need not be found again. `whole`: nothing more was
        lost of the slot since they were found, and all that was is visible."""
        memory = await storage.recall(connection, self._names.slot)
        if memory is None or memory.namespace != self._names.namespace:
            return
        if whole and found.slot is not None and any(one.assumption == "slot" for one in findings):
            known = -1 if found.memory is None else found.memory.losses
            sql = (
                f"UPDATE {SLOTS} SET whole = whole OR losses = $3, lsn = greatest(lsn, $2::text::pg_lsn) "
                f"WHERE slot = $1"
            )
            confirmed = storage.lsn_text(found.slot.confirmed)
            await storage.change(connection, SLOTS, sql, self._names.slot, confirmed, known)
        for name in {one.subject for one in findings}.intersection(found.doubts):
            if self.doubts.get(name) == found.doubts[name]:  # none came after the look
                del self.doubts[name]
                self._doubted.discard(name)
        tables = dict(memory.tables)
        for one in findings:
            if one.assumption in ("tables", "publication"):
                tables.pop(one.subject, None)
                if one.subject in found.marks:
                    tables[one.subject] = found.marks[one.subject]
        if tables != memory.tables:
            await self._write_tables(connection, tables)

    async def keep(self, connection: asyncpg.Connection, found: Standing) -> None:
        """Remember changes of tables by which nothing was missed."""
        quiet, found.quiet = found.quiet, {}
        sql = f"UPDATE {SLOTS} SET tables = tables || {KNOWN} WHERE slot = $1"
        await storage.change(connection, SLOTS, sql, self._names.slot, storage.as_json(quiet))

    def doubt(self, table: str, problem: str) -> None:
        """The slot has told of a table what was not so at any look."""
        known = self.doubts.get(table)
        if known is None:
            logger.warning("cdc: {}: {}", clean(table), problem)
        self.doubts[table] = Doubt(problem, 1 if known is None else known.count + 1)

    @property
    def has_new_doubts(self) -> bool:
        """Whether there are doubts that are not stored yet."""
        return not self._doubted.issuperset(self.doubts)

    async def keep_doubts(self, connection: asyncpg.Connection) -> None:
        """Store that these tables are to be made up for: they count as if they had never been looked at."""
        new = self.doubts.keys() - self._doubted
        await self._forget_tables(connection, sorted(new))
        self._doubted |= new

    async def _forget_tables(self, connection: asyncpg.Connection, names: Sequence[str]) -> None:
        sql = f"UPDATE {SLOTS} SET tables = tables - $2::text[] WHERE slot = $1"
        await storage.change(connection, SLOTS, sql, self._names.slot, names)

    async def _write_tables(self, connection: asyncpg.Connection, tables: dict[str, Any]) -> None:
        tables = {name: mark for name, mark in tables.items() if name not in self.doubts}
        sql = f"UPDATE {SLOTS} SET tables = $2 WHERE slot = $1"
        await storage.change(connection, SLOTS, sql, self._names.slot, storage.as_json(tables))

    async def _unwhole(self, connection: asyncpg.Connection) -> None:
        sql = f"UPDATE {SLOTS} SET whole = false WHERE slot = $1"
        await storage.change(connection, SLOTS, sql, self._names.slot)

    async def look_at_suspects(self, connection: asyncpg.Connection) -> list[Finding]:
        """Try the tables again that have swallowed rows, and forget those that do so no more."""
        slot, found = self._names.slot, list[Finding]()
        remember = storage.REMEMBER, (f"{slot} trial", "", "0/0", False, "{}")
        trials = {SLOTS: 2 * [remember], storage.HELD: held.trial(slot), storage.DEAD: dead.trial(slot)}
        for table in sorted(self.suspects):
            finding = await storage.swallowing(connection, table, trials[table])
            if finding is None:
                self.suspects.discard(table)
            else:
                found.append(finding)
        return found
