"""Opening and closing: what start refuses and says, and that an end leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cachebus import Cache, ConfigError, L2Unavailable, Policy, ProtocolMismatch, Settings
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.resp import Connection, parse_address
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from tests.support.caches import Source, nodes, parts, quick, until
from tests.support.servers import any_binary

ROOT = Path(__file__).parents[2]


def connections(server: EmbeddedServer, namespace: str = "cachebus") -> list[str]:
    """The server's clients that are ours."""
    import redis

    with redis.Redis(port=server.port, password=server.password, protocol=2) as client:
        return [c["name"] for c in client.client_list() if c["name"] == f"cachebus-{namespace}"]


def keys(server: EmbeddedServer, pattern: str) -> list[bytes]:
    """The server's keys of that pattern."""
    import redis

    with redis.Redis(port=server.port, protocol=2) as client:
        return list(client.keys(pattern))


def nodes_known(server: EmbeddedServer) -> int:
    """How many nodes have left their row in the first shard, beside the name of the set."""
    fields, name = (server.command(word, "{cachebus:0}:nodes", *rest) for word, *rest in (("HLEN",), ("HEXISTS", "#")))
    return int(fields[1:]) - int(name[1:])


@asynccontextmanager
async def silent_port() -> AsyncIterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


# -- start -----------------------------------------------------------------------------------------------


async def test_a_wrong_port_is_told_in_a_line_that_names_it_and_no_password() -> None:
    port = free_port()
    started_s = monotonic()
    with pytest.raises(L2Unavailable) as caught:
        async with Cache.open(f"redis://user:hunter2@127.0.0.1:{port}/0"):
            pass
    assert monotonic() - started_s < 1
    text = str(caught.value)
    assert f"127.0.0.1:{port}" in text
    assert "\n" not in text
    told: BaseException | None = caught.value
    while told is not None:
        assert "hunter2" not in f"{told!r} {told}"
        told = told.__cause__ or told.__context__


async def test_a_server_that_never_answers_is_waited_for_no_longer_than_connect_timeout() -> None:
    async with silent_port() as port:
        cache = Cache.open(quick(f"redis://:hunter2@127.0.0.1:{port}/0", connect_timeout_s=0.3, l2_timeout_s=30))
        started_s = monotonic()
        with pytest.raises(L2Unavailable) as caught:
            await cache.__aenter__()
        assert 0.25 < monotonic() - started_s < 1.5
        assert f"127.0.0.1:{port}" in str(caught.value)
        assert "hunter2" not in str(caught.value)
        with pytest.raises(ConfigError):
            await cache.get("config", "x", tenant_id="acme")


@pytest.mark.parametrize("password", ["a", "redis", "hunter2", "a-long-one-" * 20])
async def test_a_server_that_knows_no_auth_is_told_as_it_says_and_without_the_password(password: str) -> None:
    """It repeats what it was asked, cut anywhere; and a password may be a word that it says of itself."""
    with EmbeddedServer(any_binary(), conf=['rename-command AUTH ""']) as server:
        cache = Cache.open(f"redis://:{password}@127.0.0.1:{server.port}/0")
        with pytest.raises(L2Unavailable) as caught:
            await cache.__aenter__()
    said = str(caught.value)
    assert "unknown command" in said
    assert f"127.0.0.1:{server.port}" in said
    assert said.count("***") == 1
    assert password[:20] not in said or len(password) < 6


async def test_a_server_that_knows_no_scripts_is_told_without_what_it_was_asked() -> None:
    """It repeats the names and values that it was asked to store."""
    with EmbeddedServer(any_binary(), conf=['rename-command EVALSHA ""', 'rename-command SET ""']) as server:
        address = parse_address(server.url)
        connection = await Connection.open(address, Patience(5.0, 5.0, monotonic))
        for command in (("EVALSHA", "0" * 40, "1", "name-of-acme"), ("SET", "name-of-acme", "value-of-acme")):
            with pytest.raises(L2Unavailable, match=f"unknown command .{command[0]}.*\\*\\*\\*") as caught:
                await connection.call(*command)
            assert "acme" not in str(caught.value)
        connection.close()


