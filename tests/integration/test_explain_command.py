"""`cachebus explain`: as a process of its own, beside caches that live, over each kind of server and bus."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from cachebus import Cache
from cachebus.tools.doctor.access import user_of_its_own
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_sentinels import SentinelGroup
from cachebus.wire.event import WritePart, encode_body
from tests.support.caches import heard, key_of, nodes, parts, quick
from tests.support.command import ran
from tests.support.servers import SharedServers, any_binary

PRICE = ("price", "7", "--tenant", "acme")


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Cache]]:
    async with nodes(redis_url, 2, shards=5, node_name="web") as caches:
        yield caches


async def explained(
    cache: Cache, folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """The command beside a cache that lives on."""
    url = cache.settings.url.get_secret_value()
    namespace = ("--namespace", cache.settings.namespace)
    args = ("explain", *arguments, "--url", url, *namespace)
    return await asyncio.to_thread(ran, *args, folder=folder, env=env or {})


async def told(cache: Cache, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The same as JSON, with its exit status."""
    status, out, errors = await explained(cache, folder, *arguments, "--json", env=env)
    assert errors == ""
    found: dict[str, Any] = json.loads(out)
    assert status == (0 if found["cached"] else 1)
    return found


async def all_hold(caches: list[Cache], tenant: str = "acme", **contexts: str) -> None:
    receipt = await caches[0].set("price", "7", 1, tenant, **contexts)
    await heard(caches, receipt)
    for cache in caches:
        assert await cache.get("price", "7", tenant, after=receipt, **contexts) == 1


async def answered(cache: Cache, caches: list[Cache], folder: Path, env: dict[str, str] | None = None) -> None:
    """All nodes answer the command, and one another, for tenants in several shards."""
    for tenant in ("acme", "globex", "initech"):
        await all_hold(caches, tenant)
    ids = sorted(one.stats().node for one in caches)
    found = await told(cache, folder, *PRICE, env=env)
    assert [(node["node"], node["answered"], node["serves"], node["hit_path"]) for node in found["nodes"]] == [
        (name, True, True, True) for name in ids
    ]
    assert (found["case"], found["notes"]) == ("not_replaced", [])
    for tenant in ("acme", "globex", "initech"):
        for one in caches:
            own = await one.explain("price", "7", tenant)
            assert [(node.node, node.answered, node.serves) for node in own.nodes] == [
                (name, True, True) for name in ids
            ]
            assert own.notes == ()


async def test_what_it_prints(pair: list[Cache], tmp_path: Path) -> None:
    a, b = pair
    await all_hold(pair)
    status, out, errors = await explained(a, tmp_path, *PRICE)
    assert (status, errors) == (0, "")
    verdict, blank, l2, event, since, *holding = out.splitlines()
    assert verdict.startswith("nobody serves anything that was replaced: what L2 has is ")
    assert blank == ""
    assert re.match(r"L2     valid, loaded or written \d\.\d s ago, expires in .*, seq \d+, version [0-9a-f]{8}, ", l2)
    assert re.match(r"event  seq \d+ at [\d:.]+Z, by web-\w+: acme \| price \| 7$", event)
    assert re.match(r"since  the log goes back to seq \d+ of [\d-]+ [\d:]+Z; this epoch began at ", since)
    assert len(holding) == 2
    for line in holding:
        assert re.match(r"node   web-\w+ holds seq \d+, and serves it by the hit path, until [\d:.]+Z at most; ", line)
    await heard(pair, await b.invalidate("price", "7", "acme", reason="import 17"))
    status, out, errors = await explained(a, tmp_path, *PRICE)
    assert (status, errors) == (1, "")
    assert out.startswith("nothing is cached under this name: the next read asks the source\n")
    assert f"by {b.stats().node} (import 17)" in out


async def test_every_node_answers(pair: list[Cache], tmp_path: Path) -> None:
    await answered(pair[0], pair, tmp_path)


async def test_other_names_are_told_where_nothing_is_cached_under_this(pair: list[Cache], tmp_path: Path) -> None:
    await all_hold(pair, "globex")
    found = await told(pair[0], tmp_path, *PRICE)
    assert found["verdict"] == "nothing is cached under this name, but under type price of tenant globex"
    assert (found["case"], found["stored"]["state"]) == ("nothing", "none")
    await all_hold(pair, "acme", agent_id="x")
    found = await told(pair[0], tmp_path, "stock", "7", "--tenant", "acme")
    assert "type price of tenant globex" in found["verdict"]
    assert "type price of tenant acme with agent x" in found["verdict"]
    found = await told(pair[0], tmp_path, *PRICE, "--agent", "x")
    assert (found["case"], found["stored"]["state"]) == ("not_replaced", "valid")


async def test_its_exit_status(pair: list[Cache], own_server: EmbeddedServer, tmp_path: Path) -> None:
    """0: cached. 1: not. 2: no server, no such namespace, or what is no key."""
    await all_hold(pair)
    assert (await explained(pair[0], tmp_path, *PRICE))[0] == 0
    assert (await explained(pair[0], tmp_path, "price", "8", "--tenant", "acme"))[0] == 1
    status, out, errors = await explained(pair[0], tmp_path, "price", "7")
    assert (status, out, len(errors.splitlines())) == (2, "", 1)
    assert "tenant" in errors
    url = own_server.url
    for namespace in ("nobody's", "cachebus"):
        args = ("explain", *PRICE, "--url", url, "--namespace", namespace)
        status, out, errors = await asyncio.to_thread(ran, *args, folder=tmp_path)
        assert (status, out, len(errors.splitlines())) == (2, "", 1)
    own_server.stop()
    status, out, errors = await asyncio.to_thread(ran, "explain", *PRICE, "--url", url, folder=tmp_path)
    assert (status, out, len(errors.splitlines())) == (2, "", 1)
    assert str(own_server.port) in errors


