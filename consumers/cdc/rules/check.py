"""Checks rules without running a worker: whether they are valid, and what a sample change would invalidate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cachebus.cascade import CascadeTable
from cachebus.consumers.cdc.rules.change import RowChange, UnusableChange, parse_change
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import RuleFile, load_rules
from cachebus.consumers.cdc.topics.debezium import is_envelope, parse_envelope
from cachebus.errors import ConfigError, InvalidKey
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Planner
from cachebus.producers.command import (
    Command,
    Invalidate,
    InvalidateAllTenants,
    InvalidateScope,
    InvalidateTags,
    Resource,
)


def checked(rules: Path, sample: Path | None = None) -> str:
    """The report on a rules file, and on what it does with a sample, as text; `ConfigError` if either is wrong."""
    loaded = load_rules(rules)
    tenants = f", {len(loaded.tenants)} tenants" if loaded.tenants else ""
    lines = [f"{rules}: {len(loaded.rule)} rules, {len(loaded.cascade)} cascades{tenants}"]
    if sample is not None:
        lines += _of_sample(loaded, sample)
    return "".join(f"{line}\n" for line in lines)


def _of_sample(rules: RuleFile, sample: Path) -> Iterator[str]:
    try:
        data = sample.read_bytes()
        envelope = is_envelope(data)
        change = parse_envelope(data) if envelope else parse_change(data)
    except (OSError, UnusableChange) as error:
        raise ConfigError(f"{sample}: {error}") from None
    kind = "a Debezium envelope" if envelope else "a plain row change"
    if change is None:
        yield f"{sample}: {kind} that tells of no row: ignored"
        return
    yield f"{sample}: {kind}: {change.op} of {change.schema}.{change.table}"
    try:
        yield from _invalidated(rules, change)
    except (InvalidKey, ValueError) as error:
        raise ConfigError(f"{sample}: it would be a dead letter: {error}") from None


def _invalidated(rules: RuleFile, change: RowChange) -> Iterator[str]:
    router = Router(rules)
    commands, problems = router.meaning(change)
    if problems and not commands:
        raise ValueError("; ".join(problems))
    for problem in problems:
        yield f"  would be a dead letter: {problem}"
    if not commands and not problems:
        named = router.rules_of(change.schema, change.table)
        yield "  invalidates nothing: " + ("its rules leave it out" if named else "no rule is for this table")
    planner = Planner(Keyspace(1), CascadeTable(rules.cascades))
    for command in commands:
        if isinstance(command, bytes | str):
            continue  # none that a router makes
        command.plan(planner)
        yield f"  invalidates {describe(command)}"
        if isinstance(command, Resource):
            command = command.command()
        if isinstance(command, Invalidate):
            for target in planner.expand(command.targets(), command.tenant_id)[1 + len(command.related) :]:
                what = "all of" if target.whole else f"{target.resource_id!r} of"
                yield f"    and by a cascade {what} {target.data_type!r}"


def describe(command: Command) -> str:
    """A command for people."""
    if isinstance(command, Resource):
        command = command.command()
    tenant = "" if command.tenant_id is None else f" of tenant {command.tenant_id!r}"
    if isinstance(command, InvalidateAllTenants):
        return ("everything" if command.data_type is None else f"all of {command.data_type!r}") + " of all tenants"
    if isinstance(command, InvalidateTags):
        return f"the tags {', '.join(map(repr, command.tags))}{tenant}"
    ids = {"agent": command.agent_id, "conversation": command.conversation_id, "collection": command.collection_id}
    contexts = "".join(f" {name} {value!r}" for name, value in ids.items() if value is not None)
    if isinstance(command, InvalidateScope):
        what = "everything" if command.data_type is None else f"all of {command.data_type!r}"
        return f"{what}{tenant}{contexts}"
    related = "".join(f", and {one.resource_id!r} of {one.data_type!r}" for one in command.related)
    every = " in every context" if isinstance(command, Invalidate) and command.contexts == "all" else ""
    return f"{command.resource_id!r} of {command.data_type!r}{tenant}{contexts}{every}{related}"
