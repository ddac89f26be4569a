"""Providers whose secret is changed by a test, and a fleet that is watched while it is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from cachebus import Cache
from cachebus.base.clock import monotonic
from cachebus.errors import CacheBusError
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import D_S, until

USER = "svc"


class Rotating:
    """Asked by blocking calls."""

    def __init__(self, secret: str, user: str = USER) -> None:
        self.user = user
        self.secret = secret
        self.calls = 0

    def get_credentials(self) -> tuple[str, str]:
        """The secret as it is now."""
        self.calls += 1
        return self.user, self.secret


class Awaited(Rotating):
    """Asked by calls that await; the other one must not be."""

    def get_credentials(self) -> tuple[str, str]:
        """What redis-py's synchronous clients ask."""
        raise AssertionError("the blocking call was asked")

    async def get_credentials_async(self) -> tuple[str, str]:
        """The secret as it is now."""
        await asyncio.sleep(0)
        return super().get_credentials()


async def let_in(servers: Sequence[EmbeddedServer], secret: str, user: str = USER) -> None:
    """Have the user log in with this, and with nothing else, from now on."""
    for server in servers:
        rules = ("on", "resetpass", f">{secret}", "~*", "&*", "+@all")
        assert await ask(server, "ACL", "SETUSER", user, *rules) == b"OK"


async def clients(server: EmbeddedServer, namespace: str) -> list[dict[str, str]]:
    """The connections of the caches of a namespace."""
    lines = (await ask(server, "CLIENT", "LIST")).decode().splitlines()
    found = [dict(part.partition("=")[::2] for part in line.split()) for line in lines]
    return [each for each in found if each["name"] == f"cachebus-{namespace}"]


class Watched:
    """Two nodes of a fleet: one writes versions, both read them, and each call is looked at."""

    def __init__(self, caches: Sequence[Cache], tenants: Sequence[str]) -> None:
        self._caches = caches
        self._tenants = tenants
        self._written = {tenant: deque([(0, 0.0)]) for tenant in tenants}
        """Versions, and when each had been written; the first is the last that every read had to see."""
        self.failed: list[tuple[float, str]] = []
        """When a call that failed began, and why."""
        self.stale: list[tuple[str, int, int]] = []
        self.reads = self.writes = 0

    async def _call(self, call: Callable[[], Any]) -> Any:
        began_s = monotonic()
        try:
            return await call()
        except CacheBusError as error:
            self.failed.append((began_s, str(error)))
            return None

    async def _write(self, tenant: str) -> None:
        version = 0
        while True:
            version += 1
            call = partial(self._caches[0].set, "config", "x", version, tenant_id=tenant)
            if await self._call(call) is not None:
                self._written[tenant].append((version, monotonic()))
                self.writes += 1
            await asyncio.sleep(0.005)

    def _due(self, tenant: str, began_s: float) -> int:
        """The oldest version that a read may give which began then."""
        written = self._written[tenant]
        while len(written) > 1 and written[1][1] + D_S < began_s:
            written.popleft()
        return written[0][0]

    async def _read(self, cache: Cache, tenant: str) -> None:
        while True:
            began_s = monotonic()
            found = await self._call(partial(cache.get, "config", "x", tenant_id=tenant))
            if found is not None:
                self.reads += 1
                if found < (due := self._due(tenant, began_s)):
                    self.stale.append((tenant, found, due))
            await asyncio.sleep(0.002)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """While it goes on."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._write(tenant)) for tenant in self._tenants]
            tasks += [group.create_task(self._read(cache, t)) for cache in self._caches for t in self._tenants]
            await until(lambda: self.writes > 20 and self.reads > 20)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def goes_on(self, within_s: float = 10.0) -> None:
        """Until every node writes and reads again, and has its lease."""
        writes, reads = self.writes, self.reads

        def met() -> bool:
            calm = self.writes > writes + 10 * len(self._tenants) and self.reads > reads + 20
            return calm and all(cache.ready() for cache in self._caches)

        try:
            await until(met, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last calls that failed: {self.failed[-3:]}") from None


async def rotated(servers: Sequence[EmbeddedServer], provider: Rotating, secret: str) -> float:
    """Change the secret, and end each connection that came in with the old one: when that was done."""
    await let_in(servers, secret, provider.user)
    provider.secret = secret
    for server in servers:
        await ask(server, "CLIENT", "KILL", "USER", provider.user)
    return monotonic()
