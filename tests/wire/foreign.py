"""A client in few lines, written from docs/protocol.md alone: it imports nothing of cachebus.

It speaks RESP over a blocking socket and packs its own msgpack; of the library it reads only the scripts' files.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import struct
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

SCRIPTS = Path(__file__).parents[2] / "cachebus" / "l2" / "scripts"
TIMEOUT_S = 10.0
Contexts = tuple[str | None, str | None, str | None]


class Key:
    """A key's names, by the chapter "Names"."""

    def __init__(self, tenant: str, data_type: str, resource_id: str, contexts: Contexts = (None, None, None)) -> None:
        self.tenant = tenant
        given = [(w, s, c) for w, s, c in zip(("agent", "conv", "coll"), "AVC", contexts, strict=True) if c is not None]
        middle = [part for word, _, context in given for part in (word, _percent(context))]
        self.key = ":".join([_percent(tenant), _percent(data_type), *middle, _percent(resource_id)])
        tail = "".join("\x1e" if context is None else "\x1f" + context for context in contexts)
        self.l1 = f"{tenant}\x1f{data_type}\x1f{resource_id}" + tail
        self.names = [f"T\x1f{tenant}", f"D\x1f{tenant}\x1f{data_type}"]
        self.names.append(f"I\x1f{tenant}\x1f{data_type}\x1f{resource_id}")
        self.names += ["\x1f".join(["T" + shape, tenant, context]) for _, shape, context in given]
        self.names += ["\x1f".join(["D" + shape, tenant, data_type, context]) for _, shape, context in given]

    def shard(self, shards: int) -> int:
        return crc32(self.tenant.encode()) % shards


def _percent(part: str) -> str:
    return part.replace("%", "%25").replace(":", "%3A").replace("*", "%2A")


# -- msgpack, as much of it as is needed ------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """None, small ints, text and lists and dicts of them."""
    if value is None:
        return b"\xc0"
    if isinstance(value, int):
        return bytes([value]) if 0 <= value < 128 else b"\xd3" + struct.pack(">q", value)
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    return b"\xdf" + struct.pack(">I", len(value)) + b"".join(pack(k) + pack(v) for k, v in value.items())


def unpack(data: bytes) -> Any:
    """The one value in these bytes."""
    value, at = _unpack(data, 0)
    assert at == len(data)
    return value


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    head, at = data[at], at + 1
    if head < 0x80:
        return head, at
    if head >= 0xE0:
        return head - 256, at
    if head in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[head], at
    numbers = {0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q", 0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q", 0xCB: "d"}
    if head in numbers:
        form = ">" + numbers[head]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    small = {0x80: 0x0F, 0x90: 0x0F, 0xA0: 0x1F}
    kind = next((k for k in (0x80, 0x90, 0xA0) if k <= head <= k + small[k]), None)
    if kind is not None:
        size = head & small[kind]
    else:
        kind, form = {
            0xD9: (0xA0, ">B"), 0xDA: (0xA0, ">H"), 0xDB: (0xA0, ">I"), 0xDC: (0x90, ">H"), 0xDD: (0x90, ">I"),
            0xDE: (0x80, ">H"), 0xDF: (0x80, ">I"),
        }[head]  # fmt: skip
        size, at = struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if kind == 0xA0:
        return data[at : at + size].decode(), at + size
    items = []
    for _ in range(size * (2 if kind == 0x80 else 1)):
        item, at = _unpack(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == 0x80 else items), at


# -- records and events -----------------------------------------------------------------------------------------------


def write_record(value: Any, epoch: bytes, seq: int, *, expires_ms: int = 0, tags: tuple[str, ...] = ()) -> bytes:
    """A record by the table in "A record", its payload msgpack."""
    head = b"\xcb\x01\x00\x01" + epoch + struct.pack(">Q", seq) + secrets.token_bytes(8)
    head += struct.pack(">QQQB", 1, 0, expires_ms, len(tags))
    return head + b"".join(struct.pack(">H", len(tag.encode())) + tag.encode() for tag in tags) + pack(value)


def read_record(data: bytes) -> dict[str, Any]:
    """What a record says."""
    assert data[:2] == b"\xcb\x01"
    seq, version, created, soft, expires, count = struct.unpack(">Q8sQQQB", data[20:61])
    tags, at = [], 61
    for _ in range(count):
        (size,) = struct.unpack_from(">H", data, at)
        tags.append(data[at + 2 : at + 2 + size].decode())
        at += 2 + size
    return {
        "flags": data[2], "codec": data[3], "epoch": data[4:20].decode(), "seq": seq, "version": version.hex(),
        "created_ms": created, "soft_ms": soft, "expires_ms": expires, "tags": tags,
        "value": unpack(data[at:]) if data[3] == 1 else data[at:],
    }  # fmt: skip


def write_body(keys: list[str], names: list[str], origin: str = "") -> bytes:
    """CRC and body of an event."""
    body = pack([keys, names, origin, 0])
    return struct.pack(">I", crc32(body)) + body


def read_event(data: bytes) -> dict[str, Any]:
    """What an event says."""
    assert data[:3] == b"CB1"
    seq, floor, published_us, crc = struct.unpack(">QQQI", data[19:47])
    assert crc32(data[47:]) == crc
    keys, names, origin, flags = unpack(data[47:])[:4]
    return {
        "epoch": data[3:19].decode(), "seq": seq, "floor": floor, "published_us": published_us,
        "keys": keys, "names": names, "origin": origin, "flags": flags,
    }  # fmt: skip


# -- Redis ------------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """An error that Redis replied."""


