"""What a connection does with bytes, without any socket: order, splits, batches, cancellation, nonsense."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachebus.errors import L2Unavailable, ProtocolMismatch
from cachebus.resp import Address, Connection, NotAsked, Script, Subscriber, is_of_another_type, link, mapped
from cachebus.resp.connection import BATCH_MAX
from cachebus.resp.link import ALONE_MIN, Link
from cachebus.resp.replies import Refused


class Wire:
    """A transport that keeps what is written, and feeds what a server would send."""

    def __init__(self, end: Link) -> None:
        self.written: list[bytes] = []
        self.aborted = False
        self._end = end
        end.connection_made(cast("Any", self))

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> object:
        return None

    def abort(self) -> None:
        self.aborted = True

    def feed(self, data: bytes) -> None:
        self._end.get_buffer(-1)[: len(data)] = data
        self._end.buffer_updated(len(data))


def connected() -> tuple[Connection, Wire]:
    connection = Connection(Address("h", 1), timeout_s=5.0, clock=lambda: 0.0)
    return connection, Wire(connection)


async def tick() -> None:
    await asyncio.sleep(0)


def resp(reply: bytes | int | list[Any] | Exception | None) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, Exception):
        return b"-%b\r\n" % str(reply).encode()
    return b"*%d\r\n" % len(reply) + b"".join(map(resp, reply))


async def test_one_tick_is_one_write_and_gets_come_last() -> None:
    connection, wire = connected()
    connection.call("SET", "a", 1)
    reads = [connection.get("a"), connection.get(b"b")]
    connection.call("SET", "c", b"\x00")
    assert not wire.written
    await tick()
    assert len(wire.written) == 1
    assert wire.written[0].count(b"SET") == 2
    assert wire.written[0].endswith(b"*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$1\r\nb\r\n")
    wire.feed(b"+OK\r\n+OK\r\n*2\r\n$1\r\n1\r\n$-1\r\n")
    assert [read.result() for read in reads] == [b"1", None]
    connection.close()


async def test_a_single_get_is_a_get_and_many_are_several_mgets() -> None:
    connection, wire = connected()
    connection.get("a")
    await tick()
    assert wire.written.pop() == b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"
    wire.feed(b"$1\r\nx\r\n")
    reads = [connection.get(str(number)) for number in range(BATCH_MAX + 2)]
    assert connection.pending == BATCH_MAX + 2
    await tick()
    assert wire.written[0].count(b"MGET") == 2
    wire.feed(resp([b"v"] * BATCH_MAX) + resp([b"w", None]))
    assert [read.result() for read in reads] == [b"v"] * BATCH_MAX + [b"w", None]
    assert connection.pending == 0


async def test_one_cancelled_caller_harms_no_other() -> None:
    connection, wire = connected()
    reads = [connection.get(str(number)) for number in range(5)]
    reads[1].cancel()
    await tick()
    reads[3].cancel()
    wire.feed(resp([b"0", b"1", b"2", b"3", b"4"]))
    assert [None if read.cancelled() else read.result() for read in reads] == [b"0", None, b"2", None, b"4"]


async def test_a_key_that_cannot_be_sent_fails_its_caller_alone() -> None:
    connection, wire = connected()
    good, bad, other = connection.get("a"), connection.get("\ud800"), connection.get("b")
    await tick()
    wire.feed(b"$1\r\n1\r\n$1\r\n2\r\n")
    assert (good.result(), other.result()) == (b"1", b"2")
    assert isinstance(bad.exception(), UnicodeError)


async def test_who_is_alone_does_not_wait_for_a_tick() -> None:
    connection, wire = connected()
    for _ in range(ALONE_MIN):
        read = connection.get("a")
        assert not wire.written
        await tick()
        assert wire.written.pop()
        wire.feed(b"$-1\r\n")
        assert read.result() is None
    connection.get("a")
    assert wire.written.pop()  # at once
    connection.get("b")
    connection.get("c")
    assert not wire.written  # while an answer is awaited, company is gathered as ever
    await tick()
    assert wire.written.pop().startswith(b"*3\r\n$4\r\nMGET")
    wire.feed(b"$-1\r\n*2\r\n$-1\r\n$-1\r\n")
    connection.get("a")
    assert not wire.written  # and who had company expects it again
    connection.close()


async def test_error_replies_are_mapped() -> None:
    connection, wire = connected()
    asked = [connection.call("X") for _ in range(3)]
    reads = [connection.get("a"), connection.get("b")]
    await tick()
    wire.feed(b"-READONLY You can't\r\n-CACHEBUS protocol 3, ours is 4\r\n+OK\r\n-LOADING soon\r\n")
    assert isinstance(asked[0].exception(), L2Unavailable)
    assert isinstance(asked[1].exception(), ProtocolMismatch)
    assert str(asked[1].exception()) == "protocol 3, ours is 4"
    assert asked[2].result() == b"OK"
    errors = [read.exception() for read in reads]
    assert [str(error) for error in errors] == ["LOADING soon"] * 2
    assert errors[0] is not errors[1]  # one instance would gather the tracebacks of all
    assert not connection.closed


@pytest.mark.parametrize(
    "nonsense", [b"garbage\r\n", b"\x00\xff", b"*1\r\n$1\r\na\r\n", b"+OK\r\n", b"*3\r\n$-1\r\n$-1\r\n$-1\r\n"]
)
async def test_an_mget_answered_with_something_else_loses_the_connection(nonsense: bytes) -> None:
    connection, wire = connected()
    lost: list[Exception] = []
    connection.on_lost = lost.append
    asked = [connection.get("a"), connection.get("b"), connection.call("PING")]
    asked = [asked[2], *asked[:2]]  # in the order of their replies
    await tick()
    wire.feed(b"+PONG\r\n" + nonsense)
    assert asked[0].result() == b"PONG"
    assert all(isinstance(read.exception(), L2Unavailable) for read in asked[1:])
    assert connection.closed
    assert wire.aborted
    assert len(lost) == 1
    assert connection.pending == 0


@pytest.mark.parametrize("kind", ["alone", "in one tick", "many"])
@pytest.mark.parametrize(
    "reply",
    [
        b":1\r\n",
        b",1.5\r\n",
        b"#t\r\n",
        b"*1\r\n$1\r\na\r\n",
        b"*0\r\n",
        b"%1\r\n$1\r\na\r\n:1\r\n",
        b"~1\r\n:1\r\n",
        b"%1\r\n*1\r\n:1\r\n:2\r\n",
        b">2\r\n$-1\r\n$-1\r\n",
        b"*2\r\n$1\r\na\r\n:0\r\n",
        b"*2\r\n$-1\r\n-ERR inside\r\n",
    ],
)
async def test_a_get_answered_with_no_string_loses_the_connection_before_others_are_answered(
    kind: str, reply: bytes
) -> None:
    """An answer to another question: those behind it may be so, too, and one of them may fit."""
    connection, wire = connected()
    if kind == "alone":
        connection._lone_ticks = ALONE_MIN
    asked = [connection.get(str(number)) for number in range(2 if kind == "many" else 1)]
    await tick()
    asked.append(connection.get("behind"))
    await tick()
    wire.feed(reply + b"$7\r\nanother\r\n")
    for read in asked:
        with pytest.raises(L2Unavailable, match="does not answer"):
            read.result()
    assert connection.closed
    assert connection.pending == 0


async def test_what_a_reply_is_read_as_is_given_and_what_cant_be_read_is_nonsense() -> None:
    connection, wire = connected()
    asked = [connection.call("A", reads=reads) for reads in (int, int, int)]
    asked[0].cancel()
    await tick()
    wire.feed(b"$1\r\n1\r\n$1\r\n7\r\n$1\r\nx\r\n")
    assert asked[1].result() == 7
    with pytest.raises(L2Unavailable, match="does not answer"):
        asked[2].result()
    assert connection.closed


async def test_a_reply_that_nobody_asked_for_loses_the_connection() -> None:
    connection, wire = connected()
    wire.feed(b"+OK\r\n")
    assert connection.closed


async def test_an_answer_to_what_was_not_sent_yet_loses_the_connection() -> None:
    """It is the second one to what was sent before: taken for an answer, it would be another key's value."""
    connection, wire = connected()
    sent = connection.get("a")
    await tick()
    waits = [connection.get("b"), connection.call("GET", "c")]
    wire.feed(b"$1\r\na\r\n" * 2)
    assert sent.result() == b"a"
    assert all("does not answer" in str(future.exception()) for future in waits)
    assert connection.closed


