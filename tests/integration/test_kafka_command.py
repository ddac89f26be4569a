"""`cachebus worker kafka` as operators run it: a process with variables, endpoints, signals and an exit status."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachebus import ConfigError, producers
from cachebus.cli.worker.command import worker
from cachebus.cli.worker.kafka import kafka as kafka_command
from cachebus.cli.worker.kafka import replay_kafka
from cachebus.producers.command import Invalidate, parse
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until
from tests.support.command import cachebus
from tests.support.commands import dead, held, invalidation, put, setup
from tests.support.pages import run_inside
from tests.support.worker_health import health

DOCUMENT = (Path(__file__).parents[2] / "docs" / "kafka-commands.md").read_text()


async def test_it_works_tells_how_it_is_and_drains(
    redis_url: str,
    kafka: KafkaServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings, port = setup(redis_url, kafka.address), free_port()
    for name, value in {
        "URL": redis_url,
        "NAMESPACE": settings.namespace,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.address,
        "KAFKA_COMMANDS_TOPIC": settings.kafka_commands_topic,
        "KAFKA_PARTITIONS": "2",
        "HEALTH_PORT": str(port),
        "COMMANDS_SESSION_TIMEOUT_S": "1",
    }.items():
        monkeypatch.setenv(f"CACHEBUS_{name}", value)
    with cachebus("worker", "kafka", folder=tmp_path) as command:
        await until(lambda: health(port)[0] == 200)
        await put(settings, invalidation("x"), b"nonsense")
        await until(lambda: 'messages_total{outcome="dead",worker="kafka"} 1.0' in health(port, "/metrics")[1])
        figures = health(port, "/metrics")[1]
        for line in (
            'cachebus_worker_messages_total{outcome="applied",worker="kafka"} 1.0',
            'cachebus_worker_up{part="kafka",worker="kafka"} 1.0',
            'cachebus_worker_up{part="l2",worker="kafka"} 1.0',
        ):
            assert line in figures, line
        await asyncio.to_thread(replay_kafka)
        assert capsys.readouterr().out == f"1 commands are back in {settings.kafka_commands_topic}\n"
        await until(lambda: 'messages_total{outcome="dead",worker="kafka"} 2.0' in health(port, "/metrics")[1])
        status, errors = await asyncio.to_thread(command.signal, signal.SIGTERM)
    assert status == 0, errors
    assert "set aside (attempt 2): Invalid JSON" in errors
    assert "drained" in errors
    assert f"kafka: reads commands for the namespace {settings.namespace} in {settings.kafka_commands_topic}" in errors
    assert [dict(one.headers)["attempts"] for one in await dead(settings)] == [b"1", b"2"]


def test_what_is_wrong_is_told(redis_url: str) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (kafka_command, {}, "CACHEBUS_KAFKA_BOOTSTRAP_SERVERS"),
        (kafka_command, {"bootstrap_servers": "x"}, "is not host:port"),
        (kafka_command, {"bootstrap_servers": nobody, "topic": "a b"}, "kafka_commands_topic"),
        (kafka_command, {"bootstrap_servers": nobody, "dead_topic": "cachebus.commands"}, "where commands come from"),
        (replay_kafka, {"bootstrap_servers": nobody}, "can't be had"),
    ]
    for command, arguments, words in wrong:
        with pytest.raises(ConfigError, match=re.escape(words)):
            command(**arguments)
    for arguments in (["--help"], ["replay-dead", "--help"]):
        said = CliRunner().invoke(worker, arguments).output
        assert all(name in said for name in ("outbox", "kafka", "cdc")), said


# -- what the documentation says -----------------------------------------------------------------------------


async def test_the_code_in_the_documentation_sends_a_command(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = setup("redis://nowhere", kafka.address)
    monkeypatch.setenv("CACHEBUS_KAFKA_BOOTSTRAP_SERVERS", kafka.address)
    monkeypatch.setenv("CACHEBUS_KAFKA_COMMANDS_TOPIC", settings.kafka_commands_topic)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    await run_inside(code.replace("cascades=[...]", "cascades=[]"), {"KafkaProducer": producers.KafkaProducer})
    (one,) = await held(settings)
    assert parse(one.value) == Invalidate(tenant_id="acme", data_type="agent_config", resource_id="a7")


def test_the_commands_in_the_documentation_are_commands() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    lines = block.strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        parse(line)
