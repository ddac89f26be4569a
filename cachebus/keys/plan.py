"""From what a caller names to what L2 is asked to replace: keys, scopes and tags, in one shard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

from cachebus.base.ids import Id, check_part, text_of
from cachebus.base.pieces import PIECE_MAX
from cachebus.base.unicode import is_unicode
from cachebus.cascade import WHOLE_SCOPE, CascadeTable, Target
from cachebus.errors import InvalidKey
from cachebus.keys.key import ALL_OF_SHARD, Key, Keyspace, everywhere, type_scope
from cachebus.wire import event as events

Contexts = tuple[Id | None, Id | None, Id | None]
LONGEST_REASON: Final = 200
AT_ONCE: Final = 500
"""Keys, and scopes and tags, of several invalidations that are joined into one."""
STEP_MAX: Final = 10_000
"""Keys and scopes of one invalidation: L2 serves nobody else until it is done with all of them (some 50 ms)."""
_RELATED = ("agent_id", "conversation_id", "collection_id")


def too_many() -> ValueError:
    """The error of a call that would take L2 too long."""
    return ValueError(
        f"one invalidation takes {STEP_MAX:,} keys and scopes, those of cascades and of contexts='all' included: "
        f"invalidate up to {AT_ONCE} targets at a time, or all of them by invalidate_scope, or by a tag"
    )


def trouble_of_reason(reason: object) -> str:
    """Why it can be none, for a message; "" where it can."""
    if not isinstance(reason, str) or not 0 < len(reason) <= LONGEST_REASON:
        return f"must be a text of 1 to {LONGEST_REASON} characters"
    return "" if is_unicode(reason) else "is not valid Unicode: it has a lone surrogate"


def target(data_type: str, resource_id: Id, contexts: Contexts) -> Target:
    """A target of these ids; the resource id "*" is the whole scope. `InvalidKey`."""
    return Target(data_type, resource_id, *contexts, text_of("resource_id", resource_id) == WHOLE_SCOPE)


def _related(related: Mapping[str, Any], around: Contexts) -> Target:
    unknown = set(related) - {"data_type", "resource_id", *_RELATED}
    if unknown or "data_type" not in related:
        raise ValueError(
            f"a related invalidation takes data_type, resource_id and context ids, not {sorted(map(str, unknown))}"
            if unknown
            else "a related invalidation needs a data_type"
        )
    agent, conversation, collection = (related.get(n, given) for n, given in zip(_RELATED, around, strict=True))
    return target(related["data_type"], related.get("resource_id", WHOLE_SCOPE), (agent, conversation, collection))


def coordinated(primary: Target, related: Sequence[Mapping[str, Any]], around: Contexts) -> list[Target]:
    """The targets of a coordinated invalidation; what is related inherits the context ids that it does not give."""
    return [primary, *(_related(one, around) for one in related)]


class Plan:
    """What one invalidation addresses: keys, scopes and tags, all in one shard."""

    __slots__ = ("called_s", "keys", "reason", "scopes", "shard", "source", "targets")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.keys: list[Key] = []
        self.scopes: list[str] = []
        self.called_s: float | None = None
        """When it was first called, where it is repeated, so that it grows no younger by that."""
        self.targets: dict[str, int] = {}
        self.reason = ""
        """Why, in its caller's words."""
        self.source = ""
        """Where a worker has it from: the place of a row or message."""

    def because(self, reason: str | None) -> Self:
        """Note why, if somebody says so; `ValueError` for what is no text of 1 to 200 characters. Returns itself."""
        if reason is not None:
            if wrong := trouble_of_reason(reason):
                raise ValueError(f"reason {wrong}")
            self.reason = reason
        return self

    def repeats(self, called_s: float) -> None:
        """It repeats what was first called at this time; of several the latest counts."""
        self.called_s = max(called_s, self.called_s or 0.0)

    def body(self, who: str, *, probe: bool = False) -> bytes:
        """The body of the event that tells of it: by whom, and whether nodes are to probe at once."""
        return events.encode_body([self.part(who)], probe=probe)

    def part(self, who: str) -> events.WritePart:
        """What it is in that event."""
        origin = f"{who} {self.source}" if self.source else who
        return events.WritePart([key.l1 for key in self.keys], self.scopes, origin, self.reason)


