"""Eight set-ups as people have them: every command that the doctor gives is run word for word, and then it is content.

The page on Redis has the table of them.
"""

from __future__ import annotations

import asyncio
import shlex
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cachebus import Settings
from cachebus.tools.doctor import timing
from cachebus.tools.doctor.examine import examined
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.jars import classpath, find_java
from cachebus.tools.servers.kafka import ARTIFACTS, KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SentinelGroup
from tests.support.caches import until
from tests.support.servers import any_binary

OURS = ("latency", "clock", "suspends", "fork")
"""Told of this machine rather than of the servers."""


@dataclass
class SetUp:
    """Servers that run, and how the doctor is asked about them."""

    settings: Settings
    data: Sequence[EmbeddedServer]
    sentinels: Sequence[EmbeddedServer] = ()


Made = Callable[[Any], AbstractAsyncContextManager[SetUp]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CLOCK_WINDOW_S", 0.01)


@asynccontextmanager
async def standing(replicas: int, **config: str) -> AsyncIterator[SetUp]:
    """A server with so many replicas, which nobody watches."""
    made = [EmbeddedServer(any_binary(), conf=["repl-diskless-sync-delay 0"]) for _ in range(1 + replicas)]
    try:
        for server in made:
            server.start()
        for name, value in config.items():
            await ask(made[0], "CONFIG", "SET", name.replace("_", "-"), value)
        for server in made[1:]:
            await ask(server, "REPLICAOF", "127.0.0.1", made[0].port)

        async def follow() -> bool:
            return (await ask(made[0], "INFO", "replication")).count(b"state=online") == replicas

        await until(follow)
        yield SetUp(Settings(url=made[0].url), made)
    finally:
        for server in made:
            server.stop()


def alone(_: Any) -> AbstractAsyncContextManager[SetUp]:
    return standing(0)


def one_replica(_: Any) -> AbstractAsyncContextManager[SetUp]:
    return standing(1)


def three_replicas(_: Any) -> AbstractAsyncContextManager[SetUp]:
    return standing(3, min_replicas_to_write="1", min_replicas_max_lag="10")


def evicting(_: Any) -> AbstractAsyncContextManager[SetUp]:
    return standing(0, maxmemory="64mb", maxmemory_policy="allkeys-lru")


@asynccontextmanager
async def sentinels(_: Any) -> AsyncIterator[SetUp]:
    async with SentinelGroup(any_binary()) as group:
        yield SetUp(Settings(url=group.url), group.data, group.sentinels)


@asynccontextmanager
async def bare_cluster(_: Any) -> AsyncIterator[SetUp]:
    async with ClusterGroup(any_binary(), replicas=0) as group:
        for server in group.servers:
            await ask(server, "CONFIG", "SET", "cluster-require-full-coverage", "yes")
        yield SetUp(Settings(url=group.url), group.servers)


@asynccontextmanager
async def cluster(_: Any) -> AsyncIterator[SetUp]:
    async with ClusterGroup(any_binary(), replicas=1) as group:
        yield SetUp(Settings(url=group.url), group.servers)


@asynccontextmanager
async def kafka_bus(request: Any) -> AsyncIterator[SetUp]:
    """One replica, a tenth of a minute's retention, and one partition for all."""
    kafka: KafkaServer = request.getfixturevalue("kafka")
    name = f"setup-{token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"retention.ms": "6000"})])
    await admin.close()
    more = {"bus": "kafka", "kafka_bootstrap_servers": kafka.address, "kafka_topic": name, "kafka_partitions": 1}
    async with standing(0) as made:
        yield SetUp(Settings(url=made.data[0].url, **more), made.data)


async def told(setup: SetUp) -> list[tuple[str, Finding]]:
    """All that is not as it should be, with the server of which it is said; "" for all of them."""
    whole = await deployment_of(setup.settings)
    found = [("", each) for each in whole.findings]
    for primary in whole.primaries:
        _, said = await examined(setup.settings, primary, ask_replicas=True, rounds=3)
        found += [(str(primary.address), each) for each in said]
    return [(at, each) for at, each in found if each.level is not Severity.OK and each.check not in OURS]


async def obey(setup: SetUp, at: str, finding: Finding) -> None:
    """Type each of its commands where it says."""
    if "Sentinel" in finding.at:
        where = setup.sentinels
    elif "every node" in finding.at:
        where = setup.data
    else:
        where = [server for server in setup.data if f":{server.port}" in (finding.at or at)]
    assert where or not finding.mend
    for server in where:
        for command in finding.mend:
            assert await ask(server, *shlex.split(command)) == b"OK", command
    if finding.otherwise.startswith("kafka-configs.sh "):
        words = shlex.split(finding.otherwise)[1:]
        java = [find_java(), "-cp", classpath(ARTIFACTS), "kafka.admin.ConfigCommand", *words]
        await asyncio.to_thread(subprocess.run, java, check=True, capture_output=True)


SETUPS: list[tuple[Made, set[str]]] = [
    (alone, {"memory limit", "eviction"}),
    (one_replica, {"memory limit", "eviction", "replication", "replicas"}),
    (three_replicas, {"memory limit", "eviction", "replication", "replicas"}),
    (sentinels, {"memory limit", "eviction", "replication", "replicas", "failover"}),
    (bare_cluster, {"memory limit", "eviction", "failover", "full coverage", "replica migration"}),
    (cluster, {"memory limit", "eviction", "replication", "replicas", "failover", "replica migration"}),
    (evicting, {"eviction"}),
    (kafka_bus, {"memory limit", "eviction", "kafka"}),
]


@pytest.mark.parametrize(("made", "checks"), SETUPS, ids=[made.__name__ for made, _ in SETUPS])
async def test_every_command_mends_what_it_is_for_and_breaks_nothing(
    made: Made, checks: set[str], request: pytest.FixtureRequest
) -> None:
    async with made(request) as setup:
        before = await told(setup)
        assert {each.check for _, each in before} >= checks
        rounds = 0
        found = before
        while todo := [one for one in found if _has_commands(one[1])]:
            rounds += 1
            assert rounds <= 2, f"commands that do not mend: {[each.says for _, each in todo]}"
            for at, finding in todo:
                await obey(setup, at, finding)
            found = await told(setup)
        new = {each.check for _, each in found} - {each.check for _, each in before}
        assert not new, [each.says for _, each in found if each.check in new]
        left = {each.check for _, each in found}
        assert all(each.otherwise for _, each in found), "what no command mends says what does"
        assert left <= {"replicas", "failover"}
        assert not [each.says for _, each in found if each.level is Severity.PROBLEM]


def _has_commands(finding: Finding) -> bool:
    return bool(finding.mend) or finding.otherwise.startswith("kafka-configs.sh ")
