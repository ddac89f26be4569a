"""`cachebus get`: what L2 has for a key, and what that is worth."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from cachebus.assembly.factory import encryption_of
from cachebus.cli.operate.layout import layout_of
from cachebus.cli.operate.stored import elsewhere
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.errors import L2Unavailable
from cachebus.keys.key import ALL_TENANTS, Key, Keyspace, bucket_of_scope
from cachebus.keys.naming import Naming
from cachebus.keys.words import scope_in_words, shown
from cachebus.l2.inspection import whole_of
from cachebus.l2.names import ShardNames
from cachebus.l2.replies import buckets_of
from cachebus.listening.worth import is_cut_short, why_cut_short
from cachebus.policy import PolicyTable
from cachebus.reading.judge import MISSING
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.primaries import primaries_of
from cachebus.values import CorruptValue
from cachebus.values.cipher import NotDecrypted, named_key
from cachebus.wire.packing import decrypt, unpack
from cachebus.wire.record import CorruptRecord, Record, decode

DataType = Annotated[str, typer.Argument(metavar="TYPE", help="The data type.")]
ResourceId = Annotated[str, typer.Argument(metavar="ID", help="The resource id.")]
Tenant = Annotated[str | None, typer.Option("--tenant", metavar="ID", help="Needed for all types but system.")]
Agent = Annotated[str | None, typer.Option("--agent", metavar="ID")]
Conversation = Annotated[str | None, typer.Option("--conversation", metavar="ID")]
Collection = Annotated[str | None, typer.Option("--collection", metavar="ID")]
Search = Annotated[bool, typer.Option("--search", help="Look in the wider contexts too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]

Ids = tuple[str, str, str | None, str | None, str | None, str | None]
ABSENT = 1


@dataclass(frozen=True)
class StoredRecord:
    """What lies in L2 under a key, and what it is worth."""

    key: Key
    now_ms: int
    """On the server's clock."""
    data: bytes | None = None
    record: Record | None = None
    """None where there is none, or one that is damaged."""
    value: object = MISSING
    why: str = ""
    """Why nothing valid is there; "" where it is."""
    encrypted_by: str = ""
    """The id of the key that it names; "" where it is not encrypted."""
    cut_short: str = ""
    """Why it expires sooner than its TTL says; "" where it does not."""


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
    It only looks, whatever the server's state.

    Where nothing valid is there, it says which it is: nothing, something under another tenant or type, expired,
    invalidated, said to be absent.

    Exit status: 0, 1 if nothing valid is there, 2 if the server could not be reached or the key is none.
    """
    settings = settings_for(url, namespace)
    seen, hint = until_signalled(
        _look(settings, (data_type, resource_id, tenant, agent, conversation, collection), search)
    )
    if as_json:
        sys.stdout.write(json.dumps(_as_dict(seen), ensure_ascii=False) + "\n")
    elif seen.why:
        sys.stderr.write(f"cachebus: {seen.why}{hint}\n")
    else:
        sys.stdout.write(f"{seen.value!r}\n")
    if not as_json:
        sys.stdout.writelines(f"{line}\n" for line in _lines(seen))
    raise typer.Exit(ABSENT if seen.why else 0)


async def _look(settings: Settings, ids: Ids, search: bool) -> tuple[StoredRecord, str]:
    """The first valid one of the levels; else what lies under the key itself, and where its id lies besides. It only
    reads: it is no node, and needs no server that takes writes."""
    settings = (await layout_of(settings)).over(settings)
    key = Naming(Keyspace(settings.shards), settings.default_tenant).key(*ids)
    async with await _asker(settings, key.shard) as asker:
        seen = [await _seen(asker, settings, level) for level in (key.levels() if search else [key])]
    found = next((one for one in seen if not one.why), seen[0])
    hint = ""
    if found.data is None:
        with suppress(L2Unavailable):  # other keys may not be looked at by this user, or at this primary
            hint = await elsewhere(settings, key)
    return found, hint


async def _asker(settings: Settings, shard: int) -> Asker:
    """Who asks the shard's primary, to be closed."""
    having = [each for each in await primaries_of(settings) if each.has(shard)]
    if not having:
        raise L2Unavailable(f"no server has the slot of shard {shard} of {settings.namespace}")
    return await Asker.open(having[0].address, settings.connect_timeout_s)


async def _answer(asker: Asker, *question: str) -> Any:
    reply, refused = await asker.ask(*question)
    if refused:
        raise L2Unavailable(f"{question[0]} is refused: {refused}")
    return reply


