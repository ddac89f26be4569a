"""Debezium and the slot, side by side: the same changes, the same invalidations."""

from __future__ import annotations

import asyncio
import secrets

from pydantic import SecretStr

from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker
from cachebus.tools.servers.debezium import DebeziumServer
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import quick, until
from tests.support.changes import CODE, END, SCHEMA, STORY, TABLES, Heard, keys, rules, running, tell

CONNECTOR = {
    "skipped.operations": "none",
    "heartbeat.interval.ms": "200",
    "provide.transaction.metadata": "true",
    "tombstones.on.delete": "true",
}


async def test_the_same_changes_are_the_same_invalidations(kafka: KafkaServer, database: str, redis_url: str) -> None:
    prefix = f"cdc{secrets.token_hex(4)}"
    await tell(database, [SCHEMA])
    server = DebeziumServer(kafka, database, tables=TABLES, topic_prefix=prefix, connector=CONNECTOR)
    slot = SlotWorker(quick(redis_url, namespace="slot"), rules(), SlotSource(SecretStr(database)))
    topics = TopicsWorker(
        quick(redis_url, namespace="topics"),
        rules(),
        KafkaSource(
            kafka.address, rf"{prefix}\..*|__debezium-heartbeat\.{prefix}", prefix, dead_topic=f"dead-{prefix}"
        ),
    )
    by_slot, by_topics = Heard(slot), Heard(topics)
    try:
        async with running(slot):
            await asyncio.to_thread(server.start)
            async with running(topics):
                await tell(database, STORY)
                await until(lambda: by_slot.has(*END))
                await until(lambda: by_topics.has(*END) and len(by_topics.asked) == len(by_slot.asked), within_s=60)
                await until(lambda: keys(by_topics) == keys(by_slot))
    finally:
        await asyncio.to_thread(server.stop)
    assert topics.meters.count("dead") == slot.meters.count("dead") == 0
    assert topics.meters.count("ignored") > slot.meters.count("ignored") > 0
    assert by_slot.asked[f"K acme:note:coll:7:{CODE}01"] == 3, "not for what the rule does not name"
    assert {"K acme:order:3", "K acme:order:1", "K globex:order:3"} <= by_slot.asked.keys(), "old keys and new ones"
    assert not by_slot.has("order", "90"), "it was rolled back"
    assert "D globex embedding" in by_slot.asked, "a truncate follows cascades"