class Planner:
    """Makes plans; follows declared cascades."""

    def __init__(self, keyspace: Keyspace, cascades: CascadeTable) -> None:
        self._keyspace = keyspace
        self._cascades = cascades
        self.refused: list[str] | None = None
        """Why something that a cascade entails can't be named, where that is left out; None: it raises."""

    def sparing(self) -> Planner:
        """Another one, which leaves out what can't be named of cascades, and notes why."""
        other = Planner(self._keyspace, self._cascades)
        other.refused = []
        return other

    def targets(
        self, targets: Sequence[Target], tenant_id: object, *, all_contexts: bool = False, on_set: bool = False
    ) -> Plan:
        """What these targets and their cascades address; `InvalidKey`. `all_contexts`: a resource id without
        context ids stands for the id in every context."""
        plan = Plan(self._keyspace.family(tenant_id, targets[0].data_type).shard)
        for target in self._cascades.expand(targets, tenant_id, on_set=on_set, refused=self.refused):
            if self.refused is None or self._can_be_named(target, targets, tenant_id):
                self._address(plan, target, tenant_id, all_contexts=all_contexts)
        return plan

    async def many_targets(self, targets: Sequence[Target], tenant_id: object, *, all_contexts: bool = False) -> Plan:
        """What `targets` gives; the event loop is let go in between, so that many hold nobody up. `ValueError` for
        more than one step of L2 should take."""
        most = 0
        for one in targets:
            most += self.size(one.data_type, all_contexts=all_contexts)
        if len(targets) > AT_ONCE and most > STEP_MAX:
            raise too_many()
        plan = Plan(self._keyspace.family(tenant_id, targets[0].data_type).shard)
        for i, target in enumerate(self._cascades.expand(targets, tenant_id)):
            if i % PIECE_MAX == PIECE_MAX - 1:
                await asyncio.sleep(0)
            self._address(plan, target, tenant_id, all_contexts=all_contexts)
        return plan

    def _address(self, plan: Plan, target: Target, tenant_id: object, *, all_contexts: bool) -> None:
        """Have a plan address this target, too."""
        contexts = target.agent_id, target.conversation_id, target.collection_id
        plan.targets[target.data_type] = plan.targets.get(target.data_type, 0) + 1
        if target.whole:
            shard, name = self._keyspace.scope(tenant_id, target.data_type, *contexts)
            plan.scopes.append(name)
        else:
            key = self._keyspace.key(target.data_type, target.resource_id, tenant_id, *contexts)
            shard = key.shard
            plan.keys.append(key)
            if all_contexts and key.contexts == (None, None, None):
                plan.scopes.append(everywhere(key))
        if shard != plan.shard:
            raise InvalidKey("one invalidation can't span tenants")

    def _can_be_named(self, target: Target, given: Sequence[Target], tenant_id: object) -> bool:
        """Whether it is given, or no cache refuses its name; else it is noted why."""
        if target.whole or target in [one.in_text() for one in given]:
            return True
        contexts = target.agent_id, target.conversation_id, target.collection_id
        try:
            self._keyspace.key(target.data_type, target.resource_id, tenant_id, *contexts)
        except InvalidKey as error:
            assert self.refused is not None
            self.refused.append(f"{target.data_type}: {error}")
            return False
        return True

    def expand(self, targets: Sequence[Target], tenant_id: object) -> list[Target]:
        """These targets and those of their cascades; `InvalidKey`."""
        return self._cascades.expand(targets, tenant_id)

    def resource(
        self, data_type: str, resource_id: Id, tenant_id: object, contexts: Contexts, *, all_contexts: bool = False
    ) -> Plan:
        """What `targets` gives for one resource, in less time where nothing else goes with it; `InvalidKey`."""
        return self.one(self._keyspace.key(data_type, resource_id, tenant_id, *contexts), all_contexts=all_contexts)

    def resources(
        self, data_type: str, ids: Iterable[tuple[str, str | None]], *, all_contexts: bool = False
    ) -> list[Plan]:
        """What `resource` gives for each resource id and tenant id in no context, in less time for many; `InvalidKey`
        where one of them is wrong."""
        keys = self._keyspace.keys(data_type, ids)
        if all_contexts or self._cascades.entails(data_type):
            return [self.one(key, all_contexts=all_contexts) for key in keys]
        return [self.one(key) if key.resource_id == WHOLE_SCOPE else _alone(key) for key in keys]

    def size(self, data_type: str, *, all_contexts: bool = False) -> int:
        """How many keys and scopes a resource of this type and what goes with it are at most."""
        return self._cascades.size(data_type) * (2 if all_contexts else 1)

    def one(self, key: Key, *, all_contexts: bool = False) -> Plan:
        """What `targets` gives for this key alone, in less time where nothing else goes with it."""
        data_type = key.family.data_type
        if all_contexts or key.resource_id == WHOLE_SCOPE or self._cascades.entails(data_type):
            target = Target(data_type, key.resource_id, *key.contexts)
            return self.targets([target], key.family.tenant or None, all_contexts=all_contexts)
        return _alone(key)

    def guarded(
        self,
        targets: Sequence[Sequence[Any]],
        tenant_id: object,
        scopes: Sequence[str | Mapping[str, Any]],
        tags: Sequence[str],
        *,
        all_contexts: bool,
    ) -> Plan:
        """What a write guard covers: resources with their cascades, scopes (a data type, or a mapping with it and
        a context id) and tags."""
        several = [target(t[0], t[1], (*t[2:], None, None, None)[:3]) for t in targets]
        several += [_related(s if isinstance(s, Mapping) else {"data_type": s}, (None, None, None)) for s in scopes]
        if several:
            plan = self.targets(several, tenant_id, all_contexts=all_contexts)
        else:
            plan = Plan(self._keyspace.tags(tenant_id, tags)[0])
        if tags:
            tagged = self.tags(tenant_id, tags)
            plan.scopes += tagged.scopes
            plan.targets |= tagged.targets
        return plan

    def scope(self, tenant_id: object, data_type: str | None, contexts: Sequence[object]) -> Plan:
        """What an invalidation of a whole scope addresses."""
        shard, name = self._keyspace.scope(tenant_id, data_type, *contexts)
        plan = Plan(shard)
        plan.scopes.append(name)
        plan.targets["*" if data_type is None else check_part("data_type", data_type)] = 1
        return plan

    def type_of_all_tenants(self, data_type: object) -> list[Plan]:
        """What an invalidation of a data type over all tenants addresses in each shard; `InvalidKey`."""
        name = check_part("data_type", data_type)  # None is everything to what follows
        return [self.all_tenants(name, shard) for shard in range(self._keyspace.shards)]

    def everything(self) -> list[Plan]:
        """What an invalidation of all that the namespace has addresses in each shard."""
        return [self.all_tenants(None, shard) for shard in range(self._keyspace.shards)]

    def all_tenants(self, data_type: object, shard: int) -> Plan:
        """What an invalidation of a data type, None for everything, addresses in one shard; `InvalidKey`."""
        if not 0 <= shard < self._keyspace.shards:
            raise InvalidKey(f"there are {self._keyspace.shards} shards, so none is {shard}")
        plan = Plan(shard)
        plan.scopes.append(ALL_OF_SHARD if data_type is None else type_scope(data_type))
        plan.targets["*" if data_type is None else check_part("data_type", data_type)] = 1
        return plan

    def tags(self, tenant_id: object, tags: Sequence[str]) -> Plan:
        """What an invalidation of tags addresses; `ValueError` for none, or for a single string."""
        if isinstance(tags, str | bytes) or not tags:
            raise ValueError("tags must be a non-empty sequence of strings")
        shard, scopes = self._keyspace.tags(tenant_id, tags)
        plan = Plan(shard)
        plan.scopes += scopes
        plan.targets["tags"] = len(scopes)
        return plan


