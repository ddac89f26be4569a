"""Dead letters of commands brought back into the commands' topic, to be tried once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer

from cachebus.bus.kafka_client import Endings, quietly
from cachebus.consumers.kafka.worker import WorkerOptions
from cachebus.consumers.topics.dead_topic import LEAVE_S, DeadTopic, letter_of
from cachebus.consumers.topics.replay import each_letter
from cachebus.producers.kafka.message import ATTEMPTS, Seal
from cachebus.settings import Settings


async def replay(settings: Settings, options: WorkerOptions | None = None, *, limit: int | None = None) -> int:
    """Send the dead letters of this namespace's commands again as they came, and give their number; `limit`: at most so
    many letters are looked at, the oldest. Each keeps the count of its attempts, and what it was signed with.

    Raises aiokafka's errors; what was brought back till then is. Killed meanwhile, it may bring some back twice.
    """
    member = (options or WorkerOptions()).membership(settings)
    seal = Seal(settings)
    with quietly():
        producer = AIOKafkaProducer(**member.clients, acks="all", enable_idempotence=True)
        brought = 0

        async def tried(records: Sequence[Any]) -> None:
            nonlocal brought
            letters = [letter_of(record) for record in records]
            sent = [
                await producer.send(
                    settings.kafka_commands_topic,
                    letter.payload,
                    key=letter.key,
                    headers=[*letter.headers, (ATTEMPTS, str(letter.attempts).encode())],
                )
                for letter in letters
                if not seal.is_for_others(dict(letter.headers))
            ]
            for one in sent:
                await one
            brought += len(sent)

        endings = Endings()
        try:
            async with endings.running(producer):
                await each_letter(member, DeadTopic(member.clients, member.dead_topic), tried, limit)
        finally:
            await endings.over(LEAVE_S)
    return brought
