"""The connection on which a slot's worker does all but read the slot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cachebus.consumers.cdc.slot import reader

if TYPE_CHECKING:
    import asyncpg


class Beside:
    """An async context manager: who enters it has the connection alone. It is asked the quickest of questions first, as
    a way that is dropped without a word would keep a longer one waiting for its time-out."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> asyncpg.Connection:
        await self._lock.acquire()
        try:
            async with asyncio.timeout(reader.ALIVE_S):
                await self.connection.execute("SELECT 1")
        except TimeoutError:
            self.connection.terminate()  # so that nobody else waits for it
            self._lock.release()
            raise
        except BaseException:
            self._lock.release()
            raise
        return self.connection

    async def __aexit__(self, *_: Any) -> None:
        self._lock.release()

    async def keep(self) -> None:
        """Use it every second. The server ends it where nobody does: a worker that was frozen must not write what it
        knew before, since another has the slot by now."""
        while True:
            await asyncio.sleep(reader.KEEP_S)
            async with self:
                pass
