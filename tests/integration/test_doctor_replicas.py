"""What the doctor says of replicas, their watchers, and primaries that have lost theirs: by servers that are so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cachebus.cli.doctor import timing
from cachebus.cli.doctor.finding import Level
from cachebus.cli.embedded import EmbeddedServer
from cachebus.cli.groups import ask
from tests.support.caches import until
from tests.support.doctor import findings, of, type_in
from tests.support.servers import any_binary

SHARED = ("maxmemory 64mb", "maxmemory-policy volatile-lru", "repl-diskless-sync-delay 0", "repl-backlog-ttl 0")
QUICK = ("repl-ping-replica-period 1", "repl-timeout 5", "min-replicas-max-lag 1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CLOCK_WINDOW_S", 0.01)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as servers:
        yield servers


async def led(stack: ExitStack, replicas: int, *conf: str) -> list[EmbeddedServer]:
    """A primary and so many replicas that follow it, all set up alike."""
    conf = (*SHARED, *QUICK, *conf)
    primary = stack.enter_context(EmbeddedServer(any_binary(), conf=conf))
    follow = (*conf, f"replicaof 127.0.0.1 {primary.port}")
    others = [stack.enter_context(EmbeddedServer(any_binary(), conf=follow)) for _ in range(replicas)]

    async def online() -> bool:
        text: bytes = await ask(primary, "INFO", "replication")
        return text.count(b"state=online") == replicas

    await until(online)
    return [primary, *others]


# -- a primary that refuses to write -----------------------------------------------------------------------------------


async def test_the_fence_of_a_deposed_primary_stays_up(stack: ExitStack) -> None:
    """Its replicas were promoted away: that it refuses is what keeps the promises."""
    primary, *replicas = await led(stack, 2, "min-replicas-to-write 1")
    assert primary.command("SET", "x", "1") == "+OK"
    for replica in replicas:
        replica.command("REPLICAOF", "NO", "ONE")
    await until(lambda: primary.command("SET", "x", "2").startswith("-NOREPLICAS"))
    finding = of(await findings(primary.url), "replication")
    assert finding is not None
    assert finding.level is Level.PROBLEM
    assert (finding.mend, finding.conf) == ((), ())
    assert "deposed" in finding.means
    assert "primary" in finding.otherwise


async def test_a_server_that_no_replica_ever_followed_is_told_to_wait_for_none(stack: ExitStack) -> None:
    (primary,) = await led(stack, 0, "min-replicas-to-write 1")
    finding = of(await findings(primary.url), "replication")
    assert finding is not None
    assert finding.level is Level.PROBLEM
    type_in(primary, finding.mend)
    assert of(await findings(primary.url), "replication") is None
    assert primary.command("SET", "x", "1") == "+OK"
