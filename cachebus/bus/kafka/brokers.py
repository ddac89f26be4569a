"""Whichever broker answers: what any of them can say is asked of the next one soon, where one is silent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from cachebus.base.clock import monotonic
from cachebus.base.strangers import Strangers
from cachebus.bus.kafka.client import KafkaAccess
from cachebus.bus.kafka.connection import Address, KafkaConnection, addresses_of, unavailable
from cachebus.resp import ended, heard

NEXT_AFTER_S: Final = 0.1
"""So long a broker is waited for before another is asked besides."""


class Brokers:
    """The brokers of the settings, and those that they tell of. The connection to the one that answers is kept."""

    def __init__(self, access: KafkaAccess) -> None:
        self._access = access
        self._given = addresses_of(access.servers)
        self._known = deque(self._given)
        self._kept: KafkaConnection | None = None
        self._cluster: str | None = None
        self._strangers = Strangers(monotonic)

    def are_of(self, cluster: str | None) -> bool:
        """Whether a broker that says this of its cluster is one of ours: another one may stand at a former address."""
        is_strange = cluster is not None and self._cluster not in (None, cluster)
        if is_strange and not self._strangers.are_believed():
            return False
        self._strangers.ours_answered()
        self._cluster = cluster or self._cluster
        return True

    def know(self, addresses: Iterable[Address]) -> None:
        """These are the brokers now, besides those of the settings."""
        wanted = [*self._given, *addresses]
        there = [address for address in self._known if address in wanted]
        self._known = deque(dict.fromkeys([*there, *wanted]))

    async def ask(self, request: Any) -> Any:
        """The first answer; `BusUnavailable` where there is none within `connect_timeout_s`. No connection is left but
        that of the answer."""
        opened = [] if self._kept is None else [self._kept]
        self._kept = None
        try:
            async with asyncio.timeout(self._access.connect_timeout_s):
                self._kept, answer = await self._first(request, opened)
                return answer
        except TimeoutError:
            raise unavailable(self._access, f"no answer in {self._access.connect_timeout_s:g} s") from None
        except Exception as error:
            raise unavailable(self._access, error) from error
        finally:
            await asyncio.gather(*(one.close() for one in opened if one is not self._kept))

    async def _first(self, request: Any, opened: list[KafkaConnection]) -> tuple[KafkaConnection, Any]:
        """The first to answer, and the answer; else what the last one raised. Adds to `opened`, which has the kept
        connection: that one is asked first, and its broker anew last of all, as only the connection may be dead."""
        anew = sorted(self._known, key=[kept.address for kept in opened].count)
        ways = deque(partial(_asked, kept, request, self._access.timeout_s) for kept in opened)
        ways.extend(partial(self._asked_anew, address, request, opened) for address in anew)
        asking, failed = set[asyncio.Task[tuple[KafkaConnection, Any]]](), Exception()
        try:
            while ways or asking:
                if ways:
                    task = asyncio.create_task(ways.popleft()(), name="cachebus-kafka-ask")
                    task.add_done_callback(heard)
                    asking.add(task)
                done, asking = await asyncio.wait(
                    asking, timeout=NEXT_AFTER_S if ways else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    try:
                        return task.result()
                    except Exception as error:  # noqa: BLE001 (damaged answers raise anything: others may do better)
                        failed = error
        finally:
            await ended(*asking)
        raise failed

    async def _asked_anew(
        self, address: Address, request: Any, opened: list[KafkaConnection]
    ) -> tuple[KafkaConnection, Any]:
        connection = await KafkaConnection.open(self._access, address)
        opened.append(connection)
        return await _asked(connection, request, self._access.timeout_s)

    async def ask_at(self, address: Address, request: Any) -> Any:
        """The answer of this one; `BusUnavailable`."""
        try:
            connection = await KafkaConnection.open(self._access, address)
            try:
                return await connection.ask(request, self._access.timeout_s)
            finally:
                await connection.close()
        except Exception as error:
            raise unavailable(self._access, error) from error

    async def forget(self) -> None:
        """Ask another one next: what this one says may be old."""
        kept, self._kept = self._kept, None
        if kept is not None:
            self._known = deque(sorted(self._known, key=kept.address.__eq__))
            await kept.close()


async def _asked(connection: KafkaConnection, request: Any, timeout_s: float) -> tuple[KafkaConnection, Any]:
    return connection, await connection.ask(request, timeout_s)
