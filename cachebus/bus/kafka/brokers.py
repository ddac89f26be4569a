"""Whichever broker answers: what any of them can say is asked of the next one soon, where one is silent. A broker of
another cluster, at an address that was ours, is none."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from cachebus.base.clock import monotonic
from cachebus.base.ignored import ignore_error
from cachebus.base.strangers import Strangers
from cachebus.bus.kafka.client import KafkaAccess
from cachebus.bus.kafka.connection import BrokerAddress, KafkaConnection, addresses_of, unavailable
from cachebus.resp import ended

NEXT_AFTER_S: Final = 0.1
"""So long a broker is waited for before another is asked besides."""
DECIDE_S: Final = 1.0
"""So long after one the next is waited for, of those that say which Kafka cluster is ours."""


class StrangerError(ConnectionError):
    """A broker of another cluster is there."""

    def __init__(self, address: BrokerAddress) -> None:
        super().__init__(f"a broker of another Kafka cluster answers at {address}, and is passed over")
        self.address = address


class Brokers:
    """The brokers of the settings, and those that they tell of. The connection to the one that answers is kept."""

    def __init__(self, access: KafkaAccess) -> None:
        self._access = access
        self._given = addresses_of(access.servers)
        self._known = deque(self._given)
        self._kept: KafkaConnection | None = None
        self._cluster: str | None = None
        self._is_decided = len(self._given) < 2
        self._deciding = asyncio.Lock()
        self._strangers = Strangers(monotonic)

    def recognise(self, cluster: str | None) -> bool:
        """A broker says this of its cluster: whether it is one of ours, as another one may stand at a former address.
        What the first of ours says is our cluster from then on."""
        is_strange = cluster is not None and self._cluster not in (None, cluster)
        if is_strange and not self._strangers.are_believed:
            return False
        self._cluster = cluster or self._cluster
        return True

    def know(self, addresses: Iterable[BrokerAddress]) -> None:
        """These are the brokers now, besides those of the settings."""
        wanted = [*self._given, *addresses]
        there = [address for address in self._known if address in wanted]
        self._known = deque(dict.fromkeys([*there, *wanted]))

    async def ask(self, request: Any) -> Any:
        """The first answer; `BusUnavailable` where there is none within `connect_timeout_s`. No connection is left but
        that of the last answer. Several may ask at once."""
        opened = [] if self._kept is None else [self._kept]
        self._kept = None
        failed = list[Exception]()
        try:
            async with asyncio.timeout(self._access.connect_timeout_s):
                await self._decide()
                answered, answer = await self._first(request, opened, failed)
                opened.extend(self._keep(answered))
                self._strangers.note_round(most_are_strange=False)
                return answer
        except TimeoutError:
            failed.append(TimeoutError(f"no answer in {self._access.connect_timeout_s:g} s"))
            self._has_failed(failed)
            raise unavailable(self._access, _most_telling(failed)) from None
        except Exception as error:
            self._has_failed(failed)
            raise unavailable(self._access, error) from error
        finally:
            await asyncio.gather(*(one.close() for one in opened if one is not self._kept))

    def _has_failed(self, failed: list[Exception]) -> None:
        """Nobody of ours has answered. Only if most of the addresses of the settings are a stranger's, ours may have
        been set up anew."""
        strange = {error.address for error in failed if isinstance(error, StrangerError)}
        self._strangers.note_round(most_are_strange=2 * len(strange.intersection(self._given)) > len(self._given))

    async def _decide(self) -> None:
        """Have most of the brokers of the settings say which Kafka cluster is ours: at one of the addresses another one
        may stand by now. Raises ConnectionError where another one has as many, or would have with those that are
        silent."""
        async with self._deciding:
            if self._is_decided:
                return
            votes = await self._votes()
            if votes:
                (most, count), *others = votes.most_common()
                silent = len(self._given) - votes.total()
                if others and others[0][1] >= count - silent:
                    raise ConnectionError("the brokers of the settings are of two Kafka clusters, and none has most")
                self._cluster = self._cluster or most or None
                self._is_decided = True

    async def _votes(self) -> Counter[str]:
        """How many say of each cluster that they are of it."""
        votes = Counter[str]()
        asking = {asyncio.create_task(self._cluster_at(address)) for address in self._given}
        wait_s: float | None = None
        try:
            while asking and not any(2 * count > len(self._given) for count in votes.values()):
                done, asking = await asyncio.wait(asking, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    if task.exception() is None:
                        votes[task.result()], wait_s = votes[task.result()] + 1, DECIDE_S
        finally:
            await ended(*asking)
        return votes

    async def _cluster_at(self, address: BrokerAddress) -> str:
        """What a broker says of its cluster; "" where it is too old to tell."""
        connection, cluster = await self._introduced(address)
        await connection.close()
        return cluster or ""

    async def _introduced(self, address: BrokerAddress) -> tuple[KafkaConnection, str | None]:
        """A connection to this one, and what it says of its cluster. Raises the driver's errors, and OSError."""
        from aiokafka.protocol.metadata import MetadataRequest

        connection = await KafkaConnection.open(self._access, address)
        try:
            said = await connection.ask(MetadataRequest([]), self._access.timeout_s)
        except BaseException:
            await connection.close()
            raise
        return connection, getattr(said, "cluster_id", None)

    def _keep(self, connection: KafkaConnection) -> list[KafkaConnection]:
        """Keep it instead of what somebody else has kept who asked meanwhile, if anybody has."""
        displaced, self._kept = self._kept, connection
        return [] if displaced is None else [displaced]

    async def _first(
        self, request: Any, opened: list[KafkaConnection], failed: list[Exception]
    ) -> tuple[KafkaConnection, Any]:
        """The first to answer, and the answer; else what the last one raised. Adds to `failed` what others did, and to
        `opened`, which has the kept connection: that one is asked first, and its broker anew last of all, as only the
        connection may be dead."""
        anew = sorted(self._known, key=[kept.address for kept in opened].count)
        ways = deque(partial(_asked, kept, request, self._access.timeout_s) for kept in opened)
        ways.extend(partial(self._asked_anew, address, request, opened) for address in anew)
        asking = set[asyncio.Task[tuple[KafkaConnection, Any]]]()
        try:
            while ways or asking:
                if ways:
                    task = asyncio.create_task(ways.popleft()(), name="cachebus-kafka-ask")
                    task.add_done_callback(ignore_error)
                    asking.add(task)
                done, asking = await asyncio.wait(
                    asking, timeout=NEXT_AFTER_S if ways else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    try:
                        return task.result()
                    except Exception as error:  # noqa: BLE001 (damaged answers raise anything: others may do better)
                        failed.append(error)
        finally:
            await ended(*asking)
        raise _most_telling(failed)

    async def _asked_anew(
        self, address: BrokerAddress, request: Any, opened: list[KafkaConnection]
    ) -> tuple[KafkaConnection, Any]:
        connection = await self.connected(address)
        opened.append(connection)
        return await _asked(connection, request, self._access.timeout_s)

    async def connected(self, address: BrokerAddress) -> KafkaConnection:
        """A connection to this one. Raises the driver's errors, and OSError, as where a broker of another cluster
        stands there: what was sent to it would be lost."""
        connection, cluster = await self._introduced(address)
        if not self.recognise(cluster):
            await connection.close()
            raise StrangerError(address)
        return connection

    async def ask_at(self, address: BrokerAddress, request: Any) -> Any:
        """The answer of this one; `BusUnavailable`."""
        try:
            connection = await self.connected(address)
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


def _most_telling(failed: list[Exception]) -> Exception:
    return next((error for error in failed if isinstance(error, StrangerError)), failed[-1])


async def _asked(connection: KafkaConnection, request: Any, timeout_s: float) -> tuple[KafkaConnection, Any]:
    return connection, await connection.ask(request, timeout_s)