async def test_an_answer_to_what_the_socket_has_not_taken_yet_loses_the_connection() -> None:
    connection, wire = connected()
    connection.pause_writing()
    asked = connection.call("A")
    await tick()
    wire.feed(b"+OK\r\n")
    assert isinstance(asked.exception(), L2Unavailable)
    assert connection.closed
    connection.resume_writing()  # and nothing is told to the loop


async def test_a_confirmation_of_what_was_not_sent_yet_loses_the_connection() -> None:
    ears = Subscriber(Address(), timeout_s=5.0, clock=lambda: 0.0, on_push=lambda *_: None)
    wire = Wire(ears)
    subscribed = ears.subscribe("a")
    wire.feed(resp([b"subscribe", b"a", 1]))
    assert isinstance(subscribed.exception(), L2Unavailable)
    assert ears.closed


async def test_after_the_end_every_call_fails_at_once_and_the_end_is_told_once() -> None:
    connection, wire = connected()
    lost: list[Exception] = []
    connection.on_lost = lost.append
    asked = [connection.call("A"), connection.get("k")]
    connection.connection_lost(None)
    connection.connection_lost(OSError("again"))
    connection.close()
    asked += [connection.call("B"), connection.get("l"), connection.call_packed(b"")]
    assert all(isinstance(future.exception(), L2Unavailable) for future in asked)
    assert [str(error) for error in lost] == ["h:1 closed the connection"]
    await tick()
    assert not wire.written


