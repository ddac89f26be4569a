"""The router: from a row change to the commands that the rules ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from cachebus.cascade import CascadeTable
from cachebus.consumers.cdc.rules.change import Row, RowChange, UnusableChange
from cachebus.consumers.cdc.rules.rules import CONTEXTS, RelatedRule, Rule, Rules, ScopeRule, _InContext
from cachebus.consumers.cdc.rules.template import Template
from cachebus.consumers.worker.source import Meaning
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Planner
from cachebus.producers.command import (
    Command,
    Invalidate,
    InvalidateCoordinated,
    InvalidateScope,
    InvalidateTags,
    Related,
)

TABLES_REMEMBERED = 4096
NO_CONTEXTS = (None, None, None)
Kin = Mapping[tuple[str, str], Sequence[tuple[str, str]]]
"""The tables that each table inherits from, or is a partition of: rules for them apply to it."""


class Router:
    """Routes changes by the rules of one file."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._by_table: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self._kin: Kin = {}
        self._columns = {id(rule): rule.columns for rule in rules.rule}
        self._watched = {id(rule): rule.columns.union(rule.when) for rule in rules.rule}
        self._entailed = _entailed(rules)

    def inherits(self, kin: Kin) -> None:
        """Take over which tables inherit from which, as the database says now."""
        if kin != self._kin:
            self._kin = kin
            self._by_table.clear()

    def rules_of(self, schema: str, table: str) -> tuple[Rule, ...]:
        """The rules that apply to a table."""
        found = self._by_table.get((schema, table))
        if found is None:
            if len(self._by_table) >= TABLES_REMEMBERED:
                self._by_table.clear()
            names = [(schema, table), *self._kin.get((schema, table), ())]
            found = tuple(rule for rule in self.rules.rule if any(_meant(rule, *name) for name in names))
            self._by_table[schema, table] = found
        return found

    def meaning(self, change: RowChange) -> Meaning:
        """What this change invalidates, each command once; nothing if no rule applies. If a rule can't name something
        in the old or the new row, that is a problem, and the other commands are made all the same."""
        made: list[Command] = []
        problems: list[str] = []
        for rule in self.rules_of(change.schema, change.table):
            seen = change if rule.replica_identity == "full" else change.only_sure()
            if seen.op not in rule.operations or (rule.when and not seen.touched(self._watched[id(rule)])):
                continue
            if seen.op == "truncate":
                made += self._truncated(rule)
                continue
            halves = self._halves(rule, seen)
            if not halves:
                problems.append(f"{_named(rule)}: the {seen.op} has neither the new row nor the old one")
            for which, row in halves:
                commands, unnamed = _of_row(rule, row)
                made += commands
                problems += (f"{_named(rule)}: {which}: {problem}" for problem in unnamed)
        if len(made) > 1:  # to compare them costs
            made = list(dict.fromkeys(made))
        return Meaning(made, list(dict.fromkeys(problems)) if problems else ())

    def _halves(self, rule: Rule, change: RowChange) -> list[tuple[str, Row]]:
        """The new row and the old one, as far as they are known. If both are the same for this rule, one is enough."""
        rows = [("the new row", change.after()), ("the old row", change.before())]
        known = [(which, row) for which, row in rows if row is not None]
        if len(known) == 2 and not self._differ(rule, known[0][1], known[1][1]):
            known.pop()
        return known

    def missed(self, rules: Iterable[Rule]) -> tuple[list[Command], list[str]]:
        """For when changes may have been missed: scopes for all that these rules may ever invalidate, for the tenants
        at the head of the file; and the tables for which the file would have to name tenants, and does not."""
        made: dict[Command, None] = {}
        unnamed: list[str] = []
        for rule in rules:
            made.update(dict.fromkeys(self._scopes_of(rule, _tenants(rule, self.rules.tenants))))
            if rule.needs_tenants and not self.rules.tenants:
                unnamed.append(rule.table)
        return list(made), list(dict.fromkeys(unnamed))

    def try_out(self, rule: Rule) -> None:
        """Route a row that has all columns of the rule; raises what is wrong with the commands."""
        row = dict.fromkeys(self._columns[id(rule)], "x")
        planner = Planner(Keyspace(1), CascadeTable(self.rules.cascades))
        commands, problems = _of_row(rule, row)
        if problems:
            raise ValueError(problems[0])
        for command in (*commands, *self._scopes_of(rule, _tenants(rule, ("x",)))):
            command.plan(planner)

    def _differ(self, rule: Rule, new: Row, old: Row) -> bool:
        return any(name not in old or name not in new or new[name] != old[name] for name in self._columns[id(rule)])

    def _truncated(self, rule: Rule) -> Iterator[Command]:
        said = rule.on_truncate
        if said != "ignore":
            named = self.rules.tenants if said == "all" else () if said is None else said
            yield from self._scopes_of(rule, _tenants(rule, named))

    def _scopes_of(self, rule: Rule, tenants: Iterable[str | None]) -> Iterator[Command]:
        """Scopes that contain all that the rule may name. Scopes follow no cascades, so the types that cascades reach
        are named too. A tag that depends on a row may be on any type."""
        several = any(one.data_type is None for one in rule.scopes) or any(tag.columns for tag in rule.tags)
        fixed = tuple(tag.text for tag in rule.tags)
        for tenant in tenants:
            if several:
                yield InvalidateScope(op="scope", tenant_id=tenant)
                continue
            types = dict.fromkeys(end for one in rule.data_types for end in (one, *self._entailed[one]))
            for data_type in types:
                yield InvalidateScope(op="scope", tenant_id=tenant, data_type=data_type)
            if fixed and tenant is not None:
                yield InvalidateTags(op="tags", tenant_id=tenant, tags=fixed)


