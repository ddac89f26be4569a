"""Whether the tables are as the rules need them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import Rule
from cachebus.consumers.cdc.slot.catalogue import Table, listed
from cachebus.consumers.cdc.slot.identity import by_index, quoted
from cachebus.consumers.cdc.slot.pgoutput import nameable
from cachebus.consumers.worker.source import Finding


def table_findings(
    router: Router, tables: Sequence[Table], others: Mapping[str, str]
) -> tuple[list[Finding], list[str]]:
    """The findings about the tables that rules name, one for each table, and warnings.

    `others`: what those names stand for that are no tables. For a table that only matches a pattern, there is a warning
    if its rows would become dead letters, but none if PostgreSQL does not send its changes.
    """
    problems: dict[str, list[tuple[str, str]]] = defaultdict(list)
    warnings: list[str] = []
    for table in tables:
        rules = router.rules_of(table.schema, table.name)
        for rule in rules:
            problems[table.full_name] += _untold(table)
            if not table.is_told:
                continue
            wrong = list(_wrong(rule, rules, table))
            if rule.is_pattern:
                warnings += (f"{table.full_name}: {problem}; to mend it: {remedy}" for problem, remedy in wrong)
            else:
                problems[table.full_name] += wrong
            if not wrong:
                warnings += _doubtful(rule, rules, table)
    found = [
        Finding("tables", name, _joined(p for p, _ in wrong), _joined((r for _, r in wrong), " "), missed=True)
        for name, wrong in problems.items()
        if wrong
    ]
    known = {rule.table for table in tables for rule in router.rules_of(table.schema, table.name)}
    for rule in router.rules.rule:
        if rule.table not in known and not rule.is_pattern:
            found.append(Finding("tables", rule.table, others.get(rule.table, "there is no such table")))
        elif rule.table not in known:
            warnings.append(f"rule of {rule.table!r}: there is no such table")
    return list(dict.fromkeys(found)), list(dict.fromkeys(warnings))


def _untold(table: Table) -> Iterator[tuple[str, str]]:
    """Why PostgreSQL sends no changes of its rows, or not of all."""
    if table.is_foreign:
        yield "it is a foreign table that inherits from a rule's: PostgreSQL tells nothing of its rows", ""
    if table.is_unlogged:
        remedy = f"ALTER TABLE {table.sql_name} SET LOGGED;"
        yield "it is UNLOGGED: PostgreSQL tells nothing of its rows (or let no rule fit it)", remedy
    foreign = [leaf.name for leaf in table.leaves if leaf.is_foreign]
    if foreign:
        yield f"its partitions {listed(foreign)} are foreign tables: PostgreSQL tells nothing of their rows", ""
    unlogged = [leaf for leaf in table.leaves if leaf.is_unlogged]
    if unlogged:
        named = listed([leaf.name for leaf in unlogged])
        remedy = " ".join(f"ALTER TABLE {leaf.sql_name} SET LOGGED;" for leaf in unlogged)
        yield f"its partitions {named} are UNLOGGED: PostgreSQL tells nothing of their rows", remedy


def _wrong(rule: Rule, rules: Sequence[Rule], table: Table) -> Iterator[tuple[str, str]]:
    for column in sorted(rule.columns.union(rule.when)):
        if column not in table.columns:
            yield f"it has no column {column!r} (or it is generated, and rules name nothing by that)", ""
        elif column in rule.columns and not nameable(table.columns[column]):
            yield f"column {column!r} is neither text nor a whole number", ""
    full = full_identity(rules, table)
    if rule.replica_identity == "full" and table.identity != "f":
        is_less = table.virtual and full != _stored_in_full(table)
        yield 'it is not as replica_identity = "full" says', f"{full} And let the rule not say so" if is_less else full
        return
    missing = sorted(rule.columns & table.columns.keys() - table.key)
    if "delete" in rule.operations and missing:
        needs = f"and the rule needs {listed(missing)} (or leave deletes out of the rule's operations)"
        yield f"of a deleted row PostgreSQL tells only {listed(table.key)}, {needs}", full
    if other := table.lesser:
        less = f"that of {listed([leaf.name for leaf in other])} is less than the table's"
        identity = _IDENTITIES[table.identity]
        sql = " ".join(f"ALTER TABLE {leaf.sql_name} REPLICA IDENTITY {identity};" for leaf in other)
        sql = as_stored(table) if table.identity == "f" and table.virtual else sql
        yield f"partitions have a REPLICA IDENTITY of their own, and {less}", sql


def full_identity(rules: Sequence[Rule], table: Table) -> str:
    """The SQL by which old rows are told with what the rules of a table need. With virtual columns it is not FULL: once
    published, the table would refuse its updates and deletes."""
    if not table.virtual:
        return f"ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;"
    if table.partitioned or not table.primary_key:
        return _stored_in_full(table)
    needed = {column for rule in rules for column in rule.columns} & table.columns.keys()
    if needed <= table.primary_key:
        return f"ALTER TABLE {table.sql_name} REPLICA IDENTITY DEFAULT;"
    return by_index(table.sql_name, table.oid, table.primary_key, needed)


def as_stored(table: Table) -> str:
    """The SQL that makes of virtual columns such that can be published."""
    made = (f"DROP COLUMN {(one := quoted(name))}, ADD COLUMN {one} ... STORED" for name in table.virtual)
    return f"ALTER TABLE {table.sql_name} {', '.join(made)};"


def _stored_in_full(table: Table) -> str:
    full = "" if table.identity == "f" else f" ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;"
    return as_stored(table) + full


_IDENTITIES: Final = {"f": "FULL", "d": "DEFAULT", "n": "NOTHING", "i": "USING INDEX ..."}


def _doubtful(rule: Rule, rules: Sequence[Rule], table: Table) -> Iterator[str]:
    if "update" in rule.operations and table.identity != "f" and (rule.columns - table.key or rule.when):
        by_all = table.virtual and rule.columns <= table.key  # only all columns tell which of them an update changed
        yield (
            f"rule of {rule.table!r}: of an updated row of {table.full_name} PostgreSQL tells the old "
            f"{listed(table.key)} only: what a change of another column leaves behind is not invalidated, and every "
            f"update counts; to mend it: {_stored_in_full(table) if by_all else full_identity(rules, table)}"
        )
    if table.partitioned:
        yield (
            f"{table.full_name} is partitioned: PostgreSQL tells nothing of partitions that are attached, detached, "
            "truncated or dropped; they are looked for every few seconds, and then all that the table's rules name is "
            "let go of"
        )


def _joined(several: Iterable[str], by: str = "; ") -> str:
    return by.join(dict.fromkeys(one for one in several if one))
