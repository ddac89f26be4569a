"""Workers that follow other cascades than their twins: each does a part without them. They say so while both live."""

from __future__ import annotations

import pytest

from cachebus import Cascade
from cachebus.consumers.kafka import CommandsWorker
from cachebus.consumers.outbox import OutboxRelay, create_tables
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.cascades import digest
from cachebus.consumers.worker.preflight import preflight
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import nodes, until
from tests.support.changes import running as at_work
from tests.support.commands import another_joined, invalidation, made, setup
from tests.support.commands import put as send
from tests.support.outbox import QUICKLY, running, settings
from tests.support.worker_health import why

CASCADES = [Cascade("config", to=[("embedding", "e:{resource_id}"), ("result", "*")])]
SAME = [Cascade("config", to=[("result", "*")]), Cascade("config", to=[("embedding", "e:{resource_id}")])]


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


async def told_by_check(worker: SourceWorker) -> str:
    """What a check says."""
    return " ".join(str(found) for seen in await preflight(worker) for found in seen.findings)


def test_cascades_are_the_same_however_they_are_declared() -> None:
    assert digest(CASCADES) == digest(SAME) != digest(SAME[:1])
    assert digest([]) == ""


@pytest.mark.parametrize("others", [[], SAME[:1]], ids=["none", "fewer"])
async def test_relays_that_follow_other_cascades_say_so_while_both_live(
    database: str, redis_url: str, others: list[Cascade]
) -> None:
    await create_tables(database)

    def relay(cascades: list[Cascade]) -> OutboxRelay:
        return OutboxRelay(database, settings(redis_url), cascades, QUICKLY)

    async with running(first := relay(CASCADES)), running(same := relay(SAME)):
        await until(lambda: first.health.ready and same.health.ready)
        async with running(unlike := relay(others)):
            for one in (first, same, unlike):
                await until(lambda one=one: "other cascades" in why(one, "stores"))
            assert "cascades" not in await told_by_check(relay(others)), "a check may be of cascades that are to come"
        await until(lambda: first.health.ready and same.health.ready)


async def test_workers_of_commands_that_follow_other_cascades_say_so_and_what_they_reach_is_let_go_of(
    kafka: KafkaServer, redis_url: str
) -> None:
    given = setup(redis_url, kafka.address)
    await made(given)
    follows, unlike = CommandsWorker(given, CASCADES), CommandsWorker(given)
    tenants = [f"t{number}" for number in range(8)]
    async with nodes(redis_url, 1, namespace=given.namespace) as (cache,):
        async with at_work(unlike), another_joined(follows):
            for tenant in tenants:
                await cache.set("embedding", "e:b", "old", tenant)
                await cache.set("other", "b", "kept", tenant)
                await send(given, invalidation("b", tenant), key=tenant.encode())
            await until(lambda: follows.meters.count("applied") + unlike.meters.count("applied") == len(tenants))
            for one in (follows, unlike):
                await until(lambda one=one: "other rules or cascades" in why(one, "group"))
            assert "cascades" not in await told_by_check(CommandsWorker(given)), "nor is it told what will be missed"
            assert any([await cache.get("embedding", "e:b", tenant) for tenant in tenants])
            unlike.drain()

            async def all_gone() -> bool:
                return not any([await cache.get("embedding", "e:b", tenant) for tenant in tenants])

            await until(all_gone)
            await until(lambda: follows.health.ready)
        assert [await cache.get("other", "b", tenant) for tenant in tenants] == ["kept"] * 8, "no cascade reaches it"