class Wire:
    """One connection: commands, or a subscription."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), TIMEOUT_S)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def call(self, *args: bytes | str | int) -> Any:
        parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
        head = b"*%d\r\n" % len(parts)
        self._socket.sendall(head + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        return self.read()

    def read(self) -> Any:
        line = self._file.readline()[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise Refused(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        return rest


class Foreign:
    """A node of one shard that keeps where it stands, and a producer where it is given no name."""

    def __init__(
        self, url: str, name: str = "", *, namespace: str = "cachebus", shard: int = 0, shards: int = 1
    ) -> None:
        self.wire, self.name = Wire(url), name
        self.tag = f"{{{namespace}:{shard}}}"
        self.channel = f"{self.tag}:events"
        self.facts = f"protocol=1 shards={shards} bus=redis"
        self.shard, self.epoch, self.applied = shard, b"", 0
        self._own = [f"{self.tag}:{part}" for part in ("meta", "marks", "log", "nodes")]

    def close(self) -> None:
        self.wire.close()

    def run(self, script: str, keys: list[str], *args: bytes | str | int) -> Any:
        """A script by its SHA-1, and by its source where the server does not know it."""
        guards = (SCRIPTS / "_guards.lua").read_bytes() if script in ("lease", "fill", "write") else b""
        source = (SCRIPTS / "_prologue.lua").read_bytes() + guards + (SCRIPTS / f"{script}.lua").read_bytes()
        head = (self.name, self.applied, self.epoch, secrets.token_hex(8), self.facts, 100_000, 100_000, self.channel)
        rest = (len(keys) + 4, *self._own, *keys, *head, *args)
        try:
            return self.wire.call("EVALSHA", hashlib.sha1(source).hexdigest(), *rest)
        except Refused as refused:
            if not str(refused).startswith("NOSCRIPT"):
                raise
            return self.wire.call("EVAL", source, *rest)

    def record(self, key: Key) -> str:
        return f"{self.tag}:r:{key.key}"

    def lease_of(self, key: Key) -> str:
        return f"{self.tag}:l:{key.key}"

    def attach(self) -> dict[str, int]:
        """The marks; from now on this node stands where the shard does."""
        self.epoch, self.applied, _floor, _time, marks = self.run("probe", [], "1", "0")[:5]
        return {name.decode(): int(float(seq)) for name, seq in zip(marks[::2], marks[1::2], strict=True)}

    def probe(self) -> tuple[bytes, int]:
        epoch, seq = self.run("probe", [], "0", "0")[:2]
        return epoch, seq

    def invalidate(self, keys: list[Key], names: tuple[str, ...] = ()) -> str:
        """The receipt."""
        gone = [self.record(key) for key in keys] + [self.lease_of(key) for key in keys]
        body = write_body([key.l1 for key in keys], list(names), self.name)
        epoch, seq = self.run("invalidate", gone, body, *names)[:2]
        return f"{self.shard}.{epoch.decode()}.{seq}"

    def write(self, key: Key, value: Any, *, only_if_absent: bool = False, tags: tuple[str, ...] = ()) -> bool:
        record = write_record(value, b"0" * 16, 0, tags=tags)
        body = write_body([key.l1], [], self.name)
        args = (
            "1" if only_if_absent else "0",
            len(key.names),
            record[:4],
            record[28:],
            0,
            body,
            key.l1,
            60_000,
            *key.names,
        )
        return bool(self.run("write", [self.record(key), self.lease_of(key)], *args)[2])

    def read(self, key: Key) -> dict[str, Any] | None:
        found = self.run("read", [self.record(key)], len(key.names), *key.names)[2]
        return None if found is None else read_record(found)

    def lease(self, key: Key, token: str, ms: int = 10_000) -> tuple[str, bytes, int, Any]:
        """What it came to, epoch and seq of a grant, and the record or the wait."""
        epoch, seq, outcome, record, wait_ms = self.run(
            "lease", [self.record(key), self.lease_of(key)], token, ms, "0", key.l1, len(key.names), *key.names
        )[:5]
        return outcome.decode(), epoch, seq, wait_ms if outcome == b"wait" else record

    def fill(self, key: Key, token: str, value: Any, epoch: bytes, seq: int, tags: tuple[str, ...] = ()) -> bool:
        record = write_record(value, epoch, seq, tags=tags)
        keys = [self.record(key), self.lease_of(key)]
        return bool(self.run("fill", keys, token, record, 60_000, "", key.l1, 60_000, *key.names)[2])

    def hold(self, key: Key, token: str, ms: int) -> bool:
        return bool(self.run("hold", [self.lease_of(key)], token, ms, key.l1)[2])

    def count(self, key: Key, amount: int, request: str = "") -> int:
        keys = [f"{self.tag}:c:{key.key}", f"{self.tag}:q:{key.key}:{request}"]
        return int(self.run("counter", keys, amount, "1" if request else "0", 0))

    def log(self) -> list[dict[str, Any]]:
        """The events after those applied, as the rule for holes wants them: without a gap."""
        found = []
        for entry_id, fields in self.wire.call(
            "XRANGE", f"{self.tag}:log", f"{self.applied + 1}-0", "+", "COUNT", 1000
        ):
            seq, _, zero = entry_id.partition(b"-")
            assert zero == b"0"
            assert int(seq) == self.applied + 1
            assert fields[0] == b"e"
            found.append(read_event(fields[1]))
            self.applied += 1
        return found

    def leave(self) -> None:
        self.run("leave", [])


def from_document(text: str) -> Any:
    """JSON of the document, with its signs for control characters taken for what they stand for."""
    return json.loads(text.replace("␟", "\\u001f").replace("␞", "\\u001e"))
