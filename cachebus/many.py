"""What the verbs for many ids share: their keys, what memory serves of them, and their loads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from cachebus import context
from cachebus.assembly.factory import Parts
from cachebus.base.ids import Id
from cachebus.base.parameters import SourceFunction, StandIn, name_of
from cachebus.base.pieces import in_turns
from cachebus.calls import LoadBy, checked_ttl, position_after
from cachebus.errors import ConfigError
from cachebus.keys.key import ABSENT, GIVEN, Key
from cachebus.keys.naming import tag_scopes
from cachebus.keys.plan import Contexts
from cachebus.reading.bypass import block_here
from cachebus.reading.joint import JointLoad
from cachebus.reading.judge import MISSING, NOT_FOUND
from cachebus.reading.request import Request
from cachebus.reading.source import WithPrevious, bind, load_of
from cachebus.receipt import Receipt

AskedT = TypeVar("AskedT")

MANY = 250
"""So many keys are asked for at a time: many more would hold up everybody else, here (4 ms) and at the server."""
Remaining = list[tuple[Id, str]]
"""Ids that memory does not serve at once, with their L1 names; "" where nobody knows one by the parts alone."""


class Common(NamedTuple):
    """What the ids of one call share."""

    data_type: str
    tenant_id: Id | None
    contexts: Contexts

    def key(self, parts: Parts, one: Id, name: str = "") -> Key:
        """The validated key of an id; `name`: its L1 name, where that is known by the parts alone."""
        return parts.naming.key(self.data_type, one, self.tenant_id, *self.contexts, name=name)

    def around(self, parts: Parts) -> tuple[str, str] | None:
        """What stands before and behind an id in its L1 name; None where an id is not exactly str or int."""
        tenant: Any = self.tenant_id
        if tenant is None:
            tenant = parts.naming.tenant_of(self.data_type, None)
        if (type(tenant) is not str or tenant == "") and type(tenant) is not int:
            return None
        if type(self.data_type) is not str or any(type(c) not in _PLAIN for c in self.contexts):
            return None
        try:
            behind = "".join(ABSENT if c is None else f"{GIVEN}{c}" for c in self.contexts)
            return f"{tenant}{GIVEN}{self.data_type}{GIVEN}", behind
        except ValueError:  # an int of more digits than Python writes: no id
            return None


_PLAIN = (str, int, type(None))


async def from_memory(parts: Parts, common: Common, ids: Sequence[Id], found: dict[Id, Any]) -> Remaining:
    """Put what L1 serves at once into `found`, by the rule of a single hit; returns the others."""
    around = common.around(parts)
    if around is None or parts.reader.bypass.here():
        return [(one, "") for one in ids]
    remaining: Remaining = []
    for at in range(0, len(ids), MANY):
        if at:
            await asyncio.sleep(0)
        remaining += _some_from_memory(parts, around, ids[at : at + MANY], found)
    return remaining


def _some_from_memory(parts: Parts, around: tuple[str, str], ids: Sequence[Id], found: dict[Id, Any]) -> Remaining:
    before, behind = around
    entries, now, remaining = parts.node.l1.entries, parts.node.clock(), []
    for one in ids:
        name = ""
        if type(one) is str or type(one) is int:
            try:
                name = f"{before}{one}{behind}"
            except ValueError:
                name = ""
        entry = entries.get(name)
        if entry is not None:
            group = entry.group
            if now < entry.fast_until_s and now < group.valid_until_s:
                group.hits += 1.0
                if entry.freq < 3:
                    entry.freq += 1
                found[one] = entry.value
                continue
        remaining.append((one, name))
    return remaining


async def keys_of(parts: Parts, common: Common, remaining: Remaining) -> dict[Id, Key]:
    """The keys of these ids. Each is looked at before they are told apart: True would else pass for the 1 beside it."""
    keys = await in_turns(remaining, lambda one: common.key(parts, *one))
    return {one: key for (one, _), key in zip(remaining, keys, strict=True)}


def in_order(ids: Iterable[AskedT], found: Mapping[AskedT, Any]) -> dict[AskedT, Any]:
    """What was found, in the order in which it was asked for."""
    return {one: found[one] for one in ids if one in found}


async def read_keys(parts: Parts, keys: Mapping[AskedT, Key], after: Receipt | str | None) -> dict[AskedT, Any]:
    """The values of these keys by what asks for them, absent ones left out, asked for `MANY` at a time and shard."""
    by_shard: dict[int, list[AskedT]] = {}
    for one, key in keys.items():
        by_shard.setdefault(key.shard, []).append(one)
    found: dict[AskedT, Any] = {}
    for asking in by_shard.values():
        position = position_after(parts, after, keys[asking[0]])
        for at in range(0, len(asking), MANY):
            some = asking[at : at + MANY]
            values = await parts.reader.get_many([keys[one] for one in some], position)
            there = zip(some, values, strict=True)
            found.update((one, value) for one, value in there if value is not MISSING and value is not NOT_FOUND)
            if len(some) == MANY:
                await asyncio.sleep(0)  # what L1 has is given without any wait
    return found


# -- loads --------------------------------------------------------------------------------------------------------


class HowToLoad(NamedTuple):
    """What the ids of one call of `get_or_load_many` are to be loaded with."""

    loader: SourceFunction
    search: bool
    ttl: float | None
    tags: Sequence[str]
    after: Receipt | str | None
    use_memory: bool


async def load_keys(parts: Parts, common: Common, keys: Mapping[Id, Key], how: HowToLoad) -> dict[Id, Any]:
    """The values of these keys of one shard by their ids, found or loaded, `MANY` at a time; what the source has not is
    left out."""
    found: dict[Id, Any] = {}
    ttl_s = checked_ttl(how.ttl)
    ids, first = list(keys), next(iter(keys.values()))
    rules, position = parts.policies.rules(first.family.data_type), position_after(parts, how.after, first)
    tags = {one: tag_scopes(key, how.tags, rules) for one, key in keys.items()} if how.tags or rules.tags else {}
    tenant = first.family.tenant or None if common.tenant_id is None else common.tenant_id
    for at in range(0, len(ids), MANY):
        some = ids[at : at + MANY]
        joint = joint_load(parts, first, tenant, how.loader)
        requests = [
            Request(
                keys[one],
                joint.load_of(one),
                rules,
                position,
                how.search,
                ttl_s,
                tags.get(one, ()),
                how.use_memory,
                joint=joint,
            )
            for one in some
        ]
        answers = zip(some, await parts.loads.get_or_load_many(requests), strict=True)
        found.update((one, answer.value) for one, answer in answers if answer.value is not NOT_FOUND)
    return found


def joint_load(parts: Parts, key: Key, tenant: object, source: SourceFunction) -> JointLoad:
    """A source of many ids, to be called for keys beside this one; `ConfigError` for one that needs other arguments."""
    ctx = context.current()
    if isinstance(bind(source, [], tenant, ctx), WithPrevious):
        raise ConfigError(
            f"{name_of(source)} takes `previous`: what loads several ids is not told what is still cached"
        )
    rules = parts.policies.rules(key.family.data_type)
    return JointLoad(source, lambda ids: bind(source, ids, tenant, ctx), rules, parts.loads.flights)


class Sources(NamedTuple):
    """What a single `get_or_load` was given to load by, and for which ids: `loader` or `batch`."""

    loader: SourceFunction | None
    batch: SourceFunction | None
    batch_max: int
    resource_id: Id
    tenant_id: Id | None


def load_by(parts: Parts, key: Key, sources: Sources) -> LoadBy:
    """The load of one key, and what it shares with others where it is one of a batch; `ConfigError`, `ValueError`."""
    loader, batch, most, resource_id, tenant_id = sources
    tenant = key.family.tenant or None if tenant_id is None else tenant_id
    if batch is None:
        if loader is None:
            raise ConfigError("get_or_load needs a loader, or batch=, what loads several ids")
        rules = parts.policies.rules(key.family.data_type)
        bound = bind(loader, resource_id, tenant, context.current())
        return LoadBy(load_of(bound, rules), takes_previous=isinstance(bound, WithPrevious))
    if loader is not None:
        raise ConfigError("get_or_load takes a loader or batch=, not both")
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MANY:
        raise ValueError(f"batch_max must be an int of 1 to {MANY}, not {most!r}")
    joint = _coalesced(parts, key, tenant, batch, most)
    return LoadBy(joint.load_of(resource_id), joint)


def _coalesced(parts: Parts, key: Key, tenant: Any, batch: SourceFunction, most: int) -> JointLoad:
    """The joint load for a call, with others of this tick that are alike but for their ids."""
    ctx = context.current()
    shared = batch.source if isinstance(batch, StandIn) else batch  # of several threads: the first one's runs it
    try:
        hash(shared)
    except TypeError:
        raise ConfigError(
            f"{name_of(batch)} has no hash, so that nobody can tell which calls share it: give a function"
        ) from None
    around = id(ctx), block_here()  # of the others only the first one's: what it is called with, and reads itself
    alike = shared, most, *around, type(tenant), tenant, key.family.data_type, key.family.tenant, key.contexts
    make = partial(joint_load, parts, key, tenant, batch)
    return parts.loads.coalescing.joint(alike, ctx, most, make)
