"""Writes that others carried on: where they stand in the shard's history, read from the log that L2 keeps of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cachebus.base.clock import OtherClock, monotonic
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Keyspace
from cachebus.l2.names import ShardNames
from cachebus.resp import Connection
from cachebus.tools.demo.history import Write
from cachebus.tools.demo.subjects import TENANT
from cachebus.tools.demo.trace import name_of
from cachebus.wire.event import CorruptEvent, decode

READ_AT_ONCE = 1_000
ASK = 5


class Placed(NamedTuple):
    """One thing that the log tells: when it was said in L2, in monotonic seconds, and where it stands."""

    at_s: float
    epoch: int
    seq: int


async def told_of(connection: Connection, namespace: str) -> dict[str, list[Placed]]:
    """By a key's L1 name all that was said of it, in order; `L2Unavailable`."""
    server_clock = OtherClock()
    for _ in range(ASK):
        asked_s = monotonic()
        seconds, micros = await connection.call("TIME")
        server_clock.heard(int(seconds) + int(micros) / 1e6, asked_s, monotonic())
    log, after = ShardNames(namespace, 0).log, "-"
    found: dict[str, list[Placed]] = {}
    while True:
        entries = await connection.call("XRANGE", log, after, "+", "COUNT", str(READ_AT_ONCE))
        for entry_id, fields in entries:
            _note(found, fields, server_clock.offset_s)
            after = f"({entry_id.decode()}"
        if len(entries) < READ_AT_ONCE:
            return found


def _note(found: dict[str, list[Placed]], fields: Sequence[bytes], offset_s: float) -> None:
    try:
        event = decode(fields[1])
    except CorruptEvent:
        raise L2Unavailable("the log of events holds something else") from None
    for key in event.keys:
        place = Placed(event.published_us / 1e6 - offset_s, int(event.epoch, 16), event.seq)
        found.setdefault(key, []).append(place)


def placed(writes: Iterable[Write], told: dict[str, list[Placed]]) -> tuple[list[Write], int]:
    """The writes with the place of the first event that was said of their key after they began to commit: from then on
    the promise holds. `called_s` is the beginning of the commit, `returned_s` when it was said in L2. And the number of
    those of which nothing was said."""
    keyspace, found, lost = Keyspace(1), [], 0
    for write in writes:
        places = told.get(keyspace.key(*name_of(write.word), TENANT).l1, [])
        at = bisect_left(places, (write.called_s,))
        if at == len(places):
            lost += 1
        else:
            found.append(write._replace(returned_s=places[at].at_s, epoch=places[at].epoch, seq=places[at].seq))
    return found, lost
