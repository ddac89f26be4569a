"""Topics and groups under a worker, and what it says of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient

from cachebus import Settings
from cachebus.consumers.kafka import CommandsWorker


@asynccontextmanager
async def admin_of(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Who may do everything."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


def figure(worker: CommandsWorker, name: str) -> float:
    """One of its figures."""
    return worker.meters.registry.get_sample_value(f"cachebus_worker_{name}", {"worker": "kafka"}) or 0.0
