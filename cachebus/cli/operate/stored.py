"""What lies in L2, told by the names of its records: how much an invalidation meets, and what a misspelt name means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cachebus.base.clock import monotonic
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key, encoded, shard_of, tag_scope
from cachebus.keys.words import shown
from cachebus.policy import closest
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.primaries import whereabouts
from cachebus.tools.doctor.records import GLOB
from cachebus.wire.record import CorruptRecord, parse

AT_ONCE: Final = 1_000
TOLD_MAX: Final = 5
LOOKS_S: Final = 2.0


class Stored(NamedTuple):
    """A record, by its name in L2."""

    name: str
    tenant: str
    """"" for none."""
    data_type: str
    resource_id: str
    contexts: Mapping[str, str]


@dataclass(frozen=True)
class WantedRecords:
    """Which records are asked for; what is None may be anything."""

    tenant: str | None = None
    data_type: str | None = None
    resource_id: str | None = None
    contexts: Mapping[str, str] = field(default_factory=dict)
    """Context ids that they have, by their names in L2."""
    only: bool = False
    """Whether they have no other contexts."""
    tags: Sequence[str] = ()
    """Of which they have any."""

    def fits(self, one: Stored) -> bool:
        """Whether a record is asked for, its tags apart."""
        return (
            self.tenant in (None, one.tenant)
            and self.data_type in (None, one.data_type)
            and self.resource_id in (None, one.resource_id)
            and all(one.contexts.get(name) == given for name, given in self.contexts.items())
            and (not self.only or len(one.contexts) == len(self.contexts))
        )


async def count(settings: Settings, wanted: WantedRecords, *, at_most: int | None = None) -> int:
    """How many such records lie in L2, invalidated ones among them; `L2Unavailable`. `at_most`: enough to know."""
    found = 0
    async for asker, some in _records(settings, wanted.tenant, wanted.data_type):
        fitting = [one for one in some if wanted.fits(one)]
        found += await _tagged(asker, fitting, wanted.tags) if wanted.tags else len(fitting)
        if at_most is not None and found >= at_most:
            break
    return found


async def meant(settings: Settings, wanted: WantedRecords, also: Iterable[tuple[str, str]] = ()) -> str:
    """What may have been meant by an unknown tenant or data type: "; did you mean …?"; "" where nothing is like it, or
    both are known. `also`: tenants and types that are known besides. It looks for a moment only."""
    known = _Known(wanted.tenant, wanted.data_type)
    for tenant, data_type in also:
        known.add(tenant, data_type)
    until_s = monotonic() + LOOKS_S
    async for _, some in _records(settings):
        for one in some:
            known.add(one.tenant, one.data_type)
        if known.both or monotonic() > until_s:
            break
    return known.hint()


async def elsewhere(settings: Settings, key: Key) -> str:
    """Under which tenants, types or contexts the key's id lies, for a line: ", but under …"; else what may have been
    meant by its tenant or type; "" where nothing is like them. It looks for a moment only: there may be millions."""
    found: list[Stored] = []
    known = _Known(key.family.tenant or None, key.family.data_type)
    until_s = monotonic() + LOOKS_S
    over = False
    async for _, some in _records(settings):
        found += [one for one in some if one.resource_id == key.resource_id]
        for one in some:
            known.add(one.tenant, one.data_type)
        over = monotonic() > until_s
        if over or len(found) > TOLD_MAX:
            break
    if not found:
        return (f", and not elsewhere, as far as {LOOKS_S:g} s reach" if over else "") + known.hint()
    told = [
        shown(f"type {one.data_type} of tenant {one.tenant or '(none)'}{_contexts(one)}") for one in found[:TOLD_MAX]
    ]
    more = " and others" if len(found) > TOLD_MAX else ""
    return f", but under {'; '.join(told)}{more}"


class _Known:
    """Tenants and data types that there are, beside those that were given."""

    def __init__(self, tenant: str | None, data_type: str | None) -> None:
        self._tenant, self._data_type = tenant, data_type
        self._tenants, self._types = set[str](), set[str]()

    def add(self, tenant: str, data_type: str) -> None:
        """There are these."""
        self._tenants.add(tenant)
        if self._tenant in (None, tenant):
            self._types.add(data_type)

    @property
    def both(self) -> bool:
        """Whether what was given is known, so that there is nothing to hint at."""
        return (self._tenant is None or self._tenant in self._tenants) and (
            self._data_type is None or self._data_type in self._types
        )

    def hint(self) -> str:
        """For a line's end: "; did you mean …?"; "" where nothing is like what was given."""
        hints = [
            shown(like)
            for given, known in ((self._tenant, self._tenants), (self._data_type, self._types))
            if given and given not in known and (like := closest(given, known))
        ]
        return f"; did you mean {' and '.join(hints)}?" if hints else ""


def _contexts(one: Stored) -> str:
    return "".join(f" with {name} {given}" for name, given in one.contexts.items())


async def _records(
    settings: Settings, tenant: str | None = None, data_type: str | None = None
) -> AsyncIterator[tuple[Asker, list[Stored]]]:
    """The records of the namespace at each primary, some at a time, with who may ask for more of them."""
    first, second = (("*" if part is None else encoded(part).translate(GLOB)) for part in (tenant, data_type))
    pattern = f"{{{settings.namespace.translate(GLOB)}:*}}:r:{first}:{second}:*"
    primaries, lost = await whereabouts(settings)
    for primary in primaries:
        if tenant is not None and not primary.has(shard_of(tenant, settings.shards)):
            continue
        async with await Asker.open(primary.address, settings.connect_timeout_s) as asker:
            cursor = b"0"
            while True:
                reply, refused = await asker.ask("SCAN", cursor, "MATCH", pattern, "COUNT", AT_ONCE)
                if refused:
                    raise L2Unavailable(f"{primary.address} does not let its keys be looked at: {refused}")
                cursor, names = reply
                yield asker, [one for one in map(_parsed, names) if one is not None]
                if cursor == b"0":
                    break
    for shard, why in lost.items():
        if tenant is None or shard == shard_of(tenant, settings.shards):
            raise L2Unavailable(why)


def _parsed(raw: bytes) -> Stored | None:
    """A record's name taken apart: no part of it has a colon. None for one that is none of ours."""
    try:
        name = raw.decode()
        tenant, data_type, *fields, resource_id = (_decoded(part) for part in name.partition("}:r:")[2].split(":"))
        return Stored(name, tenant, data_type, resource_id, dict(zip(fields[::2], fields[1::2], strict=True)))
    except ValueError:
        return None


def _decoded(part: str) -> str:
    return part.replace("%3A", ":").replace("%2A", "*").replace("%25", "%")


async def _tagged(asker: Asker, some: Sequence[Stored], tags: Sequence[str]) -> int:
    found = 0
    for one in some:  # one after the other: values may be large
        data, _ = await asker.ask("GET", one.name)
        with suppress(CorruptRecord):
            found += data is not None and not {tag_scope(one.tenant, tag) for tag in tags}.isdisjoint(parse(data).tags)
    return found
