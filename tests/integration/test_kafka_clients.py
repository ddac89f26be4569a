"""The driver's clients are started and closed whole, whenever whoever waits for them gives up."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from cachebus.base.clock import monotonic
from cachebus.bus.kafka_client import Endings, quietly
from cachebus.tools.servers.kafka import KafkaServer

CLIENTS = [AIOKafkaAdminClient, AIOKafkaConsumer, AIOKafkaProducer]


@pytest.mark.parametrize("client", CLIENTS)
async def test_one_that_is_given_up_at_any_moment_of_its_start_leaves_no_connection(
    client: Callable[..., Any], kafka: KafkaServer
) -> None:
    endings = Endings()
    with quietly(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        for number in range(60):
            with suppress(TimeoutError):
                async with asyncio.timeout(number / 4000), endings.running(client(bootstrap_servers=kafka.address)):
                    break
        await endings.over(5.0)
        gc.collect()
    assert [str(one.message) for one in told if "AIOKafka" in str(one.message)] == []


async def test_whoever_closes_is_held_up_for_no_longer_than_he_says_though_nobody_answers(kafka: KafkaServer) -> None:
    endings = Endings()
    kafka.pause()
    with quietly(), suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await endings.started(AIOKafkaAdminClient(bootstrap_servers=kafka.address))
    began_s = monotonic()
    await endings.over(0.1)
    assert monotonic() - began_s < 5.0  # the driver's own bound is 40 s