async def test_a_wrong_password_is_told_without_it() -> None:
    with EmbeddedServer(any_binary(), password="right-horse") as server:
        with pytest.raises(L2Unavailable) as caught:
            async with Cache.open(f"redis://:hunter2@127.0.0.1:{server.port}/0"):
                pass
        assert "hunter2" not in str(caught.value)
        assert "right-horse" not in str(caught.value)
        assert str(server.port) in str(caught.value)
        async with Cache.open(server.url) as cache:
            await cache.set("config", "x", 1, tenant_id="acme")
            assert "right-horse" not in repr(cache.settings) + repr(cache.stats())


@pytest.mark.parametrize("degraded", [False, True])
async def test_another_shard_count_is_refused_at_start_with_both_sides(redis_url: str, degraded: bool) -> None:
    async with nodes(redis_url, 1, shards=2) as (a,):
        with pytest.raises(ProtocolMismatch) as caught:
            async with nodes(redis_url, 1, shards=3, start_degraded=degraded):
                pass
        assert "shards=2" in str(caught.value)
        assert "shards=3" in str(caught.value)
        await a.set("config", "x", 1, tenant_id="acme")
        assert a.ready()


async def test_a_store_laid_out_anew_under_a_running_node_is_told_and_left_in_peace(
    redis_server: EmbeddedServer,
) -> None:
    async with nodes(redis_server.url, 1) as (a,):
        redis_server.command("FLUSHALL")
        redis_server.command("HSET", "{cachebus:0}:meta", "facts", "protocol=1 shards=9 bus=redis")
        with pytest.raises(ProtocolMismatch, match="shards=9"):
            await a.probe()
    # ... and it closes without raising.


async def test_a_cache_is_opened_once_at_a_time_and_again_after_its_end(redis_url: str) -> None:
    cache = Cache.open(redis_url)
    async with cache:
        with pytest.raises(ConfigError, match="open already"):
            await cache.__aenter__()
        await cache.set("config", "x", 1, tenant_id="acme")
    async with cache:
        assert await cache.get("config", "x", tenant_id="acme") == 1


async def test_opened_by_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_URL", redis_url)
    monkeypatch.setenv("CACHEBUS_NAMESPACE", "env")
    async with Cache.open() as cache:
        await cache.set("config", "x", 1, tenant_id="acme")
        assert cache.settings.namespace == "env"
    async with nodes(redis_url, 1, namespace="env") as (other,):
        assert await other.get("config", "x", tenant_id="acme") == 1


# -- end -------------------------------------------------------------------------------------------------


async def test_an_end_leaves_no_task_no_connection_and_no_line(redis_server: EmbeddedServer) -> None:
    before = asyncio.all_tasks()
    cache = Cache.open(quick(redis_server.url))
    async with cache:
        await cache.set("config", "x", 1, tenant_id="acme")
        assert len(connections(redis_server)) == 2
        assert nodes_known(redis_server) == 1
    assert asyncio.all_tasks() == before
    assert nodes_known(redis_server) == 0
    await until(lambda: not connections(redis_server))
    await cache.aclose()
    await cache.aclose()


async def test_a_start_that_fails_leaves_nothing_either(redis_server: EmbeddedServer) -> None:
    before = asyncio.all_tasks()
    async with nodes(redis_server.url, 1):
        with pytest.raises(ProtocolMismatch):
            async with nodes(redis_server.url, 1, shards=3):
                pass
        await until(lambda: len(connections(redis_server)) == 2)
    assert asyncio.all_tasks() == before


