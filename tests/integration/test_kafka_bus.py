"""The Kafka bus as it is set up: settings, the topic's checks, TLS and SASL, `tail`."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import redis.asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from pydantic import SecretStr

from cachebus import Cache, Settings
from cachebus.bus.kafka import client as kafka_client
from cachebus.bus.kafka.connection import addresses_of
from cachebus.bus.kafka.envelope import Envelope
from cachebus.bus.kafka.topic import check_configuration
from cachebus.errors import BusUnavailable, ConfigError, L2Unavailable
from cachebus.producers import KafkaProducer
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import nodes, quick, until
from tests.support.changes import running
from tests.support.command import cachebus, ran
from tests.support.commands import worker_of
from tests.support.logs import told as lines_told
from tests.support.require import require

KAFKA = {"bus": "kafka", "kafka_bootstrap_servers": "127.0.0.1:9092"}
SASL = {"kafka_sasl_mechanism": "PLAIN", "kafka_username": "ann", "kafka_password": "s3cret-word"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bus": "kafka"}, r"bus=kafka .*CACHEBUS_KAFKA_BOOTSTRAP_SERVERS"),
        ({**KAFKA, "url": "memory://x"}, r"CACHEBUS_BUS.*CACHEBUS_URL"),
        (
            {**KAFKA, "kafka_bootstrap_servers": "kafka"},
            r"\(CACHEBUS_KAFKA_BOOTSTRAP_SERVERS\): broker 1 of 1 is not host:port",
        ),
        ({**KAFKA, "kafka_bootstrap_servers": "a:1,s3cret-word,c:1"}, r"broker 2 of 3 is not host:port"),
        (
            {**KAFKA, "kafka_bootstrap_servers": "a:1,b:2,ann:s3cret@c:9092"},
            r"broker 3 of 3 has a user, .*CACHEBUS_KAFKA_PASS",
        ),
        ({**KAFKA, "kafka_bootstrap_servers": "kafka://ann:s3cret@c:9092"}, r"broker 1 of 1 has a user, "),
        ({**KAFKA, "kafka_bootstrap_servers": "kafka://s3cret:9092"}, r"broker 1 of 1 is a URL.*host:port alone"),
        ({**KAFKA, "kafka_bootstrap_servers": "s3cret:word:9092"}, r"broker 1 of 1 is not host:port"),
        ({**KAFKA, "kafka_bootstrap_servers": "s3cret/word:9092"}, r"broker 1 of 1 is not host:port"),
        ({**KAFKA, "kafka_bootstrap_servers": "[::1:9092"}, r"broker 1 of 1 is not host:port"),
        ({**KAFKA, "kafka_bootstrap_servers": "b:s3cret"}, r"broker 1 of 1 is not host:port"),
        ({**KAFKA, "kafka_bootstrap_servers": "a:1,"}, r"broker 2 of 2 is not host:port"),
        ({**KAFKA, "kafka_bootstrap_servers": "a:65536"}, r"is not host:port"),
        ({**KAFKA, "kafka_topic": "a b"}, r"kafka_topic \(CACHEBUS_KAFKA_TOPIC\)"),
        ({**KAFKA, "kafka_ssl_ca_certs": "ca.pem"}, r"CACHEBUS_KAFKA_SSL_CA_CERTS.*CACHEBUS_KAFKA_SSL=1"),
        ({**KAFKA, "kafka_ssl": True, "kafka_ssl_keyfile": "k"}, r"CACHEBUS_KAFKA_SSL_CERTFILE"),
        ({**KAFKA, "kafka_username": "ann"}, r"CACHEBUS_KAFKA_USERNAME.*CACHEBUS_KAFKA_SASL_MECHANISM"),
        ({**KAFKA, "kafka_sasl_mechanism": "PLAIN"}, r"needs kafka_username"),
        ({**KAFKA, **SASL, "kafka_password": None}, r"needs kafka_password \(CACHEBUS_KAFKA_PASSWORD\)"),
        ({**KAFKA, **SASL, "kafka_sasl_mechanism": "GSSAPI"}, r"CACHEBUS_KAFKA_SASL_MECHANISM"),
        ({**KAFKA, "kafka_events_key": ""}, r"kafka_events_key \(CACHEBUS_KAFKA_EVENTS_KEY\): is empty"),
        ({"kafka_events_key": " ,\n"}, r"CACHEBUS_KAFKA_EVENTS_KEY\): is empty"),
        ({"kafka_commands_key": ","}, r"kafka_commands_key \(CACHEBUS_KAFKA_COMMANDS_KEY\): is empty"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_field_and_variable(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Settings(**given)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("servers", ["a:1", "kafka-1.example.org:9092, b_2:65535", "[::1]:9092", "10.0.0.1:9092"])
def test_brokers_that_settings_take_are_all_asked(servers: str) -> None:
    settings = Settings(**{**KAFKA, "kafka_bootstrap_servers": servers})
    assert len(addresses_of(settings.kafka_bootstrap_servers or "")) == len(servers.split(","))


def test_a_password_or_key_is_never_shown() -> None:
    settings = Settings(**KAFKA, **SASL, kafka_events_key="s3cret-key")
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in repr(kafka_client.kafka_access(settings))
    assert "s3cret" not in repr(vars(Envelope.of(settings)))


def test_a_key_for_events_may_be_set_where_they_go_by_redis() -> None:
    """As all of Kafka's settings may: one environment for services of both kinds."""
    settings = Settings(url="redis://x", kafka_events_key="s3cret-key")
    assert settings.bus == "redis"


