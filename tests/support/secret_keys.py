"""Keys that encrypt values in tests, and what lies in Redis of these."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cachebus import Cache
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.l2.names import ShardNames
from cachebus.resp import Connection, parse_address
from cachebus.wire import record as records
from cachebus.wire.record import Record
from tests.support.caches import key_of, parts

SECRETS = {name: bytes([i]) * 32 for i, name in enumerate(("k1", "k2", "k3"), 1)}


def keys(*names: str) -> str:
    """The setting that has these keys, of which the first encrypts."""
    return ",".join(f"{name}:{base64.b64encode(SECRETS[name]).decode()}" for name in names)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """Who speaks to the server without any cache."""
    connection = await Connection.open(parse_address(url), Patience(10.0, 10.0, monotonic))
    try:
        yield connection
    finally:
        connection.close()


class Stored:
    """The record of one key, as who may write to Redis sees it and changes it."""

    def __init__(self, connection: Connection, cache: Cache, resource_id: str, data_type: str = "doc") -> None:
        self._connection = connection
        self._key = key_of(cache, data_type, resource_id, "acme")
        self._name = ShardNames(parts(cache).settings.namespace, self._key.shard).record(self._key)

    async def read(self) -> bytes:
        """What lies there; b"" for nothing."""
        return bytes(await self._connection.call("GET", self._name) or b"")

    async def record(self) -> Record:
        """The same, taken apart."""
        return records.decode(await self.read(), self._key.l2)

    async def put(self, data: bytes | Record) -> None:
        """Put this there; a record with a check that fits."""
        whole = data.encode(self._key.l2) if isinstance(data, Record) else data
        await self._connection.call("SET", self._name, whole)
