"""Tells where all that comes is set aside: a key that was changed, or a writer that has gone wrong, makes dead letters
of all. Time alone mends nothing, so a quiet spell makes nobody forget it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.commands import tries_again
from cachebus.consumers.worker.source import Item, Session, Source
from cachebus.consumers.worker.transactions import joined

ITEMS: Final = "items"
"""The part that is down where all that comes is set aside."""
ALL_DEAD: Final = 20
"""If so many in a row can't be applied, it is no accident of one of them."""
TIMES: Final = 5
APART_S: Final = 60.0
"""Nor is it where they came at so many times, each so long after the one before: a writer's slip, or an odd row that is
replayed at once, makes several at one time. So few an hour may be all that there is."""
MARGIN_S: Final = 60.0
"""Letters are looked for from so long before the first of a row on: what set it aside may have taken a while."""
PLACES: Final = 1000
"""So many places are remembered."""
ALL: Final = ""
UNSEEN: Final = "this worker can't see whether they still lie there, and is red until one is applied, or it starts anew"


class _Row(NamedTuple):
    """Items that were set aside, one after the other."""

    length: int
    times: int
    """At how many times they came, `APART_S` apart."""
    why: str
    origin: str
    """Where the last came from."""
    first_s: float
    time_s: float
    """When the last of `times` was."""
    last_s: float

    @property
    def is_all(self) -> bool:
        """Whether it is no accident."""
        return self.length >= ALL_DEAD or self.times >= TIMES

    def and_one(self, why: str, origin: str, now_s: float) -> _Row:
        """The row with one more."""
        length, times, time_s = self.length + 1, self.times, self.time_s
        if now_s - time_s >= APART_S:
            times, time_s = times + 1, now_s
        return _Row(length, times, why, origin, self.first_s, time_s, now_s)


class InARow:
    """Counts, in the source's order, the items of one worker that were set aside since the last one that was applied:
    of all, and of each place that they come from. A row ends in one of these ways, however long that takes:

    1. One is applied. What is ignored says nothing of those that caches need.
    2. Their letters are gone: somebody has replayed or removed them.
    3. What they come from is read by another worker now.
    """

    def __init__(self, worker: str, source: Source, health: WorkerHealth, clock: Clock = monotonic) -> None:
        self._worker = worker
        self._source = source
        self._health = health
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        """By where they came from, those that grew last behind the others; of all under `ALL`."""
        self._is_seen = True
        """Whether the last look could tell if their letters lie there."""
        health.up(ITEMS)

    def note(self, session: Session, items: Sequence[Item], aside: Mapping[int, str], silent: Collection[int]) -> None:
        """A batch is acknowledged. `aside`: why those of it were set aside that were, by the `id` of the item;
        `silent`: those that are ignored, or not done with. All others were applied."""
        if not aside and not self._rows:
            return
        now_s = self._clock()
        for item in items:
            if id(item) in silent:
                continue
            why, origin = aside.get(id(item)), session.origin(item)
            for place in {ALL, origin}:
                row = self._rows.pop(place, None)
                if why is not None:
                    row = row or _Row(0, 1, why, origin, now_s, now_s, now_s)
                    self._rows[place] = row.and_one(why, origin, now_s)
            if len(self._rows) > PLACES:
                del self._rows[min(self._rows, key=lambda place: self._rows[place].is_all)]
        self._tell()

    async def look(self, session: Session) -> None:
        """Forget the rows that have ended otherwise than by an item. To be called now and then; raises one of
        `Source.trouble`."""
        self._rows = {place: row for place, row in self._rows.items() if session.reads(row.origin)}
        firsts_s = [row.first_s for row in self._rows.values() if row.is_all]
        if firsts_s:
            began_s, first_s = self._clock(), min(firsts_s)
            lie = await session.has_letters(began_s - first_s + MARGIN_S)
            self._is_seen = lie is not None
            if lie is False:
                self._rows = {
                    place: row for place, row in self._rows.items() if row.first_s < first_s or row.last_s >= began_s
                }
        self._tell()

    def _tell(self) -> None:
        down = {place: row for place, row in self._rows.items() if row.is_all}
        if not down:
            self._health.up(ITEMS)
            return
        if ALL in down:
            down = {ALL: down[ALL]}
        said = [
            f"the last {row.length}{of and f' of {clean(of)}'} could not be applied, one after the other: {row.why}"
            for of, row in sorted(down.items())
        ]
        said += [self._source.if_all_is_dead, "" if self._is_seen else UNSEEN]
        where = f"they lie in {self._source.letters_at}" if self._source.letters_at else "they are set aside"
        remedy = f"{where}; once that is mended, {tries_again(self._worker, self._source)}"
        self._health.down(ITEMS, joined([*said, remedy]))
