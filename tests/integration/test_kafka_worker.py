"""From commands on Kafka to every cache: what the worker does, and what becomes of it when something is away."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from cachebus import Cache, Cascade, ConfigError, Settings
from cachebus.consumers.kafka import CommandsWorker, WorkerOptions, replay
from cachebus.consumers.topics import inspection
from cachebus.consumers.worker import watcher
from cachebus.producers import KafkaProducer
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import PATIENCE_S, fill, gone, nodes, until
from tests.support.changes import Heard, running
from tests.support.commands import QUICKLY, committed, dead, dead_topic, held, invalidation, made, put, setup, worker_of
from tests.support.logs import told as lines_told
from tests.support.odd_commands import ODD
from tests.support.topics import figure


@pytest.fixture
def settings(redis_url: str, kafka: KafkaServer) -> Settings:
    """A topic and a namespace of the test's own."""
    return setup(redis_url, kafka.address)


async def applied(worker: CommandsWorker, count: int) -> None:
    """Until it has applied so many."""
    await until(lambda: worker.meters.count("applied") >= count)


@pytest.fixture
async def caches(settings: Settings) -> AsyncIterator[list[Cache]]:
    """Three nodes."""
    async with nodes(settings.url.get_secret_value(), 3, namespace=settings.namespace) as opened:
        yield opened


async def test_commands_reach_every_node_and_are_committed(settings: Settings, caches: list[Cache]) -> None:
    await fill(caches, "a", "b", "c", "other")
    worker = worker_of(settings, cascades=[Cascade("page", to=[("config", "{resource_id}")])])
    async with KafkaProducer.open(settings) as producer, running(worker):
        await producer.invalidate("config", "a", "acme")
        await producer.invalidate("page", "b", "acme")
        await put(settings, invalidation("c"))  # by somebody else, without headers
        await gone(caches, "a", "b", "c")
        await applied(worker, 3)
        await until(lambda: figure(worker, "backlog") == 0)
        for cache in caches:
            assert await cache.get("config", "other", "acme") == "old"
    assert await committed(settings) == 3
    assert figure(worker, "lag_seconds_count") == 3


POISON: list[tuple[bytes | None, str]] = [
    (b"nonsense", "Invalid JSON"),
    (b"\xff\xfe", "Invalid JSON"),
    (None, "it has no value"),
    (b"{}", "op"),
    (b'{"op": "drop", "tenant_id": "acme"}', "op: must be one of"),
    (invalidation("x", more=1), "more: Extra inputs"),
    (invalidation(""), "resource_id"),
    (invalidation("x", tenant_id=""), "tenant"),
    (b'{"op": "tags", "tenant_id": "acme", "tags": []}', "tags"),
    (b"[" * 100_000, "Invalid JSON"),
    (invalidation("x" * 300_000), "bytes long, more than"),
]


async def test_poison_is_set_aside_with_the_reason_and_holds_nothing_up(
    settings: Settings, caches: list[Cache]
) -> None:
    await fill(caches, "a", "b")
    await made(settings)
    await put(settings, invalidation("a"), *(value for value, _ in POISON), invalidation("b"))
    await put(settings, b"signed by nobody", key=b"k" * 5000, headers=[("attempts", b"2"), ("x" * 10, b"y" * 5000)])
    worker = worker_of(settings)
    with lines_told("WARNING") as told:
        async with running(worker):
            await gone(caches, "a", "b")
            await until(lambda: worker.meters.count("dead") == len(POISON) + 1)
    letters = [one for one in await dead(settings) if one.key == b"acme"]
    assert [letter.value for letter in letters] == [value or b"" for value, _ in POISON]
    for letter, (_, reason) in zip(letters, POISON, strict=True):
        headers = {name: value.decode() for name, value in letter.headers}
        assert reason in headers["reason"]
        assert headers["attempts"] == "1"
        assert headers["source"].startswith(f"{settings.kafka_commands_topic}/")
    (big,) = [one for one in await dead(settings) if one.key is None]
    assert dict(big.headers)["attempts"] == b"3"
    assert any("so are" in line for line in told)
    assert await committed(settings) == len(POISON) + 3


