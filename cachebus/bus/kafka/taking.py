"""Which messages of the topic are events for this node, and may be believed."""

from __future__ import annotations

from typing import Any, Final

from cachebus.base.clock import Clock
from cachebus.base.log import logger
from cachebus.bus.kafka.envelope import Envelope
from cachebus.core.ports import Listener
from cachebus.observe import Counters

WARN_EVERY_S: Final = 60.0


class Taking:
    """Tells the listener of every message of this envelope's shards that it trusts."""

    def __init__(self, envelope: Envelope, listener: Listener, counters: Counters, clock: Clock) -> None:
        self._envelope = envelope
        self._listener = listener
        self._counters = counters
        self._clock = clock
        self._warn_from_s = float("-inf")

    def take(self, partition: str, record: Any) -> None:
        """A record of the driver's, from that topic and partition."""
        envelope, value = self._envelope, record.value or b""
        shard = envelope.shard_of(record.key)
        if shard is None:
            return
        if envelope.trusts(record.key, value, record.headers):
            self._listener(shard, value)
        else:
            # No probe is asked for: whoever may write to the topic could have all nodes probe without end. If an event
            # is missing for it, the next regular probe finds that.
            self._refuse(partition, record)

    def _refuse(self, partition: str, record: Any) -> None:
        self._counters.events_unsigned += 1
        now_s = self._clock()
        if now_s < self._warn_from_s:
            return
        self._warn_from_s = now_s + WARN_EVERY_S
        logger.warning(
            "messages on Kafka that no key of kafka_events_key (CACHEBUS_KAFKA_EVENTS_KEY) has signed are passed over: "
            "{} so far, the last {}@{}; nodes, producers and workers need the same keys",
            self._counters.events_unsigned,
            partition,
            record.offset,
        )
