"""Debezium's topics: odd envelopes, what was missed, and whose group it is."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition

from cachebus import ConfigError
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker
from cachebus.consumers.cdc.topics.replay import replay_topic
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.in_a_row import ALL_DEAD
from cachebus.consumers.worker.preflight import preflight
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import quick, until
from tests.support.changes import Heard, running
from tests.support.logs import told as lines_told
from tests.support.worker_health import why

RULES = """
tenants = ["acme", "globex"]

[[rule]]
table = "public.orders"
data_type = "order"
resource_id = "{id}"
tenant_id = "{tenant}"
on_truncate = "all"
"""


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)


class Topic:
    """One of the test's own, and how it is written to."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.name = f"orders-{secrets.token_hex(4)}"

    async def made(self, partitions: int = 1) -> None:
        """It is there."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        await admin.create_topics([NewTopic(self.name, partitions, 1)])
        await admin.close()

    async def put(self, *values: bytes | None, key: bytes | None = None, partition: int = 0) -> None:
        """Write these."""
        producer = AIOKafkaProducer(bootstrap_servers=self.servers)
        await producer.start()
        for value in values:
            await producer.send_and_wait(self.name, value, key=key, partition=partition)
        await producer.stop()

    async def cut(self, before: int) -> None:
        """What is before that is gone."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        await admin.delete_records({TopicPartition(self.name, 0): RecordsToDelete(before_offset=before)})
        await admin.close()

    def source(self, **more: Any) -> KafkaSource:
        """It, read by a group of its own."""
        named = {"group": self.name, "dead_topic": f"dead-{self.name}", "session_timeout_s": 1.0} | more
        return KafkaSource(self.servers, self.name, **named)


@pytest.fixture
async def topic(kafka: KafkaServer) -> Topic:
    """There already."""
    found = Topic(kafka.address)
    await found.made()
    return found


def changed(number: Any, tenant: Any = "acme", op: str = "c", schema: Any = None, **source: Any) -> bytes:
    """A row's envelope."""
    row = {"id": number, "tenant": tenant}
    where = {"schema": "public", "table": "orders"} | source
    payload = {"op": op, "after": None if op == "d" else row, "before": row if op == "d" else None, "source": where}
    return json.dumps(payload if schema is None else {"schema": schema, "payload": payload}).encode()


def columns(*fields: Any) -> Any:
    """A schema that tells of these columns."""
    return {"fields": [{"field": "after", "fields": list(fields)}]}


ODD = {
    "a time of 10**400": changed("odd", ts_ms=10**400),
    "no time": changed("odd", ts_ms=float("nan")),
    "an endless time": changed("odd", ts_ms=float("-inf")),
    "a position of 10**400": changed("odd", lsn=10**400),
    "a column that is a list": changed("odd", schema=columns({"field": ["id"], "name": "x"})),
    "a schema that is a list": changed("odd", schema=["fields"]),
    "fields that are numbers": changed("odd", schema=columns(1, 2)),
}
"""Whatever is said around it, the change is one."""
UNUSABLE = {
    "a number of 5000 digits": b'{"op": "c", "after": {"id": ' + b"9" * 5000 + b"}}",
    "an id that is an object": changed({}),
    "a lone surrogate": changed("\ud800"),
    "a lone surrogate as the tenant": changed("x", "\ud800"),
    "NUL": changed("x\0y", "\0"),
    "deep": b'{"op": "c", "after": {"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "an operation that is a list": b'{"op": []}',
    "a table that is a number": changed("x", table=7),
    "an id that is too long": changed("x" * 5000),
}


async def test_no_envelope_ends_it_or_holds_up_another(topic: Topic, redis_url: str) -> None:
    worker = TopicsWorker(quick(redis_url), parse_rules(RULES), topic.source())
    heard = Heard(worker)
    await topic.put(*ODD.values(), *UNUSABLE.values(), changed(10**400), changed("last"))
    with lines_told("WARNING") as told:
        async with running(worker):
            await until(lambda: heard.has("order", "last"))
    assert heard.asked["K acme:order:odd"] == len(ODD)
    assert heard.has("order", str(10**400)), "an id like others"
    assert worker.meters.count("applied") == len(ODD) + 2
    assert worker.meters.count("dead") == len(UNUSABLE)
    assert all(line.rstrip("\n").isprintable() for line in told)


