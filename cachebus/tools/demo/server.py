"""The server of a run: one that the run starts, or the user's, which is left as it was."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.keys.key import Key, Keyspace
from cachebus.l2.names import ShardNames
from cachebus.resp import Address, Connection, parse_address
from cachebus.tools.demo.subjects import TENANT, TTL_S
from cachebus.tools.demo.trace import name_of
from cachebus.tools.servers.redis import EmbeddedServer

TIMEOUT_S: Final = 2.0
CONNECT_S: Final = 5.0
PURGE_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class DemoServer:
    """Where a run's nodes store what they share."""

    url: str = field(repr=False)
    address: Address
    namespace: str
    label: str
    """For people."""

    def url_by(self, host: str, port: int) -> str:
        """Its URL by way of a proxy, which speaks TLS to it where that is needed."""
        login = ""
        if self.address.username or self.address.password:
            login = f"{quote(self.address.username or '', safe='')}:{quote(self.address.password or '', safe='')}@"
        return f"redis://{login}{host}:{port}/{self.address.db}"


@asynccontextmanager
async def served(url: str | None, words: Iterable[int]) -> AsyncIterator[DemoServer]:
    """A server that answers; `ConfigError` or `L2Unavailable`, in one line that names it and never a password.

    Of the user's, all keys under the run's own namespace are removed in the end; `words`: what may have been stored.
    """
    namespace = f"cachebus-demo-{secrets.token_hex(4)}"
    if url is None:
        # Started and stopped in this thread, which takes milliseconds: in another one it could be cancelled half way.
        with EmbeddedServer() as embedded:
            label = f"{embedded.binary.name} of its own, on port {embedded.port}"
            yield DemoServer(embedded.url, parse_address(embedded.url), namespace, label)
        return
    if url.startswith("memory:"):
        raise ConfigError("memory:// is inside one process: several nodes need redis://, rediss:// or unix://")
    address = parse_address(url)
    await asked(address)
    try:
        yield DemoServer(url, address, namespace, f"{address}, under the namespace {namespace}")
    finally:
        keyspace = Keyspace(1)
        await purge(address, namespace, [keyspace.key(*name_of(word), TENANT) for word in words])


async def asked(address: Address) -> None:
    """Check that the server answers; `L2Unavailable`."""
    async with connected(address) as connection:
        await connection.call("PING")


async def purge(address: Address, namespace: str, keys: Sequence[Key]) -> None:
    """Remove these keys' records and leases, and all of the namespace's own keys; `L2Unavailable` says what is left."""
    names = ShardNames(namespace, 0)
    doomed = [*names.own, *map(names.record, keys), *map(names.fill_lease, keys)]
    try:
        async with connected(address) as connection:
            for start in range(0, len(doomed), PURGE_BATCH):
                await connection.call("UNLINK", *doomed[start : start + PURGE_BATCH])
    except L2Unavailable as error:
        raise L2Unavailable(
            f"{error}: keys that begin with {{{namespace}:0}} are left there; "
            f"the values among them expire within {TTL_S / 60:.0f} minutes"
        ) from None


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[Connection]:
    """A connection of its own; `L2Unavailable`."""
    connection = await Connection.open(address, Patience(TIMEOUT_S, CONNECT_S, monotonic))
    try:
        yield connection
    finally:
        connection.close()
