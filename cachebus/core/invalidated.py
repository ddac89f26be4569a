"""The invalidated scopes of one bucket of tenants as a node remembers them: the last invalidation of each scope and
tag."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

PRUNED_AT_ONCE = 64


class InvalidatedScopes(dict[str, int]):
    """The seq of each scope's last invalidation; change it by `note` alone.

    Two queues beside it keep the order of arrival, which is about that of the seqs; some of their entries are outdated.
    The dictionary's own order would not do: to find its first key, Python walks over all that were deleted before it.
    """

    __slots__ = ("_scopes", "_seqs")

    def __init__(self, invalidated: Iterable[tuple[str, int]] = ()) -> None:
        super().__init__()
        self._scopes: deque[str] = deque()
        self._seqs: deque[int] = deque()
        for name, seq in invalidated:
            self.note(name, seq)

    def note(self, name: str, seq: int) -> bool:
        """An invalidation at this seq; one that is known already, or older, changes nothing. Gives whether the name is
        new."""
        known = self.get(name, 0)
        if seq > known:
            self[name] = seq
            self._scopes.append(name)
            self._seqs.append(seq)
        return not known

    def prune(self, low: int, more: int) -> int:
        """Forget some of those up to `low`: more than the `more` that have just come, and never all at once. Gives how
        many."""
        scopes, seqs, before = self._scopes, self._seqs, len(self)
        for _ in range(more + PRUNED_AT_ONCE):
            if not seqs or seqs[0] > low:
                break
            name, seq = scopes.popleft(), seqs.popleft()
            if self.get(name) == seq:
                del self[name]
        if len(seqs) > 2 * len(self) + PRUNED_AT_ONCE:  # some were invalidated over and over
            kept = [(name, seq) for name, seq in zip(scopes, seqs, strict=True) if self.get(name) == seq]
            self._scopes, self._seqs = deque(name for name, _ in kept), deque(seq for _, seq in kept)
        return before - len(self)


def forget_older_half(invalidated: dict[str, InvalidatedScopes], low: dict[str, int]) -> None:
    """There are too many invalidated scopes, by bucket: instead of the older half, nothing so old is believed any more
    (`low`)."""
    seqs = sorted(seq for its in invalidated.values() for seq in its.values())
    last = seqs[len(seqs) // 2]
    for bucket, its in list(invalidated.items()):
        gone = [seq for seq in its.values() if seq <= last]
        if gone:
            low[bucket] = max(low.get(bucket, 0), *gone)
            kept = invalidated[bucket] = InvalidatedScopes((name, seq) for name, seq in its.items() if seq > last)
            if not kept:
                del invalidated[bucket]