async def test_a_delete_that_was_set_aside_comes_back_with_its_key(topic: Topic, redis_url: str) -> None:
    """Of an old row the columns of the message's key are sure, and no others."""
    settings = quick(redis_url)
    too_much = parse_rules(RULES.replace("on_truncate", 'tags = ["r:{region}"]\non_truncate'))
    worker = TopicsWorker(settings, too_much, topic.source())
    heard = Heard(worker)
    router = Router(parse_rules(RULES))
    await topic.put(changed("1", op="d"), key=b'{"id": "1", "tenant": "acme"}')
    await topic.put(changed("2", op="d"), key=b'{"id": "2", "tenant": "acme", "x": "' + b"x" * 5000 + b'"}')
    await topic.put(changed("3", "made up", op="d"), key=b'{"id": "3"}')
    async with running(worker):
        await until(lambda: worker.meters.count("dead") == 3)
        assert heard.asked["K acme:order:1"] == 1, "what can be named is, beside the letter"
        given = topic.source()
        assert await replay_topic(given, router, worker._applier) == (1, 2)
        assert heard.asked["K acme:order:1"] == 2
        assert not heard.has("order", "3", "made up")
        assert await replay_topic(given, router, worker._applier) == (0, 2), "the others stay, with their reasons"


class Absent:
    """The primary of a tenant is away, as the worker has it."""

    def __init__(self, worker: TopicsWorker, tenant: str) -> None:
        self.there = False
        self._tenant = tenant
        self._carry = worker._applier.carry
        worker._applier.carry = self._carried  # type: ignore[method-assign]

    async def _carried(self, plans: Sequence[Any], within_s: float | None = None) -> Carried:
        away = {
            at
            for at, plan in enumerate(plans)
            if not self.there and any(self._tenant in name for name in (*plan.scopes, *(key.l2 for key in plan.keys)))
        }
        await self._carry([plan for at, plan in enumerate(plans) if at not in away], within_s)
        return Carried(away=away)


async def test_what_was_missed_is_made_up_for_without_waiting_for_a_primary_that_is_away(
    topic: Topic, redis_url: str
) -> None:
    settings = quick(redis_url)
    async with running(TopicsWorker(settings, parse_rules(RULES), topic.source())) as _:
        await topic.put(changed("1"))
    await topic.put(changed("2"), changed("3"))
    await topic.cut(3)
    worker = TopicsWorker(settings, parse_rules(RULES), topic.source())
    absent, heard = Absent(worker, "acme"), Heard(worker)
    async with running(worker):
        await until(lambda: heard.asked["D globex order"])
        await topic.put(changed("4", "globex"), changed("5"))
        await until(lambda: heard.has("order", "4", "globex"))
        assert not heard.asked["D acme order"]
    absent, heard = Absent(worker := TopicsWorker(settings, parse_rules(RULES), topic.source()), "-"), Heard(worker)
    async with running(worker):  # the first was ended before it could say so: it is noted with the offsets
        await until(lambda: heard.asked["D acme order"])
        await until(lambda: heard.has("order", "5"))
        absent.there = True
    with lines_told("WARNING") as told:
        async with running(TopicsWorker(settings, parse_rules(RULES), topic.source())):
            await topic.put(changed("6"))
    assert not [line for line in told if "removed before they were read" in line], "once"


async def test_by_default_each_namespace_has_a_group_and_dead_letters_of_its_own(topic: Topic, redis_url: str) -> None:
    names = [f"ns{secrets.token_hex(3)}" for _ in range(2)]
    plain = topic.source(group=None, dead_topic=None)
    workers = [TopicsWorker(quick(redis_url, namespace=name), parse_rules(RULES), plain) for name in names]
    heard = [Heard(worker) for worker in workers]
    async with running(workers[0]), running(workers[1]):
        await topic.put(b"?", *(changed(str(number)) for number in range(10)))
        for one in heard:
            await until(lambda h=one: all(h.has("order", str(number)) for number in range(10)))  # type: ignore[misc]
    for name, worker in zip(names, workers, strict=True):
        member = worker.source.membership
        assert (member.group, member.dead_topic) == (f"{name}-cdc", f"{name}.cdc.dead")
        assert worker.meters.count("dead") == 1


async def test_other_rules_than_before_are_made_up_for(topic: Topic, redis_url: str) -> None:
    """What was changed before a rule was there, nobody was told by it."""
    other = RULES + RULES.replace('"order"', '"invoice"').partition("\n\n")[2]

    async def let_go(rules: str, number: str) -> int:
        worker = TopicsWorker(quick(redis_url), parse_rules(rules), topic.source())
        heard = Heard(worker)
        async with running(worker):
            await topic.put(changed(number))
            await until(lambda: heard.has("order", number) and worker.health.ready)
            await until(lambda: _committed(topic, worker))
        return sum(count for name, count in heard.asked.items() if not name.startswith("K "))

    assert await let_go(RULES, "1") == 0
    assert await let_go(RULES, "2") == 0
    assert await let_go(other, "3") == 4, "of both tenants, both types"
    assert await let_go(other, "4") == 0


async def _committed(topic: Topic, worker: TopicsWorker) -> bool:
    admin = AIOKafkaAdminClient(bootstrap_servers=topic.servers)
    await admin.start()
    found = await admin.list_consumer_group_offsets(worker.source.membership.group)
    await admin.close()
    progress = worker.source.identities._ours and found.get(TopicPartition(topic.name, 0))
    return bool(progress) and '"missed": ""' in progress.metadata