async def test_close_tells_nobody() -> None:
    connection, _ = connected()
    connection.on_lost = lambda _: pytest.fail("close is no loss")
    asked = connection.get("a")
    connection.close()
    assert "was closed" in str(asked.exception())


async def test_too_many_questions_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PENDING_MAX", 10)
    connection, wire = connected()
    asked = [connection.call("A") for _ in range(9)] + [connection.get("k")]
    await tick()
    refused = [connection.call("A"), connection.get("l")]
    assert all("is behind" in str(future.exception()) for future in refused)
    wire.feed(b"+OK\r\n" * 9 + b"$-1\r\n")
    assert all(future.done() for future in asked)
    assert not connection.call("A").done()
    connection.close()


async def test_what_no_server_takes_is_refused_here_and_costs_nobody_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "PACKED_MAX_BYTES", 1000)
    connection, wire = connected()
    other, big = connection.call("A"), connection.call("SET", "k", b"x" * 1000)
    refusal = big.exception()
    assert "too many" in str(refusal)
    assert isinstance(refusal, NotAsked)
    assert isinstance(refusal, L2Unavailable)
    await tick()
    wire.feed(b"+OK\r\n")
    assert other.result() == b"OK"
    assert not connection.closed
    connection.close()


async def test_a_full_socket_gathers() -> None:
    connection, wire = connected()
    connection.pause_writing()
    connection.call("A")
    await tick()
    connection.call("B")
    await tick()
    assert not wire.written
    connection.resume_writing()
    assert wire.written == [b"*1\r\n$1\r\nA\r\n*1\r\n$1\r\nB\r\n"]
    connection.close()


async def test_a_script_travels_once() -> None:
    connection, wire = connected()
    script = Script("return 1")
    running = asyncio.ensure_future(connection.script(script, ["k"], [b"a", 2]))
    await tick()
    await tick()
    assert script.sha.encode() in wire.written.pop()
    wire.feed(b"-NOSCRIPT No matching script.\r\n")
    while not wire.written:
        await tick()
    assert b"EVAL\r\n$8\r\nreturn 1\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\na\r\n$1\r\n2\r\n" in wire.written.pop()
    wire.feed(b":1\r\n")
    assert await running == 1


REPLIES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=40),
    st.lists(st.one_of(st.none(), st.binary(max_size=5)), max_size=4),
    st.sampled_from([L2Unavailable("ERR no"), L2Unavailable("OOM full")]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(REPLIES, st.booleans()), min_size=1, max_size=12), st.data())