async def test_what_the_driver_cannot_read_is_stepped_over_and_named(settings: Settings, caches: list[Cache]) -> None:
    """A header's name that is not UTF-8. What is in front of it, behind it and in other partitions is applied."""
    names = [str(number) for number in range(40)]
    await fill(caches, "a", "z", *names)
    await made(settings)
    one_batch = [invalidation(one).decode() for one in ("a", "odd", "behind")]
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", ODD, str(settings.kafka_bootstrap_servers), settings.kafka_commands_topic, *one_batch],
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"},
        check=True,
        timeout=30,
    )
    await put(settings, *map(invalidation, names))
    for number in range(8):  # keys for every partition, the first among them
        await put(settings, invalidation("z"), key=str(number).encode())
    worker = worker_of(settings)
    async with running(worker):
        await gone(caches, "a", "z", *names)
        await until(lambda: worker.meters.count("dead") == 1)
        await until(lambda: figure(worker, "backlog") == 0)
    assert figure(worker, "unreadable_total") == 2
    (letter,) = await dead(settings)
    headers = dict(letter.headers)
    assert headers["source"].decode() == f"{settings.kafka_commands_topic}/0@1"
    assert b"2 messages from here on can't be read" in headers["reason"]
    assert await committed(settings) == 3 + len(names) + 8


async def test_only_what_is_signed_is_applied_where_there_is_a_key(redis_url: str, kafka: KafkaServer) -> None:
    settings = setup(redis_url, kafka.address, kafka_commands_key="new,old")
    old, other = (settings.model_copy(update={"kafka_commands_key": _secret(key)}) for key in ("old", "other"))
    for known in (settings, old, other):
        async with KafkaProducer.open(known) as producer:
            await producer.invalidate("config", "x", "acme")
    await put(settings, invalidation("x"))
    (signed, *_) = await held(settings)
    await put(settings, invalidation("y"), headers=signed.headers)  # another's signature
    await put(settings, signed.value, headers=[("signature", signed.headers[1][1])])  # without the namespace
    worker = worker_of(settings)
    async with running(worker):
        await until(lambda: worker.meters.count("dead") == 4 and worker.meters.count("applied") == 2)
    reasons = [dict(one.headers)["reason"] for one in await dead(settings)]
    assert sorted(reasons) == [b"it is not signed", *[b"its signature is wrong"] * 3]


def _secret(text: str) -> Any:
    return type(setup("redis://x", "x:1", kafka_commands_key=text).kafka_commands_key)(text)


async def test_commands_for_other_caches_are_passed_over(settings: Settings) -> None:
    async with KafkaProducer.open(settings.model_copy(update={"namespace": "others"})) as producer:
        await producer.invalidate("config", "x", "acme")
    await put(settings, invalidation("y"), headers=[("namespace", b"")])
    worker = worker_of(settings)
    async with running(worker):
        await applied(worker, 1)
        await until(lambda: worker.meters.count("ignored") == 1)
    assert await committed(settings) == 2


async def test_one_tenants_commands_are_applied_in_their_order(settings: Settings) -> None:
    worker = worker_of(settings, WorkerOptions(session_timeout_s=1.0, batch=3))
    order: list[str] = []
    carry = worker._applier.carry

    async def noted(plans: Any, within_s: Any = None) -> Any:
        assert len(plans) <= 3
        order.extend(key.l2 for plan in plans for key in plan.keys)
        return await carry(plans, within_s)

    worker._applier.carry = noted  # type: ignore[method-assign]
    async with KafkaProducer.open(settings) as producer, running(worker):
        for number in range(20):
            await producer.invalidate("config", number, "acme" if number % 2 else "globex")
        await applied(worker, 20)
    for tenant, first in (("globex", 0), ("acme", 1)):
        mine = [int(key.rpartition(":")[2]) for key in order if key.startswith(tenant)]
        assert mine == list(range(first, 20, 2))


