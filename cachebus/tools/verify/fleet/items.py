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


class SourceItem(NamedTuple):
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


def make_items(caches: int = CACHES) -> list[SourceItem]:
    """All items, by number. The list's first place is empty."""
    items: list[Any] = [None]
    for cache_index in range(caches):
        for tenant in TENANTS[: 1 if cache_index else None]:
            # Both caches have items of the same names, to see that they are never mixed up. The second has fewer.
            _Maker(items, tenant, cache_index).add_all(60 if cache_index == 0 else 10)
    systems = _Maker(items, None)
    for i in range(10):
        systems.add("system", f"s{i}")
    return items


class _Maker:
    """Makes the items of one tenant, in one cache."""

    def __init__(self, items: list[Any], tenant: str | None, cache_index: int = 0) -> None:
        self._items, self._tenant, self._cache_index = items, tenant, cache_index

    def add(self, data_type: str, resource_id: str, *, tags: Sequence[str] = (), owned: bool = False) -> SourceItem:
        """An item without contexts."""
        number, place = len(self._items), (self._tenant, *NO_CONTEXTS)
        item = SourceItem(
            number,
            self._tenant,
            data_type,
            resource_id,
            NO_CONTEXTS,
            tuple(tags),
            owned,
            number,
            place,
            self._cache_index,
        )
        self._items.append(item)
        return item

    def add_narrower(self, broad: SourceItem, contexts: Contexts) -> None:
        """The same as a broad one, in contexts."""
        place = self._tenant, *contexts
        self._items.append(broad._replace(number=len(self._items), contexts=contexts, place=place))

    def add_all(self, some: int) -> None:
        """All but those of the system, of each data type about so many."""
        for i in range(some):
            self.add("config", f"c:{i}", tags=(f"plan:{i % TAGS}",), owned=True)
            self.add("page", f"{i}", tags=(f"t{i % TAGS}",))
        for i in range(some // 3):
            self.add_narrower(self.add("answer", f"q{i}"), (f"a{i % 3}", None, f"c{i % 2}"))
            for data_type in ("quick", "profile", "blob", "odd"):
                self.add(data_type, f"{i}")
            broad = self.add("remote", f"{i}", tags=(f"t{i % TAGS}",))
            if i % 2:
                self.add_narrower(broad, (f"a{i % 3}", None, None))
            broad = self.add("maybe", f"{i}")
            if i % 2:
                self.add_narrower(broad, (f"a{i % 3}", None, None))
            self.add("claim", f"{i}", owned=True)
        for i in range(2 * some // 3):
            self.add("deed", f"{i}")
        for i in range(some // 10):
            self.add("profile", f"own {i}", owned=True)
            self.add("bulk", f"{i}", owned=i % 2 == 0)


def by_popularity(items: Sequence[SourceItem], seed: str) -> list[SourceItem]:
    """The items by popularity, in the same order on all nodes, for reads and for writes."""
    order = list(items)
    Random(seed).shuffle(order)
    return order


def popularity(count: int, skew: float) -> list[float]:
    """Cumulative weights by rank. The higher the skew, the more weight the first ones have."""
    return list(accumulate(1 / (rank + 1) ** skew for rank in range(count)))


def keys_of(items: Sequence[SourceItem]) -> list[Key]:
    """The keys of these items, in a namespace of one shard."""
    space = Keyspace(1)
    return [space.key(i.data_type, i.resource_id, i.tenant, *i.contexts) for i in items if i is not None]
