"""From a row to commands, by one rule."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Final

from cachebus.base.choices import ContextMatch
from cachebus.consumers.cdc.rules.change import Row, RowChange, UnusableChange
from cachebus.consumers.cdc.rules.rules import CONTEXTS, RelatedRule, Rule, ScopeRule, _InContext
from cachebus.consumers.cdc.rules.template import RowTemplate
from cachebus.consumers.worker.source import NOTHING, Meaning
from cachebus.producers.command import (
    Command,
    Invalidate,
    InvalidateCoordinated,
    InvalidateScope,
    InvalidateTags,
    Related,
    Resource,
)

NO_CONTEXTS: Final = (None, None, None)
MOVE: Final = ("delete", "insert")
"""What a row's move to another partition is told as."""


class RuleNaming:
    """What a rule names, with all that no row changes looked up once."""

    def __init__(self, rule: Rule, truncated: Sequence[Command] = ()) -> None:
        """`truncated`: what a truncate asks for, which names no rows."""
        self.rule: Final = rule
        self.columns: Final = rule.columns
        """Those that names are made of."""
        self.watched: Final = rule.columns.union(rule.when)
        """Those that it looks at."""
        self._truncated = truncated
        self._operations = frozenset(rule.operations)
        self._alone = not (rule.related or rule.scopes or rule.tags or any(rule.contexts))
        """Whether a row names its resource, and nothing else."""
        self.is_simple = self._alone and not rule.when and self._operations.issuperset(("insert", "update"))
        """Whether any row that is written names its resource, and nothing else."""
        self.match: ContextMatch = "all" if rule.every_context else "exact"

    def with_moves(self) -> RuleNaming:
        """The same for a partitioned table. An update that moves a row there is told as a delete and an insert, so for
        a rule of updates these count, too."""
        if "update" not in self._operations or self._operations.issuperset(MOVE):
            return self
        moves = copy(self)
        moves._operations = self._operations.union(MOVE)
        moves.is_simple = self._alone and not self.rule.when
        return moves

    def __str__(self) -> str:
        return f"the rule of {self.rule.table!r} for {self.rule.data_type!r}"

    def meaning(self, change: RowChange) -> Meaning:
        """What a change invalidates, each once; what can't be named of one half of it takes nothing from the other."""
        rule = self.rule
        if rule.replica_identity != "full":
            change = change.only_sure()
        if change.op not in self._operations or (rule.when and not change.touched(self.watched)):
            return NOTHING
        if change.op == "truncate":
            return Meaning(self._truncated)
        new, old = change.after(), change.before()
        if new is None and old is None:
            return Meaning((), [f"{self}: the {change.op} has neither the new row nor the old one"])
        if new is not None and old is not None and not self._differ(new, old):
            old = None
        if change.op == "delete" and self._is_unnamed(old):
            return NOTHING  # as of an update whose old row is not told
        made: list[Command] = []
        problems: list[str] = []
        for which, row in ("the new row", new), ("the old row", old):
            if row is not None:
                commands, unnamed = self.of_row(row)
                made += commands
                if unnamed:
                    problems += [f"{self}: {which}: {problem}" for problem in unnamed]
        if len(made) > 1:  # to compare them costs
            made = list(dict.fromkeys(made))
        return Meaning(made, list(dict.fromkeys(problems)))

    def _is_unnamed(self, old: Row | None) -> bool:
        """Whether the rule is for no deletes, and this one, which may be half of a move, has not what names need."""
        return "delete" not in self.rule.operations and not self.columns <= (old or {}).keys()

    def _differ(self, new: Row, old: Row) -> bool:
        return any(name not in old or name not in new or new[name] != old[name] for name in self.columns)

    def of_row(self, row: Row) -> tuple[Sequence[Command], Sequence[str]]:
        """What a row names, each part by itself; and what of it can't be named. What is null names nothing."""
        rule = self.rule
        try:
            tenant = None if rule.tenant_id is None else rule.tenant_id.fill(row)
        except UnusableChange as error:
            return (), (f"tenant_id: {error}",)
        if tenant is None and rule.tenant_id is not None:
            return (), ()  # the row is nobody's
        if self._alone:
            try:
                resource = rule.resource_id.fill(row)
            except UnusableChange as error:
                return (), (f"resource_id: {error}",)
            return () if resource is None else (Resource(rule.data_type, resource, tenant, self.match),), ()
        return self._parts(row, {} if rule.tenant_id is None else {"tenant_id": tenant})

    def _parts(self, row: Row, tenant: dict[str, Any]) -> tuple[list[Command], list[str]]:
        made: list[Command] = []
        problems: list[str] = []
        related: list[Related] = []
        for one in self.rule.related:
            try:
                related += _related(one, row)
            except UnusableChange as error:
                problems.append(f"related {one.data_type}: {error}")
        try:
            made += _resource(self.rule, row, tenant, related)
        except UnusableChange as error:
            problems.append(f"resource_id: {error}")
        for scope in self.rule.scopes:
            try:
                made.append(_scope(scope, row, tenant))
            except UnusableChange as error:
                problems.append(f"the scope of {scope.data_type}: {error}")
        for tag in self.rule.tags:
            try:
                made += _tag(tag, row, tenant)
            except UnusableChange as error:
                problems.append(f"the tag {tag.text!r}: {error}")
        return made, problems


def _resource(rule: Rule, row: Row, tenant: dict[str, Any], related: Sequence[Related]) -> list[Command]:
    """The resource, with what is related; what is related alone where the resource is null."""
    resource = rule.resource_id.fill(row)
    if resource is not None:
        return [
            Invalidate(
                op="invalidate",
                data_type=rule.data_type,
                resource_id=resource,
                **tenant,
                **_contexts(rule, row),
                contexts="all" if rule.every_context else "exact",
                related=tuple(related),
            )
        ]
    if not related:
        return []
    first, *others = related
    return [InvalidateCoordinated(op="coordinated", **tenant, **first.given(), related=tuple(others))]


def _tag(tag: RowTemplate, row: Row, tenant: dict[str, Any]) -> list[Command]:
    name = tag.fill(row)
    return [] if name is None else [InvalidateTags(op="tags", tags=(name,), **tenant)]


def _contexts(part: _InContext, row: Row) -> dict[str, Any]:
    """The context ids of a row; one that is null is none."""
    if part.contexts == NO_CONTEXTS:
        return {}
    return {
        name: made
        for name, template in zip(CONTEXTS, part.contexts, strict=True)
        if template is not None and (made := template.fill(row)) is not None
    }


def _related(one: RelatedRule, row: Row) -> list[Related]:
    resource = one.resource_id.fill(row)
    if resource is None:  # this row is related to none
        return []
    return [Related(data_type=one.data_type, resource_id=resource, **(dict.fromkeys(CONTEXTS) | _contexts(one, row)))]


def _scope(scope: ScopeRule, row: Row, tenant: dict[str, Any]) -> Command:
    """One narrowed by an id that is null is the wider one: too much rather than too little."""
    given: dict[str, Any] = {} if scope.data_type is None else {"data_type": scope.data_type}
    return InvalidateScope(op="scope", **given, **tenant, **_contexts(scope, row))
