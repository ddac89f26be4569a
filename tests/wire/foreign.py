"""A client in few lines, written from docs/protocol.md alone: it imports nothing of cachebus.

It speaks RESP over a blocking socket and packs its own msgpack; of the library it reads only the scripts' files.
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
from hashlib import sha1
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

SCRIPTS = Path(__file__).parents[2] / "cachebus" / "l2" / "scripts"
TIMEOUT_S = 10.0
ASKED_MAX = 4
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
        self.bucket = sha1(tenant.encode()).hexdigest()[:2]
        self.scopes = ["N", f"Y\x1f{data_type}", f"T\x1f{tenant}", f"D\x1f{tenant}\x1f{data_type}"]
        self.scopes.append(f"I\x1f{tenant}\x1f{data_type}\x1f{resource_id}")
        self.scopes += ["\x1f".join(["T" + shape, tenant, context]) for _, shape, context in given]
        self.scopes += ["\x1f".join(["D" + shape, tenant, data_type, context]) for _, shape, context in given]

    def shard(self, shards: int) -> int:
        return crc32(self.tenant.encode()) % shards


def _percent(part: str) -> str:
    return part.replace("%", "%25").replace(":", "%3A").replace("*", "%2A")


# -- msgpack, as much of it as is needed ------------------------------------------------------------------------------


def pack(value: Any) -> bytes:
    """None, truth, ints, text and lists and dicts of them."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
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
            0xD9: (0xA0, ">B"),
            0xDA: (0xA0, ">H"),
            0xDB: (0xA0, ">I"),
            0xDC: (0x90, ">H"),
            0xDD: (0x90, ">I"),
            0xDE: (0x80, ">H"),
            0xDF: (0x80, ">I"),
        }[head]
        size, at = struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if kind == 0xA0:
        return data[at : at + size].decode(), at + size
    items = []
    for _ in range(size * (2 if kind == 0x80 else 1)):
        item, at = _unpack(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == 0x80 else items), at


# -- records, events, lines -------------------------------------------------------------------------------------------


def write_record(
    key: str, value: Any, epoch: bytes, seq: int, *, expires_ms: int = 0, tags: tuple[str, ...] = ()
) -> bytes:
    """A record by the table in "A record", its payload msgpack."""
    rest = secrets.token_bytes(4) + struct.pack(">QQIBH", 1, 0, 1, len(tags), 0)
    rest += b"".join(struct.pack(">H", len(tag.encode())) + tag.encode() for tag in tags) + pack(value)
    front = b"\xcb\x02\x00\x01" + epoch + struct.pack(">QQ", seq, expires_ms)
    return front + struct.pack(">I", check_of(key, front + bytes(4) + rest)) + rest


def check_of(key: str, record: bytes) -> int:
    """The check that a record of a key must have."""
    number = int.from_bytes(record[2:4] + record[20:36], "big")
    return crc32(key.encode() + record[40:]) ^ number % 4294967291


def read_record(key: str, data: bytes) -> dict[str, Any]:
    """What a record says."""
    assert data[:2] == b"\xcb\x02"
    seq, expires, check, version, created, soft, policy, count, more = struct.unpack(">QQI4sQQIBH", data[20:67])
    assert check == check_of(key, data)
    tags, at = [], 67
    for _ in range(count):
        (size,) = struct.unpack_from(">H", data, at)
        tags.append(data[at + 2 : at + 2 + size].decode())
        at += 2 + size
    payload = data[at + more :]
    return {
        "flags": data[2],
        "codec": data[3],
        "epoch": data[4:20].decode(),
        "seq": seq,
        "version": version.hex(),
        "created_ms": created,
        "soft_ms": soft,
        "expires_ms": expires,
        "policy_version": policy,
        "tags": tags,
        "more": unpack(data[at : at + more]) if more else {},
        "value": unpack(payload) if data[3] == 1 and not data[2] & 4 else payload,
    }


def write_body(keys: list[str], scopes: list[str], origin: str = "", *, probe: bool = False) -> bytes:
    """CRC and body of an event of one part."""
    return write_parts([[keys, scopes, origin, "", ""]], {"probe": True} if probe else {})


def write_parts(parts: list[list[Any]], more: dict[str, Any]) -> bytes:
    """CRC and body of an event."""
    body = pack([parts, more])
    return struct.pack(">I", crc32(body)) + body


