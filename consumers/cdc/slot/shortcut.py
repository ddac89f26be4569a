"""Most rules name one resource by one column. Of such rows nothing is read but that column, and the tenant's."""

from __future__ import annotations

from typing import Final

from cachebus.consumers.cdc.rules.naming import Naming
from cachebus.consumers.cdc.rules.router import Table
from cachebus.consumers.cdc.rules.template import Template
from cachebus.consumers.cdc.slot.pgoutput import Relation, Told, nameable
from cachebus.consumers.worker.source import Meaning
from cachebus.producers.command import Resource

DELETE: Final = ord("D")
TEXT: Final = ord("t")
NULL_OR_UNCHANGED: Final = b"nu"
NEW_ROW: Final = slice(5, 8)
"""In a message that has no old row: "N", and how many columns there are."""
FIRST_COLUMN: Final = 8


class Shortcut:
    """From a message to what it means, for a table's one rule. Said of the same message it is what `Table.meaning`
    says of its change."""

    def __init__(self, naming: Naming, relation: Relation, resource: int | str, tenant: int | str | None) -> None:
        """`resource`, `tenant`: the place of a column, or the text itself."""
        self._data_type, self._match = naming.rule.data_type, naming.match
        self._new_row = b"N" + len(relation.columns).to_bytes(2)
        places = sorted({part for part in (resource, tenant) if isinstance(part, int)})
        self._wanted = tuple(place in places for place in range(max(places, default=-1) + 1))
        """By column up to the last one that is read: whether it is."""
        self._resource = places.index(resource) if isinstance(resource, int) else None
        self._tenant = places.index(tenant) if isinstance(tenant, int) else None
        self._fixed = str(resource), None if tenant is None else str(tenant)

    def meaning(self, told: Told) -> Meaning | None:
        """What it means; None where that is not to be had so easily: it has an old row, too, or something is odd."""
        data, at = told.data, FIRST_COLUMN
        if data[NEW_ROW] != self._new_row or data[0] == DELETE:
            return None
        texts: list[str] = []
        try:
            for wanted in self._wanted:
                if data[at] == TEXT:
                    begin = at + 5
                    at = begin + int.from_bytes(data[at + 1 : begin])
                    if wanted:
                        texts.append(data[begin:at].decode())
                elif wanted or data[at] not in NULL_OR_UNCHANGED:
                    return None
                else:
                    at += 1
        except (IndexError, UnicodeDecodeError):
            return None
        if at > len(data):
            return None
        resource, tenant = self._fixed
        if self._resource is not None:
            resource = texts[self._resource]
        if self._tenant is not None:
            tenant = texts[self._tenant]
        return Meaning((Resource(self._data_type, resource, tenant, self._match),))


def shortcut(table: Table, relation: Relation) -> Shortcut | None:
    """None where there is no such way: several rules, or one that looks at more."""
    if len(table.namings) != 1 or relation.encoding or not table.namings[0].is_simple:
        return None
    [naming] = table.namings
    resource = _place(naming.rule.resource_id, relation)
    tenant = None if naming.rule.tenant_id is None else _place(naming.rule.tenant_id, relation)
    if resource is None or (tenant is None and naming.rule.tenant_id is not None):
        return None
    return Shortcut(naming, relation, resource, tenant)


def _place(template: Template, relation: Relation) -> int | str | None:
    """Which column it is, or its text where that is fixed; None where it is neither."""
    if template.fixed is not None:
        return template.fixed
    for at, column in enumerate(relation.columns):
        if column.name == template.column and nameable(column.type_oid):
            return at
    return None
