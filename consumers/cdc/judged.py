"""What is wrong with a slot, its publication and its tables, and the exact SQL that mends it: from facts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from consumers.cdc.catalogue import Table, quoted
from consumers.cdc.facts import Facts, Partition
from consumers.cdc.pgoutput import nameable
from consumers.cdc.router import Router
from consumers.cdc.rules import Rule
from consumers.source import Finding

EVERY_TABLE: Final = "ALL TABLES"
ASSUMPTIONS: Final = ("server", "storage", "slot", "publication", "tables", "identity", "leader")
"""Of the server's settings, the worker's own tables, the slot, the publication, the tables that rules name, what is
told of their old rows, and of the worker that has the slot, if that is another one."""


@dataclass(frozen=True)
class Names:
    """Of a worker: its slot, its publication, its caches."""

    slot: str
    publication: str
    namespace: str


class Judge:
    """Puts every check to the facts. `mends`: by assumption and subject the SQL that a worker may run itself."""

    def __init__(self, router: Router, names: Names, own: Mapping[str, str], *, invalidates: bool) -> None:
        self._router = router
        self._names = names
        self._own = own
        self._invalidates = invalidates
        self.mends: dict[tuple[str, str], str] = {}
        self.slot_is_lost = False

    def findings(self, facts: Facts) -> list[Finding]:
        """All that is wrong."""
        self.mends.clear()
        self.slot_is_lost = False
        return [
            *self._server(facts), *self._storage(facts),
            *self._publication(facts),  # before the slot: what is told meanwhile could never be read
            *self._slot(facts), *self._tables(facts), *self._identity(facts),
        ]  # fmt: skip

    def _may(self, finding: Finding) -> Finding:
        """One whose remedy anybody may run who has the right to."""
        self.mends[finding.assumption, finding.subject] = finding.remedy
        return finding

    def _server(self, facts: Facts) -> Iterator[Finding]:
        level = facts.settings["wal_level"]
        if level != "logical":
            remedy = "ALTER SYSTEM SET wal_level = 'logical'; then restart it"
            yield Finding("server", "wal_level", f"it is {level}, and must be logical", remedy, stops=True)

    def _storage(self, facts: Facts) -> Iterator[Finding]:
        for name in facts.missing:
            yield self._may(Finding("storage", name, "there is no such table", self._own[name], stops=True))

    # -- the slot -----------------------------------------------------------------------------------------------------

    def _slot(self, facts: Facts) -> Iterator[Finding]:
        name, found = self._names.slot, facts.slot
        if facts.namespace not in (None, self._names.namespace):
            problem = f"it serves the namespace {facts.namespace!r}"
            yield Finding("slot", name, problem, "give this worker a slot of its own: --slot NAME", stops=True)
        elif found is not None and found["plugin"] != "pgoutput":
            problem = f"it is of the plugin {found['plugin']}, not pgoutput"
            yield Finding("slot", name, problem, "name another: --slot NAME", stops=True)
        elif found is not None and found["database"] != found["here"]:
            problem = f"it is of the database {found['database']!r}; a name is for a whole server"
            yield Finding("slot", name, problem, "name another: --slot NAME", stops=True)
        elif (found is None and facts.whole is not None) or facts.lost:
            yield self._lost(facts)
        elif found is None:
            literal = "'" + name.replace("'", "''") + "'"
            remedy = f"SELECT pg_create_logical_replication_slot({literal}, 'pgoutput')"
            yield self._may(Finding("slot", name, "there is none yet", remedy, stops=True))
        elif facts.whole is False:
            yield self._not_whole("it was made anew, or lost changes that have not been made up for")
        elif (found["beyond_bytes"] or 0) > 0:
            yield self._not_whole(
                "somebody else has read it, or made it anew: it stands behind changes that this worker never had"
            )
        elif found["wal_status"] == "unreserved":
            remedy = "have it applied faster, or raise max_slot_wal_keep_size"
            yield Finding("slot", name, "the server is about to remove WAL that it was to keep", remedy)

    def _lost(self, facts: Facts) -> Finding:
        self.slot_is_lost = True
        why = "it is gone: dropped, or left behind by a failover or an upgrade"
        if facts.slot is not None:
            why = f"the server has removed WAL that it had not confirmed ({facts.lost})"
        remedy = "" if self._invalidates else (
            "start with --on-lost-slot=invalidate to make a new slot and invalidate all that the rules name"
        )  # fmt: skip
        return Finding("slot", self._names.slot, f"lost: {why}", remedy, missed=True, stops=True)

    def _not_whole(self, why: str) -> Finding:
        if self._invalidates or self._router.missed(self._router.rules.rule)[0]:
            return Finding("slot", self._names.slot, why, missed=True, over=True)
        remedy = "start with --on-lost-slot=invalidate, and tenants at the head of the rules"
        return Finding("slot", self._names.slot, f"lost: {why}", remedy, missed=True, stops=True)

    # -- the publication ----------------------------------------------------------------------------------------------

    def _publication(self, facts: Facts) -> Iterator[Finding]:
        name, tables = self._names.publication, facts.tables
        row = facts.publication
        unkeyed = [table for table in tables if not table.identified]
        for table in unkeyed:
            if (table.schema, table.name) not in facts.published:
                yield Finding(
                    "publication", table.full_name,
                    "it has no primary key: once published, PostgreSQL refuses its updates and deletes",
                    f"ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;", missed=True,
                )  # fmt: skip
        if row is None:
            kept = [table for table in tables if table.identified]
            if not kept:
                yield Finding("publication", name, "there is none, and nothing to publish yet", stops=True)
                return
            remedy = (
                f"CREATE PUBLICATION {quoted(name)} FOR {self._target(kept)} WITH (publish_via_partition_root = true)"
            )
            known = any(table.full_name in facts.seen for table in kept)
            yield self._may(Finding("publication", name, "there is none", remedy, missed=known, stops=True))
        else:
            yield from self._left_out(facts)
            yield from self._narrowed(facts, row)

    def _left_out(self, facts: Facts) -> Iterator[Finding]:
        name = self._names.publication
        missing = [
            table for table in facts.tables
            if (table.schema, table.name) not in facts.published
            and table.identified and not self._by_partition(facts, table)
        ]  # fmt: skip
        if missing and self._target(missing) == EVERY_TABLE:
            remedy = (
                f"BEGIN; DROP PUBLICATION {quoted(name)}; CREATE PUBLICATION {quoted(name)} FOR ALL TABLES "
                "WITH (publish_via_partition_root = true); COMMIT;"
            )
            for table in missing:
                yield Finding("publication", table.full_name, "it is not published, and rules with patterns need a "
                              "publication for all tables", remedy, missed=True)  # fmt: skip
            return
        for table in missing:
            remedy = f"ALTER PUBLICATION {quoted(name)} ADD {self._target([table])}"
            known = table.full_name in facts.seen
            yield self._may(Finding("publication", table.full_name, "it is not published", remedy, missed=known))

    def _by_partition(self, facts: Facts, table: Table) -> bool:
        """Whether its partitions are told of by themselves, by other names than the rule's."""
        parts = facts.partitions.get(table.oid, ())
        return any((part.schema, part.name) in facts.published for part in parts)

    def _narrowed(self, facts: Facts, row: Mapping[str, Any]) -> Iterator[Finding]:
        name = quoted(self._names.publication)
        wanted = {operation for rule in self._router.rules.rule for operation in rule.operations}
        lacking = sorted(operation for operation in wanted if not row[f"pub{operation}"])
        if lacking:
            remedy = f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"
            problem = f"it leaves out {', '.join(lacking)}, which rules ask for"
            yield Finding("publication", self._names.publication, problem, remedy, missed=True)
        for table in facts.tables:
            if self._by_partition(facts, table):
                yield Finding(
                    "publication", table.full_name, "its changes are told by the names of its partitions",
                    f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true);", missed=True,
                )  # fmt: skip
            one = facts.published.get((table.schema, table.name))
            if one is None:
                continue
            needed = {c for rule in self._rules(table) for c in rule.columns.union(rule.when)} & table.columns.keys()
            hidden = sorted(needed.difference(one.get("attnames") or needed))
            remedy = (
                f"BEGIN; ALTER PUBLICATION {name} DROP TABLE {table.sql_name}; "
                f"ALTER PUBLICATION {name} ADD TABLE {table.sql_name}; COMMIT;"
            )
            if one.get("rowfilter"):
                yield Finding(
                    "publication", table.full_name, "a row filter hides some of its rows", remedy, missed=True
                )
            elif hidden:
                problem = f"a column list hides {', '.join(hidden)}"
                yield Finding("publication", table.full_name, problem, remedy, missed=True)

    def _target(self, tables: Sequence[Table]) -> str:
        """Tables by name, or, for rules with patterns, all that may come to be."""
        patterns = [rule.table for rule in self._router.rules.rule if rule.is_pattern]
        schemas = {table.partition(".")[0] for table in (rule.table for rule in self._router.rules.rule)}
        if not patterns:
            return "TABLE " + ", ".join(table.sql_name for table in tables)
        if any(sign in schema for schema in schemas for sign in "*?["):
            return EVERY_TABLE
        return "TABLES IN SCHEMA " + ", ".join(quoted(schema) for schema in sorted(schemas))

    # -- the tables ---------------------------------------------------------------------------------------------------

    def _rules(self, table: Table) -> tuple[Rule, ...]:
        return self._router.rules_of(table.schema, table.name)

    def _tables(self, facts: Facts) -> Iterator[Finding]:
        there = {table.full_name for table in facts.tables}
        named = {rule.table for table in facts.tables for rule in self._rules(table)}
        for rule in self._router.rules.rule:
            if rule.table not in named and not rule.is_pattern:
                gone = rule.table in facts.seen
                remedy = "make it, or take its rule out"
                yield Finding("tables", rule.table, "there is no such table", remedy, missed=gone)
        for table in facts.tables:
            yield from self._columns(table)
        for name in sorted(facts.seen.keys() & there):
            yield from _changed(name, facts.seen[name], facts.now_seen[name])

    def _columns(self, table: Table) -> Iterator[Finding]:
        rules = self._rules(table)
        lacking = sorted({c for rule in rules for c in rule.columns.union(rule.when) if c not in table.columns})
        odd = sorted({
            c for rule in rules for c in rule.columns if c in table.columns and not nameable(table.columns[c])
        })  # fmt: skip
        problems = [f"it has no column {c!r} (or it is generated, which PostgreSQL does not tell of)" for c in lacking]
        problems += [f"column {c!r} is neither text nor a whole number" for c in odd]
        if problems:
            remedy = "mend the rule or the table: until then its rows are dead letters"
            yield Finding("tables", table.full_name, "; ".join(problems), remedy)

    def _identity(self, facts: Facts) -> Iterator[Finding]:
        for table in facts.tables:
            problem = "; ".join(dict.fromkeys(p for rule in self._rules(table) for p in _untold(rule, table)))
            if problem:
                remedy = f"ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;"
                yield Finding("identity", table.full_name, problem, remedy, missed=True)
                continue
            full = any(rule.replica_identity == "full" for rule in self._rules(table)) or table.identity == "f"
            for part in facts.partitions.get(table.oid, ()):
                if full and part.identity != "f":
                    yield _of_partition(table, part)

    def warnings(self, facts: Facts) -> list[str]:
        """What no promise is touched by, and may surprise."""
        found = [one for table in facts.tables for rule in self._rules(table) for one in _doubtful(rule, table)]
        found += [
            f"{table.full_name} has partitions: PostgreSQL tells nothing of one that is attached, detached, dropped or "
            "truncated by itself. Each is seen within seconds, and all that the rules name of the table is invalidated"
            for table in facts.tables if table.partitioned
        ]  # fmt: skip
        named = {rule.table for table in facts.tables for rule in self._rules(table)}
        found += [
            f"rule of {rule.table!r}: there is no such table" for rule in self._router.rules.rule
            if rule.is_pattern and rule.table not in named
        ]  # fmt: skip
        return list(dict.fromkeys(found))


