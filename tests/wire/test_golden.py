"""The formats, byte by byte: whoever changes one changes `PROTOCOL` too, for nodes of two versions share one L2."""

from __future__ import annotations

import struct
from hashlib import sha1
from zlib import crc32

import pytest

from cachebus.core.ports import PROTOCOL, About, NodeRow
from cachebus.helpers import generate_resource_id_hash
from cachebus.keys.key import ALL_TENANTS, Key, Keyspace, bucket_of, bucket_of_scope, guard_name, tag_scope
from cachebus.l2.names import ShardNames
from cachebus.l2.replies import NAME, log_seq, node_row, row_rest
from cachebus.receipt import Receipt
from cachebus.wire import event as events
from cachebus.wire import record as records
from cachebus.wire.event import WritePart
from cachebus.wire.record import Record

KEY_NAME = "acme:doc:7"
EPOCH = b"0123456789abcdef"

RECORDS = {
    "tagged": (
        Record(
            0,
            1,
            b"payload",
            created_ms=1_700_000_000_123,
            soft_ms=1_700_000_060_123,
            expires_ms=1_700_003_600_123,
            tags=["G\x1facme\x1fplan:pro"],
            epoch=EPOCH,
            seq=258,
            version=bytes(range(4)),
        ),
        (
            "cb02 00 01 30313233343536373839616263646566 0000000000000102 0000018bd01c56fb "
            "6a940933 00010203 0000018bcfe5687b 0000018bcfe652db 00000001 01 0000 "
            "000f 471f61636d651f706c616e3a70726f 7061796c6f6164"
        ),
    ),
    "not found": (
        Record(records.FLAG_NOT_FOUND, 0, b"", created_ms=1, epoch=b"f" * 16, seq=0, version=b"\xff" * 4),
        (
            "cb02 01 00 66666666666666666666666666666666 0000000000000000 0000000000000000 "
            "66ab6373 ffffffff 0000000000000001 0000000000000000 00000001 00 0000"
        ),
    ),
    "two tags, and more": (
        Record(
            2,
            255,
            b"\x00",
            created_ms=0,
            tags=["", "é"],
            more=b"\x81\xa1a\x01",
            epoch=EPOCH,
            seq=2**53,
            version=b"VERS",
        ),
        (
            "cb02 02 ff 30313233343536373839616263646566 0020000000000000 0000000000000000 "
            "16d80872 56455253 0000000000000000 0000000000000000 00000001 02 0004 0000 0002c3a9 81a16101 00"
        ),
    ),
}
ONE, OTHER = (
    WritePart(["acme\x1fdoc\x1f7\x1e\x1e\x1e"], ["I\x1facme\x1fdoc\x1f7"], "node-1"),
    WritePart([], ["D\x1facme\x1fdoc"], "node-1", "nightly import", "4bf9"),
)
BODY = (
    "af247052 92 92"
    "95 91ad61636d651f646f631f371e1e1e 91ac491f61636d651f646f631f37 a66e6f64652d31 a0 a0"
    "95 90 91aa441f61636d651f646f63 a66e6f64652d31 ae6e696768746c7920696d706f7274 a434626639"
    "81 a570726f6265 c3"
)
HEADER = (
    "434232 00 30313233343536373839616263646566 0000000000000102 00060a24182022402a2a 0000000000000007 3836636537323837"
)
EVENT = HEADER + BODY
PLAIN = (
    "434232 01 30313233343536373839616263646566 0000000000000103 00060a2418202241"
    "2d2d 0000000000000000 6232636630326133"
    "22f8d24f 92 91 95 91a16b 90 a0 a0 a0 80"
)


def test_the_protocol_number_goes_with_these_formats() -> None:
    assert PROTOCOL == 2


@pytest.mark.parametrize(("record", "golden"), RECORDS.values(), ids=RECORDS.keys())
def test_records(record: Record, golden: str) -> None:
    data = bytes.fromhex(golden)
    assert record.encode(KEY_NAME) == data
    back = records.decode(data, KEY_NAME)
    for field in Record.__slots__:
        is_, was = getattr(back, field), getattr(record, field)
        assert (list(is_) if field == "tags" else is_) == (list(was) if field == "tags" else was)


def parts_of(event: events.Event) -> list[tuple[list[str], list[str], str, str, str]]:
    return [(part.keys, part.scopes, part.origin, part.reason, part.trace) for part in event.parts]


def test_an_event_of_two_parts() -> None:
    body = events.encode_body([ONE, OTHER], probe=True)
    assert body == bytes.fromhex(BODY)
    header = events.EventHeader(EPOCH, 258, 1_700_000_000_123_456, low=events.LowWatermark("**", 7)).encode(body)
    assert header == bytes.fromhex(HEADER)
    assert len(header) == events.HEADER_BYTES == 54
    event = events.decode(bytes.fromhex(EVENT))
    assert (event.epoch, event.seq, event.published_us) == (EPOCH, 258, 1_700_000_000_123_456)
    assert (event.low, event.left_out) == (("**", 7), False)
    assert event.asks_for_probe
    assert parts_of(event) == parts_of(events.with_header(header, body, [ONE, OTHER]))
    assert (event.keys, event.scopes) == (ONE.keys, [*ONE.scopes, *OTHER.scopes])
    assert (event.origin, OTHER.reason, OTHER.trace) == ("", "nightly import", "4bf9")
    assert events.position_of(bytes.fromhex(EVENT)) == (EPOCH, 258)


