"""What lies in L2, told by the names of its records: how much an invalidation meets, and what a misspelt name means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key, encoded, shard_of, tag_scope
from cachebus.policy import closest
from cachebus.settings import Settings
from cachebus.tools.doctor.facts import Asker
from cachebus.tools.doctor.primaries import whereabouts
from cachebus.wire.record import CorruptRecord, parse

AT_ONCE: Final = 1_000
TOLD_MAX: Final = 5
_GLOB = str.maketrans({sign: f"\\{sign}" for sign in "*?[]\\"})


class Stored(NamedTuple):
    """A record, by its name in L2."""

    name: str
    tenant: str
    """"" for none."""
    data_type: str
    resource_id: str
    contexts: Mapping[str, str]


@dataclass(frozen=True)
class Wanted:
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


async def count(settings: Settings, wanted: Wanted, *, at_most: int | None = None) -> int:
    """How many such records lie in L2, invalidated ones among them; `L2Unavailable`. `at_most`: enough to know."""
    found = 0
    async for asker, some in _records(settings, wanted.tenant, wanted.data_type):
        fitting = [one for one in some if wanted.fits(one)]
        found += await _tagged(asker, fitting, wanted.tags) if wanted.tags else len(fitting)
        if at_most is not None and found >= at_most:
            break
    return found


async def meant(settings: Settings, wanted: Wanted) -> str:
    """What may have been meant by an unknown tenant or data type: "; did you mean …?"; "" where nothing is like it."""
    tenants, types = set[str](), set[str]()
    async for _, some in _records(settings):
        tenants.update(one.tenant for one in some)
        types.update(one.data_type for one in some if wanted.tenant in (None, one.tenant))
    hints = [
        like
        for given, known in ((wanted.tenant, tenants), (wanted.data_type, types))
        if given and given not in known and (like := closest(given, known))
    ]
    return f"; did you mean {' and '.join(hints)}?" if hints else ""


async def elsewhere(settings: Settings, key: Key) -> str:
    """Under which tenants, types or contexts the key's id lies, for a line: ", but under …"; "" where it does not."""
    found: list[Stored] = []
    async for _, some in _records(settings):
        found += [one for one in some if one.resource_id == key.resource_id]
        if len(found) > TOLD_MAX:
            break
    told = [f"type {one.data_type} of tenant {one.tenant or '(none)'}{_contexts(one)}" for one in found[:TOLD_MAX]]
    more = " and others" if len(found) > TOLD_MAX else ""
    return f", but under {'; '.join(told)}{more}" if told else ""


def _contexts(one: Stored) -> str:
    return "".join(f" with {name} {given}" for name, given in one.contexts.items())


async def _records(
    settings: Settings, tenant: str | None = None, data_type: str | None = None
) -> AsyncIterator[tuple[Asker, list[Stored]]]:
    """The records of the namespace at each primary, some at a time, with who may ask for more of them."""
    first, second = (("*" if part is None else encoded(part).translate(_GLOB)) for part in (tenant, data_type))
    pattern = f"{{{settings.namespace.translate(_GLOB)}:*}}:r:{first}:{second}:*"
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
