"""The formats, byte by byte: whoever changes one changes `PROTOCOL` too, for nodes of two versions share one L2."""

from __future__ import annotations

from zlib import crc32

import pytest

from cachebus import event as events
from cachebus import record as records
from cachebus.helpers import generate_resource_id_hash
from cachebus.keys import Key, Keyspace, tag_name
from cachebus.l2.names import ShardNames
from cachebus.ports import PROTOCOL
from cachebus.receipt import Receipt
from cachebus.record import Record

EPOCH = b"0123456789abcdef"

RECORDS = {
    "tagged": (
        Record(
            0, 1, b"payload", created_ms=1_700_000_000_123, soft_ms=1_700_000_060_123, expires_ms=1_700_003_600_123,
            tags=["G\x1facme\x1fplan:pro"], epoch=EPOCH, seq=258, version=bytes(range(8)),
        ),
        ("cb01 00 01 30313233343536373839616263646566 0000000000000102 0001020304050607 "
        "0000018bcfe5687b 0000018bcfe652db 0000018bd01c56fb 01 000f 471f61636d651f706c616e3a70726f 7061796c6f6164"),
    ),
    "not found": (
        Record(records.NOT_FOUND, 0, b"", created_ms=1, epoch=b"f" * 16, seq=0, version=b"\xff" * 8),
        ("cb01 01 00 66666666666666666666666666666666 0000000000000000 ffffffffffffffff "
        "0000000000000001 0000000000000000 0000000000000000 00"),
    ),
    "two tags": (
        Record(2, 255, b"\x00", created_ms=0, tags=["", "é"], epoch=EPOCH, seq=2**53, version=b"VERSION!"),
        ("cb01 02 ff 30313233343536373839616263646566 0020000000000000 56455253494f4e21 "
        "0000000000000000 0000000000000000 0000000000000000 02 0000 0002c3a9 00"),
    ),
}  # fmt: skip
BODY = "492b10df 94 91ad61636d651f646f631f371e1e1e 91aa441f61636d651f646f63 a66e6f64652d31 00"
EVENT = "434231 30313233343536373839616263646566 0000000000000102 0000000000000007 00060a2418202240" + BODY


def test_the_protocol_number_goes_with_these_formats() -> None:
    assert PROTOCOL == 1


@pytest.mark.parametrize(("record", "golden"), RECORDS.values(), ids=RECORDS.keys())
def test_records(record: Record, golden: str) -> None:
    data = bytes.fromhex(golden)
    assert record.encode() == data
    back = records.decode(data)
    for field in Record.__slots__:
        is_, was = getattr(back, field), getattr(record, field)
        assert (list(is_) if field == "tags" else is_) == (list(was) if field == "tags" else was)


def test_events() -> None:
    body = events.encode_body(["acme\x1fdoc\x1f7\x1e\x1e\x1e"], ["D\x1facme\x1fdoc"], "node-1")
    assert body == bytes.fromhex(BODY)
    assert events.encode(EPOCH, 258, 7, 1_700_000_000_123_456, body) == bytes.fromhex(EVENT)
    event = events.decode(bytes.fromhex(EVENT))
    assert (event.epoch, event.seq, event.floor, event.published_us) == (EPOCH, 258, 7, 1_700_000_000_123_456)
    assert (event.keys, event.names) == (["acme\x1fdoc\x1f7\x1e\x1e\x1e"], ["D\x1facme\x1fdoc"])
    assert event.origin == "node-1"


def test_an_event_of_a_later_minor_version_is_read() -> None:
    """A field more at the end of the body is for those who know it."""
    body = bytes.fromhex("95 91a161 91a162 a0 00 c3")
    event = events.decode(events.encode(EPOCH, 1, 0, 0, events.CRC.pack(crc32(body)) + body))
    assert (event.keys, event.names, event.origin) == (["a"], ["b"], "")


