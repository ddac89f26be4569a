"""What is owed for changes that went unnoticed stays owed until it is let go of, and the source has stored that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.source import Finding
from cachebus.keys.plan import Plan
from tests.support.at_work import at_work
from tests.support.caches import nodes, until
from tests.support.memory_source import Gone, MemorySource, scope

LOST = Finding("shape", "t", "it was another one for a while", missed=True, over=True, state="1")


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.02)


async def test_where_the_source_fails_to_store_it_it_is_stored_once_it_can_be(redis_url: str) -> None:
    """The finding stays as it was, so nothing else makes it due."""
    source, tries = MemorySource(), 0

    def fails(_: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Gone("the session has ended")

    source.faults["made_up"] = fails
    source.names = lambda _: [scope("t")]
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        source.findings = [LOST]
        await until(lambda: source.made_up == [LOST])
        assert tries == 3


async def test_what_fails_in_l2_is_not_made_up_for_and_a_worker_that_cant_is_not_ready(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource()
    source.names = lambda _: [scope("t")]
    async with nodes(redis_url, 1) as (cache,), at_work(source, redis_url) as worker:
        await cache.set("t", 1, "old", "acme")
        await until(lambda: worker.health.ready)
        send, refuses = worker._applier._producer.send, True

        async def sends(plan: Plan) -> Any:
            if refuses:
                raise RuntimeError("ERR the script is refused")
            return await send(plan)

        monkeypatch.setattr(worker._applier._producer, "send", sends)
        source.findings = [LOST]
        await until(lambda: "ERR the script is refused" in worker.health.as_dict()["parts"]["shape"]["why"])
        assert not source.made_up
        assert await cache.get("t", 1, "acme") == "old"
        refuses = False
        await until(lambda: source.made_up == [LOST])
        assert await cache.get("t", 1, "acme") is None
        source.findings = []
        await until(lambda: worker.health.ready)


async def test_what_l2_is_slow_to_let_go_of_is_owed_until_it_is_and_the_worker_is_red_meanwhile(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer comes later than the next check, and in time for a batch."""
    source, reasons = MemorySource(), list[str]()
    source.names = lambda _: [scope("t")]
    async with nodes(redis_url, 1) as (cache,), at_work(source, redis_url) as worker:
        await cache.set("t", 1, "old", "acme")
        await until(lambda: worker.health.ready)
        send = worker._applier._producer.send

        async def sends(plan: Plan) -> Any:
            await asyncio.sleep(0.1)
            reasons.append(worker.health.as_dict()["parts"]["shape"]["why"])
            return await send(plan)

        monkeypatch.setattr(worker._applier._producer, "send", sends)
        source.findings = [LOST]
        await until(lambda: source.made_up == [LOST])
        assert await cache.get("t", 1, "acme") is None
        assert reasons == ["t: what changes may have touched that went unnoticed is being let go of"]
        source.findings = []
        await until(lambda: worker.health.ready)


async def test_what_waits_for_a_part_that_is_told_as_away_does_not_make_the_worker_red(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource()
    source.names = lambda _: [scope("t")]
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        tries = 0

        async def carry(plans: Sequence[Plan], _: float | None = None) -> Carried:
            nonlocal tries
            tries += 1
            worker._applier.away.update(plan.shard for plan in plans)
            return Carried(away=set(range(len(plans))))

        with monkeypatch.context() as away:
            away.setattr(worker._applier, "carry", carry)
            source.findings = [LOST]
            await until(lambda: tries > 1)
            assert worker.health.ready
            assert not source.made_up
        await until(lambda: source.made_up == [LOST])
