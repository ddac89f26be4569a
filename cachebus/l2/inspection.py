"""One key in L2, inspected by plain commands: nothing is written, and no epoch begun, whatever the server's state.

The record is read first, and what might have replaced it after it: so what is found valid was valid then. A shard that
begins another epoch meanwhile is looked at again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from struct import Struct
from typing import Any, Final

from cachebus.core.ports import KeyFacts, NodeRow
from cachebus.errors import L2Unavailable
from cachebus.keys.key import ALL_TENANTS, Key, guard_name
from cachebus.l2.names import ShardNames
from cachebus.l2.replies import NAME, buckets_of, node_row
from cachebus.wire.record import CorruptRecord, parse

Ask = Callable[..., Awaitable[Any]]
"""What a plain command replies; `L2Unavailable`."""
TRIES_MAX: Final = 4
_META: Final = ("epoch", "seq", "server", "mode", "bound_ms", "born", "guard_ms")
_GUARD = Struct(">16sQ")


async def inspect_key(ask: Ask, names: ShardNames, key: Key) -> KeyFacts:
    """What L2 has of the key; `L2Unavailable`."""
    for _ in range(TRIES_MAX):
        found, epoch = await _once(ask, names, key)
        if found.epoch == epoch:
            return found
    raise L2Unavailable("the shard begins one epoch after the other")


async def _once(ask: Ask, names: ShardNames, key: Key) -> tuple[KeyFacts, bytes]:
    """What was found, and the epoch afterwards."""
    clock = await ask("TIME")
    epoch, seq, server, mode, bound_ms, born_us, guard_ms = await ask("HMGET", names.meta, *_META)
    fill_lease, _ = await _string(ask, names.fill_lease(key))
    record, nonsense = await _string(ask, names.record(key))
    own = (*key.scopes, *_tags(record))
    guarded = (guard_name(key), *own)
    marks = await _marks(ask, names, key, own)
    low = await ask("HMGET", names.buckets, key.family.bucket, ALL_TENANTS)
    ends = await ask("HMGET", names.guards, *guarded)
    rows = await ask("HGETALL", names.nodes)
    info = await ask("INFO", "replication")
    after, seq_after = await ask("HMGET", names.meta, "epoch", "seq")
    server_us = int(clock[0]) * 1_000_000 + int(clock[1])
    return KeyFacts(
        server_us=server_us,
        epoch=epoch or b"",
        seq=int(seq_after or seq or 0),
        is_over=server is None or b"master_replid:" + server not in info,
        sharded=mode == b"sharded",
        bound_ms=int(bound_ms or 0),
        record=record,
        nonsense=nonsense,
        fill_lease=fill_lease or b"",
        invalidated=marks,
        low=_low((key.family.bucket, ALL_TENANTS), low),
        guards={name: left for name, raw in zip(guarded, ends, strict=True) if (left := _standing(raw, server_us))},
        rows=_rows(rows),
        born_us=whole_of(born_us),
        guard_ms=whole_of(guard_ms),
    ), after or b""


def whole_of(field: bytes | None) -> int:
    """A number of `meta`; 0 of what is none, or damaged."""
    return int(field) if field is not None and field.isdigit() else 0


async def _string(ask: Ask, name: str) -> tuple[bytes | None, bool]:
    """What lies there, and whether it is none of ours."""
    try:
        return await ask("GET", name), False
    except L2Unavailable as error:
        if "WRONGTYPE" not in str(error):
            raise
        return None, True


def _tags(record: bytes | None) -> Iterable[str]:
    try:
        return () if record is None else parse(record).tags
    except CorruptRecord:
        return ()


async def _marks(ask: Ask, names: ShardNames, key: Key, own: Iterable[str]) -> dict[str, int]:
    """Those of these names, in the two buckets where any may lie."""
    asked, found = list(own), dict[str, int]()
    for bucket in (key.family.bucket, ALL_TENANTS):
        for name, score in zip(asked, await ask("ZMSCORE", names.marks(bucket), *asked), strict=True):
            if score is not None:
                found[name] = max(found.get(name, 0), int(float(score)))
    return found


def _low(buckets: tuple[str, str], states: list[bytes | None]) -> dict[str, int]:
    flat = [part for pair in zip(buckets, states, strict=True) if pair[1] for part in (pair[0].encode(), pair[1])]
    return {bucket: state.low for bucket, state in buckets_of(flat).items() if state.low}


def _standing(raw: bytes | None, now_us: int) -> list[int]:
    """When the guards in a field end that still stand."""
    whole = (raw or b"")[: len(raw or b"") // _GUARD.size * _GUARD.size]
    return sorted(end for _, end in _GUARD.iter_unpack(whole) if end > now_us)


def _rows(flat: list[bytes]) -> dict[str, NodeRow]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {node.decode(errors="replace"): node_row(row) for node, row in pairs if node != NAME}
