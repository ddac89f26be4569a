"""Dead letters of what came by Kafka, in a topic of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import MessageSizeTooLargeError, TopicAlreadyExistsError, for_code

from cachebus.bus.kafka_client import Endings
from cachebus.consumers.worker.dead import DeadLetter

LEAVE_S: Final = 5.0
"""How long it may take to say goodbye to brokers: those that do not answer find out by themselves."""
LARGEST_BYTES: Final = 900_000
"""What a broker and a producer take unless told otherwise, less the headers: more would never be taken."""
SETTINGS: Final = {"retention.ms": "-1", "cleanup.policy": "delete"}
"""Of the topic: nothing is ever removed, whatever the brokers do with others."""
LEAST_BYTES: Final = 1000
"""So much of a letter is kept in a topic that takes no more: nothing behind it must have to wait."""
KEPT_BYTES: Final = 1000
"""The longest key and header that are kept."""
KEYLESS: Final = "key-cut"
"""The header of a letter whose message had a key that is too long to be kept."""
OURS: Final = ("reason", "source", "attempts", KEYLESS)


class DeadTopic:
    """Keeps dead letters, as they came, with the reason in a header; a value of None stays None. Open it first."""

    def __init__(self, clients: Mapping[str, Any], topic: str) -> None:
        self.topic = topic
        self._clients = dict(clients)
        self._producer: AIOKafkaProducer | None = None
        self._endings = Endings()

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them: acknowledged by all replicas when this returns. Raises aiokafka's errors."""
        if self._producer is None:
            await self.ensure()
            producer = AIOKafkaProducer(**self._clients, acks="all", enable_idempotence=True)
            await self._endings.started(producer)
            self._producer = producer
        sent = [await self._sent(self._producer, letter, LARGEST_BYTES) for letter in letters]
        for letter, one in zip(letters, sent, strict=True):
            try:
                await one
            except MessageSizeTooLargeError:
                await (await self._sent(self._producer, letter, LEAST_BYTES))

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

    async def ensure(self) -> list[int]:
        """Make the topic, where it is not there: one partition, nothing of it ever removed. Gives its partitions."""
        async with self._endings.running(AIOKafkaAdminClient(**self._clients)) as admin:
            if self.topic in await admin.list_topics():
                (told,) = await admin.describe_topics([self.topic])
                return [partition["partition"] for partition in told["partitions"]]
            copies = min(3, len((await admin.describe_cluster())["brokers"]))
            reply = await admin.create_topics([NewTopic(self.topic, 1, copies, topic_configs=SETTINGS)])
            for _, code, *_ in reply.topic_errors:
                if code and for_code(code) is not TopicAlreadyExistsError:
                    raise for_code(code)(f"the topic {self.topic} can't be made: make it, or have somebody do so")
            return [0]


def _cut(letter: DeadLetter, most_bytes: int) -> str:
    size_bytes = len(letter.payload)
    return f" (cut: it is {size_bytes} bytes long, whole at its source)" if size_bytes > most_bytes else ""


def letter_of(record: Any) -> DeadLetter:
    """The letter that such a message holds."""
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
    """A small number that somebody has written into a header."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else otherwise
