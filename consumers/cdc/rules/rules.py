"""The format of a rules file, and its parser, which names the line and the field of each error."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, field_validator, model_validator

from cachebus.base.ids import check_part
from cachebus.cascade import Cascade, CascadeTable
from cachebus.consumers.cdc.rules.change import OPS, Op
from cachebus.consumers.cdc.rules.lines import Lines
from cachebus.consumers.cdc.rules.template import RowTemplate
from cachebus.consumers.worker.cascades import CascadeRule
from cachebus.errors import ConfigError, InvalidKey
from cachebus.keys.key import SYSTEM

CONTEXTS = ("agent_id", "conversation_id", "collection_id")
Text = StrictStr


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True)


class _InContext(_Model):
    agent_id: RowTemplate | None = None
    conversation_id: RowTemplate | None = None
    collection_id: RowTemplate | None = None

    @property
    def contexts(self) -> tuple[RowTemplate | None, RowTemplate | None, RowTemplate | None]:
        """Templates of the context ids."""
        return self.agent_id, self.conversation_id, self.collection_id

    def templates(self) -> Iterator[RowTemplate]:
        """All templates in it."""
        return (template for template in self.contexts if template is not None)


class ScopeRule(_InContext):
    """A scope that is invalidated with a row: a type of the tenant, or all types, narrowed by at most one context
    id."""

    data_type: Text | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_context(self) -> Self:
        if sum(template is not None for template in self.contexts) > 1:
            raise ValueError("a scope takes at most one of agent_id, conversation_id, collection_id")
        return self


class RelatedRule(_InContext):
    """Another resource that is invalidated with a row, in the same step."""

    data_type: Text = Field(min_length=1)
    resource_id: RowTemplate

    def templates(self) -> Iterator[RowTemplate]:
        """All templates in it."""
        yield from super().templates()
        yield self.resource_id


class Rule(_InContext):
    """One `[[rule]]`: which rows it is for, and what a change of such a row invalidates."""

    table: Text = Field(pattern=r"^[^.]+\.[^.]+$")
    """Schema and table, as in "shop.orders"; "*" stands for any text in either."""
    data_type: Text = Field(min_length=1)
    resource_id: RowTemplate
    tenant_id: RowTemplate | None = None
    every_context: bool = False
    """Whether the resource is invalidated in every context, too."""
    operations: tuple[Op, ...] = Field(OPS, min_length=1)
    when: tuple[Text, ...] = ()
    """Updates count only if they change one of these columns, or one that a template needs."""
    replica_identity: Literal["full"] | None = None
    """"full": the table has REPLICA IDENTITY FULL, so old rows are complete. Otherwise only their key is used."""
    tags: tuple[RowTemplate, ...] = ()
    scopes: tuple[ScopeRule, ...] = ()
    related: tuple[RelatedRule, ...] = ()
    on_truncate: tuple[Text, ...] | Literal["all", "ignore"] = "all"
    """What a truncate invalidates: the caches of these tenants, of "all", or, with "ignore", none."""

    def templates(self) -> Iterator[RowTemplate]:
        """All templates in it."""
        yield from super().templates()
        yield self.resource_id
        if self.tenant_id is not None:
            yield self.tenant_id
        yield from self.tags
        for part in (*self.scopes, *self.related):
            yield from part.templates()

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that its templates need."""
        return frozenset[str]().union(*(template.columns for template in self.templates()))

    @property
    def data_types(self) -> tuple[str, ...]:
        """The types that it names, without those that cascades reach."""
        several = (self.data_type, *(s.data_type for s in self.scopes), *(r.data_type for r in self.related))
        return tuple(dict.fromkeys(one for one in several if one is not None))

    @property
    def is_pattern(self) -> bool:
        """Whether its table is a pattern, which several tables may match."""
        return "*" in self.table

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tenant_id is None and (self.tags or any(one != SYSTEM for one in self.data_types)):
            raise _at("tenant_id", f"is missing: only the data type {SYSTEM!r} goes without a tenant")
        if self.resource_id.text == "*":
            raise _at("resource_id", 'is "*": write a whole scope as scopes = [{ data_type = "..." }]')
        if self.every_context and any(self.contexts):
            raise _at("every_context", "is for a rule without context ids")
        given = "on_truncate" in self.model_fields_set
        if given and "truncate" not in self.operations and self.on_truncate != "ignore":
            raise _at("on_truncate", 'is given, but "truncate" is not among the operations')
        return self

    @property
    def needs_tenants(self) -> bool:
        """Whether its tenants are known from rows alone."""
        return self.tenant_id is not None and bool(self.tenant_id.columns)


