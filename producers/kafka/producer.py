"""The producer that hands invalidations to Kafka, as commands that a worker applies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from cachebus.base.choices import Wait
from cachebus.base.home import Home
from cachebus.base.log import logger
from cachebus.bus.kafka.client import Endings, connecting, end_producer, quietly
from cachebus.bus.kafka.topic import topic_there
from cachebus.cascade import Cascade
from cachebus.errors import BusUnavailable, ConfigError, InvalidationFailed, ValueTooLarge
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
        self._opening = asyncio.Lock()
        self._link: _Link | None = None
        self._endings = Endings()

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
        await self._linked()
        self._home = Home()
        return self

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
        link, self._link = self._link, None
        if link is not None:
            link.end()
        await self._endings.over(4 * self._access.timeout_s)

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
                f"the command is not sure to be in Kafka at {self._access.servers}, topic {self._access.topic}: {why}"
            ) from error
        return receipt

    async def _acknowledged(self, value: bytes, key: bytes) -> None:
        """Send a message, and return when Kafka has it; `BusUnavailable`."""
        link = await self._linked()
        try:
            with link.used(), connecting(self._access):
                sent = await link.producer.send(self._access.topic, value, key=key, headers=self._seal.headers(value))
                await sent
        except (BusUnavailable, asyncio.CancelledError):
            # This link would go on sending what it holds in its own time, so the next call uses a new one.
            if self._link is link:
                self._link = None
            link.retire()
            raise

    async def _linked(self) -> _Link:
        """The present link, or a new one; `BusUnavailable`."""
        async with self._opening:
            if self._link is None:
                with connecting(self._access):
                    async with asyncio.timeout(self._access.connect_timeout_s):
                        await topic_there(self._access)  # the topic may have been deleted meanwhile
                        self._link = _Link(await self._started(), self._endings)
            return self._link

    async def _started(self) -> Any:
        from aiokafka import AIOKafkaProducer

        producer = AIOKafkaProducer(acks="all", enable_idempotence=True, linger_ms=0, **self._access.arguments())
        await self._endings.started(producer, partial(end_producer, producer))
        return producer


class _Link:
    """A producer of aiokafka, which several calls share."""

    def __init__(self, producer: Any, endings: Endings) -> None:
        self.producer = producer
        self._endings = endings
        self._uses = 0
        self._retired = False
        self._ended = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """While a call uses it, `retire` does not end it."""
        self._uses += 1
        try:
            yield
        finally:
            self._uses -= 1
            if self._retired:
                self.retire()

    def retire(self) -> None:
        """End it as soon as no call uses it any more."""
        self._retired = True
        if not self._uses:
            self.end()

    def end(self) -> None:
        """End it now, in a task of its own: calls that use it fail. Ending twice is harmless."""
        if not self._ended:
            self._ended = True
            with quietly():
                self._endings.add(asyncio.create_task(end_producer(self.producer)))
