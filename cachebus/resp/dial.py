"""From a name's addresses to a socket. A host that is gone, or a family that leads nowhere, swallows what is sent:
the next address is tried beside it, so that the first keeps nobody from the others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

from cachebus.resp.tasks import ended

NEXT_ADDRESS_S: Final = 0.25
"""So long after one address the next is tried, too; at once where that has refused."""


async def dialled(addresses: Sequence[str], port: int) -> socket.socket:
    """A socket to whichever address takes it first; OSError where all refuse. How long it lasts is the caller's to
    bound."""
    waiting, troubles = list(addresses), dict[str, OSError]()
    attempts: list[asyncio.Task[socket.socket]] = []
    found: socket.socket | None = None
    try:
        while waiting or any(not attempt.done() for attempt in attempts):
            if waiting:
                attempts.append(asyncio.create_task(_socket(waiting.pop(0), port), name="cachebus-dial"))
            pending = [attempt for attempt in attempts if not attempt.done()]
            limit_s = NEXT_ADDRESS_S if waiting else None
            done, _ = await asyncio.wait(pending, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                error = attempt.exception()
                if error is None:
                    found = attempt.result()
                    return found
                if not isinstance(error, OSError):
                    raise error
                troubles[str(error)] = error
    finally:
        try:
            await _given_back(attempts, found)
        except BaseException:  # cancelled just now: nobody else knows of it
            if found is not None:
                found.close()
            raise
    if len(troubles) == 1:
        raise next(iter(troubles.values()))
    raise OSError("; ".join(troubles) or "its name has no address")


async def _socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, (address, port))
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"Connect call failed {(address, port)}") from error
    except BaseException:
        made.close()
        raise
    return made


async def _given_back(attempts: Sequence[asyncio.Task[socket.socket]], but: socket.socket | None) -> None:
    """End the attempts; what another one has brought is closed."""
    await ended(*attempts)
    for attempt in attempts:
        if not attempt.cancelled() and attempt.exception() is None and attempt.result() is not but:
            attempt.result().close()
