"""How a slot stands: looked at again and again, mended where that may be done, and noted durably."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from loguru import logger

from cachebus.clock import monotonic
from consumers.cdc.dead import TABLE as DEAD_TABLE
from consumers.cdc.facts import SLOTS_TABLE, Facts, gathered
from consumers.cdc.held import TABLE as HELD_TABLE
from consumers.cdc.judged import Judge, Names
from consumers.cdc.router import Router
from consumers.cdc.rules import Rule
from consumers.clean import told
from consumers.source import Finding
from producers.command import Command

if TYPE_CHECKING:
    import asyncpg

OWN: Final = {
    "cachebus_cdc_slots": " ".join(SLOTS_TABLE.split()),
    "cachebus_cdc_dead": " ".join(DEAD_TABLE.split()),
    "cachebus_cdc_held": " ".join(HELD_TABLE.split()),
}
NOTE: Final = """
INSERT INTO cachebus_cdc_slots (slot, namespace, whole, confirmed, seen)
SELECT $1::text, $2, $3, (SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1::text), $4::jsonb
ON CONFLICT (slot) DO UPDATE SET whole = excluded.whole, confirmed = excluded.confirmed, seen = excluded.seen
"""
MARK: Final = "UPDATE cachebus_cdc_slots SET seen = seen || $2::jsonb WHERE slot = $1"
NOT_WHOLE: Final = "UPDATE cachebus_cdc_slots SET whole = false WHERE slot = $1"
STUCK_S: Final = 30.0
"""A worker that has the slot, and has not moved it for so long while there was something to apply, is told of."""


class Standing:
    """Of one slot, over one session's connection that is used for nothing but looking and noting."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        busy: asyncio.Lock,
        router: Router,
        names: Names,
        *,
        invalidates: bool,
        lead: Callable[[], Awaitable[bool]],
    ) -> None:
        self._connection = connection
        self._busy = busy
        self._router = router
        self._names = names
        self._judge = Judge(router, names, OWN, invalidates=invalidates)
        self._invalidates = invalidates
        self._refused: dict[tuple[str, str], str] = {}
        """Why a remedy could not be taken."""
        self._warned: set[str] = set()
        self._moved = ("", monotonic())
        self.lead = lead
        self.leads = False
        """Whether this session has the slot."""
        self.unreadable = ""
        """Why what the slot tells can't be read."""
        self.facts: Facts | None = None

    async def findings(self) -> list[Finding]:
        """What is wrong. Raises what the driver does."""
        async with self._busy:
            facts = await gathered(self._connection, self._router, self._names.slot, self._names.publication, OWN)
        self.facts = facts
        for warning in self._judge.warnings(facts):
            if warning not in self._warned:
                self._warned.add(warning)
                logger.warning("cdc: {}", warning)
        found = self._judge.findings(facts)
        if facts.slot is None:
            self.unreadable = ""
        if self.unreadable:
            found = [finding for finding in found if finding.assumption != "slot"]
            why = "lost: changes were made while its publication was not there, and can't be read"
            remedy = "" if self._invalidates else "start with --on-lost-slot=invalidate"
            found.append(Finding("slot", self._names.slot, why, remedy, missed=True, stops=True))
        return [*(self._with_refusal(finding) for finding in found), *self._leader(facts)]

    def _with_refusal(self, finding: Finding) -> Finding:
        why = self._refused.get((finding.assumption, finding.subject))
        return finding if why is None else finding._replace(problem=f"{finding.problem} ({why}; have somebody who may)")

    def _leader(self, facts: Facts) -> list[Finding]:
        """Of one that stands by: whether whoever has the slot moves on."""
        if self.leads or facts.slot is None:
            return []
        stands, now_s = str(facts.slot["confirmed_flush_lsn"]), monotonic()
        behind = facts.slot["behind_bytes"] or 0
        if stands != self._moved[0] or behind < 1 << 20:
            self._moved = stands, now_s
        if now_s - self._moved[1] < STUCK_S:
            return []
        problem = f"the worker that has it has not moved it for {STUCK_S:g} s and more, with {behind} bytes behind it"
        return [Finding("leader", self._names.slot, problem, "see what that worker says of itself, or restart it")]

    # -- mending ------------------------------------------------------------------------------------------------------

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """Run what may be run; whether something was. What goes unnoticed by it is noted first."""
        mended = False
        for finding in findings:
            sql = self._judge.mends.get((finding.assumption, finding.subject))
            if sql is not None and await self._run(finding, sql):
                mended = True
        lost = [one for one in findings if one.assumption == "slot" and one.stops and one.missed]
        if lost and self._invalidates and (self.leads or await self.lead()):
            mended |= await self._make_anew(lost[0])
        return mended

    async def _run(self, finding: Finding, sql: str) -> bool:
        import asyncpg

        key = finding.assumption, finding.subject
        try:
            async with self._busy:
                if finding.missed:
                    await self._connection.execute(MARK, self._names.slot, json.dumps(self._marked(finding)))
                await self._connection.execute(sql)
                if finding.assumption == "slot":
                    await self._connection.execute(NOTE, self._names.slot, self._names.namespace, True, "{}")
        except (asyncpg.DuplicateObjectError, asyncpg.DuplicateTableError, asyncpg.UniqueViolationError):
            pass  # another worker was faster
        except asyncpg.PostgresError as error:
            self._refused[key] = told(error)
            return False
        self._refused.pop(key, None)
        logger.info("cdc: {}: {}: mended: {}", *key, sql)
        return True

    def _marked(self, finding: Finding) -> dict[str, object]:
        seen = {} if self.facts is None else self.facts.seen
        names = [finding.subject] if finding.subject in seen else list(seen)
        return {name: {**seen[name], "missed": True} for name in names}

    async def _make_anew(self, finding: Finding) -> bool:
        """Another slot in the place of one that is lost; noted as such until what was missed is made up for."""
        import asyncpg

        logger.error("cdc: the slot {} is {}: making a new one, and invalidating all that the rules name",
                     self._names.slot, finding.problem)  # fmt: skip
        try:
            async with self._busy:
                await self._connection.execute(NOT_WHOLE, self._names.slot)
                if self.facts is not None and self.facts.slot is not None:
                    await self._connection.execute("SELECT pg_drop_replication_slot($1)", self._names.slot)
                await self._connection.execute(
                    "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", self._names.slot
                )
        except asyncpg.PostgresError as error:
            self._refused["slot", self._names.slot] = told(error)
            return False
        self.unreadable = ""
        return True

    # -- what is noted ------------------------------------------------------------------------------------------------

    async def note(self) -> None:
        """That this worker has the slot, where nothing was noted yet; and tables that it sees for the first time."""
        facts = self.facts
        if facts is None or facts.slot is None or facts.missing or facts.whole is False or self.unreadable:
            return
        if facts.namespace not in (None, self._names.namespace):
            return
        new = {name: seen for name, seen in facts.now_seen.items() if name not in facts.seen}
        async with self._busy:
            if facts.whole is None:
                await self._connection.execute(
                    NOTE, self._names.slot, self._names.namespace, True, json.dumps(facts.now_seen)
                )
            elif new:
                await self._connection.execute(MARK, self._names.slot, json.dumps(new))

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """Caches have let go of what these may have touched."""
        facts = self.facts
        if facts is None or facts.slot is None or not self.leads:
            return
        over = [finding for finding in findings if finding.over]
        seen = dict(facts.seen)
        for finding in over:
            names = [finding.subject] if finding.assumption == "tables" else []
            seen |= {name: facts.now_seen[name] for name in names if name in facts.now_seen}
        if any(finding.assumption == "slot" for finding in over):
            async with self._busy:
                await self._connection.execute(
                    NOTE, self._names.slot, self._names.namespace, True, json.dumps(facts.now_seen)
                )
        elif over:
            async with self._busy:
                await self._connection.execute(MARK, self._names.slot, json.dumps(seen))

    def scopes(self, findings: Sequence[Finding]) -> tuple[list[Command], list[str]]:
        """All that the rules of these may name."""
        rules: dict[int, Rule] = {}
        for finding in findings:
            rules |= {id(rule): rule for rule in self._rules_of(finding.subject)}
        return self._router.missed(rules.values())

    def _rules_of(self, subject: str) -> Sequence[Rule]:
        schema, _, table = subject.partition(".")
        root = self._root_of(subject)
        found = self._router.rules_of(*root) if root else self._router.rules_of(schema, table)
        return found or [rule for rule in self._router.rules.rule if rule.table == subject] or self._router.rules.rule

    def _root_of(self, subject: str) -> tuple[str, str] | None:
        """The table that a partition is of."""
        if self.facts is not None:
            for table in self.facts.tables:
                for part in self.facts.partitions.get(table.oid, ()):
                    if f"{part.schema}.{part.name}" == subject:
                        return table.schema, table.name
        return None
