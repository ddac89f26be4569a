"""What this node may not believe, whoever says so, until its own queued invalidations are delivered.

L2 does not know of them yet: it may still hold what they replace, and goes on as if nothing had happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cachebus.keys.key import ALL_TENANTS, Key, bucket_of_scope


class Blocked:
    """Keys, scopes and tags, each as often as it is queued. Scopes of all tenants have a name in each shard, so they
    count by shard."""

    __slots__ = ("_keys", "_scopes")

    def __init__(self) -> None:
        self._keys: Counter[str] = Counter()
        self._scopes: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._keys or self._scopes)

    def add(self, index: int, keys: Iterable[Key], scopes: Iterable[str]) -> None:
        """Block these from now on."""
        self._keys.update(key.l1 for key in keys)
        self._scopes.update(_in_shard(index, scopes))

    def remove(self, index: int, keys: Iterable[Key], scopes: Iterable[str]) -> None:
        """These were delivered once."""
        for counts, gone in ((self._keys, [key.l1 for key in keys]), (self._scopes, _in_shard(index, scopes))):
            counts.subtract(gone)
            for name in gone:
                if counts[name] <= 0:
                    del counts[name]

    def covers(self, key: Key, tags: Iterable[str] = ()) -> bool:
        """Whether a value under this key, with these tags, is among them."""
        if not self._scopes:
            return key.l1 in self._keys
        return self.covers_name(key.l1, key.shard, (*key.scopes, *tags))

    def covers_name(self, l1: str, index: int, scopes: Iterable[str]) -> bool:
        """The same of a key by its L1 name, which lies in these scopes and tags."""
        return l1 in self._keys or any(name in self._scopes for name in _in_shard(index, scopes))


def _in_shard(index: int, scopes: Iterable[str]) -> list[str]:
    return [f"{index}:{name}" if bucket_of_scope(name) == ALL_TENANTS else name for name in scopes]
