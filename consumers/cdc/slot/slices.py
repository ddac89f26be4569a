"""The rows of one peek, a slice at a time: the next one is fetched while one is applied."""

from __future__ import annotations

import asyncio
from math import inf
from operator import itemgetter
from typing import Any, Final

FAR, NEAR = 512, 16
"""For so many rows ahead each row says what they take."""
SLICE_BYTES: Final = 8 << 20
PEEK: Final = f"""
SELECT lsn::text AS lsn, data,
       coalesce(sum(length(data)) OVER (ROWS BETWEEN 1 FOLLOWING AND {FAR} FOLLOWING), 0) AS far_bytes,
       coalesce(sum(length(data)) OVER (ROWS BETWEEN 1 FOLLOWING AND {NEAR} FOLLOWING), 0) AS near_bytes
FROM pg_logical_slot_peek_binary_changes(
  $1, NULL, $2, 'proto_version', '1', 'publication_names', convert_from($3, 'UTF8'))
"""
data_of: Final = itemgetter("data")
"""The message of a row."""
BEGIN: Final = "BEGIN READ ONLY; SET LOCAL lock_timeout = 0"
"""The SQL that begins a peek: it reads the catalogue, and waits for whoever has that locked."""
AS_IT_IS: Final = f"{BEGIN}; SET LOCAL client_encoding TO SQL_ASCII"
"""The SQL that begins a peek in which the server sends text as it is, without converting it to UTF-8."""


class Slices:
    """The slices of a cursor over `PEEK`. While rows are fetched ahead, its connection is in use."""

    def __init__(self, cursor: Any, timeout_s: float) -> None:
        self._cursor = cursor
        self._timeout_s = timeout_s
        self.over = False
        """Whether `next` has returned the last rows."""
        self._at_end = False
        """Whether the last rows were fetched."""
        self._ahead: asyncio.Task[list[Any]] | None = None
        self._far_bytes = self._near_bytes = inf
        """What the next `FAR` and `NEAR` rows take."""

    async def next(self, limit: int) -> list[Any]:
        """The next rows, none at the end: at most so many, and no more than take `SLICE_BYTES`, but for the last one.
        What was fetched ahead comes first, by itself. Raises the driver's errors, those of its fetch among them."""
        ahead, self._ahead = self._ahead, None
        rows = await (self._fetched(limit) if ahead is None else ahead)
        self.over = self._at_end
        return rows

    def fetch_ahead(self, limit: int) -> None:
        """Begin to fetch what `next` returns next. A row that fits into no slice is left to it: beside another slice
        there is no room for that."""
        if not self.over and self._far_bytes <= SLICE_BYTES:
            self._ahead = asyncio.create_task(self._fetched(limit, ahead=True), name="cachebus-cdc-ahead")

    @property
    def is_fetching(self) -> bool:
        """Whether rows are being fetched ahead."""
        return self._ahead is not None and not self._ahead.done()

    async def drop_ahead(self, *, at_once: bool = False) -> None:
        """Drop what was fetched ahead, whatever came of it: once that is over, or `at_once`."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if at_once:
                ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _fetched(self, limit: int, *, ahead: bool = False) -> list[Any]:
        rows: list[Any] = []
        left_bytes = SLICE_BYTES
        while not self._at_end and len(rows) < limit and left_bytes > 0:
            if ahead and self._far_bytes > left_bytes:
                break
            count = min(limit - len(rows), self._fitting(left_bytes))
            some = await self._cursor.fetch(count, timeout=self._timeout_s)
            self._at_end = len(some) < count or not some[-1]["far_bytes"]
            if some:
                self._far_bytes, self._near_bytes = some[-1]["far_bytes"], some[-1]["near_bytes"]
            left_bytes -= sum(map(len, map(data_of, some)))
            rows += some
        return rows

    def _fitting(self, left_bytes: int) -> int:
        """How many of the next rows take no more than this, as far as is known; at least one."""
        return FAR if self._far_bytes <= left_bytes else NEAR if self._near_bytes <= left_bytes else 1