async def test_two_share_the_partitions_and_hand_them_over_while_they_are_busy(
    settings: Settings, caches: list[Cache]
) -> None:
    ids = [str(number) for number in range(100)]
    await fill(caches, *ids[:20])
    first, second = worker_of(settings), worker_of(settings)
    written = 0
    async with KafkaProducer.open(settings) as producer, running(first):

        async def write(one: str, tenant: str) -> None:
            nonlocal written
            await producer.invalidate("config", one, tenant)
            written += 1

        async def all_committed() -> bool:
            return await committed(settings) == written

        await write(ids[0], "acme")
        await applied(first, 1)
        async with running(second), asyncio.timeout(PATIENCE_S):
            while not second.meters.count("applied"):  # in a rebalance while both are busy
                for one in ids:
                    await write(one, "acme")
                    await write(one, "globex" + one)
            await until(lambda: first.meters.count("applied") + second.meters.count("applied") >= written)
        await write(ids[1], "acme")  # second has left: first has all again
        await until(all_committed)
        await gone(caches, *ids[:20])
    again = first.meters.count("again") + second.meters.count("again")
    assert first.meters.count("applied") + second.meters.count("applied") + again >= written
    assert await committed(settings) == written


async def test_draining_ends_with_what_is_in_hand_applied_and_committed(settings: Settings) -> None:
    await made(settings)
    await put(settings, *(invalidation(number) for number in range(500)))
    worker = worker_of(settings, WorkerOptions(session_timeout_s=1.0, batch=50))
    applying, going_on = asyncio.Event(), asyncio.Event()
    carry = worker._applier.carry

    async def slowly(plans: Any, within_s: Any = None) -> Any:
        applying.set()
        await going_on.wait()
        return await carry(plans, within_s)

    worker._applier.carry = slowly  # type: ignore[method-assign]
    task = asyncio.create_task(worker.run())
    await applying.wait()
    worker.drain()
    await asyncio.sleep(0.05)
    assert not task.done()
    going_on.set()
    await asyncio.wait_for(task, 10)
    assert worker.meters.count("applied") == 50 == await committed(settings)


async def test_without_l2_it_takes_no_more_than_a_batch_stays_in_the_group_and_goes_on(
    own_server: EmbeddedServer, kafka: KafkaServer
) -> None:
    settings = setup(own_server.url, kafka.address)
    worker = worker_of(settings, WorkerOptions(session_timeout_s=1.0, batch=10))
    async with running(worker):
        await put(settings, invalidation("first"))
        await applied(worker, 1)
        own_server.pause()
        await put(settings, *(invalidation(number) for number in range(500)))
        await until(lambda: not worker.health.is_up("l2"))
        await until(lambda: figure(worker, "backlog") >= 490)
        assert 0 < figure(worker, "in_flight") <= 10
        assert worker.health.is_up("kafka")
        assert await committed(settings) < 20
        own_server.resume()
        await applied(worker, 501)
        assert worker.meters.count("again") == 0, "it has kept its partitions"
    assert await committed(settings) == 501


async def test_dead_letters_are_there_before_anything_is_committed(settings: Settings) -> None:
    worker = worker_of(settings)
    put_dead = worker.source.dead.put
    tried = 0

    async def fails_first(letters: Any) -> None:
        nonlocal tried
        tried += 1
        assert await committed(settings) == 0
        if tried == 1:
            raise OSError("no broker")
        await put_dead(letters)

    worker.source.dead.put = fails_first  # type: ignore[method-assign]
    await made(settings)
    await put(settings, b"nonsense", invalidation("x"))
    async with running(worker):
        await until(lambda: worker.meters.count("dead") == 1)
    assert tried == 2 and len(await dead(settings)) == 1
    assert await committed(settings) == 2


async def test_a_letter_larger_than_its_topic_takes_is_cut_and_holds_nothing_up(settings: Settings) -> None:
    await made(
        settings.model_copy(update={"kafka_commands_topic": dead_topic(settings)}), **{"max.message.bytes": "5000"}
    )
    await made(settings)
    await put(settings, b"x" * 100_000, invalidation("behind"))
    worker = worker_of(settings)
    async with running(worker):
        await applied(worker, 1)
        await until(lambda: worker.meters.count("dead") == 1)
    (letter,) = await held(settings, dead_topic(settings))
    assert letter.value == b"x" * 1000
    assert b"it is 100000 bytes long, whole at its source" in dict(letter.headers)["reason"]


async def test_it_drains_at_once_while_l2_is_not_there_yet(kafka: KafkaServer) -> None:
    worker = worker_of(setup(f"redis://127.0.0.1:{free_port()}/0", kafka.address))
    task = asyncio.create_task(worker.run())
    await until(lambda: not worker.health.is_up("l2"))
    worker.drain()
    await asyncio.wait_for(task, 5)


