"""What is too much to be sent at once goes in pieces, or waits for room."""

from __future__ import annotations

import asyncio

from cachebus.base.pieces import PIECE_MAX, PIECE_MAX_BYTES, Room, in_pieces


def test_pieces_are_as_large_as_they_may_be() -> None:
    sizes = [*([1] * (PIECE_MAX + 1)), PIECE_MAX_BYTES, PIECE_MAX_BYTES * 2, 1, PIECE_MAX_BYTES - 1, 1]
    pieces = list(in_pieces(sizes, int))
    assert [one for piece in pieces for one in piece] == sizes
    assert [len(piece) for piece in pieces] == [PIECE_MAX, 1, 1, 1, 2, 1]
    assert list(in_pieces([], int)) == []


async def test_who_finds_no_room_waits_and_who_leaves_makes_some() -> None:
    room, inside, leave = Room(10), [], asyncio.Event()

    async def sending(size: int) -> None:
        async with room.of(size):
            inside.append(size)
            await leave.wait()

    tasks = [asyncio.create_task(sending(size)) for size in (6, 4, 1, 30)]
    await asyncio.sleep(0)
    assert inside == [6, 4]
    tasks[2].cancel()  # one that leaves while it waits takes no room
    leave.set()
    await asyncio.wait(tasks)
    assert inside == [6, 4, 30]  # what is more than there is goes alone
    async with room.of(10):
        pass
