"""A primary with replicas that waits for none: what a node says of it, and when it says no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from cachebus import Cache
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import nodes, parts, until
from tests.support.logs import WITH_LEVEL, told
from tests.support.replicas import led


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as servers:
        yield servers


@contextmanager
def lines_of_replicas() -> Iterator[list[str]]:
    """What the log says of replicas."""
    with told(form=WITH_LEVEL, of="replicas") as lines:
        yield lines


async def probed(cache: Cache) -> None:
    """Until two more probes were answered, or refused."""
    calls = parts(cache).node.shards[0]
    after_s = calls.fresh_as_of_s
    await until(lambda: calls.fresh_as_of_s > after_s + 0.2)


async def connected(primary: EmbeddedServer, count: int) -> None:
    async def met() -> bool:
        return f"connected_slaves:{count}\r".encode() in await ask(primary, "INFO", "replication")

    await until(met)


async def test_when_its_replicas_are_cut_off_nothing_is_well_again(stack: ExitStack) -> None:
    primary, *replicas = await led(stack, 2)
    with lines_of_replicas() as lines:
        async with nodes(primary.url, 1) as (cache,):
            await until(lambda: cache.stats().loose_replicas == 2)
            for replica in replicas:
                replica.kill()
            await connected(primary, 0)
            await until(lambda: len(lines) == 2)
            await probed(cache)
            assert cache.stats().loose_replicas == 2
            assert [line.split()[0] for line in lines] == ["WARNING", "WARNING"]
            assert "replicas of a primary are gone" in lines[1]
            for replica in replicas:
                replica.restart()
            await connected(primary, 2)
            await until(lambda: len(lines) == 3)
            assert "a primary has replicas" in lines[2]
            primary.command("CONFIG", "SET", "min-replicas-to-write", "1")
            await until(lambda: cache.stats().loose_replicas == 0)
            assert lines[-1].startswith("WARNING replicas: all is well again")


async def test_a_primary_that_refuses_waits_for_some(stack: ExitStack) -> None:
    primary, *_ = await led(stack, 2)
    async with nodes(primary.url, 1) as (cache,):
        await until(lambda: cache.stats().loose_replicas == 2)
        primary.command("CONFIG", "SET", "min-replicas-to-write", "3")
        await until(lambda: primary.command("SET", "x", "1").startswith("-NOREPLICAS"))
        await until(lambda: cache.stats().loose_replicas == 0)


async def test_a_restart_of_the_primary_is_no_change(stack: ExitStack) -> None:
    """Its replicas are away for a moment, in another epoch."""
    primary, *_ = await led(stack, 2)
    with lines_of_replicas() as lines:
        async with nodes(primary.url, 1) as (cache,):
            await until(lambda: cache.stats().loose_replicas == 2)
            epoch = cache.stats().shards[0].epoch
            primary.kill()
            primary.restart()
            await until(lambda: cache.stats().shards[0].epoch != epoch)
            assert cache.stats().loose_replicas == 2
            await connected(primary, 2)
            await probed(cache)
            assert cache.stats().loose_replicas == 2
            assert not any("well again" in line for line in lines)


async def test_no_time_and_no_new_epoch_make_a_deposed_primary_well(stack: ExitStack) -> None:
    """Its replicas are with another one, its backlog has ended, and with that its replication id."""
    primary, promoted, other = await led(stack, 2, "repl-backlog-ttl 1")
    with lines_of_replicas() as lines:
        async with nodes(primary.url, 1) as (cache,):
            await until(lambda: cache.stats().loose_replicas == 2)
            epoch = cache.stats().shards[0].epoch
            promoted.command("REPLICAOF", "NO", "ONE")
            other.command("REPLICAOF", "127.0.0.1", str(promoted.port))
            await until(lambda: cache.stats().shards[0].epoch != epoch, within_s=30.0)
            # As if the epoch had begun a day ago.
            born_us = int(await ask(primary, "HGET", "{cachebus:0}:meta", "born"))
            await ask(primary, "HSET", "{cachebus:0}:meta", "born", born_us - 86_400_000_000)
            await probed(cache)
            await probed(cache)
            assert cache.stats().loose_replicas == 2
            assert "replicas of a primary are gone" in lines[-1]
            primary.command("CONFIG", "SET", "min-replicas-to-write", "1")
            await until(lambda: cache.stats().loose_replicas == 0)


async def test_a_backup_is_no_replica(stack: ExitStack) -> None:
    """It follows for as long as it takes, and acknowledges nothing."""
    (primary,) = await led(stack, 0)
    with lines_of_replicas() as lines:
        async with nodes(primary.url, 1) as (cache,):
            await cache.set("system", "x", 1)
            backup = stack.enter_context(primary.connected())
            backup.sendall(b"SYNC\r\n")

            async def served() -> bool:
                return b"state=online" in await ask(primary, "INFO", "replication")

            await until(served)
            await probed(cache)
            assert cache.stats().loose_replicas == 0
            backup.close()
            await connected(primary, 0)
            await probed(cache)
            assert cache.stats().loose_replicas == 0
    assert lines == []
