"""What happens to topics and groups under a worker that reads them: it goes on, and says what was missed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.structs import TopicPartition

from cachebus import Settings
from cachebus.consumers.kafka import CommandsWorker, WorkerOptions
from cachebus.consumers.topics import findings, inspection, progress
from cachebus.consumers.topics.held import Held
from cachebus.consumers.topics.session import TopicSession
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.source import Item, Left
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until
from tests.support.changes import Heard, running
from tests.support.commands import (
    another_joined,
    committed,
    dead,
    dead_topic,
    held,
    invalidation,
    made,
    producing,
    put,
    setup,
    worker_of,
)
from tests.support.kafka_rights import GROUP, READ, TOPIC, WRITE, deny, guarded
from tests.support.logs import told as lines_told
from tests.support.odd_commands import ODD
from tests.support.topics import admin_of, figure
from tests.support.worker_health import why


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


@pytest.fixture
def settings(redis_url: str, kafka: KafkaServer) -> Settings:
    """A topic of one partition and a namespace of the test's own."""
    return setup(redis_url, kafka.address, kafka_partitions=1)


async def all_committed(settings: Settings, count: int) -> bool:
    """Whether the group has come so far."""
    return await committed(settings) == count


async def remade(admin: AIOKafkaAdminClient, topic: str) -> None:
    """Deleted and made anew, as fast as that goes."""
    await admin.delete_topics([topic])
    while True:
        answer = await admin.create_topics([NewTopic(topic, 1, 1)])
        if not answer.topic_errors[0][1]:
            return


# -- topics ----------------------------------------------------------------------------------------------------


async def test_a_topic_that_is_made_anew_is_read_from_its_beginning_and_told(settings: Settings) -> None:
    worker = worker_of(settings)
    heard = Heard(worker)
    with lines_told("WARNING") as told:
        async with running(worker), admin_of(settings) as admin:
            await put(settings, *(invalidation(f"a{number}") for number in range(30)))
            await until(lambda: worker.meters.count("applied") == 30)
            await remade(admin, settings.kafka_commands_topic)
            await until(lambda: _put(settings, *(invalidation(f"b{number}") for number in range(40))))
            await until(lambda: all(heard.has("config", f"b{number}") for number in range(40)))
            await until(lambda: any("was deleted and made anew" in line for line in told))
            await until(lambda: any("nobody can name what they touched" in line for line in told))
            await until(lambda: all_committed(settings, 40))
            assert figure(worker, "cut_total") == 1
    with lines_told("WARNING") as told:
        async with running(worker_of(settings)):
            await put(settings, invalidation("c"))
            await until(lambda: all_committed(settings, 41))
    assert not [line for line in told if "anew" in line], "it was made up for"


async def _put(settings: Settings, *values: bytes) -> bool:
    """Whether brokers have taken them: just after a topic is made none may lead it."""
    try:
        await put(settings, *values)
    except Exception:  # noqa: BLE001 -- of several kinds
        return False
    return True


async def test_what_was_missed_is_told_until_it_is_made_up_for_by_whoever_comes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group's offsets have expired, and messages are gone; the worker is ended before it has said so."""
    async with running(worker_of(settings)):
        await put(settings, *(invalidation(number) for number in range(6)))
        await until(lambda: all_committed(settings, 6))
    async with admin_of(settings) as admin:
        part = TopicPartition(settings.kafka_commands_topic, 0)
        await admin.delete_records({part: RecordsToDelete(before_offset=6)})
        group = settings.namespace
        await admin._send_request(DeleteGroupsRequest([group]), await admin.find_coordinator(group))
    await put(settings, invalidation("next"))

    async def ended(*_: Any) -> None:
        """Before it was made up for."""

    with monkeypatch.context() as patched:
        patched.setattr(TopicSession, "made_up", ended)
        first = worker_of(settings)
        async with running(first):
            await until(lambda: all_committed(settings, 7))
    assert figure(first, "cut_total") == 1
    for times in (1, 0):
        with lines_told("WARNING") as told:
            async with running(worker_of(settings)) as _:
                await put(settings, invalidation("more"))
                await until(lambda: any("the group has no offsets" in line for line in told) or not times)  # noqa: B023
                await until(lambda: _caught_up(settings))
        assert any("nobody can name" in line for line in told) == bool(times)


