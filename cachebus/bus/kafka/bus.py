"""The bus on Kafka: the script gives an event its seq, then this publishes it; what gets lost the probe finds.

Partition = shard mod partitions. A message's key names namespace, shard and epoch, so that namespaces and stores may
share a topic; its value is the event. Every node hears all partitions: no group, no commits. The log stays in L2, so
that a node that has missed an event reads that one there, as with the bus on Redis.

Each partition is a thing of its own: what becomes of one, or of the broker that leads it, decides nothing for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from cachebus.base.clock import Clock
from cachebus.base.losses import Losses
from cachebus.bus.kafka.client import KafkaAccess
from cachebus.bus.kafka.connection import unavailable
from cachebus.bus.kafka.ears import KafkaEars
from cachebus.bus.kafka.envelope import Envelope
from cachebus.bus.kafka.reach import Reach
from cachebus.bus.kafka.sender import KafkaSender
from cachebus.bus.kafka.taking import Taking
from cachebus.bus.kafka.topic import TopicLayout
from cachebus.bus.kafka.watch import TopicWatch
from cachebus.core.hearing import Hearing
from cachebus.core.ports import Listener
from cachebus.observe import Counters
from cachebus.resp import ended


class KafkaBus:
    """A `Bus` over a topic of Kafka."""

    store_publishes = False

    def __init__(
        self, access: KafkaAccess, envelope: Envelope, listener: Listener | None, counters: Counters, clock: Clock
    ) -> None:
        """`listener`: None for who only publishes."""
        self._access = access
        self._envelope = envelope
        self._watch = TopicWatch(access, clock, self._arrange)
        self._sender = KafkaSender(access, self._watch, counters, clock)
        self._ears: KafkaEars | None = None
        self.hearing = Hearing(access.topic, keys=envelope.fingerprints)
        """See `Bus.hearing`."""
        self.losses = Losses(clock)
        """None is noted: `trouble` tells of each partition."""
        if listener is not None:
            taking = Taking(envelope, listener, counters, clock)
            self._ears = KafkaEars(access, taking, self._watch, counters, clock)

    @property
    def connected(self) -> bool:
        """Whether the events of every shard can come and go now."""
        reaches = [*self._inbound, *self._sender.reaches]
        return bool(reaches) and all(reach.there for reach in reaches)

    def trouble(self, shard: int) -> str:
        """See `Bus.trouble`."""
        return (self._ears.trouble(shard) if self._ears else "") or self._sender.trouble(shard)

    @property
    def _inbound(self) -> Sequence[Reach]:
        """By partition: what `listen` is for. Of who only publishes: whether it can."""
        return self._sender.reaches if self._ears is None else self._ears.reaches

    def _arrange(self, layout: TopicLayout) -> None:
        self.hearing = self.hearing._replace(kafka=layout.cluster or self.hearing.kafka)
        self._sender.arrange(layout)
        if self._ears is not None:
            self._ears.arrange(layout)

    async def connect(self) -> None:
        """Listen from the topic's end, and be ready to publish; `BusUnavailable` if that can't be for any partition,
        though it is for the others then; `ConfigError`. What is lost later comes back by itself."""
        await self._watch.open()
        gains = [asyncio.create_task(reach.gain()) for reach in [*self._inbound, *self._sender.reaches]]
        try:
            # An attempt at a broker that hangs takes all of the time: those that are there wait for half of it.
            await asyncio.wait(gains, return_when=asyncio.FIRST_COMPLETED)
            patience_s = self._access.connect_timeout_s / 2
            done, pending = await asyncio.wait(gains, timeout=patience_s)
            for gain in done:
                gain.result()
            if pending:
                raise unavailable(self._access, f"some partitions are not there after {patience_s:g} s")
        finally:
            await ended(*gains)

    @property
    def opened(self) -> int:
        """How often there has been a connection to listen over."""
        return 0 if self._ears is None else self._ears.opened

    async def listen(self, shard: int) -> None:
        """See `Bus.listen`; `ConfigError` for a topic that can't carry events."""
        await self._watch.open()
        await self._of(shard).gain()

    async def deaf(self, shard: int) -> None:
        """See `Bus.deaf`."""
        if self._inbound:
            await self._of(shard).loss()

    def _of(self, shard: int) -> Reach:
        return self._inbound[shard % len(self._inbound)]

    async def close(self) -> None:
        """Stop listening; what was published is sent before, as far as the brokers take it in time."""
        try:
            await self._sender.flush()
        finally:
            try:
                await self._watch.close()  # first, as it has the others begin
            finally:
                try:
                    await self._sender.close()
                finally:
                    if self._ears is not None:
                        await self._ears.close()

    async def publish(self, shard: int, message: bytes) -> None:
        """Hand an event over. Neither waits nor fails: L2 has it already, and the nodes' probes look there."""
        key, headers = self._envelope.around(shard, message)
        self._sender.post(shard, key, message, headers)

    @asynccontextmanager
    async def answers(self, shard: int, question: str, *, sharded: bool) -> AsyncIterator[None]:
        """See `Bus.answers`: they come on the shard's partition, which every node reads."""
        await self.listen(shard)
        yield