async def test_that_no_topic_fits_is_told(kafka: KafkaServer, redis_url: str) -> None:
    nothing = Topic(kafka.address)
    worker = TopicsWorker(quick(redis_url), parse_rules(RULES), nothing.source())
    task = asyncio.create_task(worker.run())
    await until(lambda: "no topic that one may see fits it" in worker.health.as_dict()["parts"]["topic"]["why"])
    await nothing.made()
    await nothing.put(changed("1"))
    await until(lambda: worker.meters.count("applied") == 1)
    await until(lambda: worker.health.is_up("topic"))
    worker.drain()
    await asyncio.wait_for(task, 10)


def test_topics_that_take_the_dead_are_no_source(redis_url: str) -> None:
    with pytest.raises(ConfigError, match="where changes come from"):
        TopicsWorker(quick(redis_url), parse_rules(RULES), KafkaSource("x:1", ".*"))
    with pytest.raises(ConfigError, match="is no regular expression"):
        TopicsWorker(quick(redis_url), parse_rules(RULES), KafkaSource("x:1", "("))
    with pytest.raises(ConfigError, match="bootstrap_servers: broker 2 of 2 has a user") as refused:
        TopicsWorker(quick(redis_url), parse_rules(RULES), KafkaSource("x:1,ann:s3cret@y:1", "x"))
    assert "s3cret" not in str(refused.value)


async def test_messages_of_which_none_can_be_used_are_no_accident(topic: Topic, redis_url: str) -> None:
    """The connector writes Avro, or flattened rows: one dead letter each, and all was green."""
    worker = TopicsWorker(quick(redis_url), parse_rules(RULES), topic.source())
    heard = Heard(worker)
    async with running(worker):
        await topic.put(changed("1"), *[b'{"id": 1, "tenant": "acme"}'] * ALL_DEAD)
        await until(lambda: not worker.health.is_up("items"))
        assert f"the last {ALL_DEAD} could not be applied, one after the other: " in why(worker, "items")
        assert "whole envelopes as JSON" in why(worker, "items")
        await topic.put(changed("2"))
        await until(lambda: heard.has("order", "2"))
        await until(lambda: worker.health.ready)
        await topic.put(*[b'{"id": 1, "tenant": "acme"}'] * ALL_DEAD)
        await until(lambda: not worker.health.is_up("items"))


async def test_a_rule_whose_table_never_comes_is_told_where_others_come_that_no_rule_is_for(
    topic: Topic, redis_url: str
) -> None:
    worker = TopicsWorker(quick(redis_url), parse_rules(RULES), topic.source())
    with lines_told("WARNING") as told:
        async with running(worker):
            await topic.put(changed("1", table="order"), changed("2", table="order"))
            await until(lambda: [line for line in told if "Is a name mistyped?" in line])
            (line,) = (line for line in told if "Is a name mistyped?" in line)
            assert "of the tables that these rules name: 'public.orders'; and no rule is for public.order." in line


@pytest.mark.parametrize("named", ["public.orders", "public.order"])
async def test_it_is_told_by_a_look_alone_by_the_names_of_topics(
    kafka: KafkaServer, redis_url: str, named: str
) -> None:
    topic = Topic(kafka.address)
    topic.name = f"cdc{secrets.token_hex(4)}.{named}"
    await topic.made()
    with lines_told("WARNING") as told:
        await preflight(TopicsWorker(quick(redis_url), parse_rules(RULES), topic.source()))
    assert any("Is a name mistyped?" in line for line in told) == (named == "public.order")


async def test_workers_with_other_rules_in_one_group_say_so_while_both_are_in_it(
    kafka: KafkaServer, redis_url: str
) -> None:
    """1. One is alone. 2. One with other rules comes. 3. It is replaced by one with the same rules, which notes them,
    whatever comes."""
    topic = Topic(kafka.address)
    await topic.made(2)
    for partition in range(2):
        await topic.put(changed("1"), partition=partition)
    others = RULES.replace("public.orders", "public.others")

    def of(rules: str) -> TopicsWorker:
        return TopicsWorker(quick(redis_url), parse_rules(rules), topic.source())

    async def told_by_check() -> str:
        return " ".join(str(found) for seen in await preflight(of(RULES)) for found in seen.findings)

    async with running(first := of(RULES)):
        await until(lambda: first.meters.count("applied") == 2)
        assert "other rules" not in await told_by_check()
        async with running(second := of(others)):
            for one in (first, second):
                await until(lambda one=one: "other rules" in why(one, "group"), within_s=30)
            assert "other rules" not in await told_by_check(), "a check may be of rules that are to come"
        async with running(third := of(RULES)):

            async def shares() -> bool:
                for partition in range(2):
                    await topic.put(changed("2"), partition=partition)
                return third.meters.count("applied") > 0

            await until(shares, within_s=30)
            await until(lambda: first.health.ready and third.health.ready, within_s=30)
            assert "other rules" not in await told_by_check()
