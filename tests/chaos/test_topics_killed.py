"""The worker of Debezium's topics killed by SIGKILL at random moments under load: nothing that was committed is missed.

`python -m tests.chaos.test_topics_killed 200` does so two hundred times. CACHEBUS_SEED=N plays one seed again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.history import seed_to_try
from tests.support.topics_killed import killed

KILLS = 3


async def test_the_worker_of_topics_killed_at_random_loses_nothing(kafka: KafkaServer, redis_url: str) -> None:
    seed = seed_to_try()
    assert await topics_killed(kafka.address, redis_url, KILLS, seed) > KILLS, f"seed {seed}"


async def topics_killed(kafka: str, redis_url: str, kills: int, seed: int) -> int:
    """The worker that follows Debezium's topics."""
    topic, group = f"killed-{secrets.token_hex(4)}", f"group-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 2, 1)])
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all")
    await producer.start()

    async def write(number: int) -> None:
        source, row = {"schema": "shop", "table": "orders"}, {"id": number, "tenant_id": "acme", "customer_id": 1}
        envelope = {"op": "c", "before": None, "after": row, "source": source}
        await producer.send_and_wait(topic, json.dumps(envelope).encode(), partition=number % 2)

    async def seen() -> int:
        try:
            offsets = await admin.list_consumer_group_offsets(group)
        except GroupCoordinatorNotAvailableError:  # Kafka is about to make a place for it
            return 0
        return sum(max(0, offsets[one].offset) for one in map(TopicPartition, [topic] * 2, [0, 1]) if one in offsets)

    try:
        return await killed(
            redis_url,
            write,
            seen,
            kills,
            seed,
            *("--source", "kafka", "--bootstrap-servers", kafka, "--topics", topic, "--group", group),
            *("--session-timeout", "1"),
        )
    finally:
        await producer.stop()
        await admin.close()


ROUND = 20


def campaign(kills: int) -> None:
    """So many kills, on servers of their own."""
    with EmbeddedServer() as redis, KafkaServer() as kafka:
        done = 0
        while done < kills:
            now = min(ROUND, kills - done)
            seed = seed_to_try()
            rows = asyncio.run(topics_killed(kafka.address, redis.url, now, seed))
            done += now
            print(f"topics: killed {done} times (seed {seed}), {rows} rows, none missed", flush=True)


if __name__ == "__main__":
    campaign(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