def _alone(key: Key) -> Plan:
    plan = Plan(key.shard)
    plan.keys.append(key)
    plan.targets[key.family.data_type] = 1
    return plan


class _Gathered:
    """What several plans of one shard address, and who says so."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.scopes: dict[str, None] = {}
        self.targets: dict[str, int] = {}
        self._reasons: dict[str, None] = {}
        self._sources: list[str] = []

    def add(self, plan: Plan) -> None:
        """Take in another one."""
        for key in plan.keys:
            self.keys[key.l1] = key
        for scope in plan.scopes:
            self.scopes[scope] = None
        for data_type, count in plan.targets.items():
            self.targets[data_type] = self.targets.get(data_type, 0) + count
        if plan.reason:
            self._reasons[plan.reason] = None
        if plan.source:
            self._sources.append(plan.source)

    @property
    def reason(self) -> str:
        """Their reasons, as far as they fit."""
        return "; ".join(self._reasons)[:LONGEST_REASON]

    @property
    def source(self) -> str:
        """Where the first and the last of them come from."""
        ends = self._sources[:1] + self._sources[-1:]
        return " to ".join(dict.fromkeys(ends))


def joined(plans: Iterable[Plan]) -> list[Plan]:
    """As few plans as address the same: one a shard, or some where that would be too much for one step of L2."""
    by_shard: dict[int, _Gathered] = {}
    for plan in plans:
        found = by_shard.get(plan.shard)
        if found is None:
            found = by_shard[plan.shard] = _Gathered()
        found.add(plan)
    return [part for shard, found in by_shard.items() for part in _in_parts(shard, found)]


def _in_parts(shard: int, found: _Gathered) -> list[Plan]:
    all_keys, all_scopes = list(found.keys.values()), list(found.scopes)
    made: list[Plan] = []
    for at in range(0, max(len(all_keys), len(all_scopes)), AT_ONCE):
        plan = Plan(shard)
        plan.keys += all_keys[at : at + AT_ONCE]
        plan.scopes += all_scopes[at : at + AT_ONCE]
        plan.targets |= {} if made else found.targets
        plan.reason, plan.source = found.reason, found.source
        made.append(plan)
    return made
