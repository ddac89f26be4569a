"""What the doctor and the commands beside it say where what lies in L2 is damaged, or very much."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from cachebus import Cache, Settings
from cachebus.cli.operate import look
from cachebus.tools.doctor import namespace, timing
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.command import Typed

SPACE = "damage"
D_S = 30.0
NODES = f"{{{SPACE}:0}}:nodes"
GET = ("get", "config", "x", "--tenant", "acme")


@pytest.fixture
def filled(own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A server with a namespace of one shard: records, marks, a log, and the row of a node that has just gone."""
    monkeypatch.setattr(timing, "CLOCK_WINDOW_S", 0.01)
    monkeypatch.setenv("CACHEBUS_URL", own_server.url)
    monkeypatch.setenv("CACHEBUS_NAMESPACE", SPACE)

    async def fill() -> None:
        async with Cache(Settings(url=own_server.url, namespace=SPACE, shards=1, staleness_bound_s=D_S)) as cache:
            for name in ("x", "y"):
                await cache.set("config", name, {"a": 1}, tenant_id="acme", tags=["t"])
            await cache.invalidate("config", "y", tenant_id="acme")
            await cache.invalidate_tags(["u"], tenant_id="acme")
            rows = client.hgetall(NODES)
        client.hset(NODES, mapping=rows)

    with redis.Redis(port=own_server.port) as client:
        asyncio.run(fill())
        yield client


