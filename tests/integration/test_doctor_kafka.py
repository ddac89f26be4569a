"""What the doctor says of Kafka, where that is the bus: whether the topic of events can be heard and written."""

from __future__ import annotations

import asyncio
from secrets import token_hex
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cachebus import Cache, ConfigError, Settings
from cachebus.bus.kafka import topic
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import quick, until
from tests.support.servers import SharedServers


@pytest.fixture
def setup(redis_url: str, kafka: KafkaServer) -> dict[str, Any]:
    """The settings of a topic of its own, which is yet to be made."""
    name = f"doctor-{token_hex(4)}"
    at = {"bus": "kafka", "kafka_bootstrap_servers": kafka.address, "kafka_topic": name, "kafka_partitions": 2}
    return {"url": redis_url, "namespace": name, "shards": 2, **at}


async def told(setup: dict[str, Any]) -> Finding:
    """What it says of Kafka."""
    (finding,) = [each for each in (await deployment_of(quick(**setup))).findings if each.check == "kafka"]
    return finding


async def made(setup: dict[str, Any], partitions: int, **configs: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=setup["kafka_bootstrap_servers"])
    await admin.start()
    await admin.create_topics([NewTopic(setup["kafka_topic"], partitions, 1, topic_configs=configs)])
    await admin.close()


async def deleted(setup: dict[str, Any]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=setup["kafka_bootstrap_servers"])
    await admin.start()
    await admin.delete_topics([setup["kafka_topic"]])
    await admin.close()


async def test_a_topic_that_nodes_use_is_well_and_one_that_is_not_there_yet_is_not_made(setup: dict[str, Any]) -> None:
    for _ in range(2):
        missing = await told(setup)
        assert (missing.level, "is not there" in missing.says) == (Severity.ADVICE, True)
    async with Cache(quick(**setup)):
        assert (await told(setup)).level is Severity.OK


async def test_a_topic_that_may_not_be_made_is_a_problem(setup: dict[str, Any]) -> None:
    """As for want of a right, or, here, since a name that is much like it is taken."""
    await made(setup | {"kafka_topic": f"{setup['kafka_topic']}_x"}, 1)
    setup["kafka_topic"] += ".x"
    found = await told(setup)
    assert found.level is Severity.PROBLEM
    assert "collides" in found.says
    assert f"kafka-topics.sh --bootstrap-server {setup['kafka_bootstrap_servers']} --create" in found.otherwise
    assert "start a node" not in found.otherwise


async def test_a_topic_that_is_gone_from_under_nodes_is_a_problem(
    setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cache(quick(**setup)) as cache:
        await until(lambda: cache.stats().bus_connected)

        async def gone(*_: Any) -> Any:
            raise ConfigError("this user may not make it")

        monkeypatch.setattr(topic, "_make", gone)
        await deleted(setup)

        async def missed() -> bool:
            return "is gone" in (await told(setup)).says

        await until(missed)
        found = await told(setup)
        assert (found.level, cache.stats().node in found.says) == (Severity.PROBLEM, True)
        assert f"kafka-topics.sh --bootstrap-server {setup['kafka_bootstrap_servers']} --create" in found.otherwise


async def test_brokers_that_are_away_are_told(setup: dict[str, Any]) -> None:
    found = await told(setup | {"kafka_bootstrap_servers": f"127.0.0.1:{free_port()}", "connect_timeout_s": 1.0})
    assert found.level is Severity.PROBLEM
    assert "Kafka at 127.0.0.1" in found.says


async def test_a_topic_that_cant_carry_events_is_told_with_what_mends_it(setup: dict[str, Any]) -> None:
    await made(setup, 2, **{"cleanup.policy": "compact"})
    found = await told(setup)
    assert found.level is Severity.PROBLEM
    assert "is compacted" in found.says
    assert f"kafka-configs.sh --bootstrap-server {setup['kafka_bootstrap_servers']} --alter" in found.says


async def test_too_few_partitions_are_an_advice(setup: dict[str, Any]) -> None:
    await made(setup, 1)
    found = await told(setup)
    assert (found.level, found.otherwise.split()[-2:]) == (Severity.ADVICE, ["--partitions", "2"])


async def test_a_leader_that_is_away_is_named_with_its_partitions(
    shared_servers: SharedServers, setup: dict[str, Any]
) -> None:
    pair = shared_servers.kafka_pair()
    setup |= {"kafka_bootstrap_servers": pair[0].address, "connect_timeout_s": 1.0}
    admin = AIOKafkaAdminClient(bootstrap_servers=pair[0].address)
    await admin.start()

    async def there() -> bool:
        return len((await admin.describe_cluster())["brokers"]) == len(pair)

    await until(there, within_s=60.0)
    await admin.create_topics([NewTopic(setup["kafka_topic"], -1, -1, replica_assignments={0: [1], 1: [2]})])
    await admin.close()
    await asyncio.to_thread(pair[1].pause)
    try:
        found = await told(setup)
    finally:
        pair[1].resume()
    assert found.level is Severity.PROBLEM
    assert "partition 1 of" in found.says


async def test_nothing_is_said_of_kafka_where_the_server_is_the_bus(redis_url: str) -> None:
    assert not [each for each in (await deployment_of(Settings(url=redis_url))).findings if each.check == "kafka"]