async def _caught_up(settings: Settings) -> bool:
    return await committed(settings) == 6 + len(await held(settings))


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_messages_are_read(settings: Settings, codec: str) -> None:
    await made(settings)
    worker = worker_of(settings)
    async with running(worker):
        producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers, compression_type=codec)
        await producer.start()
        sent = [await producer.send(settings.kafka_commands_topic, invalidation(n), key=b"acme") for n in range(20)]
        await asyncio.gather(*sent)
        await producer.stop()
        await until(lambda: worker.meters.count("applied") == 20)


def test_a_codec_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(findings.of_codecs()) == []
    monkeypatch.setattr("aiokafka.codec.cramjam", None)
    (finding,) = findings.of_codecs()
    assert "snappy, lz4, zstd" in finding.problem and "cachebus[kafka]" in finding.remedy


async def test_the_end_of_a_transaction_is_no_backlog_and_what_waits_behind_one_is(settings: Settings) -> None:
    await made(settings)
    worker = worker_of(settings)
    async with running(worker):
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka_bootstrap_servers, transactional_id=settings.namespace
        )
        await producer.start()
        try:
            for number in range(3):
                async with producer.transaction():
                    await producer.send(settings.kafka_commands_topic, invalidation(number), key=b"acme")
            await until(lambda: worker.meters.count("applied") == 3)
            await until(lambda: all_committed(settings, 6))
            await until(lambda: figure(worker, "backlog") == 0)
            await producer.begin_transaction()
            await producer.send_and_wait(settings.kafka_commands_topic, invalidation("open"), key=b"acme")
            await put(settings, invalidation("behind it"))
            await until(lambda: figure(worker, "backlog") == 2)
            await until(lambda: worker.meters.count("applied") == 3)
            await producer.abort_transaction()
            await until(lambda: worker.meters.count("applied") == 4)
            await until(lambda: figure(worker, "backlog") == 0)
        finally:
            await producer.stop()


async def test_a_transaction_that_stays_open_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "OPEN_S", 0.2)
    await made(settings)
    worker = worker_of(settings)
    async with running(worker):
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka_bootstrap_servers, transactional_id=settings.namespace
        )
        await producer.start()
        try:
            await producer.begin_transaction()
            await producer.send_and_wait(settings.kafka_commands_topic, invalidation("open"), key=b"acme")
            await until(lambda: "a transaction is open since the message 0" in why(worker, "transactions"))
            where = f"--topic {settings.kafka_commands_topic} --partition 0"
            for command in f"describe-producers {where} ;", f"abort {where} --start-offset 0":
                assert f"--bootstrap-server {settings.kafka_bootstrap_servers} {command}" in why(worker, "transactions")
            await producer.abort_transaction()
            await until(lambda: worker.health.is_up("transactions"))
        finally:
            await producer.stop()


async def test_partitions_that_are_added_are_read_from_their_beginning(settings: Settings) -> None:
    worker = worker_of(settings)
    async with running(worker), admin_of(settings) as admin:
        await put(settings, invalidation("a"))
        await until(lambda: worker.meters.count("applied") == 1)
        await admin.create_partitions({settings.kafka_commands_topic: NewPartitions(3)})
        wider = settings.model_copy(update={"kafka_partitions": 3})
        async with producing(settings) as producer:
            for part in range(3):

                async def taken(part: int = part) -> bool:
                    try:
                        await producer.send_and_wait(settings.kafka_commands_topic, invalidation("b"), partition=part)
                    except AssertionError:  # it does not know of it yet
                        await producer.client.force_metadata_update()
                        return False
                    return True

                await until(taken)
        await until(lambda: worker.meters.count("applied") == 4)
        await until(lambda: all_committed(wider, 4))
        assert figure(worker, "cut_total") == 0


async def test_a_topic_that_is_deleted_is_told_and_made_again(settings: Settings) -> None:
    worker = worker_of(settings)
    with lines_told("WARNING") as told:
        async with running(worker), admin_of(settings) as admin:
            await put(settings, invalidation("a"))
            await until(lambda: worker.meters.count("applied") == 1)
            await admin.delete_topics([settings.kafka_commands_topic, dead_topic(settings)])
            await until(lambda: _put(settings, b"?", invalidation("b")))
            await until(lambda: worker.meters.count("applied") >= 2 and worker.meters.count("dead") >= 1)
            await until(lambda: worker.health.ready or not worker.health.live)
            assert len(await dead(settings)) >= 1
    assert any("it is missing; to mend it: kafka-topics.sh --bootstrap-server" in line for line in told)