class _Field(ValueError):
    """A problem of one field that only shows beside the other fields."""


def _at(field: str, problem: str) -> ValueError:
    return _Field(f"{field}: {problem}")


MANY_TENANTS = 1_000


class RuleFile(_Model):
    """A whole file: rules, cascades, and the tenants whose caches a truncate and missed changes may touch, where those
    are few and no more will come; by default all."""

    rule: tuple[Rule, ...] = Field(min_length=1)
    cascade: tuple[CascadeRule, ...] = ()
    tenants: tuple[Text, ...] = ()

    @field_validator("tenants")
    @classmethod
    def _valid_ids(cls, tenants: tuple[str, ...]) -> tuple[str, ...]:
        """Check that each is a valid tenant id, and that they are few."""
        if len(tenants) > MANY_TENANTS:
            raise ValueError(f"are more than {MANY_TENANTS}: leave them out, and all tenants are meant")
        for tenant in tenants:
            try:
                check_part("tenant_id", tenant)
            except InvalidKey as error:
                raise ValueError(str(error)) from None
        return tenants

    @property
    def cascades(self) -> tuple[Cascade, ...]:
        """The cascades that the file declares."""
        return tuple(rule.cascade() for rule in self.cascade)


def load_rules(path: Path) -> RuleFile:
    """The rules of a TOML file; `ConfigError` names the file, the line and the field of all that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return parse_rules(text)
    except ConfigError as error:
        raise ConfigError("; ".join(f"{path}:{problem}" for problem in str(error).split("\n"))) from None


def parse_rules(text: str) -> RuleFile:
    """The rules in this TOML; `ConfigError` has a line for each problem: "7: rule 2: tenant_id: is missing"."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f" {error}") from None
    lines = Lines(text)
    try:
        rules = RuleFile.model_validate(found)
    except ValidationError as error:
        told = [_describe(problem, lines) for problem in error.errors() if not _follows(problem, found)]
        raise ConfigError("\n".join(dict.fromkeys(told))) from None
    problems = [*_wrong_cascades(rules, lines)] or [*_wrong_plans(rules, lines)]
    if problems:
        raise ConfigError("\n".join(problems))
    return rules


def _follows(problem: Any, found: Any) -> bool:
    """Whether the error only says that rules are too few, because each of them is wrong and reported by itself."""
    return problem["type"] == "too_short" and problem["loc"] == ("rule",) and bool(found["rule"])


def _describe(problem: Any, lines: Lines) -> str:
    where: list[str | int] = [part for part in problem["loc"] if not _is_branch(part)]
    message: str = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem.get("ctx", {}).get("error"), _Field):
        field, _, message = message.partition(": ")
        where.append(field)
    if problem["type"] == "extra_forbidden":
        message = "is no field of it"
    elif problem["type"] == "missing":
        message = "is missing"
    elif "on_truncate" in problem["loc"]:
        where, message = where[:3], 'takes "all", "ignore", or a list of tenants'
    elif problem["loc"][-1:] == ("table",) and problem["type"] == "string_pattern_mismatch":
        message = 'needs schema and table, as in "shop.orders"'
    return _line(where, lines, message)


def _is_branch(part: str | int) -> bool:
    return isinstance(part, str) and part.startswith(("tuple[", "literal[", "function-"))


def _line(where: Sequence[str | int], lines: Lines, message: str) -> str:
    number = lines.of(where)
    named = " ".join(f"{part + 1}:" if isinstance(part, int) else str(part) for part in where)
    place = named if named.endswith(":") or not named else f"{named}:"
    return f"{number or 1}: {place} {message}".replace("  ", " ")


def _wrong_cascades(rules: RuleFile, lines: Lines) -> Iterator[str]:
    table = CascadeTable()
    for at, rule in enumerate(rules.cascade):
        try:
            table.register(rule.cascade())
        except ConfigError as error:
            yield _line(["cascade", at], lines, str(error))


def _wrong_plans(rules: RuleFile, lines: Lines) -> Iterator[str]:
    """Rules whose commands would be wrong for every row: found by trying a row."""
    from cachebus.consumers.cdc.rules.router import Router

    router = Router(rules)
    for at, rule in enumerate(rules.rule):
        try:
            router.try_out(rule)
        except (InvalidKey, ValueError) as error:
            yield _line(["rule", at], lines, str(error))
