"""Dead letters of what came by Kafka, in a topic of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from consumers.dead import DeadLetter

TOPIC: Final = "cachebus.cdc.dead"


LARGEST_BYTES: Final = 900_000
"""What a broker and a producer take unless told otherwise, less the headers: more would never be taken."""


class DeadTopic:
    """Keeps dead letters, as they came, with the reason in a header; a value of None stays None. Open it first."""

    def __init__(self, clients: Mapping[str, Any], topic: str = TOPIC) -> None:
        self.topic = topic
        self._clients = dict(clients)
        self._producer: AIOKafkaProducer | None = None

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them: acknowledged by all replicas when this returns. Raises aiokafka's errors."""
        if self._producer is None:
            await self.ensure()
            producer = AIOKafkaProducer(**self._clients, acks="all", enable_idempotence=True)
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
            self._producer = producer
        sent = [
            await self._producer.send(
                self.topic,
                letter.payload[:LARGEST_BYTES],
                headers=[
                    ("reason", (letter.reason + _cut(letter)).encode()),
                    ("source", letter.source.encode()),
                    ("attempts", str(letter.attempts).encode()),
                ],
            )
            for letter in letters
        ]
        for one in sent:
            await one

    async def aclose(self) -> None:
        """Give the connections back."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def ensure(self) -> list[int]:
        """Make the topic, where it is not there: one partition, nothing of it ever removed. Gives its partitions."""
        admin = AIOKafkaAdminClient(**self._clients)
        try:
            await admin.start()
            if self.topic in await admin.list_topics():
                (told,) = await admin.describe_topics([self.topic])
                return [partition["partition"] for partition in told["partitions"]]
            copies = min(3, len((await admin.describe_cluster())["brokers"]))
            reply = await admin.create_topics([NewTopic(self.topic, 1, copies, topic_configs={"retention.ms": "-1"})])
            for _, code, *_ in reply.topic_errors:
                if code and for_code(code) is not TopicAlreadyExistsError:
                    raise for_code(code)(f"the topic {self.topic} can't be made: make it, or have somebody do so")
            return [0]
        finally:
            await admin.close()


def _cut(letter: DeadLetter) -> str:
    size_bytes = len(letter.payload)
    return f" (cut: it is {size_bytes} bytes long, whole at its source)" if size_bytes > LARGEST_BYTES else ""


def letter_of(record: Any) -> DeadLetter:
    """The letter that such a message holds."""
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    attempts = headers.get("attempts", "1")
    return DeadLetter(
        record.value or b"", headers.get("reason", ""), headers.get("source", ""),
        int(attempts) if attempts.isdecimal() else 1, record.timestamp / 1000,
    )  # fmt: skip
