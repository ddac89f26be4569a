"""Most rules name one resource by one column. Of such rows nothing is read but that column, and the tenant's."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from cachebus.consumers.cdc.rules.naming import RuleNaming
from cachebus.consumers.cdc.rules.router import RuledTable
from cachebus.consumers.cdc.rules.template import RowTemplate
from cachebus.consumers.cdc.slot.pgoutput import BPCHAR, Relation, Told, nameable, unpadded
from cachebus.consumers.worker.source import Item, Meaning
from cachebus.producers.command import Resource

DELETE: Final = ord("D")
TEXT: Final = ord("t")
NULL_OR_UNCHANGED: Final = b"nu"
NEW_ROW: Final = slice(5, 8)
"""In a message that has no old row: "N", and how many columns there are."""
FIRST_COLUMN: Final = 8
_value = struct.Struct(">BI").unpack_from
"""Of a column: its kind, and how long its text is; of one that has no text the latter are bytes of what comes next."""
_made = Resource._make


class Shortcut:
    """From a message to what it means, for a table's one rule. Said of the same message it is what `RuledTable.meaning`
    says of its change."""

    def __init__(self, naming: RuleNaming, relation: Relation, resource: int | str, tenant: int | str | None) -> None:
        """`resource`, `tenant`: the place of a column, or the text itself."""
        self._data_type, self._match = naming.rule.data_type, naming.match
        self._new_row = b"N" + len(relation.columns).to_bytes(2)
        places = sorted({part for part in (resource, tenant) if isinstance(part, int)})
        self._wanted = tuple(place in places for place in range(max(places, default=-1) + 1))
        """By column up to the last one that is read: whether it is."""
        self._padded = [at for at, place in enumerate(places) if relation.columns[place].type_oid == BPCHAR]
        """Those of the columns that are read which are filled up."""
        self._resource = places.index(resource) if isinstance(resource, int) else None
        self._tenant = places.index(tenant) if isinstance(tenant, int) else None
        self._fixed = str(resource), None if tenant is None else str(tenant)

    def meaning(self, told: Told) -> Meaning | None:
        """What it means; None where that is not to be had so easily: it has an old row, too, or something is odd."""
        resource = self._resource_of(told.data)
        return None if resource is None else Meaning((resource,))

    def resources(self, items: Sequence[Item], relations: tuple[Relation, ...]) -> list[Resource]:
        """What the first of these items name, up to one that is about another table, or that `meaning` tells nothing
        of."""
        found: list[Resource] = []
        for item in items:
            told = item.raw
            if type(told) is not Told or told.relations is not relations:
                break
            resource = self._resource_of(told.data)
            if resource is None:
                break
            found.append(resource)
        return found

    def _resource_of(self, data: bytes) -> Resource | None:
        at = FIRST_COLUMN
        if data[NEW_ROW] != self._new_row or data[0] == DELETE:
            return None
        texts: list[str] = []
        try:
            for wanted in self._wanted:
                kind, size = _value(data, at)
                if kind == TEXT:
                    begin = at + 5
                    at = begin + size
                    if wanted:
                        texts.append(data[begin:at].decode())
                elif wanted or kind not in NULL_OR_UNCHANGED:
                    return None
                else:
                    at += 1
        except (struct.error, UnicodeDecodeError):
            return None
        if at > len(data):
            return None
        for padded in self._padded:
            texts[padded] = unpadded(texts[padded])
        resource, tenant = self._fixed
        if self._resource is not None:
            resource = texts[self._resource]
        if self._tenant is not None:
            tenant = texts[self._tenant]
        return _made((self._data_type, resource, tenant, self._match))


def shortcut(table: RuledTable, relation: Relation) -> Shortcut | None:
    """None where there is no such way: several rules, or one that looks at more."""
    if len(table.namings) != 1 or relation.encoding or not table.namings[0].is_simple:
        return None
    [naming] = table.namings
    resource = _place(naming.rule.resource_id, relation)
    tenant = None if naming.rule.tenant_id is None else _place(naming.rule.tenant_id, relation)
    if resource is None or (tenant is None and naming.rule.tenant_id is not None):
        return None
    return Shortcut(naming, relation, resource, tenant)


def _place(template: RowTemplate, relation: Relation) -> int | str | None:
    """Which column it is, or its text where that is fixed; None where it is neither."""
    if template.fixed is not None:
        return template.fixed
    for at, column in enumerate(relation.columns):
        if column.name == template.column and nameable(column.type_oid):
            return at
    return None
