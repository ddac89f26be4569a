"""The bus on Kafka: the script gives an event its seq, then this publishes it; what gets lost the probe finds.

Partition = shard mod partitions. A message's key names namespace, shard and epoch, so that namespaces and stores may
share a topic; its value is the event. Every node hears all partitions: no group, no commits. The log stays in L2, so
that a node that has missed an event reads that one there, as with the bus on Redis.
"""

from __future__ import annotations

import asyncio

from cachebus.base.backoff import Attempts
from cachebus.base.clock import Clock
from cachebus.bus.kafka_client import Endings, KafkaAccess
from cachebus.bus.kafka_ears import KafkaEars
from cachebus.bus.kafka_envelope import Envelope
from cachebus.bus.kafka_sender import KafkaSender
from cachebus.bus.kafka_topic import topic_there
from cachebus.core.ports import Listener
from cachebus.errors import BusUnavailable
from cachebus.observe import Counters
from cachebus.resp import ended, heard, shared


class KafkaBus:
    """A `Bus` over a topic of Kafka."""

    in_store = False

    def __init__(
        self, access: KafkaAccess, envelope: Envelope, listener: Listener | None, counters: Counters, clock: Clock
    ) -> None:
        """`listener`: None for who only publishes."""
        self._access = access
        self._endings = Endings()
        self._envelope = envelope
        self._ears = None if listener is None else KafkaEars(access, envelope, listener, counters, clock)
        self._sender = KafkaSender(access, counters, clock)
        self._attempt: asyncio.Task[None] | None = None
        self._attempts = Attempts(clock)

    @property
    def connected(self) -> bool:
        """Whether events can come and go now."""
        return (self._ears is None or self._ears.connected) and self._sender.connected

    async def connect(self) -> None:
        """Listen from the topic's end, and be ready to publish; `BusUnavailable`, `ConfigError`. What sends comes back
        by itself from then on: that it is lost makes nobody deaf."""
        if self._ears is not None:
            await self._ears.connect()
        elif not self._sender.kept:
            await topic_there(self._access, self._endings)
        await self._sender.keep()

    @property
    def opened(self) -> int:
        """How often there has been a connection to listen over."""
        return 0 if self._ears is None else self._ears.opened

    async def listen(self, shard: int) -> None:
        """See `Bus.listen`: one topic carries all shards, and one attempt is for all."""
        if self._sender.kept and (self._ears is None or self._ears.connected):
            return
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(self._try(), name="cachebus-kafka-connect")
            self._attempt.add_done_callback(heard)
        await shared(self._attempt)

    async def _try(self) -> None:
        if self._attempts.made:
            self._attempts.over()
        await asyncio.sleep(self._attempts.wait_s)
        try:
            await self.connect()
        except BusUnavailable:
            self._attempts.over()
            raise
        self._attempts.succeeded()

    async def deaf(self, shard: int) -> None:
        """See `Bus.deaf`."""
        hearing = None if self._ears is None else self._ears.running
        if hearing is not None and self._sender.kept:
            await asyncio.wait([hearing])

    async def close(self) -> None:
        """Stop listening; what was published is sent before, as far as the broker takes it in time."""
        await ended(self._attempt)
        ears = [] if self._ears is None else [self._ears.close()]
        await asyncio.gather(self._sender.close(), *ears)
        await self._endings.over(self._access.timeout_s)

    async def publish(self, shard: int, message: bytes) -> None:
        """Hand an event over. Neither waits nor fails: L2 has it already, and the nodes' probes look there."""
        key, headers = self._envelope.around(shard, message)
        self._sender.post(shard, key, message, headers)
