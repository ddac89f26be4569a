"""The server under test: one of the run's own, to which faults may do anything, or the user's, which is left as it
was."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar, cast

from cachebus.base.urls import as_redis
from cachebus.errors import ConfigError
from cachebus.keys.key import Key
from cachebus.l2.names import ShardNames
from cachebus.resp import parse_address
from cachebus.tools.demo.server import DemoServer, asked, purge
from cachebus.tools.harness.proxy import HOST, Dial, dialer
from cachebus.tools.servers.redis import EmbeddedServer, ServerBinary, best_server

if TYPE_CHECKING:
    from cachebus.tools.verify.target.group import GroupUnderTest

T = TypeVar("T")
ALONE: Final = "standalone"
KINDS: Final = (ALONE, "sentinel", "cluster")
"""The ways to set up a server of the run's own."""
REDIS: Final = "redis"
KAFKA: Final = "kafka"
BUSES: Final = (REDIS, KAFKA)
"""What carries the events."""
DUMP: Final = "dump.rdb"
LOST_BYTES: Final = 20_000
"""How much of an append-only file may be lost at most: some tenths of a second of a run's writes."""
_HELD: Final = """
local held = 0
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local letter = string.sub(redis.call('GET', key), 1, 1)
  if letter == 'h' or letter == 'w' then held = held + 1 end
end
return held
"""
BUSY_MS: Final = 50
"""After this time of a running script the server answers -BUSY."""


class ServerUnderTest(Protocol):
    """What a run needs of its server. Sentinels with their servers, or a Cluster, are another kind of it, whose `dial`
    is None: nodes have a way to each of them."""

    name: str
    """Kind and version, such as "valkey-8.1.8"."""
    label: str
    """For people."""
    namespace: str
    dial: Dial | None
    """How a proxy reaches it; None if it is several servers."""

    @property
    def dials(self) -> Mapping[int, Dial]:
        """How a proxy reaches each of several servers, by port."""

    machine: ServerProcess | None
    """Its process, if it is one server of the run's own."""
    group: GroupUnderTest | None
    """Its group, if it is several servers of the run's own."""

    def url(self, proxy_port: int | None) -> str:
        """Its URL for a node, by way of the proxy with this port."""

    def other(self, url: str) -> str:
        """The URL of its second database, if it has several databases; otherwise the same URL."""


class ServerProcess:
    """A server process of the run's own, and what faults may do to it. Blocking calls run in a thread, one after the
    other."""

    def __init__(self, embedded: EmbeddedServer, namespace: str) -> None:
        self._embedded = embedded
        self._turn = asyncio.Lock()
        self.names = ShardNames(namespace, 0)

    async def command(self, *args: str) -> str:
        """Send a command; returns the reply's first line, or the error."""
        try:
            return await self._do(lambda: self._embedded.command(*args))
        except OSError as error:
            return f"-{error}"

    async def held_leases(self) -> int:
        """How many fill leases are held. Resting ones do not count."""
        told = await self.command("EVAL", _HELD, "0", f"{self.names.fill_lease_prefix}*")
        return int(told.removeprefix(":"))

    async def pause(self) -> None:
        """SIGSTOP."""
        await self._do(self._embedded.pause)

    async def resume(self) -> None:
        """SIGCONT."""
        await self._do(self._embedded.resume)

    async def kill(self) -> None:
        """SIGKILL."""
        await self._do(self._embedded.kill)

    async def start(self) -> None:
        """Start it on its port, with what its directory holds."""
        await self._do(self._embedded.start)

    async def keep(self, name: str = DUMP) -> None:
        """Save all data to disk, under this name."""
        await self.command("SAVE")
        if name != DUMP:
            await self._do(lambda: shutil.copy(self._embedded.directory / DUMP, self._embedded.directory / name))

    async def restore_dump(self, name: str) -> None:
        """Have its next start load the data saved under this name."""
        await self._do(lambda: shutil.copy(self._embedded.directory / name, self._embedded.directory / DUMP))

    async def forget(self) -> None:
        """Have its next start load nothing."""
        await self._do(lambda: (self._embedded.directory / DUMP).unlink(missing_ok=True))

    async def enable_aof(self) -> None:
        """Enable the append-only file; the next start loads it."""
        await self.command("CONFIG", "SET", "aof-use-rdb-preamble", "no")  # so that it may end anywhere
        await self.command("CONFIG", "SET", "appendonly", "yes")
        self._embedded.appendonly = True

    async def truncate_aof(self, dice: Random) -> None:
        """Cut the end of the append-only file, as a crash of the machine does. The last write may be left in part."""

        def tear() -> None:
            for path in self._embedded.directory.rglob("*.aof"):
                if not path.name.endswith(".base.aof"):  # the base file is complete
                    os.truncate(path, max(0, path.stat().st_size - dice.randrange(LOST_BYTES)))

        await self._do(tear)

    async def disable_aof(self) -> None:
        """Disable the append-only file, and delete it."""
        await self.command("CONFIG", "SET", "appendonly", "no")
        self._embedded.appendonly = False

        def clear() -> None:
            for path in [*self._embedded.directory.rglob("*.aof"), *self._embedded.directory.rglob("*.manifest")]:
                path.unlink()

        await self._do(clear)

    async def repair(self) -> None:
        """Repair it: it runs and answers when this returns; `ConfigError` if that fails."""
        if self._embedded.running:
            await self.resume()
        await self.start()

    async def _do(self, work: Callable[[], T]) -> T:
        async with self._turn:
            doing = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                return await asyncio.shield(doing)
            except asyncio.CancelledError:
                await asyncio.wait([doing])  # the thread goes on: the next call must not run beside it
                raise


