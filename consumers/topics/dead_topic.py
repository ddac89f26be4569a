"""The topic that keeps dead letters of messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.driver import by_any
from cachebus.bus.kafka.endings import Endings
from cachebus.bus.kafka.topic import read_layout, there
from cachebus.consumers.topics.membership import Membership
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.errors import ConfigError

LEAVE_S: Final = 5.0
"""How long disconnecting may take. Brokers that do not answer notice by themselves."""
LARGEST_BYTES: Final = 900_000
"""The largest message that brokers take by default, less its headers. Longer payloads are cut."""
FOR_EVER_MS: Final = -1
LEAST_BYTES: Final = 1000
"""How much of a payload is kept if the topic takes less than `LARGEST_BYTES`, so that nothing behind it waits."""
KEPT_BYTES: Final = 1000
"""The longest key, and header, that are kept."""
KEYLESS: Final = "key-cut"
"""The header that marks a letter whose message had a key that is too long to be kept."""
OURS: Final = ("reason", "source", "attempts", KEYLESS)


class DeadTopic:
    """Keeps dead letters as they came, with the reason in a header. Connects when the first letter is put."""

    def __init__(self, member: Membership, brokers: Brokers) -> None:
        """`brokers`: who is asked. Who made them forgets them."""
        self.topic = member.dead_topic
        self.brokers = brokers
        self._access = replace(member.access, retention_ms=FOR_EVER_MS)
        self._clients = dict(member.clients)
        self._producer: AIOKafkaProducer | None = None
        self._endings = Endings()

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep these letters: all replicas have acknowledged them when this returns. Raises aiokafka's errors,
        `BusUnavailable`, and `ConfigError` where the topic can't be made. Some letters may be kept then, and will be
        there twice if they are put again."""
        try:
            await self._put(letters)
        except Exception:  # the driver's producer may not recover: the next call makes a new one
            producer, self._producer = self._producer, None
            if producer is not None:
                self._endings.add(asyncio.create_task(producer.stop()))
            raise

    async def _put(self, letters: Sequence[DeadLetter]) -> None:
        if self._producer is None:
            await self.ensure()
            producer = by_any(AIOKafkaProducer(**self._clients, acks="all", enable_idempotence=True), self.brokers)
            await self._endings.started(producer)
            self._producer = producer
        sent = [await self._sent(self._producer, letter, LARGEST_BYTES) for letter in letters]
        for letter, error in zip(letters, await asyncio.gather(*sent, return_exceptions=True), strict=True):
            if isinstance(error, MessageSizeTooLargeError):
                await (await self._sent(self._producer, letter, LEAST_BYTES))
            elif isinstance(error, BaseException):
                raise error

    async def _sent(self, producer: AIOKafkaProducer, letter: DeadLetter, most_bytes: int) -> asyncio.Future[object]:
        kept = [(name, value) for name, value in letter.headers if name not in OURS and len(value or b"") <= KEPT_BYTES]
        key = letter.key if letter.key is not None and len(letter.key) <= KEPT_BYTES else None
        sent: asyncio.Future[object] = await producer.send(
            self.topic,
            letter.payload[:most_bytes],
            key=key,
            headers=[
                *kept[:10],
                ("reason", (letter.reason + _cut(letter, most_bytes)).encode("utf-8", "replace")),
                ("source", letter.source.encode()),
                ("attempts", str(letter.attempts).encode()),
                *([(KEYLESS, b"1")] if key is None and (letter.key is not None or letter.key_cut) else []),
            ],
        )
        return sent

    async def aclose(self) -> None:
        """Give the connections back."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._endings.add(asyncio.create_task(producer.stop()))
        await self._endings.over(LEAVE_S)

    async def partitions(self) -> list[int]:
        """The topic's partitions; `ConfigError` if there is no such topic."""
        partitions = len((await read_layout(self._access, self.brokers)).leaders)
        if not partitions:
            raise ConfigError(f"there is no topic {self.topic}: nothing was set aside under this name")
        return [*range(partitions)]

    async def ensure(self) -> None:
        """Create the topic if it is missing, with one partition, from which nothing is ever removed."""
        await there(self._access, self.brokers)


def _cut(letter: DeadLetter, most_bytes: int) -> str:
    size_bytes = len(letter.payload)
    return f" (cut: it is {size_bytes} bytes long, whole at its source)" if size_bytes > most_bytes else ""


def letter_of(record: Any) -> DeadLetter:
    """The dead letter in a message of the topic."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers if name in OURS}
    kept = tuple((name, value) for name, value in record.headers if name not in OURS)
    return DeadLetter(
        record.value or b"",
        headers.get("reason", ""),
        headers.get("source", ""),
        count_of(headers.get("attempts", "1")),
        record.timestamp / 1000,
        record.key,
        kept,
        KEYLESS in headers,
    )


def count_of(text: str, otherwise: int = 1) -> int:
    """The number in a header; `otherwise` for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else otherwise