async def test_a_start_that_is_cancelled_leaves_nothing_either(redis_server: EmbeddedServer) -> None:
    before = asyncio.all_tasks()
    for turns in range(1, 14):
        cache = Cache(quick(redis_server.url))
        opening = asyncio.create_task(cache.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        opening.cancel()
        await asyncio.wait([opening])
        await cache.aclose()
        assert asyncio.all_tasks() == before
    await until(lambda: not connections(redis_server))


async def test_an_end_lets_loads_end_and_hands_back_the_leases_of_those_that_do_not(
    redis_server: EmbeddedServer,
) -> None:
    policies = {"config": Policy(load_timeout_s=60)}
    async with nodes(redis_server.url, 1, policies=policies, lease_ms=60_000) as (other,):
        cache = Cache(quick(redis_server.url, close_timeout_s=0.3, lease_ms=60_000, policies=policies))
        await cache.__aenter__()
        quick_one, endless = Source(x=1), Source(y=1)
        quick_one.hold()
        endless.hold()
        first = asyncio.create_task(cache.get_or_load("config", "x", quick_one.load, tenant_id="acme"))
        second = asyncio.create_task(cache.get_or_load("config", "y", endless.load, tenant_id="acme"))
        await quick_one.asked.wait()
        await endless.asked.wait()
        assert len(keys(redis_server, "*:l:*")) == 2
        asyncio.get_running_loop().call_later(0.05, quick_one.release)
        await cache.aclose()
        assert await first == 1
        with pytest.raises(L2Unavailable, match="closed"):
            await second
        assert keys(redis_server, "*:l:*") == []
        assert await other.get("config", "x", tenant_id="acme") == 1
        assert await asyncio.wait_for(other.get_or_load("config", "y", lambda: 2, tenant_id="acme"), 1) == 2


async def test_closing_while_others_call_ends_their_calls_with_an_error_of_ours(redis_url: str) -> None:
    cache = Cache(quick(redis_url))
    await cache.__aenter__()
    endings: list[BaseException] = []

    async def caller(i: int) -> None:
        try:
            while True:
                await cache.set("config", i, i, tenant_id="acme")
                await cache.get("config", i, tenant_id="acme", use_memory=False)
        except (ConfigError, L2Unavailable) as error:
            endings.append(error)

    callers = [asyncio.create_task(caller(i)) for i in range(8)]
    await asyncio.sleep(0.02)
    await cache.aclose()
    await asyncio.wait_for(asyncio.gather(*callers), 5)
    assert len(endings) == 8


async def test_an_end_that_is_itself_cancelled_leaves_nothing_either(redis_server: EmbeddedServer) -> None:
    before = asyncio.all_tasks()
    cache = Cache(quick(redis_server.url, close_timeout_s=60))
    await cache.__aenter__()
    source = Source(x=1)
    source.hold()
    loading = asyncio.create_task(cache.get_or_load("config", "x", source.load, tenant_id="acme"))
    await source.asked.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await cache.aclose()
    with pytest.raises(L2Unavailable, match="closed"):
        await loading
    await until(lambda: asyncio.all_tasks() == before)
    await until(lambda: not connections(redis_server))
    await cache.aclose()


async def test_an_end_with_the_server_gone_takes_no_longer_than_its_time_limits(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1) as (a,):
        await a.set("config", "x", 1, tenant_id="acme")
        own_server.pause()
        started_s = monotonic()
    assert monotonic() - started_s < 0.5 * 1.25 + 1
    own_server.resume()


async def test_figures_are_there_while_it_is_open(redis_url: str) -> None:
    async with nodes(redis_url, 1, node_name="here") as (a,):
        stats = a.stats()
        assert stats.node.startswith("here-")
        assert (stats.l2_connected, stats.bus_connected, a.ready()) == (True, True, True)
        assert stats.flushes == {"start": 1}
        assert 0 < stats.shards[0].lease_left_s <= 0.6
        assert parts(a).node.id == stats.node


# -- processes and loops ---------------------------------------------------------------------------------


async def test_another_loop_is_refused(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (a,):
        await a.set("config", "x", 1, tenant_id="acme")

        def elsewhere() -> str:
            with pytest.raises(ConfigError) as caught:
                asyncio.run(a.get("config", "y", tenant_id="acme"))
            return str(caught.value)

        assert "event loop" in await asyncio.to_thread(elsewhere)
        assert await a.get("config", "x", tenant_id="acme") == 1


FORK = """
import asyncio, os, sys
from cachebus import Cache, ConfigError

async def child(cache):
    try:
        await cache.get("config", "y", tenant_id="acme")
    except ConfigError as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError("the child used its parent's cache")
    async with Cache.open(sys.argv[1]) as own:
        assert own.stats().node != cache._parts.node.id
        assert await own.get("config", "x", tenant_id="acme") == 1

loop = asyncio.new_event_loop()
async def outer():
    cache = Cache.open(sys.argv[1])
    await cache.__aenter__()
    await cache.set("config", "x", 1, tenant_id="acme")
    return cache
cache = loop.run_until_complete(outer())
# Not within the loop: the child's copy of it would go on for a turn, and write to its parent's sockets.
pid = os.fork()
if pid == 0:
    try:
        asyncio.run(child(cache))
    except BaseException as error:
        print("child:", repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
async def rest():
    assert await cache.get("config", "x", tenant_id="acme", use_memory=False) == 1
    await cache.aclose()
loop.run_until_complete(rest())
print("both went on")
"""


async def test_after_a_fork_the_child_is_told_to_open_its_own_and_the_parent_goes_on(redis_url: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", FORK, redis_url],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "both went on"), done.stderr


IMPORTS = """
import asyncio, sys
from cachebus import Cache
from cachebus.assembly import lifecycle

attach = lifecycle.attach
async def watched(parts):
    global before
    before = set(sys.modules)
    await attach(parts)
lifecycle.attach = watched

async def main():
    async with Cache.open(sys.argv[1]) as cache:
        while not cache.ready():
            await asyncio.sleep(0.01)
        await cache.probe()
        await cache.set("config", "x", 1, tenant_id="acme")
        print(sorted(name for name in set(sys.modules) - before if name.startswith("anyio")))
asyncio.run(main())
"""


async def test_nothing_large_is_imported_while_l2_is_asked(redis_url: str) -> None:
    """It takes a tenth of a second where a processor is shared, and the loop stands meanwhile."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", IMPORTS, redis_url],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


async def test_a_disabled_cache_loads_from_the_source_and_connects_to_nothing() -> None:
    settings = Settings(url=f"redis://127.0.0.1:{free_port()}/0", enabled=False)
    async with Cache.open(settings) as cache:
        source = Source(x=1)
        for loads in (1, 2):
            assert await cache.get_or_load("config", "x", source.load, tenant_id="acme") == 1
            assert source.calls == loads
        receipt = await cache.set("config", "x", 2, tenant_id="acme")
        assert (receipt.status, receipt.stored) == ("disabled", False)
        assert await cache.get("config", "x", tenant_id="acme", default=7, after=receipt) == 7
        assert await cache.get_many("config", ["x"], tenant_id="acme", after=receipt) == {}
        assert await cache.get_or_load("config", "x", source.load, tenant_id="acme", after=str(receipt)) == 1
        assert await cache.get("config", "x", "acme", "a", search_hierarchy=True) is None
        assert await cache.get_many("config", ["x"], tenant_id="acme") == {}
        assert await cache.add("config", "x", 1, tenant_id="acme") is True  # the job behind it must run
        for gone in (
            await cache.invalidate("config", "x", tenant_id="acme"),
            await cache.invalidate_scope("acme"),
            await cache.invalidate_tags(["t"], tenant_id="acme"),
            await cache.invalidate_type("config"),
            await cache.clear(wait="nodes"),
        ):
            assert (gone.status, gone.stored) == ("disabled", False)
        assert await cache.increment("hits", tenant_id="acme") == 0
        assert cache.ready()
        assert cache.stats().l1_entries == 0


@pytest.mark.parametrize("off", [{"use_memory_cache": False}, {"l1_max_entries": 0}, {"l1_max_bytes": 0}])
async def test_without_l1_everything_comes_from_l2(redis_url: str, off: dict[str, object]) -> None:
    async with nodes(redis_url, 1, **off) as (a,):
        await a.set("config", "x", 1, tenant_id="acme")
        source = Source(x=2)
        assert await a.get("config", "x", tenant_id="acme") == 1
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == 1
        assert await a.get("config", "x", "acme", "a", search_hierarchy=True) == 1
        assert (a.stats().l1_entries, a.stats().l1_hits, source.calls) == (0, 0, 0)