async def test_no_control_character_reaches_the_terminal(
    redis_url: str, redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Whoever may write to Redis may call itself as it likes: a node, who invalidates, a tag, a tenant."""
    evil = "\x1b]0;pwned\x07\x9b2J\r\n"
    async with nodes(redis_url, 2) as (a, b):
        await all_hold([a, b])
        key = key_of(a, "price", "7", "acme")
        body = encode_body([WritePart([key.l1], [], evil, evil, evil)])
        node = parts(a).node
        await parts(a).store.invalidate(0, node.caller(0), [key], [], body)
        parts(b).node.id = f"b{evil}"
        await b.probe()
        planted = f"{{cachebus:0}}:r:{evil}:price:7"
        await parts(a).store._running.plain(0, "SET", planted, "x")  # type: ignore[attr-defined]
        for more in ((), ("--json",)):
            status, out, errors = await explained(a, tmp_path, *PRICE, *more)
            assert (status, errors) == (1, "")
            for character in (*"\x1b\x07\r", "\x9b"):
                assert character not in out
            assert "pwned" in out
            assert len(out.splitlines()) == (1 if more else 3 + 1 + 1 + 2 + 2)


async def test_behind_sentinels(tmp_path: Path) -> None:
    async with SentinelGroup(any_binary(), replicas=1) as group, nodes(group.url, 2, shards=3) as caches:
        await answered(caches[0], caches, tmp_path)


async def test_in_a_cluster(shared_servers: SharedServers, tmp_path: Path) -> None:
    """Questions and answers go by sharded pub/sub, to the shard's primary."""
    group = await shared_servers.cluster()
    async with nodes(group.url, 3) as caches:
        await answered(caches[0], caches, tmp_path)


@pytest.mark.parametrize("key", [None, "secret"])
async def test_over_kafka(redis_url: str, kafka: KafkaServer, tmp_path: Path, key: str | None) -> None:
    """Where events are signed, questions and answers are: who has another key is silent."""
    name = f"explain-{token_hex(4)}"
    own: dict[str, Any] = {"bus": "kafka", "kafka_bootstrap_servers": kafka.address, "kafka_topic": name}
    fleet = {**own, "namespace": name, "kafka_partitions": 2, "shards": 5}
    env = {f"CACHEBUS_{option.upper()}": value for option, value in own.items()}
    signed: dict[str, Any] = {} if key is None else {"kafka_events_key": key}
    signs = {} if key is None else {"CACHEBUS_KAFKA_EVENTS_KEY": key}
    async with nodes(redis_url, 2, **fleet, **signed) as caches:
        await answered(caches[0], caches, tmp_path, {**env, **signs})
        found = await told(caches[0], tmp_path, *PRICE)
        assert [node["answered"] for node in found["nodes"]] == [False, False]
        assert "set CACHEBUS_BUS=kafka" in found["notes"][0]
        assert found["case"] == "not_replaced"
        if key is not None:
            found = await told(caches[0], tmp_path, *PRICE, env={**env, "CACHEBUS_KAFKA_EVENTS_KEY": "another"})
            assert [node["answered"] for node in found["nodes"]] == [False, False]
            assert all("does not answer" in node["says"] for node in found["nodes"])
        found = await told(caches[0], tmp_path, *PRICE, env={**env, **signs, "CACHEBUS_KAFKA_TOPIC": f"{name}-other"})
        assert "the nodes could not be asked" in found["notes"][0]


@pytest.mark.parametrize("lacks", ["", "-publish", "resetchannels"])
async def test_a_user_of_its_own_needs_no_right_more(own_server: EmbeddedServer, tmp_path: Path, lacks: str) -> None:
    """Who may not publish, or hear, is told so, and what the nodes' rows prove."""
    rights = user_of_its_own(quick(own_server.url), "app").split()
    assert own_server.command(*rights) == "+OK"
    rights[2] = "operator"
    assert own_server.command(*rights) == "+OK"
    if lacks:
        assert own_server.command("ACL", "SETUSER", "operator", lacks) == "+OK"
    async with nodes(own_server.url.replace("redis://", "redis://app:PASSWORD@"), 2) as caches:
        await all_hold(caches)
        url = own_server.url.replace("redis://", "redis://operator:PASSWORD@")
        status, out, errors = await asyncio.to_thread(ran, "explain", *PRICE, "--json", "--url", url, folder=tmp_path)
        assert (status, errors) == (0, "")
        found = json.loads(out)
        assert [node["answered"] for node in found["nodes"]] == [not lacks, not lacks]
        assert found["case"] == "not_replaced"
        if lacks:
            (note,) = found["notes"]
            assert note.startswith("the nodes could not be asked: ")
            assert "NOPERM" in note or "permission" in note
            assert "PASSWORD" not in out
        else:
            assert found["notes"] == []
            assert [node.answered for node in (await caches[0].explain("price", "7", "acme")).nodes] == [True, True]