def _changed(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Finding]:
    problem = ""
    if before.get("missed"):
        problem = "changes of it went unnoticed"
    elif before["oid"] != now["oid"]:
        problem = "it is another table than before: made anew, renamed or swapped"
    elif before["parts"] != now["parts"]:
        problem = "partitions of it were attached, detached, dropped, truncated or written anew"
    if problem:
        yield Finding("tables", name, problem, missed=True, over=True)


def _untold(rule: Rule, table: Table) -> Iterator[str]:
    """What a rule needs of old rows that PostgreSQL does not tell."""
    if rule.replica_identity == "full" and table.identity != "f":
        yield 'it is not as replica_identity = "full" says'
    missing = sorted(rule.columns & table.columns.keys() - table.key)
    if "delete" in rule.operations and missing:
        yield (
            f"of a deleted row PostgreSQL tells only {_listed(table.key)}, and the rule needs {_listed(missing)} (or "
            "leave deletes out of the rule's operations)"
        )


def _of_partition(table: Table, part: Partition) -> Finding:
    name = f"{part.schema}.{part.name}"
    problem = f"this partition of {table.full_name} has a replica identity of its own, and tells old rows in part"
    return Finding(
        "identity", name, problem,
        f"ALTER TABLE {quoted(part.schema)}.{quoted(part.name)} REPLICA IDENTITY FULL;", missed=True,
    )  # fmt: skip


def _doubtful(rule: Rule, table: Table) -> Iterator[str]:
    if "update" in rule.operations and table.identity != "f" and (rule.columns - table.key or rule.when):
        yield (
            f"rule of {rule.table!r}: of an updated row of {table.full_name} PostgreSQL tells the old "
            f"{_listed(table.key)} only: what a change of another column leaves behind is not invalidated, and every "
            f"update counts; to mend it: ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;"
        )


def _listed(columns: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(columns)) or "nothing"
