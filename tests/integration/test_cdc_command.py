"""`cachebus worker cdc` and its dead letters, as they are run."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from typer.testing import CliRunner

from cachebus.cli.main import app
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker
from cachebus.consumers.cdc.topics.replay import replay_topic
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import quick, until
from tests.support.changes import RULES, SCHEMA, Heard, rules, running, tell
from tests.support.command import cachebus, ran
from tests.support.poll import eventually


def said(*arguments: str) -> tuple[int, str]:
    """Exit status, and the output or what was raised."""
    done = CliRunner().invoke(app, ["worker", *arguments])
    return done.exit_code, done.output + str(done.exception or "")


def test_check_is_an_exit_status(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    assert said("cdc", "--check", str(path)) == (0, f"{path}: 3 rules, 1 cascades, 2 tenants\n")
    path.write_text(RULES.replace("{id}", "{id:x}"))
    status, errors = said("cdc", "--check", str(path))
    assert status != 0
    assert (
        "rules.toml:7: rule 1: resource_id: '{id:x}': the placeholder {id} takes neither format nor conversion"
        in errors
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--rules is missing"),
        (("--sample", "x"), "--sample goes with --check"),
        (("--rules", "RULES"), "--database-url is missing"),
        (("--rules", "RULES", "--source", "kafka"), "--bootstrap-servers is missing"),
        (("--rules", "RULES", "--source", "kafka", "--bootstrap-servers", "x:1"), "--topics is missing"),
    ],
)
def test_what_is_missing_is_told(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    assert says in said("cdc", *(str(path) if one == "RULES" else one for one in arguments))[1]


def test_debeziums_brokers_are_reached_by_the_settings_of_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    monkeypatch.setenv("CACHEBUS_KAFKA_SSL", "1")
    monkeypatch.setenv("CACHEBUS_KAFKA_SSL_CA_CERTS", str(tmp_path / "none.pem"))
    given = ("--rules", str(path), "--source", "kafka", "--bootstrap-servers", f"127.0.0.1:{free_port()}")
    for command in ("cdc", "--topics", "t", "--health-port", "0"), ("replay-dead", "cdc"):
        status, errors = said(*command, *given)
        assert status != 0
        assert "kafka_ssl_ca_certs" in errors


def test_wrong_rules_and_urls_end_it_at_its_start(tmp_path: Path) -> None:
    good, folder = tmp_path / "rules.toml", tmp_path / "folder"
    folder.mkdir()
    good.write_text(RULES)
    status, _, errors = ran(
        "worker", "cdc", "--rules", str(good), "--database-url", "mysql://u:secret@h/d", folder=folder
    )
    assert status == 2
    assert "the database must be a URL like postgresql://" in errors
    assert "secret" not in errors
    url = "postgresql://u@127.0.0.1:1/d"
    status, _, errors = ran(
        "worker", "cdc", "--rules", str(good), "--database-url", url, "--publication", "p" * 64, folder=folder
    )
    assert status == 2
    assert "publication: a name has at most 63 bytes" in errors


def figures_say(port: int, words: str) -> bool:
    """Whether the worker's figures have these words."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            return words in answer.read().decode()
    except OSError:
        return False


async def test_it_tells_how_it_is_and_drains(database: str, redis_url: str, tmp_path: Path) -> None:
    path, folder, port = tmp_path / "rules.toml", tmp_path / "folder", free_port()
    folder.mkdir()
    path.write_text(RULES)
    await tell(database, [SCHEMA])
    arguments = ("--rules", str(path), "--database-url", database, "--url", redis_url, "--health-port", str(port))
    with cachebus("worker", "cdc", *arguments, folder=folder) as command:
        await eventually(lambda: asyncio.to_thread(figures_say, port, "cachebus_cdc_active 1.0"), within_s=30)
        status, errors = command.signal(signal.SIGTERM)
    assert status == 0
    assert "cdc: drained" in errors


async def test_a_message_that_cant_be_used_is_set_aside_counted_and_brought_back(
    kafka: KafkaServer, redis_url: str
) -> None:
    prefix = f"dead-{secrets.token_hex(4)}"
    loose = parse_rules(RULES.replace('resource_id = "{name}"', 'resource_id = "{value}"'))
    source = KafkaSource(kafka.address, f"{prefix}-x", prefix, dead_topic=f"{prefix}-dead")
    one = TopicsWorker(quick(redis_url), loose, source)
    heard = Heard(one)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    await admin.create_topics([NewTopic(f"{prefix}-x", 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address)
    await producer.start()

    def setting(name: str, value: Any) -> bytes:
        row = {"name": name, "value": value}
        return json.dumps({"op": "c", "after": row, "source": {"schema": "any", "table": "settings"}}).encode()

    for message in (b"?", b"x" * 950_000, None, setting("theme", 1.5), setting("limit", "5")):
        await producer.send_and_wait(f"{prefix}-x", message, key=b"{}")
    await producer.stop()
    async with running(one):
        await until(lambda: heard.asked["K :system:5"] == 1)
        await until(lambda: one.meters.count("dead") == 3)
        assert one.meters.count("ignored") == 1
        assert await replay_topic(source, Router(loose), one._applier) == (0, 3)
        assert await replay_topic(source, Router(rules()), one._applier) == (1, 2)
        assert heard.asked["K :system:theme"] == 1
        assert await replay_topic(source, Router(rules()), one._applier) == (0, 2), "no more and no less"


async def test_kafka_that_is_not_there_is_waited_for(redis_url: str) -> None:
    one = TopicsWorker(quick(redis_url), rules(), KafkaSource(f"127.0.0.1:{free_port()}", "x"))
    task = asyncio.create_task(one.run())
    await until(lambda: "KafkaConnectionError" in one.health.as_dict()["parts"]["kafka"]["why"])
    one.drain()
    await asyncio.wait_for(task, 20)


async def test_messages_that_kafka_has_removed_unread_are_told_and_made_up_for(
    kafka: KafkaServer, redis_url: str
) -> None:
    topic = f"cut-{secrets.token_hex(4)}"
    part = TopicPartition(topic, 0)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address)
    await producer.start()
    for _ in range(3):
        await producer.send_and_wait(topic, b"{}")
    await producer.stop()
    first = AIOKafkaConsumer(bootstrap_servers=kafka.address, group_id=topic, enable_auto_commit=False)
    await first.start()
    first.assign([part])
    await first.commit({part: 1})
    await first.stop()
    await admin.delete_records({part: RecordsToDelete(before_offset=3)})
    await admin.close()
    one = TopicsWorker(quick(redis_url), rules(), KafkaSource(kafka.address, topic, topic))
    heard = Heard(one)
    async with running(one):
        await until(lambda: heard.asked["D globex embedding"] == 1)
    assert one.meters.count("dead") == 0
