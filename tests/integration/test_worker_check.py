"""`cachebus worker check`: what a worker would find, without starting it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from cachebus import Settings
from cachebus.consumers.outbox import create_tables
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import free_port
from tests.support.caches import until
from tests.support.changes import RULES, running, tell
from tests.support.command import ran
from tests.support.commands import committed, invalidation, put, setup, worker_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where commands run."""
    found = tmp_path / "folder"
    found.mkdir()
    return found


async def test_an_outbox_that_is_not_there_is_a_problem_with_its_remedy(
    database: str, redis_url: str, folder: Path
) -> None:
    options = ("--database-url", database, "--url", redis_url)
    status, out, errors = ran("worker", "check", "outbox", *options, folder=folder)
    assert status == 1, errors
    assert "ok            l2" in out
    assert "ok            database" in out
    assert "problem       table" in out
    assert "cachebus worker outbox --create-table" in out
    await create_tables(database)
    status, out, _ = ran("worker", "check", "outbox", *options, folder=folder)
    assert status == 0
    assert "problem" not in out
    await tell(database, ["ALTER TABLE cachebus_outbox DROP COLUMN attempts"])
    status, out, _ = ran("worker", "check", "--json", "outbox", *options, folder=folder)
    assert status == 1
    (wrong,) = [one for one in json.loads(out)["checks"] if one["problems"]]
    assert "attempts" in wrong["problems"][0]["problem"] + wrong["problems"][0]["remedy"]


async def test_what_is_out_of_reach_is_told_and_what_it_hides_is_not_checked(redis_url: str, folder: Path) -> None:
    url = f"postgresql://u:secret@127.0.0.1:{free_port()}/d"
    status, out, errors = ran("worker", "check", "outbox", "--database-url", url, "--url", redis_url, folder=folder)
    assert status == 1
    assert "problem       database" in out
    assert "not checked   table" in out
    assert "secret" not in out + errors
    gone = f"redis://u:secret@127.0.0.1:{free_port()}"
    status, out, errors = ran("worker", "check", "outbox", "--database-url", url, "--url", gone, folder=folder)
    assert "problem       l2" in out
    assert "secret" not in out + errors


async def test_a_check_of_a_slot_makes_nothing(database: str, redis_url: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    options = ("--rules", str(path), "--database-url", database, "--url", redis_url)
    status, out, errors = ran("worker", "check", "cdc", *options, folder=folder)
    assert status == 1, errors
    assert "there is no such table" in out


async def test_a_check_of_commands_makes_nothing_and_tells_what_will_be_missed(
    kafka: KafkaServer, redis_url: str, folder: Path
) -> None:
    settings = setup(redis_url, kafka.address, kafka_partitions=1)
    options = (
        "kafka",
        "--bootstrap-servers",
        kafka.address,
        "--topic",
        settings.kafka_commands_topic,
        "--namespace",
        settings.namespace,
        "--url",
        redis_url,
    )
    for _ in range(2):
        status, out, errors = ran("worker", "check", *options, folder=folder)
        assert status == 1, errors
        assert "problem       topic" in out, "the first has made none"
        assert "kafka-topics.sh --create" in out
    async with running(worker_of(settings)):
        await put(settings, *(invalidation(number) for number in range(5)))
        await until(lambda: committed_all(settings, 5))
    status, out, errors = ran("worker", "check", *options, folder=folder)
    assert status == 0, out + errors
    await put(settings, invalidation("lost"))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    part = TopicPartition(settings.kafka_commands_topic, 0)
    await admin.delete_records({part: RecordsToDelete(before_offset=6)})
    await admin.close()
    status, out, errors = ran("worker", "check", *options, folder=folder)
    assert status == 1, errors
    assert "problem       offsets" in out and "were removed before they were read" in out


async def committed_all(settings: Settings, count: int) -> bool:
    """Whether the group has come so far."""
    return await committed(settings) == count
