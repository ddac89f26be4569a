"""The producer that hands invalidations to Kafka, as commands that a worker applies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from cachebus.base.choices import Wait
from cachebus.base.clock import monotonic
from cachebus.base.home import Home
from cachebus.base.log import logger
from cachebus.bus.kafka.sender import KafkaSender
from cachebus.bus.kafka.topic import TopicLayout
from cachebus.bus.kafka.watch import TopicWatch
from cachebus.cascade import Cascade
from cachebus.errors import BusUnavailable, ConfigError, InvalidationFailed, ValueTooLarge
from cachebus.observe import Counters
from cachebus.producers.base import Order, Producer, receipt_for_command
from cachebus.producers.command import encode
from cachebus.producers.kafka.message import LARGEST_BYTES, Seal, commands_access, key_of
from cachebus.receipt import Receipt
from cachebus.settings import Settings

TIMEOUT_S: Final = 5.0


class KafkaProducer(Producer):
    """Hands commands to Kafka: `async with KafkaProducer.open(settings) as producer: await producer.invalidate(...)`.

    A call returns when Kafka has the command (acks=all). If that is not sure within `timeout_s`, it raises
    `InvalidationFailed`: call it again, twice does no harm. It raises `ValueTooLarge` for a command of more than
    256 KiB. A worker (`cachebus worker kafka`) applies the command, so receipts are pending, and `wait="nodes"` is a
    `ValueError`.

    A missing topic is created. With `kafka_commands_key` each command is signed.
    """

    def __init__(
        self, settings: Settings | str | None = None, cascades: Iterable[Cascade] = (), *, timeout_s: float = TIMEOUT_S
    ) -> None:
        if not 0.01 <= timeout_s <= 600:
            raise ConfigError("a Kafka producer's timeout_s must be 0.01 to 600")
        self.settings = Settings.of(settings)
        super().__init__(self.settings, cascades)
        self._access = commands_access(self.settings, timeout_s)
        self._seal = Seal(self.settings)
        self._home: Home | None = None
        """Where it was opened; None while it is not open."""
        self._watch = TopicWatch(self._access, monotonic, self._arrange)
        self._sender = KafkaSender(self._access, self._watch, Counters(), monotonic)
        self._partitions: list[int] = []

    @classmethod
    def open(
        cls, settings: Settings | str | None = None, cascades: Iterable[Cascade] = (), *, timeout_s: float = TIMEOUT_S
    ) -> Self:
        """A producer, to be entered.

        `settings`: those of Kafka, `namespace` and `shards` matter; no Redis is connected to. `cascades`: what else is
        invalidated with a resource. `timeout_s`: how long a call waits for Kafka, in seconds, 0.01 to 600. Raises
        `ConfigError`. Entering it raises `BusUnavailable` where no broker answers, and `ConfigError` for a topic that
        can't carry commands.
        """
        return cls(settings, cascades, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        logger.use(self.settings.logs)
        try:
            await self._watch.open()
        except BaseException:
            await self._disconnect()
            raise
        self._home = Home()
        return self

    def _arrange(self, layout: TopicLayout) -> None:
        self._partitions = list(range(len(layout.leaders)))
        self._sender.arrange(layout)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Disconnect. Closing twice is harmless; calls under way fail. Raises `ConfigError` in another process or event
        loop than it was opened in."""
        if self._home is not None and not self._home.here:
            raise self._home.close_elsewhere("producer")
        self._home = None
        await self._disconnect()

    async def _disconnect(self) -> None:
        try:
            await self._watch.close()  # first, as it has the sender begin
        finally:
            await self._sender.close()

    async def _send(self, order: Order, wait: Wait | None) -> Receipt:
        receipt = receipt_for_command(order.plan, wait)
        if self._home is None:
            raise ConfigError("this producer is not open: use it inside `async with KafkaProducer.open(...)`")
        if not self._home.here:
            raise self._home.elsewhere("producer")
        command = order.command()
        value = encode(command)
        if len(value) > LARGEST_BYTES:
            raise ValueTooLarge(f"the command is {len(value)} bytes long, more than {LARGEST_BYTES}")
        try:
            async with asyncio.timeout(self._access.timeout_s):
                await self._acknowledged(value, key_of(command.tenant_id))
        except (BusUnavailable, TimeoutError) as error:
            why = str(error) or f"it was not acknowledged in {self._access.timeout_s:g} s"
            raise InvalidationFailed(
                f"the command is not sure to be in the topic {self._access.topic}: {why}"
            ) from error
        return receipt

    async def _acknowledged(self, value: bytes, key: bytes) -> None:
        """Send a message, and return when Kafka has it; `BusUnavailable`. What befalls one partition, or its leader,
        keeps no command of another one waiting."""
        from aiokafka.partitioner import DefaultPartitioner

        partition = DefaultPartitioner()(key, self._partitions, self._partitions) if self._partitions else 0
        answer = asyncio.get_running_loop().create_future()
        self._sender.post(partition, key, value, self._seal.headers(value), answer)
        await answer
