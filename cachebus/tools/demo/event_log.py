"""Where the writes that workers have invalidated stand in the shard's history, by the log of events that L2 keeps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cachebus.base.clock import OtherClock, monotonic
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Keyspace
from cachebus.l2.names import ShardNames
from cachebus.resp import Connection
from cachebus.tools.demo.history import DemoWrite
from cachebus.tools.demo.subjects import TENANT
from cachebus.tools.demo.trace import name_of
from cachebus.wire.event import CorruptEvent, decode

READ_AT_ONCE = 1_000
ASK = 5


class LoggedEvent(NamedTuple):
    """An invalidation in the log: when L2 made it, in monotonic seconds, and its position."""

    at_s: float
    epoch: int
    seq: int


async def read_event_log(connection: Connection, namespace: str) -> dict[str, list[LoggedEvent]]:
    """All invalidations in the log, by the key's L1 name, in order; `L2Unavailable`."""
    server_clock = OtherClock()
    for _ in range(ASK):
        asked_s = monotonic()
        seconds, micros = await connection.call("TIME")
        server_clock.learn(int(seconds) + int(micros) / 1e6, asked_s, monotonic())
    log, after = ShardNames(namespace, 0).log, "-"
    found: dict[str, list[LoggedEvent]] = {}
    while True:
        entries = await connection.call("XRANGE", log, after, "+", "COUNT", str(READ_AT_ONCE))
        for entry_id, fields in entries:
            _note(found, fields, server_clock.offset_s)
            after = f"({entry_id.decode()}"
        if len(entries) < READ_AT_ONCE:
            return found


def _note(found: dict[str, list[LoggedEvent]], fields: Sequence[bytes], offset_s: float) -> None:
    try:
        event = decode(fields[1])
    except CorruptEvent:
        raise L2Unavailable("the log of events holds something else") from None
    for key in event.keys:
        place = LoggedEvent(event.published_us / 1e6 - offset_s, int(event.epoch, 16), event.seq)
        found.setdefault(key, []).append(place)


def position_writes(writes: Iterable[DemoWrite], events: dict[str, list[LoggedEvent]]) -> tuple[list[DemoWrite], int]:
    """The writes with the position of the first event for their key after their commit began: from then on the promise
    holds. `called_s` is when the commit began, `returned_s` when L2 made the event. And how many writes have no
    event."""
    keyspace, found, lost = Keyspace(1), [], 0
    for write in writes:
        places = events.get(keyspace.key(*name_of(write.word), TENANT).l1, [])
        at = bisect_left(places, (write.called_s,))
        if at == len(places):
            lost += 1
        else:
            found.append(write._replace(returned_s=places[at].at_s, epoch=places[at].epoch, seq=places[at].seq))
    return found, lost
