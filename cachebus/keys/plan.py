"""From what a caller names to what L2 is asked to replace: keys, and marks of scopes and tags, in one shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cachebus.base.ids import Id, check_part, text_of
from cachebus.cascade import WHOLE_SCOPE, CascadeTable, Target
from cachebus.errors import InvalidKey
from cachebus.keys.key import ALL_OF_SHARD, Key, Keyspace, everywhere, type_scope
from cachebus.wire import event as events

Contexts = tuple[Id | None, Id | None, Id | None]
AT_ONCE: Final = 500
"""Keys, and scopes and tags, of several invalidations that are joined into one."""
_RELATED = ("agent_id", "conversation_id", "collection_id")


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
    """What one invalidation addresses: keys, and marks of scopes and tags, all in one shard."""

    __slots__ = ("called_s", "keys", "scopes", "shard", "targets")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.keys: list[Key] = []
        self.scopes: list[str] = []
        self.called_s: float | None = None
        """When it was first called, where it is repeated, so that it grows no younger by that."""
        self.targets: dict[str, int] = {}

    def repeats(self, called_s: float) -> None:
        """It repeats what was first called at this time; of several the latest counts."""
        self.called_s = max(called_s, self.called_s or 0.0)

    def body(self, origin: str, *, probe: bool = False) -> bytes:
        """The body of the event that tells of it: by whom, and whether nodes are to probe at once."""
        return events.encode_body([events.WritePart([key.l1 for key in self.keys], self.scopes, origin)], probe=probe)


class Planner:
    """Makes plans; follows declared cascades."""

    def __init__(self, keyspace: Keyspace, cascades: CascadeTable) -> None:
        self._keyspace = keyspace
        self._cascades = cascades

    def targets(
        self, targets: Sequence[Target], tenant_id: object, *, all_contexts: bool = False, on_set: bool = False
    ) -> Plan:
        """What these targets and their cascades address; `InvalidKey`. `all_contexts`: a resource id without
        context ids stands for the id in every context."""
        plan = Plan(self._keyspace.family(tenant_id, targets[0].data_type).shard)
        for target in self._cascades.expand(targets, tenant_id, on_set=on_set):
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
        return plan

    def expand(self, targets: Sequence[Target], tenant_id: object) -> list[Target]:
        """These targets and those of their cascades; `InvalidKey`."""
        return self._cascades.expand(targets, tenant_id)

    def resource(
        self, data_type: str, resource_id: Id, tenant_id: object, contexts: Contexts, *, all_contexts: bool = False
    ) -> Plan:
        """What `targets` gives for one resource, in less time where nothing else goes with it; `InvalidKey`."""
        return self.one(self._keyspace.key(data_type, resource_id, tenant_id, *contexts), all_contexts=all_contexts)

    def one(self, key: Key, *, all_contexts: bool = False) -> Plan:
        """What `targets` gives for this key alone, in less time where nothing else goes with it."""
        data_type = key.family.data_type
        if all_contexts or key.resource_id == WHOLE_SCOPE or self._cascades.entails(data_type):
            target = Target(data_type, key.resource_id, *key.contexts)
            return self.targets([target], key.family.tenant or None, all_contexts=all_contexts)
        plan = Plan(key.shard)
        plan.keys.append(key)
        plan.targets[data_type] = 1
        return plan

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
        return self._in_each_shard(type_scope(data_type), check_part("data_type", data_type))

    def everything(self) -> list[Plan]:
        """What an invalidation of all that the namespace has addresses in each shard."""
        return self._in_each_shard(ALL_OF_SHARD, "*")

    def _in_each_shard(self, scope: str, told: str) -> list[Plan]:
        plans = [Plan(shard) for shard in range(self._keyspace.shards)]
        for plan in plans:
            plan.scopes.append(scope)
            plan.targets[told] = 1
        return plans

    def tags(self, tenant_id: object, tags: Sequence[str]) -> Plan:
        """What an invalidation of tags addresses."""
        shard, scopes = self._keyspace.tags(tenant_id, tags)
        plan = Plan(shard)
        plan.scopes += scopes
        plan.targets["tags"] = len(scopes)
        return plan


def joined(plans: Iterable[Plan]) -> list[Plan]:
    """As few plans as address the same: one a shard, or some where that would be too much for one step of L2."""
    by_shard: dict[int, tuple[dict[str, Key], dict[str, None], dict[str, int]]] = {}
    for plan in plans:
        parts = by_shard.get(plan.shard)
        if parts is None:
            parts = by_shard[plan.shard] = {}, {}, {}
        keys, scopes, targets = parts
        for key in plan.keys:
            keys[key.l1] = key
        for scope in plan.scopes:
            scopes[scope] = None
        for data_type, count in plan.targets.items():
            targets[data_type] = targets.get(data_type, 0) + count
    return [part for shard, parts in by_shard.items() for part in _in_parts(shard, *parts)]


def _in_parts(shard: int, keys: Mapping[str, Key], scopes: Mapping[str, None], targets: dict[str, int]) -> list[Plan]:
    all_keys, all_scopes = list(keys.values()), list(scopes)
    made: list[Plan] = []
    for at in range(0, max(len(all_keys), len(all_scopes)), AT_ONCE):
        plan = Plan(shard)
        plan.keys += all_keys[at : at + AT_ONCE]
        plan.scopes += all_scopes[at : at + AT_ONCE]
        plan.targets |= {} if made else targets
        made.append(plan)
    return made