async def _seen(asker: Asker, settings: Settings, key: Key) -> StoredRecord:
    names = ShardNames(settings.namespace, key.shard)
    seen = StoredRecord(key, await asker.now_us() // 1000)
    data, refused = await asker.ask("GET", names.record(key))
    if "WRONGTYPE" in refused:
        return replace(seen, why="what lies there is no record: something else writes under this name")
    if refused:
        raise L2Unavailable(f"GET is refused: {refused}")
    if data is None:
        return replace(seen, why="nothing lies in L2 under this key")
    try:
        record = decode(data, key.l2)
    except CorruptRecord:
        return replace(seen, data=data, why="the record is damaged, or not ours: a read takes it for a miss")
    seen = replace(seen, data=data, record=record)
    epoch, born_us, guard_ms = await _answer(asker, "HMGET", names.meta, "epoch", "born", "guard_ms")
    if is_cut_short(record, whole_of(born_us), whole_of(guard_ms)):
        seen = replace(seen, cut_short=f", {why_cut_short(whole_of(guard_ms))}")
    if record.epoch != epoch:
        return replace(seen, why=f"it is of epoch {_epoch(record)}, which is over: L2 lost its history since")
    if replaced := await _replaced(asker, names, key, record):
        return replace(seen, why=replaced)
    if 0 < record.expires_ms <= seen.now_ms:
        return replace(seen, why=f"it expired {_seconds(seen.now_ms - record.expires_ms)} ago")
    return await _read(seen, record, settings)


async def _read(seen: StoredRecord, record: Record, settings: Settings) -> StoredRecord:
    """With the value of a valid record, or why it has none here."""
    cipher, keys = encryption_of(settings)
    if keys is not None:
        await keys.read()
    data_type = seen.key.family.data_type
    rules = PolicyTable(settings.policies, cipher).rules(data_type)
    if data_type in settings.policies and record.policy_version != rules.version:
        of = f"it was stored by version {record.policy_version} of its policy"
        return replace(seen, why=f"{of}, which is {rules.version} here: a read takes it for a miss")
    try:
        if record.is_encrypted:
            seen = replace(seen, encrypted_by=named_key(record.payload))
        decrypt(record, rules, seen.key.l2)
    except NotDecrypted as error:
        return replace(seen, why=f"it is valid, and can't be read here: {error}")
    if record.not_found:
        return replace(seen, why="the source said that there is none")
    try:
        return replace(seen, value=unpack(record, rules))
    except CorruptValue as error:
        return replace(seen, why=f"it is valid, and can't be decoded here: {error}")


async def _replaced(asker: Asker, names: ShardNames, key: Key, record: Record) -> str:
    """By what the record was invalidated; "" where it was not."""
    buckets = buckets_of(await _answer(asker, "HGETALL", names.buckets) or ())
    for bucket in (key.family.bucket, ALL_TENANTS):
        if bucket in buckets and record.seq < buckets[bucket].low:
            return "L2 has forgotten whether it was invalidated, as there were too many scopes, and loads it again"
    for name in (*key.scopes, *record.tags):
        # As the scripts ask: a user who has the rights of a node has no others.
        (seq,) = await _answer(asker, "ZMSCORE", names.marks(bucket_of_scope(name)), name)
        if seq is not None and int(float(seq)) > record.seq:
            return f"it was invalidated, by seq {int(float(seq))}: {scope_in_words(name)}"
    return ""


def _as_dict(seen: StoredRecord) -> dict[str, Any]:
    """For programs: times in ms, on the server's clock."""
    described: dict[str, Any] = {"found": not seen.why, "why": seen.why, "shard": seen.key.shard, "now_ms": seen.now_ms}
    if not seen.why:
        described["repr"] = repr(seen.value)
    record = seen.record
    if record is not None and seen.data is not None:
        described |= {
            "created_ms": record.created_ms,
            "soft_ms": record.soft_ms or None,
            "expires_ms": record.expires_ms or None,
            "cut_short": bool(seen.cut_short),
            "epoch": _epoch(record),
            "seq": record.seq,
            "version": record.version.hex(),
            "policy_version": record.policy_version,
            "encrypted_by": seen.encrypted_by or None,
            "bytes": len(seen.data),
            "tags": [_tag(tag) for tag in record.tags],
        }
    return described


def _lines(seen: StoredRecord) -> list[str]:
    record = seen.record
    if record is None or seen.data is None:
        return []
    times = [f"loaded or written {_seconds(seen.now_ms - record.created_ms)} ago"]
    if record.soft_ms:
        times.append(f"soft expiry {_when(record.soft_ms - seen.now_ms)}")
    hard = f"hard expiry {_when(record.expires_ms - seen.now_ms)}{seen.cut_short}"
    times.append(hard if record.expires_ms else "never expires")
    tags = f", tags {', '.join(map(_tag, record.tags))}" if record.tags else ""
    where = f"seq {record.seq} of epoch {_epoch(record)} in shard {seen.key.shard}, version {record.version.hex()}"
    policy = f", of version {record.policy_version} of its policy" if record.policy_version != 1 else ""
    encrypted = f", encrypted by the key {shown(seen.encrypted_by)}" if seen.encrypted_by else ""
    return [", ".join(times), f"{where}, {len(seen.data):,} bytes{policy}{encrypted}{tags}"]


def _when(left_ms: int) -> str:
    return f"in {_seconds(left_ms)}" if left_ms > 0 else f"{_seconds(-left_ms)} ago"


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"


def _epoch(record: Record) -> str:
    return record.epoch.decode("ascii", errors="backslashreplace")


def _tag(scope: str) -> str:
    return shown(scope.rpartition("\x1f")[2])
