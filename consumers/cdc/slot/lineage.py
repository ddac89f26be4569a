"""Which tables fall under whose rules: by their OIDs, under every name they have had while the slot may still tell of
it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachebus.consumers.cdc.rules.router import DatabaseFacts, Place
from cachebus.consumers.cdc.slot.catalogue import Table, kin_of
from cachebus.consumers.cdc.slot.slot import Slot

_PART: Final = r'("(?:[^"]|"")+"|[^."]+)'
_NAMED: Final = re.compile(rf"{_PART}\.{_PART}")
Fact = tuple[Place | int, Place]
"""A table, by name or OID, and a name whose rules are for it."""


def known_of(tables: Sequence[Table], past: Sequence[Fact] = ()) -> DatabaseFacts:
    """What is known of these tables, and of those that were there before."""
    kin: dict[Place, list[Place]] = defaultdict(list)
    names: dict[int, list[Place]] = defaultdict(list)
    for of, name in dict.fromkeys([*_facts(tables), *past]):
        if isinstance(of, int):
            names[of].append(name)
        else:
            kin[of].append(name)
    return DatabaseFacts(
        dict(kin),
        dict(names),
        frozenset(_place(table) for table in tables if table.partitioned),
        {table.oid: table.key for table in tables},
        frozenset(table.oid for table in tables if table.identity == "f" and table.lesser),
    )


class Lineage:
    """What was so at earlier looks, and may still be told of: a child that is dropped by now, a table's former name.
    It is forgotten once the slot is behind all that the log had when it was no longer so."""

    def __init__(self) -> None:
        self._now = set[Fact]()
        self._past: dict[Fact, int | None] = {}
        """Each with the position in the log behind which it is not told of, once a look has that."""

    def seen(self, tables: Sequence[Table], remembered: Mapping[str, Any], slot: Slot | None) -> DatabaseFacts:
        """What is known by now. `remembered`: the tables as they were known before, also to another worker. `slot`:
        looked at before the tables were."""
        before, self._now = self._now, set(_facts(tables))
        if slot is not None:
            here = slot.confirmed + slot.behind_bytes
            self._past = {
                fact: here if until is None else until
                for fact, until in self._past.items()
                if until is None or until > slot.confirmed
            }
        for fact in (before | set(_remembered(remembered))) - self._now:
            self._past.setdefault(fact, None)
        for fact in self._now:
            self._past.pop(fact, None)
        return known_of(tables, sorted(self._past, key=str))


def _facts(tables: Sequence[Table]) -> list[Fact]:
    facts: list[Fact] = [(table.oid, _place(table)) for table in tables]
    for place, ancestors in kin_of(tables).items():
        facts += ((place, ancestor) for ancestor in ancestors)
    return facts


def _remembered(tables: Mapping[str, Any]) -> list[Fact]:
    facts: list[Fact] = []
    for name, mark in tables.items():
        for place in places_of(name):
            facts.append((int(mark["is"].partition("/")[0]), place))
            facts += ((place, ancestor) for one in mark.get("of", ()) for ancestor in places_of(one))
    return facts


def _place(table: Table) -> Place:
    return table.schema, table.name


def places_of(name: str) -> list[Place]:
    """The table that is known by this, as `known_as` says. Of other text it may be several, where a name has a dot
    itself: too much rather than too little."""
    if known := _NAMED.fullmatch(name):
        return [(_plain(known[1]), _plain(known[2]))]
    parts = name.split(".")
    return [(".".join(parts[:at]), ".".join(parts[at:])) for at in range(1, len(parts))]


def _plain(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
