"""docs/protocol.md says what the code does: its examples and its tables."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachebus import Receipt
from cachebus.core.ports import PROTOCOL
from cachebus.keys.key import Keyspace
from cachebus.l2 import arguments
from cachebus.l2.replies import KEEP_ALONE, node_row
from cachebus.l2.scripts import script_names, whole_source
from cachebus.listening import heat as hot
from cachebus.listening.explain import ASK_S
from cachebus.listening.inquiries import BURST, PER_S
from cachebus.listening.warm_up import PIECE_S, WARM
from cachebus.values import decode
from cachebus.values.cipher import ValueCipher
from cachebus.values.xaes import Xaes256Gcm
from cachebus.wire import event as events
from cachebus.wire import record as records
from cachebus.wire.heat import FULL_BYTES, PIECE_BYTES, HotPiece, HotQuestion, decode_hot_piece, decode_hot_question
from cachebus.wire.inquiry import MOST_BYTES, Inquiry, NodeAnswer, decode_answer, decode_question
from tests.wire.foreign import (
    Key,
    from_document,
    read_bucket,
    read_event,
    read_inquiry,
    read_record,
    rest_of_line,
    unpack,
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cachebus" / "l2" / "scripts"
OF_ALL = {1, 2, 3, 4}
TEXT = (ROOT / "docs" / "protocol.md").read_text()


def block(kind: str) -> str:
    """The one block of that kind."""
    found = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert len(found) == 1, kind
    return str(found[0])


def hexdump(kind: str) -> bytes:
    """The bytes of a block, whose first column is hexadecimal."""
    return bytes.fromhex("".join(line.split()[0] for line in block(f"hex {kind}").splitlines()))


def table(heading: str) -> list[list[str]]:
    """The rows of the first table behind a line that begins so."""
    behind = TEXT[TEXT.index(heading) :]
    rows = re.search(r"(?:^\|.*\n)+", behind, re.MULTILINE)
    assert rows is not None
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[0].splitlines()][2:]


def keys_told() -> list[dict[str, Any]]:
    decoder, text, found = json.JSONDecoder(), block("json keys"), []
    while text.strip():
        _, end = decoder.raw_decode(text := text.lstrip())
        found.append(from_document(text[:end]))
        text = text[end:]
    return found


# -- examples and tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", keys_told(), ids=lambda told: told["key"])
def test_keys(told: dict[str, Any]) -> None:
    ours = Keyspace(64).key(told["type"], told["id"], told["tenant"] or None, *told["contexts"])
    theirs = Key(told["tenant"], told["type"], told["id"], tuple(told["contexts"]))
    assert told["key"] == ours.l2 == theirs.key
    assert told["l1"] == ours.l1 == theirs.l1
    assert told["names"] == list(ours.scopes) == theirs.scopes
    assert told["bucket"] == ours.family.bucket == theirs.bucket
    assert told["shard of 64"] == ours.shard == theirs.shard(64)


def test_the_record() -> None:
    told, data = from_document(block("json record")), hexdump("record")
    key = told.pop("key")
    assert read_record(key, data) == told
    ours = records.decode(data, key)
    assert ours.encode(key) == data
    assert decode(ours.codec, ours.payload) == told["value"]
    for name in ("flags", "codec", "seq", "created_ms", "soft_ms", "expires_ms", "policy_version", "tags"):
        assert getattr(ours, name) == told[name]
    assert ours.epoch.decode() == told["epoch"]
    assert ours.version.hex() == told["version"]


def test_an_encrypted_record(monkeypatch: pytest.MonkeyPatch) -> None:
    told, data = json.loads(block("json encrypted")), hexdump("encrypted")
    front, nonce, sealed = data[:67], data[70:94], data[94:]
    assert data[67:70] == bytes([len(told["id"])]) + told["id"].encode()
    bound = told["namespace"].encode() + b"\x1f" + front[2:4] + front[60:64] + told["key"].encode()
    payload = Xaes256Gcm(bytes.fromhex(told["secret"])).decrypt(nonce, sealed, bound)
    assert payload is not None and unpack(payload) == told["value"]
    assert read_record(told["key"], data)["policy_version"] == told["policy_version"]
    # And that is what is written.
    cipher = ValueCipher(told["namespace"])
    cipher.use({told["id"]: bytes.fromhex(told["secret"])})
    monkeypatch.setattr("cachebus.values.cipher.os.urandom", lambda size: nonce[:size])
    record = records.decode(data, told["key"])
    record.payload, record.flags, record.cipher = payload, 0, cipher
    assert record.encode(told["key"]) == data


def test_a_record_with_more() -> None:
    """No example has any yet: it is for what may come."""
    data = records.Record(0, 1, b"\x01", created_ms=1, tags=["t"], more=b"\x81\xa1a\x01").encode("k")
    assert read_record("k", data)["more"] == {"a": 1}
    assert read_record("k", data)["value"] == 1


def test_the_event() -> None:
    told, data = from_document(block("json event")), hexdump("event")
    assert read_event(data) == told
    ours = events.decode(data)
    found: dict[str, Any] = {name: getattr(ours, name) for name in ("left_out", "seq", "published_us", "more")}
    found["bucket"], found["low"] = ours.low
    found["epoch"] = ours.epoch.decode()
    names = ("keys", "scopes", "origin", "reason", "trace")
    found["parts"] = [{name: getattr(part, name) for name in names} for part in ours.parts]
    assert found == told


def test_the_question_and_its_answer() -> None:
    told, data = from_document(block("json question")), hexdump("question")
    assert read_inquiry(data) == told
    ours = Inquiry(told["id"].encode(), told["l1"], told["sharded"])
    assert ours.encode() == data
    assert decode_question(data) == ours
    told, data = from_document(block("json answer")), hexdump("answer")
    assert read_inquiry(data) == told
    answer = msgspec.convert(told["answer"], NodeAnswer)
    assert answer.encode(told["id"].encode()) == data
    assert decode_answer(data) == answer
    rows = {name.strip("` ") for row in table("| name | |") for name in row[0].split(",")}
    assert rows == set(NodeAnswer.__struct_encode_fields__)
    assert f"answers {BURST} questions at once, and {PER_S:g} a second" in TEXT
    assert f"waits for {ASK_S:g} s" in TEXT
    assert f"more than {MOST_BYTES} bytes" in TEXT


def test_the_question_for_hot_keys_and_its_answer() -> None:
    told, data = from_document(block("json hot question")), hexdump("hot question")
    assert read_inquiry(data) == told
    ours = HotQuestion(told["id"].encode(), told["answerer"], told["asker"], told["names"], told["bytes"])
    assert ours.encode() == data
    assert decode_hot_question(data) == ours
    told, data = from_document(block("json hot names")), hexdump("hot names")
    assert read_inquiry(data) == told
    piece = msgspec.convert(told["answer"], HotPiece)
    assert piece.encode(told["id"].encode()) == data
    assert decode_hot_piece(data) == piece
    assert all(f"`{name}`" in TEXT for name in HotPiece.__struct_encode_fields__)
    assert f"a piece {PIECE_BYTES}; a piece is full with {FULL_BYTES} bytes" in TEXT
    assert f"answers {hot.BURST} questions at once, and one a second" in TEXT
    assert hot.EVERY_S == 1.0
    assert f"waits for {hot.LATE_S:g} s for the first piece, and for {PIECE_S:g} s for each other" in TEXT
    assert f"`{WARM}`, if true" in TEXT


def test_the_nodes_line() -> None:
    told, data = from_document(block("json row")), hexdump("row")
    assert unpack(data) == told
    ours = node_row(data)
    assert (ours.applied, ours.epoch.decode(), ours.at_us) == (told["applied"], told["epoch"], told["at_us"])
    assert (ours.about.bound_ms, ours.about.guard_ms, ours.about.more) == (told["bound_ms"], told["guard_ms"], ())
    assert f"`{KEEP_ALONE}`, if false" in TEXT
    rest = {"bound_ms": told["bound_ms"], "guard_ms": told["guard_ms"], "more": told["more"]}
    assert msgspec.msgpack.decode(b"\x83" + rest_of_line(told["bound_ms"], told["guard_ms"])) == rest


def test_the_buckets_state() -> None:
    told, data = json.loads(block("json bucket")), hexdump("bucket")
    assert read_bucket(data) == told
    assert struct.pack(">IIQ", *told.values()) == data


def test_a_receipt() -> None:
    (told,) = re.findall(r"such as `([0-9a-f.]+)`", TEXT)
    assert str(Receipt.parse(told)) == told


def test_the_protocols_number() -> None:
    assert f"This is protocol **{PROTOCOL}**." in TEXT


def test_every_script_is_in_the_table() -> None:
    told = [row[0] for row in table("| script |")]
    assert len(told) == len(set(told))
    assert set(told) == set(script_names()), "a script is missing in docs/protocol.md, or too much is there"


def test_every_part_is_in_the_table() -> None:
    told = {row[0]: OF_ALL if row[1] == "1–4" else numbers(row[1]) for row in table("| part |")}
    there = {path.stem[1:]: argv_read(path.read_text()) for path in FOLDER.glob("_*.lua")}
    assert told == {part: read if part == "prologue" else read - OF_ALL for part, read in there.items()}


def numbers(cell: str) -> set[int]:
    """The arguments that a cell tells of: "5: …", "7, 8: …", "13 …: …"."""
    several = re.findall(r"\b(\d+(?:, \d+)*)(?: …)?:", cell)
    return {int(number) for found in several for number in found.split(", ")}


def without_comments(source: str) -> str:
    return re.sub(r"(?m)(^|\s)-- .*", "", source)


def argv_read(source: str) -> set[int]:
    """The arguments that a script reads by their numbers, or begins to read from."""
    code = without_comments(source)
    found = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", code)}
    loops = re.findall(r"(?:mark|announce|guarded_ms|hidden)\([^()]*?(\d+), #ARGV\)|\bFIRST = (\d+)", code)
    return found | {int(number) for numbers in loops for number in numbers if number}


@pytest.mark.parametrize("script", script_names())
def test_the_table_has_every_argument_that_a_script_reads(script: str) -> None:
    (row,) = [row for row in table("| script |") if row[0] == script]
    own = (FOLDER / f"{script}.lua").read_text()
    parts = own.split("\n")[0].removeprefix("-- after: ").split()
    its = set[int]().union(*(argv_read((FOLDER / f"_{part}.lua").read_text()) for part in parts))
    told = numbers(row[2])
    assert argv_read(own) - its <= told, "an argument is not told"
    assert not told & its, "an argument of a part is told as the script's own"
    last = max(its | told)
    assert its | told == set(range(1, last + 1)), "between what is told there is a hole"
    keys = [part for part in re.split(", (?:then )?", row[1]) if part]
    read = [int(n) for n in re.findall(r"KEYS\[(\d+)\]", without_comments(whole_source(script)))]
    assert max(read) <= 1 + len(keys)


ARGUMENTS: dict[str, tuple[type[Any], ...]] = {
    "probe": (arguments.RowArgs, arguments.ProbeArgs),
    "marks": (arguments.RowArgs, arguments.MarksArgs),
    "nodes": (arguments.RowArgs, arguments.NodesArgs),
    "forget": (arguments.ForgetArgs,),
    "read": (arguments.RowArgs,),
    "fill_lease": (arguments.RowArgs, arguments.FillLeaseArgs),
    "hold": (arguments.HoldArgs,),
    "fill": (arguments.FillArgs,),
    "invalidate": (arguments.EventArgs, arguments.InvalidateArgs),
    "guard": (arguments.EventArgs, arguments.GuardArgs),
    "write": (arguments.EventArgs, arguments.WriteArgs),
    "counter": (arguments.CounterArgs,),
    "takeover": (arguments.TakeoverArgs,),
}


@pytest.mark.parametrize("script", script_names())
def test_what_is_sent_has_a_name_for_every_argument_but_those_of_any_number(script: str) -> None:
    parts = (FOLDER / f"{script}.lua").read_text().split("\n")[0].removeprefix("-- after: ").split()
    (own,) = [row[2] for row in table("| script |") if row[0] == script]
    of_parts = set[int]().union(*(numbers(row[1]) for row in table("| part |") if row[0] in parts))
    fixed = {number for number in numbers(own) if f"{number} …" not in own} | of_parts | OF_ALL
    named = sum(len(each._fields) for each in (arguments.Prologue, *ARGUMENTS[script]))
    assert named == len(fixed)


def test_the_scripts_parts_come_in_one_order() -> None:
    """Each begins by its first line, which the document tells of; a part may rest on those before it."""
    for script in script_names():
        own = (FOLDER / f"{script}.lua").read_text()
        assert own.startswith("-- after: prologue"), script
        assert whole_source(script).endswith(own)


def test_every_name_of_a_shard_is_told() -> None:
    told = {row[0] for row in table("| name | type |")}
    source = (ROOT / "cachebus" / "l2" / "names.py").read_text()
    named = re.findall(r"\{tag\}:([a-z]+)", source)
    assert len(named) == len(told)
    for name in named:
        assert any(f"{{ns:i}}:{name}" in line for line in told), f"{name} is missing in docs/protocol.md"


def test_the_client_knows_nothing_of_cachebus() -> None:
    source = (Path(__file__).parent / "foreign.py").read_text()
    assert not re.search(r"^\s*(from|import)\s+(cachebus|msgspec|redis|hiredis)", source, re.MULTILINE)