async def test_without_aiokafka_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_client, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cachebus\[kafka\]'"):
        async with Cache(Settings(**KAFKA)):
            pass


async def test_files_of_tls_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for given in ({"kafka_ssl_ca_certs": "nowhere.pem"}, {"kafka_ssl_certfile": str(tmp_path / "none.pem")}):
        with pytest.raises(ConfigError, match=next(iter(given))):
            async with Cache(Settings(**KAFKA, kafka_ssl=True, **given)):
                pass


def test_a_topic_is_judged_by_its_configuration() -> None:
    for policy in ("compact", "compact,delete"):
        with pytest.raises(ConfigError, match=r"kafka-configs\.sh .*--entity-name t .*cleanup\.policy=delete"):
            check_configuration("t", {"cleanup.policy": policy})
    for fine in (
        {},
        {"retention.ms": "-1"},
        {"retention.ms": "60000"},
        {"retention.ms": "odd"},
        {"max.message.bytes": "1048588"},
    ):
        assert check_configuration("t", {"cleanup.policy": "delete", **fine}) == []
    (short,) = check_configuration("t", {"retention.ms": "5000"})
    assert "retention.ms=3600000" in short.mend
    for size, is_grave in ((120, True), (100_000, False)):
        (small,) = check_configuration("t", {"max.message.bytes": str(size)})
        assert (f"{size} bytes" in small.says, small.is_grave) == (True, is_grave)
        assert small.mend.endswith("--entity-name t --add-config max.message.bytes=1048588")


async def test_the_topic_is_made_and_a_compacted_one_refused(redis_url: str, kafka: KafkaServer) -> None:
    made, compacted, narrow = (f"topic-{token_hex(4)}" for _ in range(3))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(compacted, 1, 1, topic_configs={"cleanup.policy": "compact"}), NewTopic(narrow, 1, 1)]
        )
        setup = {"url": redis_url, "bus": "kafka", "kafka_bootstrap_servers": kafka.address, "namespace": made}
        async with Cache(quick(**setup, kafka_topic=made)):
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, made)])
            ((*_, entries),) = answer.resources
            told_of = {name: value for name, value, *_ in entries}
            assert (told_of["cleanup.policy"], told_of["retention.ms"]) == ("delete", "3600000")
            (described,) = await admin.describe_topics([made])
            assert len(described["partitions"]) == 4
        with pytest.raises(ConfigError, match=f"{compacted} is compacted"):
            async with Cache(quick(**setup, kafka_topic=compacted)):
                pass
        with lines_told("WARNING") as lines:
            async with Cache(quick(**setup, kafka_topic=narrow)):
                pass
        assert any(f"--topic {narrow} --partitions 4" in line for line in lines)
    finally:
        await admin.close()


