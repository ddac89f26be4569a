"""A row whose own key every cache takes, with a cascade that makes a name of it that none does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cachebus import Cache, Cascade
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.producers.base import Orders
from cachebus.producers.command import Resource, encode
from tests.support.caches import quick, until
from tests.support.cdc_surroundings import HEAD, RULE, at_work, gone, worker
from tests.support.changes import Heard, fetched, tell

TABLE = "CREATE TABLE o (id text PRIMARY KEY, tenant_id text); ALTER TABLE o REPLICA IDENTITY FULL"
CASCADE = """
[[cascade]]
data_type = "o"
to = [["long", "prefix:{resource_id}"], ["copy", "{resource_id}"]]

[[cascade]]
data_type = "copy"
to = [["copied", "{resource_id}"]]
"""
DEAD = "SELECT string_agg(reason, ' ') FROM cachebus_cdc_dead"


async def test_what_can_be_named_is_let_go_of_and_the_rest_is_a_dead_letter(database: str, redis_url: str) -> None:
    await tell(database, [TABLE])
    name = "q" * 510
    one = worker(database, redis_url, parse_rules(HEAD + RULE.format("o", "o") + CASCADE))
    heard = Heard(one)
    async with Cache(quick(redis_url)) as cache, at_work(one):
        await until(lambda: one.follows)
        await cache.set("o", name, "old", tenant_id="acme")
        await tell(database, [f"INSERT INTO o VALUES ('{name}', 'acme')"])
        await until(lambda: fetched(database, DEAD))
        await gone(cache, name)  # type: ignore[arg-type]
        assert heard.has("copy", name)
        assert heard.has("copied", name)
        assert "long: " in await fetched(database, DEAD)


@pytest.mark.parametrize("made", [encode, lambda command: command], ids=["that was held", "of a change"])
def test_a_command_loses_only_what_its_cascades_can_not_name(made: Callable[[Resource], Resource | bytes]) -> None:
    one = worker("postgresql://x/y", "redis://127.0.0.1:1/0", parse_rules(HEAD + RULE.format("o", "o") + CASCADE))
    found = one._applier.planned([made(Resource("o", "q" * 510, "acme"))])
    assert [[key.family.data_type for key in plan.keys] for plan in found.plans] == [["o", "copy", "copied"]]
    assert len(found.problems) == 1
    assert found.plans[0].shard == one.source.shard_of(found.commands[0]), "it is held for the shard that it is for"
    refused = one._applier.planned([made(Resource("o", "q" * 600, "acme"))])
    assert not refused.plans
    assert len(refused.problems) == 1


def test_where_a_cascade_needs_what_is_not_given_the_others_are_followed() -> None:
    cascade = Cascade("o", [("below", "{agent_id}"), ("copy", "{resource_id}")])
    planner = Orders(1, [cascade]).planner.sparing()
    plan = Resource("o", "1", "acme").plan(planner)
    assert [key.family.data_type for key in plan.keys] == ["o", "copy"]
    assert planner.refused is not None
    assert "needs agent_id" in planner.refused[0]
