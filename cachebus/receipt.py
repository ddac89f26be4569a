"""What a write or invalidation gives back: where it stands in the shard's history, and what it addressed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from cachebus.base.choices import Status
from cachebus.core.ports import Position

_NO_EPOCH = "0" * 16
_FORM = re.compile(r"([0-9]{1,5})\.(?:([0-9a-f]{16})\.([0-9]{1,16})|(pending|disabled|failed))").fullmatch


class Receipt(msgspec.Struct, frozen=True):
    """A write's receipt, and the session token for it: a read with `after=receipt` sees the write, on any node.

    `str(receipt)` is short enough for a header; `Receipt.parse` reads it back, checked, since it may come from outside.
    An invalidation of all tenants has a position in each shard: `parts`. Its `shard`, `epoch` and `seq` are the
    first's, and its text has about 23 bytes for each shard.
    """

    shard: int
    """The shard that was written, from 0."""
    epoch: str
    """The epoch of the shard in which the write was ordered: 16 hexadecimal digits."""
    seq: int
    """The write's position in that epoch; 0 where there is none."""
    status: Status = "applied"
    """"applied": L2 has the write. "pending": it waits to be applied, and the receipt stands for nothing yet.
    "disabled": the cache is off, nobody was told of the write, and the receipt stands for nothing."""
    stored: bool = True
    """False when nothing was stored: `add` found a value, a guard stood, the write is pending, or the cache is
    disabled."""
    targets: Mapping[str, int] = msgspec.field(default_factory=dict)
    """How many keys and scopes were addressed, by data type."""
    confirmed: tuple[str, ...] = ()
    """After `wait="nodes"`: the ids of the nodes that have applied it."""
    lapsed: tuple[str, ...] = ()
    """After `wait="nodes"`: the ids of those that have not, and may serve nothing from their memory until they do."""
    parts: tuple[Receipt, ...] = ()
    """Of an invalidation of several shards: the receipt in each that has it."""
    failed: tuple[int, ...] = ()
    """Of an invalidation of several shards that raised: those in which it is not sure to have happened."""

    @property
    def position(self) -> Position:
        """The write's point in the shard's history."""
        return Position(self.epoch.encode(), self.seq)

    def of(self, shard: int) -> Receipt:
        """The part that a read in this shard goes by; `ValueError` where the invalidation failed there."""
        if shard in self.failed:
            raise ValueError(f"the invalidation failed in shard {shard}: repeat it, and read after that one's receipt")
        if not self.parts:
            return self
        for part in self.parts:
            if part.shard == shard:
                return part
        raise ValueError(f"the receipt knows nothing of shard {shard}: it is of a namespace with fewer shards")

    def __str__(self) -> str:
        if self.parts:
            return ",".join([*map(str, self.parts), *(f"{shard}.failed" for shard in self.failed)])
        return f"{self.shard}.{self.epoch}.{self.seq}" if self.status == "applied" else f"{self.shard}.{self.status}"

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """The receipt that `str(receipt)` has written, without `targets` and nodes; `ValueError` for any other text."""
        found = [_FORM(one) for one in str(text).split(",")]
        parts = [cls._part(int(one[1]), *one.group(2, 3, 4)) for one in found if one is not None and one[4] != "failed"]
        failed = [int(one[1]) for one in found if one is not None and one[4] == "failed"]
        if None in found or not parts:
            raise ValueError("not a receipt: expected SHARD.EPOCH.SEQ as str(receipt) writes it")
        return joined(parts, failed) if len(found) > 1 else parts[0]

    @classmethod
    def _part(cls, shard: int, epoch: str | None, seq: str, status: str | None) -> Receipt:
        if epoch is None:
            return pending_receipt(shard) if status == "pending" else disabled_receipt(shard)
        return cls(shard, epoch, int(seq))


def pending_receipt(shard: int, targets: Mapping[str, int] | None = None) -> Receipt:
    """That of a write which waits to be applied, or has yet to be asked for."""
    return Receipt(shard, _NO_EPOCH, 0, status="pending", stored=False, targets=targets or {})


def disabled_receipt(shard: int) -> Receipt:
    """That of a write in a cache that is off: nothing was done."""
    return Receipt(shard, _NO_EPOCH, 0, status="disabled", stored=False)


def joined(parts: Sequence[Receipt], failed: Sequence[int] = ()) -> Receipt:
    """The receipt of one invalidation in several shards."""
    confirmed, lapsed = [set(part.confirmed) for part in parts], [set(part.lapsed) for part in parts]
    late = set().union(*lapsed)
    return Receipt(
        parts[0].shard,
        parts[0].epoch,
        parts[0].seq,
        status=next((status for status in ("pending", "disabled") if status in {p.status for p in parts}), "applied"),
        stored=all(part.stored for part in parts),
        targets=parts[0].targets,
        confirmed=tuple(sorted(set().union(*confirmed) - late)),
        lapsed=tuple(sorted(late)),
        parts=tuple(parts),
        failed=tuple(failed),
    )


def position_of(after: Receipt | str | None, shard: int, *, enabled: bool = True) -> Position | None:
    """The position that a read in this shard must have seen; `ValueError` for what is no receipt, a pending one, or one
    of an invalidation that failed there. One of a disabled cache only another such (not `enabled`) takes: each read of
    it asks the source, which has the write."""
    if after is None:
        return None
    receipt = (after if isinstance(after, Receipt) else Receipt.parse(after)).of(shard)
    if receipt.status == "pending":
        raise ValueError("a pending receipt stands for nothing yet: read without `after`, or wait for it")
    if receipt.status == "disabled":
        if enabled:
            raise ValueError("a cache that was off told nobody of its write: its receipt stands for nothing")
        return None
    return receipt.position
