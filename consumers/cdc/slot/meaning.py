"""What the messages of a slot mean by the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from cachebus.consumers.cdc.rules.change import RowChange
from cachebus.consumers.cdc.rules.router import RuledTable
from cachebus.consumers.cdc.slot.identity import known_as
from cachebus.consumers.cdc.slot.pgoutput import Relation, Told
from cachebus.consumers.cdc.slot.shortcut import Shortcut, shortcut
from cachebus.consumers.worker.source import Item, Meaning
from cachebus.producers.command import Resource

if TYPE_CHECKING:
    from cachebus.consumers.cdc.slot.postgres import PostgresSource

CHANGED: Final = (b"U", b"D")
LESSENED: Final = (
    "old rows were told with less than its REPLICA IDENTITY for a while: it was altered in between, and what rules "
    "name by other columns is not told"
)
WAYS: Final = 1000


class _Way(NamedTuple):
    """How messages about a table are read."""

    relations: tuple[Relation, ...]
    table: RuledTable
    short: Shortcut | None
    is_lessened: bool
    """Whether their old rows have less than the looks say."""


def _lacks(relation: Relation, table: RuledTable) -> bool:
    """Whether old rows are told without what some rule makes names of, and the looks have."""
    lost = table.key.difference(column.name for column in relation.columns if column.key)
    return relation.identity != "f" and any(not lost.isdisjoint(rule.columns) for rule in table.rules)


def _changes(told: Told, table: RuledTable, wanted: frozenset[str] | None = None) -> list[RowChange]:
    """The changes of a message, with what is known of old rows alone."""
    changes = told.changes(wanted)
    return [change.without_nulls() for change in changes] if table.is_uneven else changes


class Meanings:
    """Reads the messages of one session."""

    def __init__(self, source: PostgresSource) -> None:
        self._source = source
        self._ways: dict[int, _Way] = {}
        """By `id` of what a message is about."""

    def named(self, items: Sequence[Item]) -> Sequence[Resource]:
        """See `Session.named`."""
        told = items[0].raw
        if not isinstance(told, Told) or len(told.relations) > 1:
            return ()
        [one] = told.relations
        way = self._way(self._source.router.table(one.schema, one.table, one.oid), told)
        return () if way.short is None or way.is_lessened else way.short.resources(items, told.relations)

    def of(self, told: Told) -> Meaning:
        """What a message asks for."""
        router = self._source.router
        tables = [router.table(one.schema, one.table, one.oid) for one in told.relations]
        way = self._way(tables[0], told)
        if way.is_lessened and told.data[:1] in CHANGED:
            self._source.mending.doubt(known_as(*tables[0].place), LESSENED)
        if way.short is not None and (meaning := way.short.meaning(told)) is not None:
            return meaning
        changes = _changes(told, tables[0], tables[0].columns)
        if len(changes) == 1:
            return tables[0].meaning(changes[0])
        several = [table.meaning(change) for table, change in zip(tables, changes, strict=True)]
        commands = dict.fromkeys(command for one in several for command in one.commands)
        return Meaning(list(commands), [problem for one in several for problem in one.problems])

    def _way(self, table: RuledTable, told: Told) -> _Way:
        """How messages like this one are read, found once a look, unless it falls under other rules by now."""
        known = self._ways.get(id(told.relations))
        if known is None or known.table is not table:
            if len(self._ways) >= WAYS:
                self._ways.clear()
            way = shortcut(table, told.relations[0]) if len(told.relations) == 1 else None
            lessened = _lacks(told.relations[0], table)
            known = self._ways[id(told.relations)] = _Way(told.relations, table, way, lessened)
        return known

    def changes_of(self, told: Told) -> list[RowChange]:
        """The changes of a message, under the name by which rules are found when they are tried again."""
        first = told.relations[0]
        table = self._source.router.table(first.schema, first.table, first.oid)
        changes = _changes(told, table)
        if len(changes) > 1:
            return changes
        schema, name = table.place
        return [change._replace(schema=schema, table=name) for change in changes]
