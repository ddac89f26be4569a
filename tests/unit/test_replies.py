"""What scripts reply and nodes say of themselves, from bytes and back; the bytes are pinned in tests/wire."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus import ConfigError, L2Unavailable, Settings
from cachebus.core.ports import About, LogEntry, NodeRow
from cachebus.l2.replies import (
    BOUND_MAX_MS,
    counted,
    fill_lease_of,
    filled,
    invalidated_of,
    invalidation_of,
    log_seq,
    logged,
    message_of,
    node_row,
    nodes_of,
    number_of,
    position_of,
    probe_of,
    probe_with_invalidated,
    records_of,
    row_rest,
    written,
)
from cachebus.resp import Misshapen, host_port_in
from cachebus.resp.cluster_map import _map
from cachebus.resp.replies import mapped, read_by

u63 = st.integers(0, 2**63 - 1)
more = st.dictionaries(st.text(max_size=9), st.integers(0, 9) | st.text(max_size=9) | st.booleans(), max_size=4)
abouts = st.builds(About, st.integers(0, BOUND_MAX_MS), u63, more.map(lambda found: tuple(found.items())))
EPOCH = b"0123456789abcdef"


def whole_row(applied: int, epoch: bytes, at_us: int, rest: bytes) -> bytes:
    """As the script puts it together."""
    front = b"\x86\xa7applied\xcf" + struct.pack(">Q", applied) + b"\xa5epoch" + bytes([160 + len(epoch)]) + epoch
    return front + b"\xa5at_us\xcf" + struct.pack(">Q", at_us) + rest


@given(u63, st.sampled_from([b"", EPOCH]), u63, abouts)
def test_a_row_comes_back_as_it_went(applied: int, epoch: bytes, at_us: int, about: About) -> None:
    row = whole_row(applied, epoch, at_us, row_rest(about))
    assert node_row(row) == NodeRow(applied, epoch, at_us, about)
    assert set(msgspec.msgpack.decode(row)) == {"applied", "epoch", "at_us", "bound_ms", "guard_ms", "more"}


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ("MOVED 7 127.0.0.1:1", ("127.0.0.1", 1)),
        ("ASK 7 [::1]:2", ("::1", 2)),
        ("ASK 7 a.test:3", ("a.test", 3)),
        ("MOVED 7 :4", ("", 4)),
        ("ASK 7 ?:5", ("", 5)),
    ],
)
def test_a_host_that_is_not_told_is_the_servers_own(told: str, place: tuple[str, int]) -> None:
    """Redis says "?" where names are preferred and none is announced."""
    assert host_port_in(L2Unavailable(told)) == place


@pytest.mark.parametrize(
    ("node", "place", "ids"),
    [
        ([b"10.0.0.1", 7000, b"id"], ("10.0.0.1", 7000), {"id"}),
        ([b"a.test", 7000, b"id", [b"ip", b"10.0.0.1"]], ("a.test", 7000), {"id"}),
        ([b"?", 7000, b"id", [b"ip", b"10.0.0.1"]], ("10.0.0.1", 7000), {"id"}),
        ([b"?", 7000, b"id", []], ("", 7000), {"id"}),
        ([None, 7000, b"id", []], ("", 7000), {"id"}),
        ([b"", 0, b"id"], ("", 0), {"id"}),
        ([b"10.0.0.1", 7000], ("10.0.0.1", 7000), set()),
    ],
    ids=["address", "name", "name that is none", "nothing but that", "as asked", "nobody knows where", "no id"],
)
def test_where_a_node_of_a_cluster_is_and_who(node: list[Any], place: tuple[str, int], ids: set[str]) -> None:
    ranges, found = _map([[0, 16383, node]])
    assert ranges == [(0, 16383, *place)]
    assert found == (ids, ids)


def test_a_bound_that_no_node_may_have_makes_nobody_wait_longer_than_the_largest_allowed() -> None:
    row = {"applied": 7, "epoch": "e", "at_us": 9, "bound_ms": 2**50}
    assert node_row(msgspec.msgpack.encode(row)).about.bound_ms == BOUND_MAX_MS
    assert nodes_of([EPOCH, 7, 2**50, [], 0]).bound_ms == BOUND_MAX_MS
    assert Settings(staleness_bound_s=BOUND_MAX_MS / 1000).staleness_bound_s * 1000 == BOUND_MAX_MS
    with pytest.raises(ConfigError):
        Settings(staleness_bound_s=BOUND_MAX_MS / 1000 + 1)


@pytest.mark.parametrize("more", [{}, {"keep_alone": True}, {"keep_alone": None}, {"keep_alone": False}])
def test_who_does_not_say_that_it_keeps_nothing_alone_keeps_it(more: dict[str, object]) -> None:
    """Waits go by that, so whoever is silent counts as one that does."""
    row = {"applied": 7, "epoch": "e", "at_us": 9, "more": more}
    assert node_row(msgspec.msgpack.encode(row)).about.keeps_without_l2 == (more != {"keep_alone": False})


def test_what_a_later_version_says_in_a_line_is_passed_over() -> None:
    row = {"applied": 7, "epoch": "e", "at_us": 9, "later": [1]}
    assert node_row(msgspec.msgpack.encode(row)) == NodeRow(7, b"e", 9)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"7:1700000000000000",
        b"\x80",
        b"\xc0",
        b"\x86\xa7applied\xa1x",
        b"\x81\xa7applied\x07",
        whole_row(7, EPOCH, 9, row_rest(About()))[:-1],
        whole_row(7, b"\xff", 9, row_rest(About())),
        whole_row(7, EPOCH, 9, row_rest(About())) + b"\x00",
        b"\x91" * 100_000,
    ],
)
def test_a_row_that_cant_be_read_has_applied_nothing(data: bytes) -> None:
    """So it is waited for: whoever it is may live."""
    assert node_row(data) == NodeRow(0, b"", 0)


def test_nodes_and_the_name_of_their_set() -> None:
    row = whole_row(7, EPOCH, 9, row_rest(About(2000, 0)))
    reply = nodes_of([EPOCH, 9, 3000, [b"#", b"set-1", b"n\xff", row, b"broken", b""], 1])
    assert (reply.epoch, reply.name, reply.bound_ms, reply.keeps_without_l2) == (EPOCH, b"set-1", 3000, True)
    assert reply.rows == {"n\ufffd": NodeRow(7, EPOCH, 9, About(2000, 0)), "broken": NodeRow(0, b"", 0)}
    assert nodes_of([EPOCH, 9, 0, [], 0]).name == b""


def test_marks_by_bucket_and_low_watermarks() -> None:
    found = invalidated_of(
        [b"29", [b"T\x1facme", b"7", b"G\x1facme\x1ft", b"9007199254740992"], b"**", []], [b"29", b"5"]
    )
    assert found.by_bucket == {"29": {"T\x1facme": 7, "G\x1facme\x1ft": 2**53}, "**": {}}
    assert found.low == {"29": 5}


def test_marks_come_the_oldest_first() -> None:
    flat = [b"a", b"3", b"b", b"5", b"c", b"5"]
    assert list(invalidated_of([b"29", flat], []).by_bucket["29"]) == ["a", "b", "c"]


@pytest.mark.parametrize(("entry", "seq"), [(b"258-4000", 258), (b"0-1", 0), (b"258-0", -1), (b"258", -1)])
def test_only_ids_that_scripts_make_stand_for_a_seq(entry: bytes, seq: int) -> None:
    assert log_seq(entry) == seq


POSITION = [EPOCH, 7]
SCRIPTS: dict[Callable[[Any], Any], list[Any]] = {
    position_of: POSITION,
    number_of: [*POSITION, 1],
    probe_of: [*POSITION, b"1700000000000000", b"set", 2000, 60_000, b"1600000000000000", 0, 0],
    probe_with_invalidated: [*POSITION, b"17", b"", 2000, 0, None, [b"29", [b"T\x1facme", b"7"]], [b"29", b"5"], 1],
    partial(records_of, 2): [*POSITION, b"record", None],
    fill_lease_of: [*POSITION, b"hit", b"record", 0],
    filled: [*POSITION, 1, 0],
    invalidation_of: [*POSITION, 2000, b"head"],
    written: [*POSITION, 2000, b"head", 1, 0],
    counted: [*POSITION, b"-12"],
    nodes_of: [*POSITION, 2000, [b"#", b"set-1"], 0],
}


@pytest.mark.parametrize(("reads", "reply"), SCRIPTS.items())
def test_a_reply_of_another_shape_is_none(reads: Callable[[Any], Any], reply: list[Any]) -> None:
    """One that comes for another question, or was damaged."""
    read_by(reads, reply)
    wrong: list[Any] = [None, b"", 7, 1.5, {}, [], reply[:-1], [*reply, b""], [*reply, 1], [reply], tuple(reply)]
    for at in range(len(reply)):
        wrong += [
            [*reply[:at], other, *reply[at + 1 :]] for other in (1.5, True, {}, "text", [1], ValueError("inside"))
        ]
        wrong.append([*reply[:at], b"x" if isinstance(reply[at], int) else 7, *reply[at + 1 :]])
    wrong += [[EPOCH[1:], *reply[1:]], [EPOCH, -1, *reply[2:]]]
    for damaged in wrong:
        with pytest.raises(Misshapen):
            read_by(reads, damaged)


@pytest.mark.parametrize(
    ("reads", "reply"),
    [
        (fill_lease_of, [*POSITION, b"hit", None, 0]),
        (fill_lease_of, [*POSITION, b"waid", None, 0]),
        (fill_lease_of, [*POSITION, b"\xff", None, 0]),
        (probe_of, [*POSITION, b"17e", b"", 1, 1, None, 0, 0]),
        (counted, [*POSITION, b"1x"]),
        (nodes_of, [*POSITION, 2000, [b"#"], 0]),
        (nodes_of, [*POSITION, 2000, [b"n", 1], 0]),
        (probe_with_invalidated, [*POSITION, b"17", b"", 2000, 0, None, [b"29", b"x"], [], 0]),
        (probe_with_invalidated, [*POSITION, b"17", b"", 2000, 0, None, [b"29", [b"T", b"nan"]], [], 0]),
        (probe_with_invalidated, [*POSITION, b"17", b"", 2000, 0, None, [], [b"\xff", b"5"], 0]),
        (logged, [[b"1-1"]]),
        (logged, [7]),
        (logged, b"1-1"),
        (logged, [[7, None]]),
        (logged, None),
    ],
)
def test_a_reply_that_says_what_no_script_says_is_none(reads: Callable[[Any], Any], reply: Any) -> None:
    with pytest.raises(Misshapen):
        read_by(reads, reply)


def test_a_log_of_entries() -> None:
    assert logged([[b"7-1", [b"e", b"event"]], [b"8-2", None]]) == [LogEntry(7, b"event"), LogEntry(8, b"")]


@pytest.mark.parametrize("fields", [[b"e", 7], None, [], [b"x", b"y"], [b"e"], [b"e", b"1", b"f", b"2"]])
def test_an_entry_without_an_event_is_empty(fields: list[bytes] | None) -> None:
    assert message_of(fields) == b""
    assert message_of([b"e", b"the event"]) == b"the event"


@pytest.mark.parametrize(
    ("there", "here", "helps"),
    [
        ("protocol=2 shards=1 bus=redis", "protocol=2 shards=4 bus=redis", "set CACHEBUS_SHARDS=1, or set CACHE"),
        ("protocol=2 shards=1 bus=kafka", "protocol=2 shards=4 bus=redis", "SHARDS=1 and set CACHEBUS_BUS=kafka, or"),
        ("protocol=1 shards=4 bus=redis", "protocol=2 shards=4 bus=redis", "use the release of cachebus that all"),
        ("nonsense", "protocol=2 shards=4 bus=redis", "set CACHEBUS_NAMESPACE to another name"),
    ],
)
def test_who_is_laid_out_otherwise_is_told_which_is_which_and_what_helps(there: str, here: str, helps: str) -> None:
    said = str(mapped(f"CACHEBUS {there} | {here}"))
    assert said.startswith(f"the namespace is laid out as '{there}', this process is set to '{here}': ")
    assert helps in said
