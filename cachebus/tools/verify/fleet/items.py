"""The items that are read and written: the same ones, in the same order, in every process of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Any, Final, NamedTuple

from cachebus.keys.key import Key, Keyspace
from cachebus.tools.verify.fleet import data_types

TENANTS: Final = ("acme", "acme:config", "b*lt")
"""Two of them would collide with other names if names were joined without encoding."""
TAGS: Final = 6
CACHES: Final = 2
"""Caches in one node. The second has its own namespace, and its own database where the server has several."""

Contexts = tuple[str | None, str | None, str | None]
Place = tuple[str | None, str | None, str | None, str | None]
NO_CONTEXTS: Final[Contexts] = (None, None, None)


class Item(NamedTuple):
    """An item of the source, which has versions. `number` counts from 1."""

    number: int
    tenant: str | None
    data_type: str
    resource_id: str
    contexts: Contexts
    tags: tuple[str, ...]
    owned: bool
    """Whether `set` and `add` put its values into the cache. One node makes all its writes then, one at a time, since
    of two concurrent ones nobody could tell which is last. All other items are only ever loaded."""
    general: int
    """The number of the item that a search finds if this one is absent; its own number if there is none."""

    place: Place
    """Tenant and contexts, in the order in which the library's calls take them, after type and id."""
    cache_index: int = 0
    """Which of a node's caches it is in."""

    def value(self, version: int) -> Any:
        """Its value in this version; None where it is absent."""
        if data_types.is_absent(self.data_type, version):
            return None
        return data_types.make_value(self.data_type, self.number, version, self.tenant or "")

    def __str__(self) -> str:
        named = zip(("agent", "conv", "coll"), self.contexts, strict=True)
        contexts = "".join(f" {name}={part}" for name, part in named if part)
        elsewhere = " of the other namespace" if self.cache_index else ""
        return f"{self.tenant or '-'} {self.data_type} {self.resource_id}{contexts}{elsewhere}"


def make_items(caches: int = CACHES) -> list[Item]:
    """All items, by number. The list's first place is empty."""
    items: list[Any] = [None]
    for cache_index in range(caches):
        for tenant in TENANTS[: 1 if cache_index else None]:
            _add_tenant(items, tenant, cache_index)
    for i in range(10):
        _add(items, None, "system", f"s{i}")
    return items


def _add(
    items: list[Any],
    tenant: str | None,
    data_type: str,
    resource_id: str,
    contexts: Contexts = NO_CONTEXTS,
    *,
    tags: Sequence[str] = (),
    owned: bool = False,
    general: int = 0,
    cache_index: int = 0,
) -> int:
    number = len(items)
    place = tenant, *contexts
    items.append(
        Item(
            number, tenant, data_type, resource_id, contexts, tuple(tags), owned, general or number, place, cache_index
        )
    )
    return number


def _add_tenant(items: list[Any], tenant: str, cache_index: int) -> None:
    """Both caches have items of the same names, to see that they are never mixed up. The second has fewer."""
    some = 60 if cache_index == 0 else 10
    for i in range(some):
        _add(items, tenant, "config", f"c:{i}", tags=(f"plan:{i % TAGS}",), owned=True, cache_index=cache_index)
        _add(items, tenant, "page", f"{i}", tags=(f"t{i % TAGS}",), cache_index=cache_index)
    for i in range(some // 3):
        broad = _add(items, tenant, "answer", f"q{i}", cache_index=cache_index)
        contexts = f"a{i % 3}", None, f"c{i % 2}"
        _add(items, tenant, "answer", f"q{i}", contexts, general=broad, cache_index=cache_index)
        for data_type in ("quick", "profile", "blob", "odd"):
            _add(items, tenant, data_type, f"{i}", cache_index=cache_index)
        broad = _add(items, tenant, "remote", f"{i}", tags=(f"t{i % TAGS}",), cache_index=cache_index)
        if i % 2:
            _add(
                items,
                tenant,
                "remote",
                f"{i}",
                (f"a{i % 3}", None, None),
                tags=(f"t{i % TAGS}",),
                general=broad,
                cache_index=cache_index,
            )
        broad = _add(items, tenant, "maybe", f"{i}", cache_index=cache_index)
        if i % 2:
            _add(items, tenant, "maybe", f"{i}", (f"a{i % 3}", None, None), general=broad, cache_index=cache_index)
        _add(items, tenant, "claim", f"{i}", owned=True, cache_index=cache_index)
    for i in range(2 * some // 3):
        _add(items, tenant, "deed", f"{i}", cache_index=cache_index)
    for i in range(some // 10):
        _add(items, tenant, "profile", f"own {i}", owned=True, cache_index=cache_index)
        _add(items, tenant, "bulk", f"{i}", owned=i % 2 == 0, cache_index=cache_index)


def by_popularity(items: Sequence[Item], seed: str) -> list[Item]:
    """The items by popularity, in the same order on all nodes, for reads and for writes."""
    order = list(items)
    Random(seed).shuffle(order)
    return order


def popularity(count: int, skew: float) -> list[float]:
    """Cumulative weights by rank. The higher the skew, the more weight the first ones have."""
    return list(accumulate(1 / (rank + 1) ** skew for rank in range(count)))


def keys_of(items: Sequence[Item]) -> list[Key]:
    """The keys of these items, in a namespace of one shard."""
    space = Keyspace(1)
    return [space.key(i.data_type, i.resource_id, i.tenant, *i.contexts) for i in items if i is not None]