async def test_a_compacted_topic_is_told_and_read_as_far_as_that_goes(settings: Settings) -> None:
    await made(settings, **{"cleanup.policy": "compact"})
    worker = worker_of(settings)
    task = asyncio.create_task(worker.run())
    await until(lambda: "it is compacted" in why(worker, "topic"))
    await put(settings, invalidation("a"))
    await until(lambda: worker.meters.count("applied") == 1)
    worker.drain()
    await asyncio.wait_for(task, 10)


# -- the group -------------------------------------------------------------------------------------------------


async def test_a_group_of_another_namespace_is_refused_by_name(settings: Settings) -> None:
    """Each would have a part of the commands only."""
    options = WorkerOptions(group=f"{settings.namespace}-both", session_timeout_s=1.0)
    ours, others = worker_of(settings, options), worker_of(settings.model_copy(update={"namespace": "zz"}), options)
    async with running(ours):
        task = asyncio.create_task(others.run())
        await until(lambda: "it serves the caches of the namespace" in why(others, "group"))
        await put(settings, *(invalidation(number) for number in range(10)))
        await until(lambda: ours.meters.count("applied") == 10)
        assert not others.health.ready and others.health.is_up("kafka")
        others.drain()
        await asyncio.wait_for(task, 10)
    assert settings.namespace in why(others, "group") and "--group" in why(others, "group")
    assert sum(others.meters.count(outcome) for outcome in ("applied", "ignored", "dead")) == 0


async def test_of_two_namespaces_that_begin_together_one_leaves(settings: Settings) -> None:
    """Neither has committed anything when they look: both join."""
    await made(settings.model_copy(update={"kafka_partitions": 2}))
    options = WorkerOptions(group=f"{settings.namespace}-both", session_timeout_s=1.0)
    one, two = worker_of(settings, options), worker_of(settings.model_copy(update={"namespace": "zz"}), options)
    tasks = [asyncio.create_task(worker.run()) for worker in (one, two)]
    refused = "it serves the caches of the namespace"
    await until(lambda: sum(refused in why(worker, "group") for worker in (one, two)) == 1)
    for number in range(4):
        await put(settings, invalidation(number), key=str(number).encode())
    await until(lambda: any(worker.meters.count("applied") >= 4 for worker in (one, two)))
    await until(lambda: sum(refused in why(worker, "group") for worker in (one, two)) == 1)
    for worker, task in zip((one, two), tasks, strict=True):
        worker.drain()
        await asyncio.wait_for(task, 10)


# -- what is held ----------------------------------------------------------------------------------------------


class Away:
    """A primary that is away for some resources, as the worker has it."""

    def __init__(self, worker: CommandsWorker, fits: Callable[[str], bool] = lambda key: "held" in key) -> None:
        self.there = False
        self.waits = asyncio.Event()
        """Cleared, all of L2 does not answer."""
        self.waits.set()
        self.asked = 0
        self._fits = fits
        self._carry = worker._applier.carry
        worker._applier.carry = self._carried  # type: ignore[method-assign]

    async def _carried(self, plans: Sequence[Any], within_s: float | None = None) -> Carried:
        self.asked += 1
        await self.waits.wait()
        away = {at for at, plan in enumerate(plans) if not self.there and any(self._fits(key.l2) for key in plan.keys)}
        done = await self._carry([plan for at, plan in enumerate(plans) if at not in away], within_s)
        assert not done.away | done.late and not done.failed
        return Carried(away=away)


async def test_what_is_held_is_never_committed_past_by_a_batch_that_a_rebalance_overtook(settings: Settings) -> None:
    """1. One is held. 2. All of L2 is away with a batch in hand. 3. Another joins, waits in vain for the batch, and
    leaves. 4. L2 is back, and the batch is done. Nothing behind what is held may be committed."""
    worker = worker_of(settings)
    away = Away(worker)
    async with running(worker):
        await put(settings, invalidation("a"), invalidation("held"))
        await until(lambda: figure(worker, "held") == 1)
        away.waits.clear()
        asked = away.asked
        await put(settings, invalidation("b"), invalidation("c"))
        await until(lambda: away.asked > asked)
        second = worker_of(settings)
        Away(second)
        async with another_joined(second):
            pass
        away.waits.set()
        await until(lambda: worker.meters.count("again") >= 1)
        await until(lambda: figure(worker, "held") == 1)
        assert await committed(settings) == 1
    assert await committed(settings) == 1
    after = worker_of(settings)
    heard = Heard(after)
    async with running(after):
        await until(lambda: heard.has("config", "held"))
        await until(lambda: all_committed(settings, 4))