class Standalone:
    """One server, reached through a proxy for each node."""

    def __init__(self, server: DemoServer, name: str, machine: ServerProcess | None) -> None:
        self.name, self.label, self.namespace = name, server.label, server.namespace
        self.machine = machine
        self.group: GroupUnderTest | None = None
        self._server = server
        self.dial: Dial | None = dialer(server.address)

    @property
    def dials(self) -> Mapping[int, Dial]:
        """Empty: it is one server."""
        return {}

    def url(self, proxy_port: int | None) -> str:
        """Its URL, by way of the proxy."""
        return self._server.url if proxy_port is None else self._server.url_by(HOST, proxy_port)

    def other(self, url: str) -> str:
        """Its second database."""
        return f"{url.rpartition('/')[0]}/1"


@asynccontextmanager
async def standing(
    url: str | None, binary: ServerBinary | None, keys: Sequence[Key], kind: str = ALONE, seed: int = 1
) -> AsyncIterator[ServerUnderTest]:
    """A server that answers: the one at the URL, or one of the run's own. Errors (`ConfigError`, `L2Unavailable`) never
    show a password.

    On the user's server the run's keys are removed in the end. `kind`: of the run's own server, one of `KINDS`. `seed`:
    determines how many replicas the primaries of a group have.
    """
    namespace = f"cachebus-verify-{secrets.token_hex(4)}"
    if kind in ("sentinel", "cluster"):
        from cachebus.tools.verify.target.group import grouped

        kind = cast("Literal['sentinel', 'cluster']", kind)
        async with grouped(kind, binary or best_server(), namespace, seed) as group:
            yield group
        return
    if url is None:
        async with _own(binary or best_server(), namespace) as server:
            yield server
        return
    if as_redis(url).partition("://")[0] not in ("redis", "rediss", "unix"):
        raise ConfigError("verify needs a server that several processes reach: redis://, rediss:// or unix://")
    address = parse_address(url)
    await asked(address)
    label = f"{address}, under the namespace {namespace}, which is removed in the end"
    try:
        yield Standalone(DemoServer(url, address, namespace, label), "yours", None)
    finally:
        await purge(address, namespace, keys)


@asynccontextmanager
async def _own(binary: ServerBinary, namespace: str) -> AsyncIterator[ServerUnderTest]:
    extra = ["--lua-time-limit", str(BUSY_MS)]
    if binary.version >= (7,):
        extra += ["--enable-debug-command", "local"]
    embedded = EmbeddedServer(binary, extra=extra)
    machine = ServerProcess(embedded, namespace)
    with embedded:
        label = f"{embedded.binary.name} of its own, on port {embedded.port}"
        try:
            server = DemoServer(embedded.url, parse_address(embedded.url), namespace, label)
            yield Standalone(server, embedded.binary.name, machine)
        finally:
            if embedded.running:
                await machine.resume()