def read_event(data: bytes) -> dict[str, Any]:
    """What an event says."""
    assert data[:3] == b"CB2"
    seq, published_us, bucket, low, check, crc = struct.unpack(">QQ2sQ8sI", data[20:58])
    assert sha1(data[:46] + data[54:58]).hexdigest()[:8] == check.decode()
    assert crc32(data[58:]) == crc
    parts, more = unpack(data[58:])[:2]
    names = ("keys", "scopes", "origin", "reason", "trace")
    return {
        "left_out": bool(data[3] & 1),
        "epoch": data[4:20].decode(),
        "seq": seq,
        "published_us": published_us,
        "bucket": bucket.decode(),
        "low": low,
        "parts": [dict(zip(names, part, strict=False)) for part in parts],
        "more": more,
    }


def read_inquiry(data: bytes) -> dict[str, Any]:
    """What a question, or an answer, says."""
    flags, asked, crc = struct.unpack(">B16sI", data[3:24])
    assert crc32(data[3:20] + data[24:]) == crc
    body = unpack(data[24:])
    if data[:3] in (b"CBA", b"CBN"):
        return {"id": asked.decode(), "answer": body}
    if data[:3] == b"CBH":
        names = ("answerer", "asker", "names", "bytes", "more")
        return {"id": asked.decode(), **dict(zip(names, body, strict=True))}
    assert data[:3] == b"CBQ"
    return {"id": asked.decode(), "sharded": bool(flags & 1), "l1": body[0], "more": body[1]}


def rest_of_line(bound_ms: int, guard_ms: int) -> bytes:
    """The part of a node's row that the node itself packs."""
    pairs = {"bound_ms": bound_ms, "guard_ms": guard_ms, "more": {}}
    return b"".join(pack(name) + pack(value) for name, value in pairs.items())


def read_bucket(data: bytes) -> dict[str, int]:
    """How many marks a bucket has, their size, its low watermark."""
    return dict(zip(("count", "size", "low"), struct.unpack(">IIQ", data), strict=True))


