"""`cachebus get`: what L2 has for a key, and what that is worth."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from cachebus.base.ids import Id
from cachebus.cache import Cache
from cachebus.cli.operate.shards import shards_of_namespace
from cachebus.cli.operate.stored import elsewhere
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.keys.key import Key, Keyspace
from cachebus.l2.names import ShardNames
from cachebus.reading.fetch import MISSING
from cachebus.settings import Settings
from cachebus.tools.doctor.facts import Asker
from cachebus.tools.doctor.primaries import primaries_of
from cachebus.wire.record import CorruptRecord, Record, decode

DataType = Annotated[str, typer.Argument(metavar="TYPE", help="The data type.")]
ResourceId = Annotated[str, typer.Argument(metavar="ID", help="The resource id.")]
Tenant = Annotated[str | None, typer.Option("--tenant", metavar="ID", help="Needed for all types but system.")]
Agent = Annotated[str | None, typer.Option("--agent", metavar="ID")]
Conversation = Annotated[str | None, typer.Option("--conversation", metavar="ID")]
Collection = Annotated[str | None, typer.Option("--collection", metavar="ID")]
Search = Annotated[bool, typer.Option("--search", help="Look in the wider contexts too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]

ABSENT = 1


@dataclass(frozen=True)
class Seen:
    """What lies in L2 under a key."""

    key: Key
    value: object
    """MISSING where nothing valid is there."""
    data: bytes | None
    epoch: bytes
    """The shard's."""
    now_ms: int
    """On the server's clock."""

    @property
    def record(self) -> Record | None:
        """The record, be it valid or not; None where there is none, or one that is damaged."""
        try:
            return None if self.data is None else decode(self.data, self.key.l2)
        except CorruptRecord:
            return None

    @property
    def why(self) -> str:
        """Why nothing valid is there; "" where it is."""
        record = self.record
        if self.value is not MISSING:
            return ""
        if self.data is None:
            return "nothing lies in L2 under this key"
        if record is None:
            return "the record is damaged"
        if record.epoch != self.epoch:
            return f"the record is of epoch {record.epoch.decode()}, which is over: L2 lost its history since"
        if 0 < record.expires_ms <= self.now_ms:
            return f"it expired {_seconds(self.now_ms - record.expires_ms)} ago"
        return "the source said that there is none" if record.not_found else "it was invalidated"


def get(
    data_type: DataType,
    resource_id: ResourceId,
    tenant: Tenant = None,
    agent: Agent = None,
    conversation: Conversation = None,
    collection: Collection = None,
    search: Search = False,
    as_json: AsJson = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Show what L2 has for a key: the value, as Python writes it, and since when, until when, and from which write.

    Where nothing valid is there, it says which it is: nothing, something under another tenant or type, expired,
    invalidated, said to be absent.

    Exit status: 0, 1 if nothing valid is there, 2 if the server could not be reached or the key is none.
    """
    settings = settings_for(url, namespace)
    seen, hint = until_signalled(
        _look(settings, (data_type, resource_id, tenant, agent, conversation, collection), search)
    )
    if as_json:
        sys.stdout.write(json.dumps(_told(seen), ensure_ascii=False) + "\n")
    elif seen.why:
        sys.stderr.write(f"cachebus: {seen.why}{hint}\n")
    else:
        sys.stdout.write(f"{seen.value!r}\n")
    if not as_json:
        sys.stdout.writelines(f"{line}\n" for line in _lines(seen))
    raise typer.Exit(ABSENT if seen.why else 0)


async def _look(settings: Settings, ids: tuple[Id | None, ...], search: bool) -> tuple[Seen, str]:
    shards = await shards_of_namespace(settings)
    settings = settings.model_copy(update={"shards": shards, "use_memory_cache": False})
    data_type, resource_id, tenant, *contexts = ids
    key = Keyspace(shards).key(data_type, resource_id, tenant or settings.default_tenant, *contexts)
    async with Cache(settings) as cache, _asker(settings, key.shard) as asker:
        found: Seen | None = None
        for level in key.levels() if search else [key]:
            value = await cache.get(data_type, resource_id, tenant, *level.contexts, default=MISSING)  # type: ignore[arg-type]
            seen = await _seen(asker, settings, level, value)
            found = found if found is not None and seen.why else seen
            if not seen.why:
                break
    assert found is not None
    return found, await elsewhere(settings, key) if found.data is None else ""


@asynccontextmanager
async def _asker(settings: Settings, shard: int) -> AsyncIterator[Asker]:
    """Who asks the shard's primary."""
    primary = next(each for each in await primaries_of(settings) if each.shards is None or shard in each.shards)
    asker = await Asker.open(primary.address, settings.connect_timeout_s)
    try:
        yield asker
    finally:
        asker.close()


async def _seen(asker: Asker, settings: Settings, key: Key, value: object) -> Seen:
    names = ShardNames(settings.namespace, key.shard)
    data, _ = await asker.ask("GET", names.record(key))
    epoch, _ = await asker.ask("HGET", names.meta, "epoch")
    (seconds, micros), _ = await asker.ask("TIME")
    return Seen(key, value, data, epoch or b"", int(seconds) * 1000 + int(micros) // 1000)


def _told(seen: Seen) -> dict[str, Any]:
    """For programs: times in ms, on the server's clock."""
    told: dict[str, Any] = {"found": not seen.why, "why": seen.why, "shard": seen.key.shard, "now_ms": seen.now_ms}
    if not seen.why:
        told["repr"] = repr(seen.value)
    record = seen.record
    if record is not None and seen.data is not None:
        told |= {
            "created_ms": record.created_ms,
            "soft_ms": record.soft_ms or None,
            "expires_ms": record.expires_ms or None,
            "epoch": record.epoch.decode(),
            "seq": record.seq,
            "version": record.version.hex(),
            "bytes": len(seen.data),
            "tags": [_tag(tag) for tag in record.tags],
        }
    return told


def _lines(seen: Seen) -> list[str]:
    record = seen.record
    if record is None or seen.data is None:
        return []
    times = [f"loaded or written {_seconds(seen.now_ms - record.created_ms)} ago"]
    if record.soft_ms:
        times.append(f"soft expiry {_when(record.soft_ms - seen.now_ms)}")
    times.append(f"hard expiry {_when(record.expires_ms - seen.now_ms)}" if record.expires_ms else "never expires")
    tags = f", tags {', '.join(map(_tag, record.tags))}" if record.tags else ""
    where = (
        f"seq {record.seq} of epoch {record.epoch.decode()} in shard {seen.key.shard}, version {record.version.hex()}"
    )
    return [", ".join(times), f"{where}, {len(seen.data):,} bytes{tags}"]


def _when(left_ms: int) -> str:
    return f"in {_seconds(left_ms)}" if left_ms > 0 else f"{_seconds(-left_ms)} ago"


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"


def _tag(scope: str) -> str:
    return scope.rpartition("\x1f")[2]
