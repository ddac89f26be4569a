"""What is read and written: the same items, in the same order, in every process of a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

from cachebus import Policy
from cachebus.keys import Key, Keyspace

TENANTS: Final = ("acme", "acme:config", "b*lt")
"""Two of them would be mistaken for something else if names were put together without encoding."""
TTL_S: Final = 600.0
"""Whatever becomes of a run, nothing that it stored outlives it by more."""
QUICK_TTL_S: Final = 3.0
TAGS: Final = 6
PADDING: Final = "x" * 200

POLICIES: Final = {
    "config": Policy(ttl_s=TTL_S),
    "page": Policy(ttl_s=TTL_S),
    "answer": Policy(ttl_s=TTL_S),
    "quick": Policy(ttl_s=QUICK_TTL_S, soft_ttl_s=1.0, fail_safe_s=5.0, ttl_jitter=0.2, retries=0),
    "blob": Policy(ttl_s=TTL_S, compress_over_bytes=100, copy=True),
    "system": Policy(ttl_s=TTL_S),
}
"""Each type takes another way through the library: plain, tagged, with contexts, expiring, copied, without tenant."""

Contexts = tuple[str | None, str | None, str | None]
Place = tuple[str | None, str | None, str | None, str | None]
NO_CONTEXTS: Final[Contexts] = (None, None, None)


class Item(NamedTuple):
    """Something with versions. `number` counts from 1."""

    number: int
    tenant: str | None
    data_type: str
    resource_id: str
    contexts: Contexts
    tags: tuple[str, ...]
    owned: bool
    """Whether values are put into the cache by `set` and `add`: its writes are then made by one node, one at a time,
    since two that race leave it to chance which comes last. All others are only ever loaded."""
    general: int
    """The item that a search finds if this one is absent; its own number if there is none."""

    place: Place
    """Tenant and contexts, as the library's calls take them behind type and id."""

    def value(self, version: int) -> list[Any]:
        """What the cache holds of it: whose it is, and which version."""
        value: list[Any] = [self.number, version, self.tenant or ""]
        return [*value, PADDING] if self.data_type == "blob" else value

    def __str__(self) -> str:
        named = zip(("agent", "conv", "coll"), self.contexts, strict=True)
        contexts = "".join(f" {name}={part}" for name, part in named if part)
        return f"{self.tenant or '-'} {self.data_type} {self.resource_id}{contexts}"


def make_items() -> list[Item]:
    """All of them, by their number; the first place is empty."""
    items: list[Any] = [None]

    def add(
        tenant: str | None, data_type: str, resource_id: str, contexts: Contexts = NO_CONTEXTS,
        *, tags: Sequence[str] = (), owned: bool = False, general: int = 0,
    ) -> int:  # fmt: skip
        number = len(items)
        place = tenant, *contexts
        items.append(
            Item(number, tenant, data_type, resource_id, contexts, tuple(tags), owned, general or number, place)
        )
        return number

    for tenant in TENANTS:
        for i in range(60):
            add(tenant, "config", f"c:{i}", tags=(f"plan:{i % TAGS}",), owned=True)
            add(tenant, "page", f"{i}", tags=(f"t{i % TAGS}",))
        for i in range(20):
            broad = add(tenant, "answer", f"q{i}")
            add(tenant, "answer", f"q{i}", (f"a{i % 3}", None, f"c{i % 2}"), general=broad)
            add(tenant, "quick", f"{i}")
            add(tenant, "blob", f"{i}")
    for i in range(10):
        add(None, "system", f"s{i}")
    return items


def popularity(count: int, skew: float) -> list[float]:
    """Cumulative weights by rank: the higher the skew, the more of all goes to the first."""
    return list(accumulate(1 / (rank + 1) ** skew for rank in range(count)))


def keys_of(items: Sequence[Item]) -> list[Key]:
    """Their keys, for one shard."""
    space = Keyspace(1)
    return [space.key(i.data_type, i.resource_id, i.tenant, *i.contexts) for i in items if i is not None]