async def test_messages_that_cant_be_read_behind_one_that_is_held_are_met_once(settings: Settings) -> None:
    await made(settings)
    worker = worker_of(settings)
    away = Away(worker)
    async with running(worker):
        await put(settings, invalidation("held"))
        await until(lambda: figure(worker, "held") == 1)
        for which in ("1", "2"):
            values = [invalidation(f"{one}{which}").decode() for one in ("a", "odd", "lost")]
            await asyncio.to_thread(
                subprocess.run,
                [
                    sys.executable,
                    "-c",
                    ODD,
                    str(settings.kafka_bootstrap_servers),
                    settings.kafka_commands_topic,
                    *values,
                ],
                env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"},
                check=True,
                timeout=30,
            )
        await put(settings, invalidation("behind"))
        await until(lambda: worker.meters.count("applied") == 3)
        await until(lambda: worker.meters.count("dead") == 2)
        assert figure(worker, "held") == 1
        away.there = True
        await until(lambda: all_committed(settings, 8))
        assert worker.meters.count("applied") == 4
        assert worker.meters.count("again") == 0
    assert len(await dead(settings)) == 2
    assert figure(worker, "unreadable_total") == 4


async def test_more_than_is_kept_is_read_again_and_nothing_is_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "Held", partial(Held, most=3))
    worker = worker_of(settings)
    away, heard = Away(worker), Heard(worker)
    async with running(worker):
        for number in range(10):
            await put(settings, invalidation(f"held{number}"), invalidation(f"other{number}"))
        await until(lambda: all(heard.has("config", f"other{number}") for number in range(10)))
        await until(lambda: figure(worker, "held") == 3)
        await until(lambda: figure(worker, "backlog") >= 10)
        await until(lambda: figure(worker, "oldest_seconds") > 0)
        away.there = True
        await until(lambda: all_committed(settings, 20))
        assert all(heard.has("config", f"held{number}") for number in range(10))
        await until(lambda: figure(worker, "held") == 0 and figure(worker, "backlog") == 0)


async def test_what_is_taken_again_is_not_committed_while_more_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(settings)
    await put(settings, *[invalidation(str(number)) for number in range(10)])
    async with worker_of(settings).source.opened() as session:
        assert isinstance(session, TopicSession)
        items: list[Item] = []
        while len(items) < 10:
            batch = await session.take(100, ())
            items += batch.items
            if batch.items:
                late = [item for at, item in enumerate(items) if at >= 5 and item in batch.items]
                await session.acknowledge(batch, Left(undone=late))
        new = session._new

        async def meanwhile(*given: Any) -> Any:
            session._inspector.told = session.progress, {}
            await session.made_up([])
            return await new(*given)

        monkeypatch.setattr(session, "_new", meanwhile)
        again = await session.take(100, ())
        assert len(again.items) == 5
        await session.commits.committed()
        assert await committed(settings) == 5


# -- rights ----------------------------------------------------------------------------------------------------


async def test_rights_that_are_missing_are_told_and_waited_for(redis_url: str) -> None:
    with guarded() as server:
        settings = setup(redis_url, server.address, kafka_partitions=1)
        await made(settings)
        worker = worker_of(settings)
        async with running(worker), admin_of(settings) as admin:
            await put(settings, invalidation("a"))
            await until(lambda: worker.meters.count("applied") == 1)
            await deny(admin, TOPIC, settings.kafka_commands_topic, READ)
            await until(lambda: "--operation Read --operation Describe --topic" in why(worker, "rights"))
            await deny(admin, TOPIC, dead_topic(settings), WRITE)
            await until(lambda: "--operation Write --operation Describe --topic" in why(worker, "rights"))
            await deny(admin, GROUP, settings.namespace, READ)
            await until(lambda: "--operation Read --group" in why(worker, "rights"))
            assert not worker.health.ready
