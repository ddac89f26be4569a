"""The worker of commands killed under load: a sample of `python -m tests.campaign.kafka_worker`."""

from __future__ import annotations

from cachebus.tools.servers.kafka import KafkaServer
from tests.campaign.kafka_worker import campaign
from tests.support.history import seeds

LIVES = 5


async def test_killed_at_any_moment_a_worker_loses_no_acknowledged_command(kafka: KafkaServer, redis_url: str) -> None:
    for seed in seeds(1):
        tally = await campaign(kafka.address, redis_url, lives=LIVES, seed=seed)
        told = tally.told(), f"replay: python -m tests.campaign.kafka_worker --calm --lives {LIVES} --seed {seed}"
        assert not tally.broken, "\n".join((*told, *tally.broken[:20]))
        assert tally.sent and tally.poison and tally.at_work, told
        assert tally.doubled, told  # else none was killed between the shared store and the commit
