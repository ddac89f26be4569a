"""A primary and its replicas, and nobody who watches over them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import until
from tests.support.servers import any_binary

SHARED: Final = ("maxmemory 64mb", "maxmemory-policy volatile-lru", "repl-diskless-sync-delay 0", "repl-backlog-ttl 0")
QUICK: Final = ("repl-ping-replica-period 1", "repl-timeout 5", "min-replicas-max-lag 1")


async def led(stack: ExitStack, replicas: int, *conf: str) -> list[EmbeddedServer]:
    """A primary and so many replicas that follow it, all set up alike; the stack ends them."""
    conf = (*SHARED, *QUICK, *conf)
    primary = stack.enter_context(EmbeddedServer(any_binary(), conf=conf))
    follow = (*conf, f"replicaof 127.0.0.1 {primary.port}")
    others = [stack.enter_context(EmbeddedServer(any_binary(), conf=follow)) for _ in range(replicas)]

    async def online() -> bool:
        text: bytes = await ask(primary, "INFO", "replication")
        return text.count(b"state=online") == replicas

    await until(online)
    return [primary, *others]
