"""Key and signature of an event on Kafka, byte by byte, and what is taken for one of ours."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cachebus.bus.kafka.envelope import Envelope, Headers, message_key
from cachebus.bus.kafka.signature import SIGNATURE, Keyring
from cachebus.producers.command import InvalidCommand
from cachebus.producers.kafka.message import NAMESPACE, Seal
from cachebus.settings import Settings
from cachebus.wire.event import position_of
from tests.support.events import event_of

EPOCH = b"0123456789abcdef"
EVENT = event_of(EPOCH, 258)
KEY = b"cachebus:3:0123456789abcdef"
GOLDEN = b"27a7239cc91a7fa192fe09b11bae1500dd74123b87f7781745a7feae2ffedc29"


def envelope(*keys: bytes, namespace: str = "cachebus", shards: int = 4) -> Envelope:
    """That of a node with these keys."""
    return Envelope(namespace, shards, Keyring(keys) if keys else None)


def test_the_key_is_namespace_shard_and_the_epoch_of_the_event() -> None:
    assert message_key("cachebus", 3, EPOCH) == KEY
    assert envelope().around(3, EVENT) == (KEY, [])
    assert envelope().around(0, event_of(b"f" * 16, 258)) == (b"cachebus:0:ffffffffffffffff", [])


def test_the_signature_is_a_header_of_hexadecimal_digits() -> None:
    """By `printf 'cachebus:3:0123456789abcdef\\0value' | openssl dgst -sha256 -hmac secret`."""
    assert Keyring([b"secret", b"other"]).sign(KEY, b"value") == GOLDEN
    key, headers = envelope(b"secret", b"other").around(3, EVENT)
    assert key == KEY
    assert headers == [("signature", hmac.new(b"secret", KEY + b"\0" + EVENT, "sha256").hexdigest().encode())]


@given(st.binary(min_size=1, max_size=100), st.binary(max_size=40), st.binary(max_size=200))
def test_it_is_the_hmac_of_rfc_2104(key: bytes, context: bytes, value: bytes) -> None:
    """Written out, for keys shorter and longer than a block."""
    block = (key if len(key) <= 64 else hashlib.sha256(key).digest()).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + context + b"\0" + value).digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).hexdigest()
    assert Keyring([key]).sign(context, value) == outer.encode()


@pytest.mark.parametrize(
    ("key", "shard"),
    [
        (KEY, 3),
        (b"cachebus:0:", 0),
        (b"cachebus:0:\xff", 0),
        (None, None),
        (b"", None),
        (b":", None),
        (b"cachebus", None),
        (b"cachebus:3", None),
        (b"3:" + EPOCH, None),
        (b"cachebus:4:" + EPOCH, None),
        (b"cachebus:03:" + EPOCH, None),
        (b"cachebus::" + EPOCH, None),
        (b"cachebus:-1:" + EPOCH, None),
        (b"Cachebus:3:" + EPOCH, None),
        (b"xcachebus:3:" + EPOCH, None),
        (KEY + b":", None),
        (b"cachebus:3:0:" + EPOCH, None),
        (b" " + KEY, None),
        (b"cachebus:3 :" + EPOCH, None),
    ],
)
def test_whose_a_message_is_stands_before_its_keys_last_colon(key: bytes | None, shard: int | None) -> None:
    assert envelope().shard_of(key) == shard


def test_without_a_key_everything_is_trusted() -> None:
    for headers in ([], [(SIGNATURE, b"whatever")], envelope(b"k").around(3, EVENT)[1]):
        assert envelope().trusts(KEY, EVENT, headers)


def test_any_of_the_keys_may_have_signed() -> None:
    _, by_old = envelope(b"old").around(3, EVENT)
    _, by_new = envelope(b"new", b"old").around(3, EVENT)
    assert by_new != by_old
    for keys, old, new in [((b"old", b"new"), 1, 1), ((b"new", b"old"), 1, 1), ((b"new",), 0, 1), ((b"old",), 1, 0)]:
        assert envelope(*keys).trusts(KEY, EVENT, by_old) is bool(old)
        assert envelope(*keys).trusts(KEY, EVENT, by_new) is bool(new)


def test_a_signature_is_of_one_key_and_one_value() -> None:
    key, headers = envelope(b"k").around(3, EVENT)
    ours = envelope(b"k")
    assert ours.trusts(key, EVENT, headers)
    for other in (b"cachebus:0:" + EPOCH, b"caches:3:" + EPOCH, b"cachebus:3:" + b"f" * 16, key + b" "):
        assert not ours.trusts(other, EVENT, headers)
    for value in (event_of(EPOCH, 259), EVENT[:-1], EVENT + b"\0", b""):
        assert not ours.trusts(key, value, headers)


@pytest.mark.parametrize("end", [1, 20, 63])
def test_nothing_but_the_whole_signature_will_do(end: int) -> None:
    key, [(_, signature)] = envelope(b"k").around(3, EVENT)
    wrong: list[Headers] = [
        [],
        [(SIGNATURE, b"")],
        [(SIGNATURE, signature[:end])],
        [(SIGNATURE, signature.upper())],
        [(SIGNATURE, signature + b" ")],
        [(SIGNATURE, bytes.fromhex(signature.decode()))],
        [("Signature", signature)],
        [(SIGNATURE, b"\xff" * 64)],
        [(SIGNATURE, signature), (SIGNATURE, b"0" * 64)],
    ]
    for headers in wrong:
        assert not envelope(b"k").trusts(key, EVENT, headers)
    assert not envelope(b"k").trusts(key, EVENT, [(SIGNATURE, None)])  # type: ignore[list-item]
    assert envelope(b"k").trusts(key, EVENT, [("trace", b"x"), (SIGNATURE, signature)])


def test_the_beginning_of_a_value_cannot_be_passed_off_as_the_end_of_its_key() -> None:
    """The zero byte that parts them may be in the value as well."""
    value = b"CB\0rest"
    _, headers = envelope(b"k").around(3, value)
    key = message_key("cachebus", 3, position_of(value)[0])
    longer, rest = key + b"\0CB", b"rest"
    assert key + b"\0" + value == longer + b"\0" + rest
    assert envelope(b"k").shard_of(longer) == 3
    assert not envelope(b"k").trusts(longer, rest, headers)


def test_a_signed_command_is_no_signed_event_and_the_other_way_round() -> None:
    """Even where both have the same key: a namespace has no colon, an event's key has two."""
    settings = Settings(kafka_events_key="k", kafka_commands_key="k")
    ours, seal = Envelope.of(settings), Seal(settings)
    command = dict(seal.headers(EVENT))
    assert not ours.trusts(KEY, EVENT, list(command.items()))
    key, headers = ours.around(0, EVENT)
    with pytest.raises(InvalidCommand, match="wrong"):
        seal.check(EVENT, {NAMESPACE: b"cachebus", **dict(headers)})
    assert seal.is_for_others({NAMESPACE: key})


def test_keys_are_parted_by_commas_and_what_is_around_them_is_none_of_theirs() -> None:
    plain = Keyring.of(SecretStr("new,old"))
    assert plain is not None
    for text in ("new, old", " new ,old\n", "new,,old,"):
        other = Keyring.of(SecretStr(text))
        assert other is not None
        assert other.sign(KEY, b"value") == plain.sign(KEY, b"value")
        assert other.accepts(KEY, b"value", Keyring([b"old"]).sign(KEY, b"value"))
    assert Keyring.of(None) is None