def test_an_event_of_one_part_that_leaves_ids_out() -> None:
    body = events.encode_body([WritePart(["k"], [])])
    data = events.EventHeader(EPOCH, 259, 1_700_000_000_123_457, left_out=True).encode(body) + body
    assert data == bytes.fromhex(PLAIN)
    event = events.decode(data)
    assert (event.low, event.left_out, event.asks_for_probe) == (events.NONE_RAISED, True, False)
    assert parts_of(event) == [(["k"], [], "", "", "")]


def with_body(body: str) -> events.Event:
    """The event around these bytes."""
    data = bytes.fromhex(body)
    return events.decode(events.encode(EPOCH, 1, 0, struct.pack(">I", crc32(data)) + data))


def test_what_a_later_version_puts_into_an_event_is_passed_over() -> None:
    """At the end of the body and of a part, names in `more`, and flags."""
    event = with_body("93 92 96 91a161 91a162 a16e a0 a0 c3 95 90 91a163 a0 a0 a0 82 a174 01 a570726f6265 c3 c0")
    assert (event.keys, event.scopes) == (["a"], ["b", "c"])
    assert event.asks_for_probe
    assert event.more == {"t": 1, "probe": True}
    few = with_body("91 91 92 91a161 91a162")
    assert parts_of(few) == [(["a"], ["b"], "", "", "")]
    fields = bytes.fromhex(PLAIN)[:46].replace(b"CB2\x01", b"CB2\x82")
    body = bytes.fromhex(PLAIN)[54:]
    check = sha1(fields + body[:4]).hexdigest()[:8].encode()
    assert not events.decode(fields + check + body).left_out


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
    assert KEYS[3][0].scopes == (
        "N",
        "Y\x1fquery:result",
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
    assert tag_scope("acme", "plan:pro") == "G\x1facme\x1fplan:pro"
    assert guard_name(KEYS[0][0]) == "K\x1facme\x1fdoc\x1f7\x1e\x1e\x1e"


def test_buckets() -> None:
    assert [bucket_of(tenant) for tenant in ("acme", "", "acme:eu", "größe")] == ["29", "da", "ed", "93"]
    assert ALL_TENANTS == "**"
    assert events.NO_BUCKET == "--"
    assert {bucket_of_scope(name) for name in ("N", "Y\x1fdoc")} == {"**"}
    assert {bucket_of_scope(name) for name in (*KEYS[0][0].scopes[2:], "G\x1facme\x1ft", "TA\x1facme\x1f7")} == {"29"}


def test_names_in_redis() -> None:
    names = ShardNames("prod", 3)
    assert names.own[:7] == [
        "{prod:3}:meta",
        "{prod:3}:log",
        "{prod:3}:nodes",
        "{prod:3}:guards",
        "{prod:3}:buckets",
        "{prod:3}:identity",
        "{prod:3}:marks:**",
    ]
    assert names.own[7:] == [f"{{prod:3}}:marks:{bucket:02x}" for bucket in range(256)]
    assert names.marks(bucket_of("acme")) == "{prod:3}:marks:29"
    assert (names.log, names.channel) == ("{prod:3}:log", "{prod:3}:events:0")
    assert ShardNames("prod", 3, 15).channel == "{prod:3}:events:15"
    assert ShardNames("prod", 3, 15).own == names.own
    assert names.record(KEYS[0][0]) == "{prod:3}:r:acme:doc:7"
    assert names.fill_lease(KEYS[0][0]) == "{prod:3}:l:acme:doc:7"
    assert names.counter_prefix == "{prod:3}:c:"


def test_a_nodes_line() -> None:
    rest = "a8626f756e645f6d73 cd07d0 a867756172645f6d73 cdea60 a46d6f7265 81a161c3"
    about = About(2000, 60_000, (("a", True),))
    assert row_rest(about) == bytes.fromhex(rest)
    row = "86 a76170706c696564 cf0000000000000102 a565706f6368 b030313233343536373839616263646566"
    row += "a561745f7573 cf00060a2418202240" + rest
    assert node_row(bytes.fromhex(row)) == NodeRow(258, EPOCH, 1_700_000_000_123_456, about)
    assert NAME == b"#"


def test_ids_in_the_log() -> None:
    assert [log_seq(entry) for entry in (b"258-40000", b"1-1", b"2-0", b"3")] == [258, 1, -1, -1]


def test_receipts() -> None:
    assert str(Receipt(3, EPOCH.decode(), 258)) == "3.0123456789abcdef.258"
    assert Receipt.parse("3.0123456789abcdef.258") == Receipt(3, EPOCH.decode(), 258)


def test_hashes_of_resource_ids() -> None:
    """Services keep data under these: they may never change."""
    assert generate_resource_id_hash() == "7a9e3d48316709a334376b83e845f6fb"
    assert generate_resource_id_hash("a query", 10, 0.5, None, True) == "7e045c94a69a39795688ed52251f2116"
    assert generate_resource_id_hash({"b": [1, 2], "a": "é"}) == "7c7d491a0930a21064ae7c02ae450f0b"
    assert generate_resource_id_hash({"a": "é", "b": [1, 2]}) == "7c7d491a0930a21064ae7c02ae450f0b"
