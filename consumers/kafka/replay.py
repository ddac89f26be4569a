"""Replays dead letters of commands: it sends them to the commands' topic again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer

from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import quietly
from cachebus.bus.kafka.driver import by_any
from cachebus.bus.kafka.endings import Endings
from cachebus.consumers.kafka.worker import WorkerOptions
from cachebus.consumers.topics.dead_topic import LEAVE_S, DeadTopic, letter_of
from cachebus.consumers.topics.replay import each_letter
from cachebus.producers.kafka.message import ATTEMPTS, Seal
from cachebus.settings import Settings


async def replay(settings: Settings, options: WorkerOptions | None = None, *, limit: int | None = None) -> int:
    """Send the dead letters of this namespace's commands again as they came; returns how many.

    `limit`: the most letters to look at, the oldest first. Each keeps its attempts and its signature. Raises aiokafka's
    errors: some letters may be sent by then. If it is killed, some may be sent twice.
    """
    member = (options or WorkerOptions()).membership(settings)
    seal = Seal(settings)
    with quietly():
        brokers = Brokers(member.access)
        producer = by_any(AIOKafkaProducer(**member.clients, acks="all", enable_idempotence=True), brokers)
        sent_again = 0

        async def tried(records: Sequence[Any]) -> None:
            nonlocal sent_again
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
            sent_again += len(sent)

        endings = Endings()
        try:
            async with endings.running(producer):
                await each_letter(member, DeadTopic(member, brokers), tried, limit)
        finally:
            await endings.over(LEAVE_S)
            await brokers.forget()
    return sent_again