def test_replies_reach_their_callers_however_the_bytes_are_cut(
    script: list[tuple[Any, bool]], data: st.DataObject
) -> None:
    async def run() -> None:
        connection, wire = connected()
        asked = [connection.call("X", number) for number in range(len(script))]
        await tick()
        for future, (_, gone) in zip(asked, script, strict=True):
            if gone:
                future.cancel()
        stream = b"".join(resp(reply) for reply, _ in script)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            wire.feed(stream[start:end])
        for future, (reply, gone) in zip(asked, script, strict=True):
            if isinstance(reply, Exception) and not gone:
                assert str(future.exception()) == str(reply)
            else:
                assert gone or future.result() == reply
        assert connection.pending == 0
        connection.close()

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 3), st.booleans())
def test_no_bytes_raise_or_leave_anybody_waiting(garbage: bytes, questions: int, listens: bool) -> None:
    async def run() -> None:
        end: Connection | Subscriber
        if listens:
            end = Subscriber(Address(), timeout_s=5.0, clock=lambda: 0.0, on_push=lambda *_: None)
        else:
            end = Connection(Address(), timeout_s=5.0, clock=lambda: 0.0)
        wire = Wire(end)
        asked = [end.call("X") for _ in range(questions)]
        await tick()
        wire.feed(garbage)
        assert not end.closed or all(future.done() for future in asked)
        end.close()
        assert all(future.done() for future in asked)

    asyncio.run(run())


async def test_messages_come_in_order_between_confirmations_and_pongs() -> None:
    heard: list[tuple[bytes, bytes]] = []
    ears = Subscriber(Address(), timeout_s=5.0, clock=lambda: 0.0, on_push=lambda *message: heard.append(message))
    wire = Wire(ears)
    subscribed, ping = ears.subscribe("a", "b"), ears.ping()
    await tick()
    wire.feed(resp([b"subscribe", b"a", 1]) + resp([b"message", b"a", b"1"]))
    assert not subscribed.done()
    wire.feed(resp([b"subscribe", b"b", 2]) + resp([b"message", b"b", b"2"]) + resp([b"pong", b""]))
    assert subscribed.done()
    assert ping.result() == [b"pong", b""]
    assert heard == [(b"a", b"1"), (b"b", b"2")]
    refused = ears.subscribe("secret", "other")
    await tick()
    wire.feed(b"-NOPERM no\r\n")
    assert "NOPERM" in str(refused.exception())
    assert ears.pending == 0
    assert not ears.closed
    wire.feed(resp([b"subscribe", b"c", 3]))
    assert ears.closed


async def test_a_subscription_taken_away_loses_the_connection() -> None:
    ears = Subscriber(Address(), timeout_s=5.0, clock=lambda: 0.0, on_push=lambda *_: None)
    wire = Wire(ears)
    subscribed = ears.subscribe("a", sharded=True)
    await tick()
    assert b"SSUBSCRIBE" in wire.written[0]
    wire.feed(resp([b"ssubscribe", b"a", 1]))
    assert subscribed.done()
    wire.feed(resp([b"sunsubscribe", b"a", 0]))
    assert ears.closed


async def test_nothing_is_handed_on_after_close() -> None:
    heard: list[bytes] = []

    def on_push(_: bytes, payload: bytes) -> None:
        heard.append(payload)
        ears.close()

    ears = Subscriber(Address(), timeout_s=5.0, clock=lambda: 0.0, on_push=on_push)
    wire = Wire(ears)
    wire.feed(resp([b"message", b"a", b"1"]) + resp([b"message", b"a", b"2"]))
    assert heard == [b"1"]


@pytest.mark.parametrize("code", ["LOADING", "READONLY", "NOREPLICAS", "OOM", "MASTERDOWN", "ERR", "BUSY"])
def test_refusals_are_unavailability_with_the_servers_words(code: str) -> None:
    error = mapped(f"{code} because")
    assert isinstance(error, L2Unavailable)
    assert isinstance(error, Refused)
    assert (error.code, str(error)) == (code, f"{code} because")


def test_that_a_key_is_of_another_type_is_told_by_its_class() -> None:
    error = mapped("WRONGTYPE Operation against a key holding the wrong kind of value")
    assert is_of_another_type(error)
    assert isinstance(error, L2Unavailable)
    assert str(error).startswith("WRONGTYPE ")


def test_a_servers_text_is_short_and_printable() -> None:
    assert str(mapped("ERR \x1b[31m" + "x" * 1000)) == "ERR ?[31m" + "x" * (300 - 9)


def test_a_scripts_name_is_its_sha1() -> None:
    assert Script("return 1").sha == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
