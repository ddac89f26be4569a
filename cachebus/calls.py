"""What the verbs of `Cache` share beyond their signatures: arguments checked, and put together for the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cachebus.assembly.factory import Parts
from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id, several
from cachebus.base.lifetimes import check_ttl
from cachebus.cascade import Target
from cachebus.core.ports import Position
from cachebus.decided import Decided
from cachebus.keys.key import Key
from cachebus.keys.naming import check_contexts, tag_scopes
from cachebus.keys.plan import Plan, target
from cachebus.reading.request import Joint, Load, Request
from cachebus.receipt import Receipt, position_of
from cachebus.writing.confirm import check_wait
from cachebus.writing.every_shard import invalidate_in_every_shard
from cachebus.writing.guard import WriteGuard, guard_time_s
from cachebus.writing.write import SetRequest

AMOUNT_LIMIT = 1 << 63
"""A counter has 64 bits, signed."""


def checked_ttl(ttl: float | None) -> float | None:
    """A call's time to live in seconds, None for the type's; `ValueError`."""
    return None if ttl is None else check_ttl(ttl)


def checked_amount(value: object) -> int:
    """What is added to a counter, as a plain int; `ValueError` for what is none, or has more than 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a counter takes an int, not {type(value).__name__}")
    amount = int.__int__(value)  # what a subclass holds, however it writes or compares itself
    if not -AMOUNT_LIMIT <= amount < AMOUNT_LIMIT:
        raise ValueError(
            f"a counter takes amounts from -2**63 to 2**63 - 1, and this has {amount.bit_length()} bits beside its sign"
        )
    return amount


def position_after(parts: Parts, after: Receipt | str | None, key: Key) -> Position | None:
    """The position that a read of this key must have seen; `ValueError`, see `position_of`."""
    return None if after is None else position_of(after, key.shard, enabled=parts.settings.enabled)


def as_target(one: Sequence[Any]) -> Target:
    """What a target's caller means by it: data type, resource id and context ids. `ValueError` for no such sequence,
    `InvalidKey`."""
    if isinstance(one, Target):
        return one
    if isinstance(one, str | bytes | bytearray) or not isinstance(one, Sequence) or not 2 <= len(one) <= 5:
        raise ValueError("a target is a data type and a resource id, and up to three context ids behind them")
    data_type, resource_id, *contexts = one
    return target(data_type, resource_id, (*contexts, None, None, None)[:3])


class LoadArguments(NamedTuple):
    """What `get_or_load` takes beside the ids and the loader, as its caller gave it."""

    after: Receipt | str | None
    search_hierarchy: bool
    ttl: float | None
    tags: Sequence[str]
    use_memory: bool
    refresh: bool


class LoadBy(NamedTuple):
    """By what a key is loaded."""

    load: Load
    joint: Joint | None = None
    takes_previous: bool = False


def load_request(parts: Parts, key: Key, by: LoadBy, given: LoadArguments) -> Request:
    """A read that may load."""
    rules = parts.policies.rules(key.family.data_type)
    return Request(
        key,
        by.load,
        rules,
        position_after(parts, given.after, key),
        given.search_hierarchy,
        checked_ttl(given.ttl),
        tag_scopes(key, given.tags, rules),
        given.use_memory,
        takes_previous=by.takes_previous,
        refresh=given.refresh,
        joint=by.joint,
    )


def set_request(parts: Parts, key: Key, value: object, ttl: float | None, tags: Sequence[str]) -> SetRequest:
    """A value to be stored, which replaces what cascades from it where they say so."""
    if isinstance(value, Decided):
        raise ValueError(f"{type(value).__name__} is what a loader gives: set takes the value itself")
    family = key.family
    ttl_s, rules = checked_ttl(ttl), parts.policies.rules(family.data_type)
    own = Target(family.data_type, key.resource_id, *key.contexts)
    plan = parts.planner.targets([own], family.tenant or None, on_set=True)
    return SetRequest(key, value, rules, plan, ttl_s, tag_scopes(key, tags, rules))


async def invalidate_plans(parts: Parts, plans: Sequence[Plan], wait: Wait | None, reason: str | None) -> Receipt:
    """Replace what these plans address, one of each shard."""
    plans = [plan.because(reason) for plan in plans]
    return await invalidate_in_every_shard(plans, lambda plan: parts.writer.invalidate(plan, wait=bool(wait)))


class Guarding(NamedTuple):
    """What `write_guard` guards, and for how long, as its caller gave it."""

    targets: Sequence[Sequence[Any]]
    tenant_id: Id | None
    scopes: Sequence[str | Mapping[str, Any]]
    tags: Sequence[str]
    contexts: ContextMatch
    timeout_s: float | None
    db_timeout_s: float | None
    wait: Wait | None
    reason: str | None


def guard(parts: Parts, guarding: Guarding) -> WriteGuard:
    """The guard, to be entered; what is wrong with the call is raised before."""
    scopes, tags, settings = guarding.scopes, guarding.tags, parts.settings
    targets = [as_target(one) for one in several("targets", guarding.targets)]
    check_wait(guarding.wait)
    check_contexts(guarding.contexts)
    if not targets and not scopes and not tags:
        raise ValueError("nothing to guard: no targets, scopes or tags")
    if isinstance(tags, str | bytes) or isinstance(scopes, str | bytes | Mapping):
        raise ValueError("tags and scopes must be sequences")
    tenant = parts.naming.tenant_of(targets[0].data_type if targets else None, guarding.tenant_id)
    plan = parts.planner.guarded(targets, tenant, scopes, tags, all_contexts=guarding.contexts == "all").because(
        guarding.reason
    )
    largest_bound_s = parts.node.largest[plan.shard].bound_ms / 1000
    time_s = guard_time_s(settings, guarding.timeout_s, guarding.db_timeout_s, largest_bound_s)
    return WriteGuard(parts.writing.guards, plan, time_s, parts.home, wait=bool(guarding.wait))
