"""`cachebus worker check`: what a worker would find, without starting it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition
from redis.asyncio import Redis

from cachebus import Settings
from cachebus.consumers.outbox import OutboxRelay, create_tables
from cachebus.consumers.worker.preflight import preflight
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from tests.conftest import connected
from tests.support.caches import until
from tests.support.changes import RULES, SCHEMA, running, tell
from tests.support.command import ran
from tests.support.commands import committed, invalidation, put, setup, worker_of
from tests.support.logs import told
from tests.support.servers import any_binary

SHOWN = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


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
    assert status == 2, "nothing could be looked at"
    assert "problem       l2" in out
    assert "secret" not in out + errors


async def test_it_has_no_option_that_changes_anything_and_a_help_of_its_own(
    database: str, redis_url: str, folder: Path
) -> None:
    options = ("--database-url", database, "--url", redis_url)
    for option in ("--create-table", "--print-sql", "--no-notify"):
        status, out, errors = ran("worker", "check", "outbox", *options, option, folder=folder)
        assert (status, out) == (2, "")
        assert option in errors
    for name, words in {"outbox": "an outbox", "kafka": "commands on Kafka", "cdc": "source of changes"}.items():
        status, out, _ = ran("worker", "check", name, "--help", folder=folder)
        assert (status, words in out, "Nothing is changed" in out) == (0, True, True)
        assert not {"SIGTERM", "--create-table", "--print-sql", "--check"}.intersection(out.split())


async def test_a_check_begins_the_namespace_and_is_seen_by_no_relay(database: str, own_server: EmbeddedServer) -> None:
    await create_tables(database)
    relay = OutboxRelay(database, Settings(url=own_server.url))
    async with Redis.from_url(own_server.url) as redis, connected(database) as connection:
        assert await redis.keys() == []
        assert not any(one.findings for one in await preflight(relay))
        assert sorted(await redis.keys()) == [b"{cachebus:0}:identity", b"{cachebus:0}:meta"]
        async with relay.source.opened() as session:
            assert (await session.look()).findings == []
            assert await connection.fetchval(SHOWN) == 0


async def test_a_check_of_a_slot_makes_nothing(database: str, redis_url: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    options = ("--rules", str(path), "--database-url", database, "--url", redis_url)
    status, out, errors = ran("worker", "check", "cdc", *options, folder=folder)
    assert status == 1, errors
    assert "there is no such table" in out


async def test_a_slots_warnings_are_told_and_are_no_problem(
    database: str, redis_url: str, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    await tell(database, [SCHEMA, "CREATE PUBLICATION cachebus_cdc FOR ALL TABLES"])
    options = ("--rules", str(path), "--database-url", database, "--url", redis_url)
    status, out, errors = ran("worker", "check", "cdc", *options, folder=folder)
    assert "warning       database: the publication 'cachebus_cdc' is for all tables" in out, errors
    assert status == ("problem" in out)
    status, out, _ = ran("worker", "check", "--json", "cdc", *options, folder=folder)
    warnings = [warning for one in json.loads(out)["checks"] for warning in one["warnings"]]
    assert "the publication 'cachebus_cdc' is for all tables" in warnings[-1]
    assert all("leaves out generated columns" in one for one in warnings[:-1])  # from PostgreSQL 18 on


async def test_a_rule_of_topics_whose_table_may_be_mistyped_is_a_warning(
    kafka: KafkaServer, redis_url: str, folder: Path, tmp_path: Path
) -> None:
    path, prefix = tmp_path / "rules.toml", f"deb{secrets.token_hex(4)}"
    rule = "[[rule]]\ntable = 'shop.order'\ndata_type = 'order'\nresource_id = '{id}'\ntenant_id = '{tenant}'\n"
    path.write_text(rule)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    await admin.create_topics([NewTopic(f"{prefix}.shop.orders", 1, 1), NewTopic(f"{prefix}.cdc.dead", 1, 1)])
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{prefix}.cdc.dead", {"retention.ms": "-1"})])
    await admin.close()
    options = ("--source", "kafka", "--rules", str(path), "--topics", rf"{prefix}\.shop\..*", "--namespace", prefix)
    options += ("--bootstrap-servers", kafka.address, "--url", redis_url)
    status, out, errors = ran("worker", "check", "cdc", *options, folder=folder)
    assert status == 0, out + errors
    assert "warning       kafka: no topic and no message is of the tables that these rules name: 'shop.order'" in out
    assert "warning       kafka: rule of 'shop.order': PostgreSQL's old rows count by their key alone" in out


async def test_the_doctor_looks_at_what_workers_assume_too(
    database: str, kafka: KafkaServer, own_server: EmbeddedServer, folder: Path, tmp_path: Path
) -> None:
    """Each as its own check does, with what the environment has for it."""
    path, name = tmp_path / "rules.toml", f"doc{secrets.token_hex(4)}"
    path.write_text(RULES)
    await create_tables(database, f"{name}_outbox")
    url, env = own_server.url, {"CACHEBUS_OUTBOX_TABLE": f"{name}_outbox", "CACHEBUS_KAFKA_COMMANDS_TOPIC": name}
    with_password = database.replace("://postgres@", "://postgres:s3cret@")  # nobody asks for it
    assert with_password != database
    workers = ("--database-url", with_password, "--bootstrap-servers", kafka.address, "--rules", str(path))
    alone, out, errors = ran("doctor", url, "--json", folder=folder, env=env)
    assert alone in (0, 3), out + errors
    assert json.loads(out)["workers"] == []
    status, out, errors = ran("doctor", url, "--json", *workers[:2], folder=folder, env=env)
    assert status == alone, out + errors
    ([outbox], whole) = json.loads(out)["workers"], json.loads(out)
    assert whole["servers"]
    assert not [one for one in outbox["checks"] if one["problems"]]
    status, out, errors = ran("doctor", url, *workers, folder=folder, env=env)
    assert status == 1, out + errors
    assert "s3cret" not in out + errors
    for said in ("worker outbox", "worker kafka", "problem       topic", "worker cdc", "there is no such table"):
        assert said in out, said
    gone = ("--database-url", f"postgresql://u:s3cret@127.0.0.1:{free_port()}/d")
    status, out, errors = ran("doctor", url, *gone, folder=folder, env=env)
    assert (status, "problem       database" in out, "s3cret" in out + errors) == (1, True, False)
    status, out, errors = ran("doctor", url, "--database-url", "mysql://u:s3cret@h/d", folder=folder, env=env)
    assert (status, out, "s3cret" in errors) == (2, "", False)


@pytest.mark.parametrize("lacks", ["-publish", "resetchannels"])
async def test_a_redis_that_lets_a_worker_publish_nothing_is_a_problem(database: str, folder: Path, lacks: str) -> None:
    await create_tables(database)
    with EmbeddedServer(any_binary()) as server:
        assert server.command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all", lacks) == "+OK"
        url = server.url.replace("redis://", "redis://worker:secret@")
        status, out, errors = ran("worker", "check", "outbox", "--database-url", database, "--url", url, folder=folder)
    assert status == 1, out
    assert "problem       l2" in out
    assert "NOPERM" in out
    assert "secret" not in out + errors


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
        assert "it is missing; a worker that starts makes it where it may" in out
        assert "kafka-topics.sh --bootstrap-server" in out
    with told("WARNING") as lines:
        async with running(worker_of(settings)):
            await until(lambda: any("was missing, and is made" in line for line in lines))
    assert sum(f"the topic {settings.kafka_commands_topic} was missing, and is made" in line for line in lines) == 1
    with told("WARNING") as lines:
        async with running(one := worker_of(settings)):
            await until(lambda: one.health.ready)
    assert not [line for line in lines if "is made" in line], "it is there"
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
