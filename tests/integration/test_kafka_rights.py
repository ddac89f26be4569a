"""The bus over a Kafka that does not allow a node all that it needs: who says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cachebus import Cache
from cachebus.bus.kafka import rights
from cachebus.errors import L2Unavailable
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import quick, until
from tests.support.command import cachebus
from tests.support.kafka_rights import DESCRIBE_CONFIGS, READ, TOPIC, WRITE, allow, deny, grant_all, guarded
from tests.support.logs import told
from tests.support.servers import to_be_had


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaServer]:
    """One that asks for rights."""
    with to_be_had(guarded, "Kafka") as server:
        yield server


@pytest.fixture
async def admin(broker: KafkaServer) -> AsyncIterator[AIOKafkaAdminClient]:
    """Who may do everything."""
    client = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
async def setup(redis_url: str, broker: KafkaServer, admin: AIOKafkaAdminClient) -> dict[str, Any]:
    """The settings of a topic that is there."""
    name = f"rights-{token_hex(4)}"
    await admin.create_topics([NewTopic(name, 2, 1, topic_configs={"retention.ms": "3600000"})])
    await grant_all(admin, name)
    at = {"bus": "kafka", "kafka_bootstrap_servers": broker.address, "kafka_topic": name, "kafka_partitions": 2}
    return {"url": redis_url, "namespace": name, "shards": 2, "connect_timeout_s": 1.0, **at}


def degraded(cache: Cache, *words: str) -> bool:
    """Whether its health names something with all of these words."""
    return any(all(word in one for word in words) for one in cache.health().degraded)


async def reconfigure(admin: AIOKafkaAdminClient, topic: str, configs: dict[str, str]) -> None:
    """Set these, and nothing else."""
    (answer,) = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])
    assert not answer.resources[0][0], answer


async def test_a_node_that_may_not_read_is_refused_with_what_to_allow(
    setup: dict[str, Any], admin: AIOKafkaAdminClient
) -> None:
    await deny(admin, TOPIC, setup["kafka_topic"], READ)
    with pytest.raises(L2Unavailable, match=r"TopicAuthorizationFailed.*--operation Read .*--topic rights-"):
        async with Cache(quick(**setup)):
            pass


async def test_read_that_is_revoked_is_told_and_its_return_too(
    setup: dict[str, Any], admin: AIOKafkaAdminClient
) -> None:
    async with Cache(quick(**setup)) as cache:
        await until(lambda: not cache.health().degraded)
        with told("WARNING") as lines:
            await deny(admin, TOPIC, setup["kafka_topic"], READ)
            await until(lambda: degraded(cache, "bus is out of reach for all shards", "--operation Read"))
        assert any("bus out of reach" in line and "TopicAuthorizationFailed" in line for line in lines)
        assert not cache.stats().bus_connected
        await allow(admin, TOPIC, setup["kafka_topic"], READ)
        await until(lambda: not cache.health().degraded)


async def test_write_that_is_revoked_is_told_until_events_go_again(
    setup: dict[str, Any], admin: AIOKafkaAdminClient
) -> None:
    async with Cache(quick(**setup)) as cache:
        await until(lambda: not cache.health().degraded)
        with told("WARNING") as lines:
            await deny(admin, TOPIC, setup["kafka_topic"], WRITE)

            async def refused() -> bool:
                await cache.invalidate("config", "k", tenant_id="acme")
                return degraded(cache, "of 1 of 2 shards", "TopicAuthorizationFailed", "--operation Write")

            await until(refused)
        assert any("could not be published" in line and "--operation Write" in line for line in lines)
        await allow(admin, TOPIC, setup["kafka_topic"], WRITE)

        async def well() -> bool:
            await cache.invalidate("config", "k", tenant_id="acme")
            return not cache.health().degraded

        await until(well)


async def test_a_topic_that_takes_no_event_as_too_large_is_told_with_what_to_set(
    setup: dict[str, Any], admin: AIOKafkaAdminClient
) -> None:
    await reconfigure(admin, setup["kafka_topic"], {"max.message.bytes": "120"})
    async with Cache(quick(**setup)) as cache:

        async def refused() -> bool:
            await cache.invalidate("config", "k", tenant_id="acme")
            return degraded(cache, "MessageSizeTooLarge", "--add-config max.message.bytes=1048588")

        await until(refused)


async def examined(setup: dict[str, Any]) -> list[Finding]:
    """What the doctor says of Kafka."""
    return [each for each in (await deployment_of(quick(**setup))).findings if each.check == "kafka"]


@pytest.mark.parametrize(("right", "named"), [(READ, "Read"), (WRITE, "Write")])
async def test_the_doctor_tells_of_a_right_that_is_missing(
    setup: dict[str, Any], admin: AIOKafkaAdminClient, right: int, named: str
) -> None:
    assert [each.level for each in await examined(setup)] == [Severity.OK]
    await deny(admin, TOPIC, setup["kafka_topic"], right)
    (found,) = await examined(setup)
    assert (found.level, f"may not {named} " in found.says) == (Severity.PROBLEM, True)
    assert found.otherwise.endswith(f" --operation {named} --topic {setup['kafka_topic']}")


async def test_the_doctor_says_that_it_may_not_see_how_the_topic_is_set_up(
    setup: dict[str, Any], admin: AIOKafkaAdminClient
) -> None:
    await deny(admin, TOPIC, setup["kafka_topic"], DESCRIBE_CONFIGS)
    (found,) = await examined(setup)
    assert (found.level, "DescribeConfigs" in found.otherwise) == (Severity.UNKNOWN, True)


async def test_the_doctor_says_so_where_no_broker_tells_of_rights(
    setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Kafka 2.3."""
    monkeypatch.setattr(rights._Question, "API_VERSION", 99)
    (found,) = await examined(setup)
    assert (found.level, "rights" in found.says) == (Severity.UNKNOWN, True)


async def test_the_doctor_tells_of_a_topic_that_takes_no_event(
    setup: dict[str, Any], admin: AIOKafkaAdminClient
) -> None:
    for size, level in (("120", Severity.PROBLEM), ("100000", Severity.ADVICE)):
        await reconfigure(admin, setup["kafka_topic"], {"max.message.bytes": size})
        (found,) = await examined(setup)
        assert (found.level, f"larger than {size} bytes" in found.says) == (level, True)
        assert found.otherwise.endswith("--add-config max.message.bytes=1048588")


async def test_tail_says_why_it_hears_no_more(
    setup: dict[str, Any], admin: AIOKafkaAdminClient, tmp_path: Path
) -> None:
    env = {
        f"CACHEBUS_{name.upper()}": str(setup[name])
        for name in ("url", "bus", "namespace", "kafka_topic", "kafka_bootstrap_servers")
    }
    async with Cache(quick(**setup)):
        with cachebus("tail", folder=tmp_path, env=env) as command:
            assert command.process.stderr is not None
            assert "listening" in await asyncio.to_thread(command.process.stderr.readline)
            await deny(admin, TOPIC, setup["kafka_topic"], READ)
            _, errors = await asyncio.to_thread(command.process.communicate)
    assert command.process.returncode == 2
    assert "TopicAuthorizationFailed" in errors
