"""What is too much to be sent at once: in pieces, or one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

T = TypeVar("T")
MadeT = TypeVar("MadeT")

PIECE_MAX: Final = 250
"""So many operations are sent at once: many more would hold up everybody else, here and at the server."""
PIECE_MAX_BYTES: Final = 8 * 1024 * 1024
"""And so many bytes: a server that is slow to take them refuses others' large ones meanwhile."""


def in_pieces(things: Iterable[T], size_bytes: Callable[[T], int]) -> Iterator[list[T]]:
    """The things in their order, some at a time: as many as may be sent at once, one at least."""
    piece: list[T] = []
    total = 0
    for thing in things:
        size = size_bytes(thing)
        if piece and (len(piece) == PIECE_MAX or total + size > PIECE_MAX_BYTES):
            yield piece
            piece, total = [], 0
        piece.append(thing)
        total += size
    if piece:
        yield piece


async def in_turns(things: Sequence[T], make: Callable[[T], MadeT]) -> list[MadeT]:
    """What is made of each; the event loop is let go in between, so that many hold nobody up."""
    made: list[MadeT] = []
    for at in range(0, len(things), PIECE_MAX):
        if at:
            await asyncio.sleep(0)
        made += map(make, things[at : at + PIECE_MAX])
    return made


class Room:
    """How much may be under way at once."""

    def __init__(self, most_bytes: int = PIECE_MAX_BYTES) -> None:
        self._most_bytes, self._used_bytes = most_bytes, 0
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def of(self, size_bytes: int) -> AsyncIterator[None]:
        """Inside it so many bytes are under way; it waits until there is room for them. What is more than may be is
        under way alone."""
        while self._used_bytes and self._used_bytes + size_bytes > self._most_bytes:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._used_bytes += size_bytes
        try:
            yield
        finally:
            self._used_bytes -= size_bytes
            waiting, self._waiting = self._waiting, []
            for turn in waiting:
                if not turn.done():
                    turn.set_result(None)