def test_an_event_may_ask_the_nodes_to_probe_and_those_who_know_no_flags_read_the_rest() -> None:
    asking = events.encode_body(["a"], ["b"], "n", events.PROBE)
    assert asking == bytes.fromhex("e393bb7b 94 91a161 91a162 a16e 01")
    for flags in (events.PROBE, 64 + events.PROBE):
        event = events.decode(events.encode(EPOCH, 1, 0, 0, events.encode_body(["a"], ["b"], "n", flags)))
        assert (event.keys, event.names, event.origin, event.flags) == (["a"], ["b"], "n", flags)


def test_the_hint_for_those_who_wait() -> None:
    assert events.WAKE == b"CBW"
    assert len(events.WAKE) == len(events.MAGIC)


space = Keyspace(64)
KEYS: list[tuple[Key, str, str, int]] = [
    (space.key("doc", 7, "acme"), "acme\x1fdoc\x1f7\x1e\x1e\x1e", "acme:doc:7", 62),
    (space.key("system", "flags", None), "\x1fsystem\x1fflags\x1e\x1e\x1e", ":system:flags", 0),
    (space.key("a", "b", "t", conversation_id="c"), "t\x1fa\x1fb\x1e\x1fc\x1e", "t:a:conv:c:b", 40),
    (
        space.key("query:result", "a*b%/é 1", "acme:eu", "a7", "c 1", 42),
        "acme:eu\x1fquery:result\x1fa*b%/é 1\x1fa7\x1fc 1\x1f42",
        "acme%3Aeu:query%3Aresult:agent:a7:conv:c 1:coll:42:a%2Ab%25/é 1",
        1,
    ),
]


@pytest.mark.parametrize(("key", "l1", "l2", "shard"), KEYS, ids=[key.l2 for key, *_ in KEYS])
def test_keys(key: Key, l1: str, l2: str, shard: int) -> None:
    assert (key.l1, key.l2, key.shard) == (l1, l2, shard)


def test_scopes_and_tags() -> None:
    assert KEYS[3][0].names == (
        "T\x1facme:eu",
        "D\x1facme:eu\x1fquery:result",
        "I\x1facme:eu\x1fquery:result\x1fa*b%/é 1",
        "TA\x1facme:eu\x1fa7",
        "TV\x1facme:eu\x1fc 1",
        "TC\x1facme:eu\x1f42",
        "DA\x1facme:eu\x1fquery:result\x1fa7",
        "DV\x1facme:eu\x1fquery:result\x1fc 1",
        "DC\x1facme:eu\x1fquery:result\x1f42",
    )
    assert tag_name("acme", "plan:pro") == "G\x1facme\x1fplan:pro"


def test_names_in_redis() -> None:
    names = ShardNames("prod", 3)
    assert names.own == ["{prod:3}:meta", "{prod:3}:marks", "{prod:3}:log", "{prod:3}:nodes"]
    assert (names.log, names.channel) == ("{prod:3}:log", "{prod:3}:events")
    assert names.record(KEYS[0][0]) == "{prod:3}:r:acme:doc:7"
    assert names.lease(KEYS[0][0]) == "{prod:3}:l:acme:doc:7"
    assert (names.counter_prefix, names.request_prefix) == ("{prod:3}:c:", "{prod:3}:q:")


def test_receipts() -> None:
    assert str(Receipt(3, EPOCH.decode(), 258)) == "3.0123456789abcdef.258"
    assert Receipt.parse("3.0123456789abcdef.258") == Receipt(3, EPOCH.decode(), 258)


def test_hashes_of_resource_ids() -> None:
    """Services keep data under these: they may never change."""
    assert generate_resource_id_hash() == "7a9e3d48316709a334376b83e845f6fb"
    assert generate_resource_id_hash("a query", 10, 0.5, None, True) == "7e045c94a69a39795688ed52251f2116"
    assert generate_resource_id_hash({"b": [1, 2], "a": "é"}) == "7c7d491a0930a21064ae7c02ae450f0b"
    assert generate_resource_id_hash({"a": "é", "b": [1, 2]}) == "7c7d491a0930a21064ae7c02ae450f0b"