def damages(client: Any, key: bytes, dice: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to damage what lies under a key."""
    junk = dice.randbytes(24)
    yield "another string", lambda: (client.delete(key), client.set(key, junk))
    yield "a list", lambda: (client.delete(key), client.rpush(key, b"\xff"))
    odd = {b"\xff\xfe": b"\xff" * 24, b"facts": b"\xff", b"seq": b"x\xff", b"epoch": b"\xff\x1b[31m"}
    yield "a hash", lambda: (client.delete(key), client.hset(key, mapping=odd))
    yield "scores", lambda: (client.delete(key), client.zadd(key, {b"\xff": 1.5, b"Z": float("inf")}))
    yield "a stream", lambda: (client.delete(key), client.xadd(key, {b"\xff": b"\xff"}))
    if client.type(key) == b"string":
        value = client.get(key)
        for at in dice.sample(range(len(value)), 3):
            yield f"byte {at}", lambda at=at: client.setrange(key, at, bytes([value[at] ^ 4]))
        yield "cut off", lambda: client.set(key, value[: len(value) // 2])
    if client.type(key) == b"hash":
        for field in client.hkeys(key):
            for what in (junk, b"\x1b[31m"):
                yield f"{field!r} is {what!r}", lambda field=field, what=what: client.hset(key, field, what)


def test_whatever_is_damaged_each_command_says_what_it_means(filled: Any, typed: Typed) -> None:
    """No trace, no error of Python's, nothing that controls a terminal."""
    dumps = {key: filled.dump(key) for key in filled.scan_iter()}
    assert len(dumps) >= 5
    dice, wrong = random.Random(1), []
    for key in sorted(dumps):
        for name, damage in [*damages(filled, key, dice)]:
            filled.flushall()
            for each, dump in dumps.items():
                filled.restore(each, 0, dump)
            damage()
            for words in (GET, ("nodes",), ("log",), ("doctor",)):
                status, out, errors = typed(*words)
                if status not in range(4) or "Error:" in out + errors or "\x1b" in out + errors:
                    wrong.append(f"{key!r}, {name}: {words}: {status}, {out}{errors}")
    assert not wrong


def test_a_damaged_record_is_told_by_get_and_by_the_doctor(filled: Any, typed: Typed) -> None:
    (name,) = (key for key in filled.scan_iter() if key.endswith(b":x") and b":r:" in key)
    assert "records: 1 were looked at, and are whole" in typed("doctor")[1]
    value = filled.get(name)
    for damage, why in (
        (lambda: filled.setrange(name, len(value) - 3, b"?"), "the record is damaged"),
        (lambda: filled.set(name, "another's"), "the record is damaged, or not ours"),
        (lambda: (filled.delete(name), filled.rpush(name, 1)), "no record: something else writes"),
    ):
        damage()
        status, out, errors = typed(*GET)
        assert (status, out) == (1, "")
        assert why in errors
        assert f"1 of 1 that were looked at are damaged, or none of ours: {name.decode()}" in typed("doctor")[1]


def test_a_damaged_row_is_told_as_one_and_is_no_silent_node(filled: Any, typed: Typed) -> None:
    filled.hset(NODES, "torn", filled.hget(NODES, next(k for k in filled.hkeys(NODES) if k != b"#"))[:20])
    lines = typed("nodes")[1].splitlines()
    (torn,) = [line for line in lines if "torn" in line]
    assert "damaged: its row can't be read" in torn
    (torn,) = [each for each in map(json.loads, typed("nodes", "--json")[1].splitlines()) if each["node"] == "torn"]
    assert (torn["damaged"], torn["alive"], torn["silent_s"]) == (True, False, None)
    said = typed("doctor")[1]
    assert "node rows: 1 can't be read: torn" in said
    assert "0 silent" in said or "1 have not left" in said
    assert typed("nodes", "forget", "torn")[0] == 0
    assert "node rows" not in typed("doctor")[1]


def test_a_command_that_is_told_goes_to_what_was_looked_at_and_takes_any_name_for_one_word(
    filled: Any, typed: Typed, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted as it stands, where the environment names another server, or the same one."""
    row = filled.hget(NODES, next(k for k in filled.hkeys(NODES) if k != b"#"))
    for name in ("old; touch pwned", "-x", "it's $(id)"):
        filled.hset(NODES, name, row[:20])
        for url, given in (("redis://localhost:1/0", ["--url", own_server.url, "--namespace", SPACE]), (None, [])):
            if url is None:
                filled.hset(NODES, name, row[:20])
            monkeypatch.setenv("CACHEBUS_URL", url or own_server.url)
            monkeypatch.setenv("CACHEBUS_NAMESPACE", "another" if url else SPACE)
            found = json.loads(typed("doctor", own_server.url, "--namespace", SPACE, "--json")[1])["servers"][0]
            (finding,) = [each for each in found["findings"] if each["check"] == "node rows"]
            (command,) = finding["shell"]
            words = shlex.split(command)
            assert words == ["cachebus", "nodes", "forget", *given, "--", name]
            assert f"$ {command}\n" in typed("doctor", own_server.url, "--namespace", SPACE)[1], "on a line of its own"
            assert typed(*words[1:])[0] == 0
            assert not filled.hexists(NODES, name)


def test_a_command_that_is_told_shows_no_password(
    filled: Any, typed: Typed, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.hset(NODES, "torn", b"x")
    filled.acl_setuser("app", enabled=True, passwords=["+hunter2"], commands=["+@all"], keys=["*"], channels=["*"])
    monkeypatch.setenv("CACHEBUS_URL", "redis://localhost:1/0")
    said = typed("doctor", own_server.url.replace("://", "://app:hunter2@"))[1]
    assert "hunter2" not in said
    assert f"cachebus nodes forget --url {own_server.url} -- torn" in said
    assert "without the URL's login" in said


def test_rows_that_may_not_be_read_are_no_empty_fleet(filled: Any, typed: Typed) -> None:
    filled.delete(NODES)
    filled.set(NODES, "another's")
    status, out, errors = typed("nodes")
    assert (status, out) == (2, "")
    assert "WRONGTYPE" in errors
    assert "nodes: could not be checked" in typed("doctor")[1]


def test_tens_of_thousands_of_silent_rows_are_counted_and_not_listed(
    filled: Any, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of nodes that live come first, and each finding stays short."""
    (own,) = (key for key in filled.hkeys(NODES) if key != b"#")
    row = filled.hget(NODES, own)
    at = row.index(b"at_us") + 6
    long_ago = int.from_bytes(row[at : at + 8], "big") - 10**9
    many = 30_000
    pipeline = filled.pipeline()
    for i in range(many):
        pipeline.hset(NODES, f"silent-{i:06}", row[:at] + long_ago.to_bytes(8, "big") + row[at + 8 :])
    pipeline.execute()
    seconds, us = filled.time()
    filled.hset(NODES, own, row[:at] + (seconds * 10**6 + us).to_bytes(8, "big") + row[at + 8 :])
    monkeypatch.setattr(namespace, "ROWS_MAX", many + 10)
    for more in ((), ("--json",)):
        status, out, errors = typed("nodes", *more)
        lines = out.splitlines()
        assert (status, len(lines)) == (0, look.LIMIT)
        assert any(own.decode() in line for line in lines)
        assert f"{many + 1 - look.LIMIT:,} rows are left out, 0 of them alive: --limit {many + 1}" in errors
    assert len(typed("nodes", "--limit", "3")[1].splitlines()) == 3
    said = typed("doctor")[1]
    assert max(map(len, said.splitlines())) < 500
    assert f"none is alive; {many:,} have not left" not in said, "one lives"
    monkeypatch.setattr(namespace, "ROWS_MAX", 5_000)
    said = typed("doctor")[1]
    assert "there are more rows than were read" in said
    assert "none is alive" not in said
    assert "has more rows than" in typed("nodes")[2]
