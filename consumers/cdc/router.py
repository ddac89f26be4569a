"""From a change to commands, as the rules say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from cachebus.cascade import CascadeTable
from cachebus.keys import Keyspace
from cachebus.plan import Planner
from consumers.cdc.change import Row, RowChange, UnusableChange
from consumers.cdc.rules import CONTEXTS, Rule, Rules, ScopeRule, _InContext
from producers.command import Command, Invalidate, InvalidateScope, InvalidateTags, Related

TABLES_REMEMBERED = 4096


class Router:
    """What changes invalidate, by the rules of one file."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._by_table: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self._columns = {id(rule): rule.columns for rule in rules.rule}
        self._watched = {id(rule): rule.columns.union(rule.when) for rule in rules.rule}
        self._entailed = _entailed(rules)

    def rules_of(self, schema: str, table: str) -> tuple[Rule, ...]:
        """The rules that a table's rows fall under."""
        found = self._by_table.get((schema, table))
        if found is None:
            if len(self._by_table) >= TABLES_REMEMBERED:
                self._by_table.clear()
            found = tuple(rule for rule in self.rules.rule if _meant(rule, schema, table))
            self._by_table[schema, table] = found
        return found

    def commands(self, change: RowChange) -> list[Command]:
        """What this change invalidates, each once; none where no rule is for it. `UnusableChange` where a rule is, and
        the row lacks what the rule needs."""
        made: dict[Command, None] = {}
        told = change
        for rule in self.rules_of(told.schema, told.table):
            change = told if rule.replica_identity == "full" else told.only_sure()
            if change.op not in rule.operations or (rule.when and not change.touched(self._watched[id(rule)])):
                continue
            if change.op == "truncate":
                made.update(dict.fromkeys(self._truncated(rule)))
                continue
            rows = [row for row in (change.after(), change.before()) if row is not None]
            if not rows:
                raise UnusableChange(f"{_named(rule)}: the {change.op} has neither the new row nor the old one")
            if len(rows) == 2 and not self._differ(rule, *rows):
                rows.pop()
            for row in rows:
                try:
                    made.update(dict.fromkeys(_of_row(rule, row)))
                except UnusableChange as error:
                    raise UnusableChange(f"{_named(rule)}: {error}") from None
        return list(made)

    def everything(self, tenants: Sequence[str]) -> list[Command]:
        """All that any rule may ever invalidate, for these tenants: for when changes may have been missed."""
        found = (one for rule in self.rules.rule for one in self._scopes_of(rule, _tenants(rule, tenants)))
        return list(dict.fromkeys(found))

    def try_out(self, rule: Rule) -> None:
        """Make plans of a row that has all that the rule asks for; raises what is wrong with them."""
        row = dict.fromkeys(self._columns[id(rule)], "x")
        planner = Planner(Keyspace(1), CascadeTable(self.rules.cascades))
        for command in (*_of_row(rule, row), *self._scopes_of(rule, _tenants(rule, ("x",)))):
            command.plan(planner)

    def _differ(self, rule: Rule, new: Row, old: Row) -> bool:
        return any(name not in old or name not in new or new[name] != old[name] for name in self._columns[id(rule)])

    def _truncated(self, rule: Rule) -> Iterator[Command]:
        said = rule.on_truncate
        if said != "ignore":
            named = self.rules.tenants if said == "all" else () if said is None else said
            yield from self._scopes_of(rule, _tenants(rule, named))

    def _scopes_of(self, rule: Rule, tenants: Iterable[str | None]) -> Iterator[Command]:
        """The scopes that hold all that the rule may name. Scopes follow no cascades, so these name their ends, too;
        what a tag of a row names may be of any type."""
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
    """The types that invalidations of a type reach by cascades, at any distance."""
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


def _of_row(rule: Rule, row: Row) -> Iterator[Command]:
    resource = rule.resource_id.fill(row)
    if resource is None:
        raise UnusableChange(f"resource_id is null: {rule.resource_id.text!r}")
    tenant = _tenant(rule, row)
    yield Invalidate(
        op="invalidate", data_type=rule.data_type, resource_id=resource, **tenant, **_contexts(rule, row),
        contexts="all" if rule.every_context else "exact", related=tuple(_related(rule, row)),
    )  # fmt: skip
    for scope in rule.scopes:
        yield _scope(scope, row, tenant)
    tags = tuple(dict.fromkeys(tag for tag in (template.fill(row) for template in rule.tags) if tag is not None))
    if tags:
        yield InvalidateTags(op="tags", tags=tags, **tenant)


def _tenant(rule: Rule, row: Row) -> dict[str, Any]:
    if rule.tenant_id is None:
        return {}
    tenant = rule.tenant_id.fill(row)
    if tenant is None:
        raise UnusableChange(
            f"tenant_id is null: {rule.tenant_id.text!r} (or the old row was told without it: does the table have "
            "REPLICA IDENTITY FULL?)"
        )
    return {"tenant_id": tenant}


def _contexts(part: _InContext, row: Row) -> dict[str, Any]:
    """The context ids of a row; one that is null is none."""
    return {
        name: made
        for name, template in zip(CONTEXTS, part.contexts, strict=True)
        if template is not None and (made := template.fill(row)) is not None
    }


def _related(rule: Rule, row: Row) -> Iterator[Related]:
    for one in rule.related:
        resource = one.resource_id.fill(row)
        if resource is not None:  # null: this row is related to none
            contexts = dict.fromkeys(CONTEXTS) | _contexts(one, row)
            yield Related(data_type=one.data_type, resource_id=resource, **contexts)


def _scope(scope: ScopeRule, row: Row, tenant: dict[str, Any]) -> Command:
    """One narrowed by an id that is null is the wider one: too much rather than too little."""
    given: dict[str, Any] = {} if scope.data_type is None else {"data_type": scope.data_type}
    return InvalidateScope(op="scope", **given, **tenant, **_contexts(scope, row))