def mapping(flat: list[Any]) -> dict[str, Any]:
    """A flat list of names and what goes with them."""
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


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
        self,
        url: str,
        name: str = "",
        *,
        namespace: str = "cachebus",
        shard: int = 0,
        shards: int = 1,
        bound_ms: int = 600,
    ) -> None:
        self.wire, self.name, self.bound_ms = Wire(url), name, bound_ms
        self.tag = f"{{{namespace}:{shard}}}"
        self.channel = f"{self.tag}:events:{urlsplit(url).path.strip('/') or 0}"
        self.facts = f"protocol=2 shards={shards} bus=redis"
        self.shard, self.epoch, self.applied = shard, b"", 0
        self.line = (name, rest_of_line(bound_ms, 0))
        self.alone = 1 if name else 0  # its line does not say that it keeps nothing alone
        self.events = (self.channel, 100_000, 100_000, 1 << 26)

    def close(self) -> None:
        self.wire.close()

    def run(self, script: str, keys: list[str], *args: bytes | str | int, bucket: str = "") -> Any:
        """What a script replies; where it finds another history, after a takeover."""
        common = (self.facts, self.applied, self.epoch, bucket)
        for _ in range(ASKED_MAX):
            reply = self.once(script, keys, *common, *args)
            if reply is not None:
                return reply
            self.once("takeover", [], *common, secrets.token_hex(8), "plain", self.bound_ms, 0, self.alone)
        raise Refused("the servers change too fast")

    def once(self, script: str, keys: list[str], *args: bytes | str | int) -> Any:
        """A script by its SHA-1, and by its source where the server does not know it."""
        own = (SCRIPTS / f"{script}.lua").read_bytes()
        parts = own.split(b"\n")[0].decode().removeprefix("-- after: ").split()
        source = b"".join((SCRIPTS / f"_{part}.lua").read_bytes() for part in parts) + own
        rest = (len(keys) + 1, f"{self.tag}:meta", *keys, *args)
        try:
            return self.wire.call("EVALSHA", sha1(source).hexdigest(), *rest)
        except Refused as refused:
            if not str(refused).startswith("NOSCRIPT"):
                raise
            return self.wire.call("EVAL", source, *rest)

    def lies(self, key: Key) -> list[str]:
        """Where the marks of the key's bucket, its record and its lease lie."""
        return [f"{self.tag}:marks:{key.bucket}", f"{self.tag}:r:{key.key}", f"{self.tag}:l:{key.key}"]

    def attach(self) -> tuple[dict[str, int], dict[str, int]]:
        """Marks and low watermarks; from now on this node stands where the shard does."""
        reply = self.run("marks", [], *self.line, self.bound_ms, 0, self.alone)
        self.epoch, self.applied = reply[:2]
        marks, low = reply[7:9]
        own = [(name, seq) for its in marks[1::2] for name, seq in mapping(its).items()]
        return {name: int(seq) for name, seq in own}, {bucket: int(seq) for bucket, seq in mapping(low).items()}

    def probe(self) -> tuple[bytes, int]:
        epoch, seq = self.run("probe", [], *self.line, self.bound_ms, 0, 0, self.alone)[:2]
        return epoch, seq

    def nodes(self) -> tuple[bytes, dict[str, dict[str, Any]]]:
        """The name of the set of lines, and these."""
        lines = mapping(self.run("nodes", [], *self.line, self.bound_ms, self.alone)[3])
        name = lines.pop("#", b"")
        return name, {node: unpack(line) for node, line in lines.items()}

    def waited(self, receipt: str) -> bool:
        """Whether every row has applied what a receipt stands for; how old the set of rows is, is not asked."""
        _, epoch, seq = receipt.split(".")
        return all(line["epoch"] == epoch and line["applied"] >= int(seq) for line in self.nodes()[1].values())

    def receipt(self, epoch: bytes, seq: int) -> str:
        return f"{self.shard}.{epoch.decode()}.{seq}"

    def invalidate(self, keys: list[Key], scopes: tuple[str, ...] = (), *, probe: bool = False) -> str:
        """The receipt."""
        body = write_body([key.l1 for key in keys], list(scopes), self.name, probe=probe)
        return self.receipt(*self.run("invalidate", self._gone(keys), *self.events, body, *scopes)[:2])

    def _gone(self, keys: list[Key]) -> list[str]:
        return [self.lies(key)[1] for key in keys] + [self.lies(key)[2] for key in keys]

    def guard(self, key: Key, token: bytes, ms: int) -> str:
        """Put a guard on a key, or take it away (0 ms). The receipt."""
        body = write_body([key.l1], [], self.name)
        args = (body, token, ms, 100_000, 0, f"K\x1f{key.l1}")
        return self.receipt(*self.run("guard", self._gone([key]), *self.events, *args)[:2])

    def write(self, key: Key, value: Any, *, only_if_absent: bool = False, tags: tuple[str, ...] = ()) -> bool:
        record = write_record(key.key, value, b"0" * 16, 0, tags=tags)
        args = (
            write_body([key.l1], [], self.name),
            "1" if only_if_absent else "0",
            len(key.scopes),
            record[:40],
            record[40:],
            0,
            key.l1,
            60_000,
            *key.scopes,
        )
        return bool(self.run("write", self.lies(key), *self.events, *args, bucket=key.bucket)[4])

    def read(self, key: Key) -> dict[str, Any] | None:
        keys = self.lies(key)[:2]
        found = self.run("read", keys, *self.line, len(key.scopes), *key.scopes, bucket=key.bucket)[2]
        return None if found is None else read_record(key.key, found)

    def fill_lease(self, key: Key, token: str, ms: int = 10_000, *, fallback: int = 0) -> tuple[str, bytes, int, Any]:
        """What it came to, epoch and seq of a grant, and the record or the wait."""
        args = (token, ms, "0", fallback, key.l1, len(key.scopes), *key.scopes)
        epoch, seq, outcome, record, wait_ms = self.run(
            "fill_lease", self.lies(key), *self.line, *args, bucket=key.bucket
        )[:5]
        return outcome.decode(), epoch, seq, record if outcome in (b"hit", b"granted") else wait_ms

    def fill(self, key: Key, token: str, value: Any, epoch: bytes, seq: int, tags: tuple[str, ...] = ()) -> bool:
        record = write_record(key.key, value, epoch, seq, tags=tags)
        args = (self.channel, token, record, 60_000, "", key.l1, 60_000, *key.scopes)
        return bool(self.run("fill", self.lies(key), *args, bucket=key.bucket)[2])

    def hold(self, key: Key, token: str, ms: int, *, rests: bool = False) -> bool:
        args = (self.channel, token, ms, "1" if rests else "0", key.l1)
        return bool(self.run("hold", self.lies(key)[2:], *args)[2])

    def count(self, key: Key, amount: int, request: str = "") -> int | None:
        value = self.run("counter", [f"{self.tag}:c:{key.key}"], amount, request, 0)[2]
        return None if value is None else int(value)

    def log(self) -> list[dict[str, Any]]:
        """The events after those applied, as the rule for gaps wants them: without one."""
        found = []
        for entry_id, fields in self.wire.call(
            "XRANGE", f"{self.tag}:log", f"{self.applied + 1}-0", "+", "COUNT", 1000
        ):
            assert int(entry_id.split(b"-")[0]) == self.applied + 1
            assert fields[0] == b"e"
            found.append(read_event(fields[1]))
            self.applied += 1
        return found

    def forget(self, node: str, *, lives: bool) -> bool:
        return bool(self.run("forget", [], node, "1" if lives else "0")[2])


def from_document(text: str) -> Any:
    """JSON of the document, with its signs for control characters taken for what they stand for."""
    return json.loads(text.replace("␟", "\\u001f").replace("␞", "\\u001e"))