def _meant(rule: Rule, schema: str, table: str) -> bool:
    in_schema, _, name = rule.table.partition(".")
    return fnmatchcase(schema, in_schema) and fnmatchcase(table, name)


def _named(rule: Rule) -> str:
    return f"the rule of {rule.table!r} for {rule.data_type!r}"


def _tenants(rule: Rule, named: Sequence[str]) -> tuple[str | None, ...]:
    if rule.tenant_id is None:
        return (None,)
    return tuple(named) if rule.needs_tenants else (rule.tenant_id.fill({}),)


def _entailed(rules: Rules) -> dict[str, list[str]]:
    """The types that each type reaches by cascades, at any distance."""
    direct: dict[str, list[str]] = defaultdict(list)
    for cascade in rules.cascades:
        direct[cascade.data_type] += [data_type for data_type, _ in cascade.to]
    reached: dict[str, list[str]] = defaultdict(list)
    for data_type in {one for rule in rules.rule for one in rule.data_types}:
        todo = [data_type]
        while todo:
            more = [one for one in direct.get(todo.pop(), ()) if one not in reached[data_type]]
            reached[data_type] += more
            todo += more
    return reached


def _of_row(rule: Rule, row: Row) -> tuple[list[Command], list[str]]:
    """The commands for a row, each part made by itself, and the problems of parts that can't be named. A part whose
    column is null names nothing."""
    made: list[Command] = []
    problems: list[str] = []
    try:
        tenant = _tenant(rule, row)
    except UnusableChange as error:
        return [], [f"tenant_id: {error}"]
    if tenant is None:
        return [], []

    related: list[Related] = []
    for one in rule.related:
        try:
            related += _related(one, row)
        except UnusableChange as error:
            problems.append(f"related {one.data_type}: {error}")
    try:
        resource = _resource(rule, row, tenant, related)
    except UnusableChange as error:
        problems.append(f"resource_id: {error}")
    else:
        made += () if resource is None else (resource,)
    for scope in rule.scopes:
        try:
            made.append(_scope(scope, row, tenant))
        except UnusableChange as error:
            problems.append(f"the scope of {scope.data_type}: {error}")
    for tag in rule.tags:
        try:
            named = _tag(tag, row, tenant)
        except UnusableChange as error:
            problems.append(f"the tag {tag.text!r}: {error}")
        else:
            made += () if named is None else (named,)
    return made, problems


def _resource(rule: Rule, row: Row, tenant: dict[str, Any], related: Sequence[Related]) -> Command | None:
    """The resource with what is related; if the resource is null, what is related alone."""
    resource = rule.resource_id.fill(row)
    if resource is not None:
        return Invalidate(
            op="invalidate",
            data_type=rule.data_type,
            resource_id=resource,
            **tenant,
            **_contexts(rule, row),
            contexts="all" if rule.every_context else "exact",
            related=tuple(related),
        )
    if not related:
        return None
    first, *others = related
    return InvalidateCoordinated(op="coordinated", **tenant, **first.given(), related=tuple(others))


def _tag(tag: Template, row: Row, tenant: dict[str, Any]) -> Command | None:
    name = tag.fill(row)
    return None if name is None else InvalidateTags(op="tags", tags=(name,), **tenant)


def _tenant(rule: Rule, row: Row) -> dict[str, Any] | None:
    """The field for the tenant; None if the row's tenant is null: then nothing is invalidated."""
    if rule.tenant_id is None:
        return {}
    tenant = rule.tenant_id.fill(row)
    return None if tenant is None else {"tenant_id": tenant}


def _contexts(part: _InContext, row: Row) -> dict[str, Any]:
    """The context ids in a row, without those that are null."""
    if part.contexts == NO_CONTEXTS:
        return {}
    return {
        name: made
        for name, template in zip(CONTEXTS, part.contexts, strict=True)
        if template is not None and (made := template.fill(row)) is not None
    }


def _related(one: RelatedRule, row: Row) -> Iterator[Related]:
    resource = one.resource_id.fill(row)
    if resource is not None:  # null: this row is related to none
        yield Related(data_type=one.data_type, resource_id=resource, **(dict.fromkeys(CONTEXTS) | _contexts(one, row)))


def _scope(scope: ScopeRule, row: Row, tenant: dict[str, Any]) -> Command:
    """The scope for a row. An id that is null does not narrow it: too much is better than too little."""
    given: dict[str, Any] = {} if scope.data_type is None else {"data_type": scope.data_type}
    return InvalidateScope(op="scope", **given, **tenant, **_contexts(scope, row))
