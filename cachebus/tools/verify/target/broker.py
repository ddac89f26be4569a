"""The Kafka broker that carries a run's events. It has a listener for each node, behind that node's proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from cachebus.bus.kafka.client import quietly
from cachebus.bus.kafka.endings import Endings
from cachebus.resp import Address
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.verify.fleet.setup import PARTITIONS, TOPIC

FORGET_S: Final = 5.0


class Broker:
    """The broker, and what faults may do to it. Blocking calls run in a thread, one after the other."""

    def __init__(self, server: KafkaServer, proxies: Mapping[int, Proxy]) -> None:
        self._server = server
        self._turn = asyncio.Lock()
        self.proxies = proxies
        """The proxy between each node and the broker, by node."""

    def address(self, node: int) -> str:
        """The address that a node connects to."""
        return f"{HOST}:{self.proxies[node].port}"

    async def pause(self) -> None:
        """SIGSTOP."""
        await self._do(self._server.pause)

    async def resume(self) -> None:
        """SIGCONT."""
        await self._do(self._server.resume)

    async def kill(self) -> None:
        """SIGKILL."""
        await self._do(self._server.kill)

    async def start(self) -> None:
        """Start it, with what its directory holds."""
        await self._do(self._server.start)

    async def repair(self) -> None:
        """Repair it: it runs and answers when this returns."""
        for proxy in self.proxies.values():
            proxy.restore()
        if self._server.running:
            await self.resume()
        await self.start()

    async def empty(self) -> None:
        """Delete its data, so that it starts with an empty disk. To be called after `kill`."""
        await self._do(self._server.forget)

    async def forget(self) -> None:
        """Delete every message of the topic, as its retention does with old ones."""
        from aiokafka import TopicPartition
        from aiokafka.admin import RecordsToDelete

        every = RecordsToDelete(before_offset=-1)
        await self._asked(
            lambda admin: admin.delete_records({TopicPartition(TOPIC, number): every for number in range(PARTITIONS)})
        )

    async def delete_topic(self) -> None:
        """Delete the topic; nodes create it again."""
        await self._asked(lambda admin: admin.delete_topics([TOPIC]))

    async def widen_topic(self, partitions: int) -> None:
        """Give the topic so many partitions, if it has fewer."""
        from aiokafka.admin import NewPartitions

        await self._asked(lambda admin: admin.create_partitions({TOPIC: NewPartitions(partitions)}))

    async def _asked(self, ask: Callable[[Any], Awaitable[object]]) -> None:
        """Send it an administrative request; errors are ignored, as it may be killed or stopped."""
        from aiokafka.admin import AIOKafkaAdminClient
        from aiokafka.errors import KafkaError

        admin = AIOKafkaAdminClient(bootstrap_servers=self._server.address, request_timeout_ms=int(FORGET_S * 1000))
        with quietly(), suppress(KafkaError, OSError, TimeoutError):
            endings = Endings()
            try:
                async with asyncio.timeout(FORGET_S), endings.running(admin):
                    await ask(admin)
            finally:
                await endings.over(FORGET_S)

    async def _do(self, work: Callable[[], object]) -> None:
        async with self._turn:
            doing = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                await asyncio.shield(doing)
            except asyncio.CancelledError:
                await asyncio.wait([doing])  # the thread goes on: the next call must not run beside it
                raise


@asynccontextmanager
async def started_broker(nodes: int) -> AsyncIterator[Broker]:
    """A running broker, with a proxy for each node; `ConfigError` if Kafka can't be had."""
    async with AsyncExitStack() as stack:
        ports = {node: free_port(stack) for node in range(1, nodes + 1)}
        proxies = {
            node: await stack.enter_async_context(Proxy(dialer(Address(host=HOST, port=port))))
            for node, port in ports.items()
        }
        names = {node: f"NODE{node}" for node in ports}
        server = KafkaServer(listeners={names[node]: (ports[node], proxies[node].port) for node in ports})
        broker = Broker(server, proxies)
        try:
            await broker.start()
            yield broker
        finally:
            await asyncio.to_thread(server.stop)
