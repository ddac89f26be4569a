"""The router: from a row change to the commands that the rules ask for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from cachebus.cascade import CascadeTable
from cachebus.consumers.cdc.rules.change import RowChange
from cachebus.consumers.cdc.rules.naming import RuleNaming
from cachebus.consumers.cdc.rules.rules import Rule, RuleFile
from cachebus.consumers.worker.source import Meaning
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Planner
from cachebus.producers.command import Command, InvalidateAllTenants, InvalidateScope, InvalidateTags

TABLES_REMEMBERED = 65_536
"""Each is found once for the looks, and once for its changes."""
Place = tuple[str, str]
"""Schema and name of a table."""


class DatabaseFacts(NamedTuple):
    """What a database says of its tables, and what changes do not tell."""

    kin: Mapping[Place, Sequence[Place]] = {}
    """The tables that each table inherits from: rules for them apply to it."""
    names: Mapping[int, Sequence[Place]] = {}
    """By OID, the names that a table has had: rules for them apply to it, whatever a change calls it."""
    partitioned: frozenset[Place] = frozenset()
    """An update that moves a row to another partition is told as a delete and an insert."""
    keys: Mapping[int, frozenset[str]] = {}
    """By OID, the columns that are told of old rows."""
    uneven: frozenset[int] = frozenset()
    """The OIDs of those with REPLICA IDENTITY FULL of which a partition has less: a null in an old row may stand for
    what is not told."""


class RuledTable(NamedTuple):
    """What rules say of one table."""

    rules: tuple[Rule, ...]
    """Those that its rows fall under."""
    namings: tuple[RuleNaming, ...]
    """The same, ready to be applied."""
    columns: frozenset[str]
    """The columns that they look at."""
    place: Place = ("", "")
    """Its schema and name, as the database has them now."""
    key: frozenset[str] = frozenset()
    """The columns that are told of old rows, as the database says."""
    is_uneven: bool = False
    """See `DatabaseFacts.uneven`."""

    def meaning(self, change: RowChange) -> Meaning:
        """See `Router.meaning`; of one of its changes."""
        several = [naming.meaning(change) for naming in self.namings]
        if len(several) == 1:
            return several[0]
        commands = dict.fromkeys(command for one in several for command in one.commands)
        problems = dict.fromkeys(problem for one in several for problem in one.problems)
        return Meaning(list(commands), list(problems))


class Router:
    """Routes changes by the rules of one file. `shards`: how many shards the cache has."""

    def __init__(self, rules: RuleFile, shards: int = 1) -> None:
        self.rules, self._shards = rules, shards
        self._entailed = _entailed(rules)
        self._said = {rule: self._text_of(rule) for rule in rules.rule}
        self._namings = [RuleNaming(rule, tuple(self._truncated(rule))) for rule in rules.rule]
        self._by_table: dict[tuple[str, str, int], RuledTable] = {}
        self._known = DatabaseFacts()

    def learn(self, known: DatabaseFacts) -> None:
        """Take over what the database says of its tables now."""
        if known != self._known:
            self._known = known
            self._by_table.clear()

    def rules_of(self, schema: str, table: str) -> tuple[Rule, ...]:
        """The rules that a table's rows fall under."""
        return self.table(schema, table).rules

    @property
    def said(self) -> str:
        """What all rules say: another text where one says another thing."""
        return _digest("".join(sorted(self._said[rule] for rule in self.rules.rule)))

    def said_of(self, schema: str, table: str) -> list[str]:
        """What rules say of a table, a text for each."""
        return sorted(self._said[rule] for rule in self.rules_of(schema, table))

    def _text_of(self, rule: Rule) -> str:
        types = {end for one in rule.data_types for end in (one, *self._entailed[one])}
        entails = sorted(repr(one) for one in self.rules.cascade if one.data_type in types)
        return _digest(repr(rule) + str(sorted(map(str, self._scopes_of(rule, ("x",))))) + str(entails))

    def table(self, schema: str, table: str, oid: int = 0) -> RuledTable:
        """What rules say of it. `oid`: its number, where a change tells it."""
        found = self._by_table.get((schema, table, oid))
        if found is None:
            if len(self._by_table) >= TABLES_REMEMBERED:
                del self._by_table[next(iter(self._by_table))]
            found = self._by_table[schema, table, oid] = self._found(schema, table, oid)
        return found

    def _found(self, schema: str, table: str, oid: int) -> RuledTable:
        known, own = self._known, self._known.names.get(oid, ())
        names = [end for one in ((schema, table), *own) for end in (one, *known.kin.get(one, ()))]
        meant = [one for one in self._namings if any(_meant(one.rule, *name) for name in names)]
        if not known.partitioned.isdisjoint(names):
            meant = [naming.with_moves() for naming in meant]
        return RuledTable(
            tuple(one.rule for one in meant),
            tuple(meant),
            frozenset[str]().union(*(one.watched for one in meant)),
            own[0] if own else (schema, table),
            known.keys.get(oid, frozenset()),
            oid in known.uneven,
        )

    def meaning(self, change: RowChange) -> Meaning:
        """What this change invalidates, each once; nothing where no rule is for it. What one rule can't name, or one
        half of the change, is a problem, and takes nothing from the others."""
        return self.table(change.schema, change.table).meaning(change)

    def missed(self, rules: Iterable[Rule]) -> list[Command]:
        """For when changes may have been missed: scopes for all that these rules may ever invalidate, of all tenants,
        or of those that the file names."""
        return list(dict.fromkeys(one for rule in rules for one in self._scopes_of(rule, self.rules.tenants)))

    def try_out(self, rule: Rule) -> None:
        """Make plans of a row that has all that the rule asks for; raises what is wrong with them."""
        naming = RuleNaming(rule)
        row = dict.fromkeys(naming.columns, "x")
        planner = Planner(Keyspace(1), CascadeTable(self.rules.cascades))
        commands, problems = naming.of_row(row)
        if problems:
            raise ValueError(problems[0])
        for command in (*commands, *self._scopes_of(rule, ("x",)), *self._scopes_of(rule, ())):
            command.plan(planner)

    def _truncated(self, rule: Rule) -> Iterator[Command]:
        said = rule.on_truncate
        if said != "ignore":
            yield from self._scopes_of(rule, self.rules.tenants if said == "all" else said)

    def _scopes_of(self, rule: Rule, named: Sequence[str]) -> Iterator[Command]:
        """Scopes that contain all that the rule may name: of these tenants, or of all where none are named, if rows
        alone tell whose something is. Scopes follow no cascades, so the types that cascades reach are named too. A tag
        that depends on a row may be on any type, and so may any tag of a tenant that is not known."""
        of_any = any(one.data_type is None for one in rule.scopes) or any(tag.columns for tag in rule.tags)
        types = dict.fromkeys(end for one in rule.data_types for end in (one, *self._entailed[one]))
        tags = tuple(tag.text for tag in rule.tags)
        if rule.needs_tenants and not named:
            for data_type in [None] if of_any or tags else types:
                for shard in range(self._shards):
                    yield InvalidateAllTenants(op="all_tenants", shard=shard, data_type=data_type)
            return
        for tenant in _tenants(rule, named):
            for data_type in [None] if of_any else types:
                yield InvalidateScope(op="scope", tenant_id=tenant, data_type=data_type)
            if tags and tenant is not None and not of_any:
                yield InvalidateTags(op="tags", tenant_id=tenant, tags=tags)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _meant(rule: Rule, schema: str, table: str) -> bool:
    in_schema, _, name = rule.table.partition(".")
    return _fits(schema, in_schema) and _fits(table, name)


def _fits(text: str, pattern: str) -> bool:
    """Whether a name is what a rule says, in which "*" alone is a sign."""
    return _compiled(pattern).fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def _tenants(rule: Rule, named: Sequence[str]) -> tuple[str | None, ...]:
    if rule.tenant_id is None:
        return (None,)
    return tuple(named) if rule.needs_tenants else (rule.tenant_id.fill({}),)


def _entailed(rules: RuleFile) -> dict[str, list[str]]:
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