@pytest.fixture(scope="module")
def secure(shared_servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A broker that asks for TLS and a password: its port for that, and the certificate."""
    require(shutil.which("openssl"), "openssl", "apt-get install openssl")
    shared_servers.kafka()  # which skips where there is none
    folder, port = tmp_path_factory.mktemp("kafka-tls"), free_port()
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *request.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    (folder / "both.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    server = KafkaServer()
    plain = f"PLAINTEXT://127.0.0.1:{server.port}"
    server._settings |= {
        "listeners": f"{plain},SASL_SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{server._controller}",
        "advertised.listeners": f"{plain},SASL_SSL://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
        "sasl.enabled.mechanisms": "PLAIN",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "both.pem"),
        "listener.name.sasl_ssl.plain.sasl.jaas.config": (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            'username="broker" password="broker" user_broker="broker" user_ann="s3cret-word";'
        ),
    }
    with server:
        yield port, folder / "cert.pem"


async def test_tls_and_sasl(secure: tuple[int, Path], redis_url: str) -> None:
    port, certificate = secure
    setup = {
        "bus": "kafka",
        "kafka_bootstrap_servers": f"127.0.0.1:{port}",
        "kafka_topic": "secure",
        "kafka_ssl": True,
        "kafka_ssl_ca_certs": str(certificate),
        "namespace": f"tls-{token_hex(4)}",
        "connect_timeout_s": 5.0,
    }
    async with nodes(redis_url, **setup, **SASL) as (a, b):

        async def arrived() -> bool:
            await a.invalidate("config", "k", tenant_id="acme")
            await asyncio.sleep(0.02)
            return b.stats().bus_lag.count > 0

        await until(arrived)
    refused: list[tuple[dict[str, Any], str]] = [
        ({**SASL, "kafka_password": "wr0ng-word"}, "Kafka at .*Authentication failed"),
        ({**SASL, "kafka_ssl_ca_certs": None}, "Kafka at .*CERTIFICATE_VERIFY_FAILED"),
    ]
    for given, why in refused:
        with pytest.raises(L2Unavailable, match=why) as error:
            async with Cache(quick(redis_url, **{**setup, **given})):
                pass
        assert "s3cret" not in str(error.value)
        assert "wr0ng" not in str(error.value)


async def test_commands_go_by_tls_and_sasl_too(secure: tuple[int, Path], redis_url: str) -> None:
    port, certificate = secure
    settings = quick(
        redis_url,
        namespace=f"tls-{token_hex(4)}",
        kafka_bootstrap_servers=f"127.0.0.1:{port}",
        kafka_ssl=True,
        kafka_ssl_ca_certs=str(certificate),
        kafka_commands_topic="secure-commands",
        **SASL,
    )
    async with KafkaProducer.open(settings) as producer:
        await producer.invalidate("config", "x", "acme")
    worker = worker_of(settings)
    async with running(worker):
        await until(lambda: worker.meters.count("applied") == 1)
    with pytest.raises(BusUnavailable, match="Authentication failed"):
        async with KafkaProducer.open(settings.model_copy(update={"kafka_password": SecretStr("wrong")})):
            pass


async def test_the_scripts_publish_nothing_and_keep_the_log(redis_url: str, kafka: KafkaServer) -> None:
    name = f"log-{token_hex(4)}"
    setup = {"bus": "kafka", "kafka_bootstrap_servers": kafka.address, "kafka_topic": name, "namespace": name}
    async with (
        redis.asyncio.Redis.from_url(redis_url) as client,
        client.pubsub(ignore_subscribe_messages=True) as ears,
        Cache(quick(redis_url, **setup)) as cache,
    ):
        await ears.psubscribe("*")
        await ears.get_message(timeout=5)
        await cache.set("config", "k", 1, tenant_id="acme")
        await cache.invalidate_scope("acme")
        await client.publish("end", b"end")
        message = await ears.get_message(timeout=5)
        assert message is not None
        assert message["data"] == b"end"
        assert await client.xlen(f"{{{name}:0}}:log") == 2
        assert b"bus=kafka" in await client.hget(f"{{{name}:0}}:meta", "facts")


async def test_the_doctor_looks_for_no_channel(redis_url: str, tmp_path: Path) -> None:
    """With events on Kafka it needs none, and hears nothing on it: no finding."""
    env = {"CACHEBUS_URL": redis_url, "CACHEBUS_BUS": "kafka", "CACHEBUS_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    _, out, _ = await asyncio.to_thread(ran, "doctor", "--probe-writes", "--json", folder=tmp_path, env=env)
    assert "channel" not in out.lower()
    assert "an event" not in out


async def test_tail_listens_where_events_go(redis_url: str, kafka: KafkaServer, tmp_path: Path) -> None:
    topic = f"tail-{token_hex(4)}"
    env = {
        "CACHEBUS_URL": redis_url,
        "CACHEBUS_BUS": "kafka",
        "CACHEBUS_KAFKA_BOOTSTRAP_SERVERS": kafka.address,
        "CACHEBUS_KAFKA_TOPIC": topic,
        "CACHEBUS_NAMESPACE": topic,
    }
    setup = {"bus": "kafka", "kafka_bootstrap_servers": kafka.address, "kafka_topic": topic, "namespace": topic}
    async with Cache(quick(redis_url, **setup)) as cache:
        with cachebus("tail", "--count", "1", folder=tmp_path, env=env) as command:
            assert command.process.stderr is not None
            assert "listening" in await asyncio.to_thread(command.process.stderr.readline)
            await cache.invalidate("config", "k", tenant_id="acme")
            out, _ = await asyncio.to_thread(command.process.communicate)
    assert "acme | config | k" in out


def over_kafka(redis_url: str, kafka: KafkaServer, topic: str, key: str) -> dict[str, str]:
    """The environment of a command."""
    return {
        "CACHEBUS_URL": redis_url,
        "CACHEBUS_BUS": "kafka",
        "CACHEBUS_KAFKA_BOOTSTRAP_SERVERS": kafka.address,
        "CACHEBUS_KAFKA_TOPIC": topic,
        "CACHEBUS_NAMESPACE": topic,
        "CACHEBUS_KAFKA_EVENTS_KEY": key,
    }


async def test_tail_with_another_key_says_how_many_events_it_passes_over(
    redis_url: str, kafka: KafkaServer, tmp_path: Path
) -> None:
    topic = f"tail-{token_hex(4)}"
    setup = {"bus": "kafka", "kafka_bootstrap_servers": kafka.address, "kafka_topic": topic, "namespace": topic}
    async with Cache(quick(redis_url, kafka_events_key="right-secret", **setup)) as cache:
        with cachebus("tail", folder=tmp_path, env=over_kafka(redis_url, kafka, topic, "wrong-secret")) as command:
            assert command.process.stderr is not None
            said = [await asyncio.to_thread(command.process.stderr.readline) for _ in range(2)]
            assert said[0].startswith("cachebus: keys of events: ") and "these settings" in said[0]
            assert "listening" in said[1]
            await cache.invalidate("config", "k", tenant_id="acme")
            said.append(await asyncio.to_thread(command.process.stderr.readline))
            command.process.send_signal(signal.SIGINT)
            out, _ = await asyncio.to_thread(command.process.communicate)
    assert said[2].startswith("cachebus: 1 event passed over so far, as no key of CACHEBUS_KAFKA_EVENTS_KEY")
    assert out == ""
    assert "secret" not in "".join(said)


async def test_tail_makes_no_topic(redis_url: str, kafka: KafkaServer, tmp_path: Path) -> None:
    topic = f"tail-{token_hex(4)}"
    setup = {"bus": "kafka", "kafka_bootstrap_servers": kafka.address, "kafka_topic": topic, "namespace": topic}
    async with Cache(quick(redis_url, **setup)):
        env = over_kafka(redis_url, kafka, topic, "key") | {"CACHEBUS_KAFKA_TOPIC": f"{topic}-misspelt"}
        status, out, errors = await asyncio.to_thread(ran, "tail", folder=tmp_path, env=env)
    assert (status, out) == (2, "")
    assert f"no topic {topic}-misspelt" in errors
    assert topic in errors.splitlines()[0], "by which the nodes hear"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    assert f"{topic}-misspelt" not in await admin.list_topics()
    await admin.close()