async def test_a_broker_that_is_away_at_the_start_is_told_once_and_waited_for(redis_url: str) -> None:
    worker = worker_of(setup(redis_url, f"127.0.0.1:{free_port()}"))
    task = asyncio.create_task(worker.run())
    with lines_told("WARNING") as told:
        await until(lambda: worker._retry._tries > 2)
    assert len([line for line in told if "kafka is out of reach" in line]) == 1
    assert not worker.health.is_up("kafka") and worker.health.is_up("l2")
    worker.drain()
    await asyncio.wait_for(task, 5)


async def test_a_broker_that_hangs_meanwhile_is_told_and_waited_for(
    settings: Settings, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "LOOK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)
    worker = worker_of(settings)
    async with running(worker):
        await put(settings, invalidation("a"))
        await applied(worker, 1)
        await asyncio.to_thread(kafka.pause)
        try:
            await until(lambda: not worker.health.is_up("kafka"))
        finally:
            await asyncio.to_thread(kafka.resume)
        await until(lambda: worker.health.is_up("kafka"))
        await put(settings, invalidation("b"))
        await applied(worker, 2)


async def test_what_kafka_removed_unread_is_told_and_the_rest_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)
    settings = settings.model_copy(update={"kafka_partitions": 1})
    async with running(worker_of(settings)):
        await put(settings, invalidation("a"))
        await until(lambda: _has_committed(settings, 1))
    await put(settings, *(invalidation(number) for number in range(10)))
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        part = TopicPartition(settings.kafka_commands_topic, 0)
        await admin.delete_records({part: RecordsToDelete(before_offset=6)})
    finally:
        await admin.close()
    worker = worker_of(settings)
    with lines_told("WARNING") as told:
        async with running(worker):
            await applied(worker, 5)
            await until(lambda: any("were removed before they were read" in line for line in told))
            await until(lambda: any("nobody can name what they touched" in line for line in told))
    assert figure(worker, "cut_total") == 1


async def _has_committed(settings: Settings, count: int) -> bool:
    return await committed(settings) == count


async def test_letters_come_back_with_their_count_and_their_signature(redis_url: str, kafka: KafkaServer) -> None:
    settings = setup(redis_url, kafka.address, kafka_commands_key="key")
    async with KafkaProducer.open(settings) as producer:
        await producer.invalidate("config", "good", "acme")
    (good,) = await held(settings)
    worker = worker_of(settings)
    heard = Heard(worker)
    async with running(worker):
        await put(settings, b"nonsense")
        await until(lambda: worker.meters.count("dead") == 1)
        # As a worker with another key would have set it aside.
        await worker.source.dead.put([_letter(good)])
        assert await replay(settings, QUICKLY, limit=1) == 1
        assert await replay(settings, QUICKLY, limit=1) == 1
        await until(lambda: worker.meters.count("dead") == 2)
        await until(lambda: heard.asked["K acme:config:good"] == 2)
        letters = await dead(settings)
        assert [dict(one.headers)["attempts"] for one in letters] == [b"1", b"4", b"2"]
        others = settings.model_copy(update={"namespace": "others"})
        there = WorkerOptions(dead_topic=dead_topic(settings))
        assert await replay(others, there) == 2, "of nobody in particular"
        with pytest.raises(ConfigError, match="nothing was set aside under this name"):
            await replay(others, QUICKLY)  # a namespace has dead letters of its own


def _letter(record: Any) -> Any:
    from cachebus.consumers.kafka.worker import letter

    return letter(record, "its signature is wrong")._replace(attempts=4)


def test_what_cannot_be_is_refused(settings: Settings) -> None:
    for wrong in ({"batch": 0}, {"session_timeout_s": 0.1}):
        with pytest.raises(ConfigError):
            WorkerOptions(**wrong)
    with pytest.raises(ConfigError, match="where commands come from"):
        worker_of(settings, WorkerOptions(dead_topic=settings.kafka_commands_topic))
    for odd in ("", "..", "a b", "x" * 250):
        with pytest.raises(ConfigError, match="dead_topic"):
            worker_of(settings, WorkerOptions(dead_topic=odd or "\n"))
    with pytest.raises(ConfigError, match="CACHEBUS_KAFKA_BOOTSTRAP_SERVERS"):
        worker_of(settings.model_copy(update={"kafka_bootstrap_servers": None}))
    assert json.loads(invalidation("x"))["op"] == "invalidate"
