"""From a value to a record and back, by the rules of its data type."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from struct import error as StructError  # noqa: N812
from typing import Final, NamedTuple

from cachebus import values
from cachebus.errors import NotSerializable
from cachebus.policy import Rules
from cachebus.values.cipher import NO_KEY, NOT_ENCRYPTED, NotDecrypted
from cachebus.wire.record import FLAG_ENCRYPTED, FLAG_NOT_FOUND, FLAGS_AT, Record
from cachebus.wire.terms import NO_TERMS, Terms


class Given(NamedTuple):
    """What is said of one value, beside the rules of its type."""

    ttl_s: float | None = None
    """None is the type's own."""
    tags: Sequence[str] = ()
    """Scopes."""
    flags: int = 0
    """`FLAG_NOT_FOUND` for the record that says so, which lives for the type's `negative_ttl_s`; `FLAG_MAKESHIFT` for
    one that is made without the source."""
    terms: Terms = NO_TERMS
    """The loader's own."""


NOTHING_SAID: Final = Given()


def pack(value: object, rules: Rules, server_now_s: float, given: Given = NOTHING_SAID) -> tuple[Record, object]:
    """A record for the value, its times on the L2 server's clock, and the value that any node will decode from it:
    what this node serves too, so that all give the same.

    Raises `NotSerializable` and `ValueTooLarge`, and nothing else, whatever the value's own code raises: better said to
    the one who stores it than to all who read.
    """
    created_ms, (ttl_s, tags, flags, terms) = int(server_now_s * 1000), given
    if flags & FLAG_NOT_FOUND:
        codec, payload, seen, soft_s = 0, b"", None, None
        ttl_s = min(rules.negative_ttl_s or 0.0, math.inf if ttl_s is None else ttl_s)
    else:
        codec, payload, seen = carried(value, rules)
        ttl_s = rules.ttl_s if ttl_s is None else ttl_s
        # A ttl of the call's own that is as short leaves nothing to refresh.
        soft_s = rules.soft_ttl_s if terms.soft_ttl_s is None else terms.soft_ttl_s
        soft_s = soft_s if soft_s is not None and soft_s < ttl_s else None
    if rules.ttl_jitter and ttl_s != math.inf:
        share = 1 - rules.ttl_jitter * random.random()
        ttl_s *= share
        soft_s = None if soft_s is None else soft_s * share  # else it might come behind the end
    record = Record(
        flags,
        codec,
        payload,
        created_ms=created_ms,
        soft_ms=0 if soft_s is None else created_ms + int(soft_s * 1000),
        expires_ms=0 if ttl_s == math.inf else created_ms + max(1, int(ttl_s * 1000)),
        tags=tags,
        more=terms.encoded(),
        policy_version=rules.version,
        cipher=rules.cipher,
    )
    try:
        record.middle()  # so that it is said here, and not where L2 is asked
    except (StructError, UnicodeError) as error:
        raise NotSerializable(f"its tags or times fit in no record: {error}") from None
    return record, seen


def carried(value: object, rules: Rules) -> tuple[int, bytes, object]:
    """Codec byte, payload, and the value that comes back of them, by the rules of its type; raises what `pack` does."""
    return values.carry(value, rules.form)


def keep_ms(record: Record, rules: Rules) -> int:
    """How long L2 keeps the record, in ms, the time as a fallback for a failing source included; 0 = for ever."""
    if not record.expires_ms:
        return 0
    after_s = (rules.fail_safe_s or 0.0) if record.may_be_fallback else 0.0
    return record.expires_ms - record.created_ms + int(after_s * 1000)


def decrypt(record: Record, rules: Rules, name: str) -> None:
    """Put what was encrypted in place of a record's payload. `NotDecrypted` where that can't be, or where it had to be
    encrypted and is not. `name`: its key's (`Key.l2`)."""
    if not record.is_encrypted:
        if rules.cipher is not None and rules.cipher.required:
            raise NotDecrypted(NOT_ENCRYPTED)
        return
    if rules.cipher is None:
        raise NotDecrypted(NO_KEY)
    record.payload = rules.cipher.decrypt(record.payload, record.bound(name))
    record.flags &= ~FLAG_ENCRYPTED


def is_left_alone(data: bytes | None, rules: Rules) -> bool:
    """Whether a record is encrypted, and this node has no keys at all: it replaces none by what everybody can read."""
    return data is not None and rules.cipher is None and bool(data[FLAGS_AT] & FLAG_ENCRYPTED)


def unpack(record: Record, rules: Rules) -> object:
    """The value in a record, decrypted; `values.CorruptValue` when its payload is damaged."""
    if record.not_found:
        return None
    return values.decode(record.codec, record.payload, rules.model, rules.form.own_type)


def copier(record: Record, value: object, rules: Rules) -> Callable[[], object] | None:
    """What makes a fresh value for each caller, where the type's policy wants copies of what can be changed. The record
    must be decrypted: else `ValueError`."""
    if not rules.copy or record.not_found or type(value) in values.UNCHANGING:
        return None
    if record.is_encrypted:
        raise ValueError("what is encrypted makes no copies")
    codec, payload, model, own_type = record.codec, record.payload, rules.model, rules.form.own_type

    def copied() -> object:
        try:
            return values.decode(codec, payload, model, own_type)
        except values.CorruptValue:  # a validator that took it before, and changed its mind: by the time of day, say
            return deepcopy(value)

    return copied
