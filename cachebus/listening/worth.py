"""What a record in L2 is worth, by the invalidated scopes, low watermarks and epoch that were found beside it."""

from __future__ import annotations

from dataclasses import replace

from cachebus.core.ports import KeyFacts
from cachebus.keys.key import Key
from cachebus.keys.words import scope_in_words, shown
from cachebus.listening.explanation import StoredValue, moment, seconds
from cachebus.wire.record import CorruptRecord, Record, decode

READABLE = frozenset(("valid", "not_found"))
"""The states of what a read is given."""


def record_of(key: Key, facts: KeyFacts) -> Record | None:
    """The key's record; None where there is none, or one that is damaged."""
    try:
        return None if facts.record is None else decode(facts.record, key.l2)
    except CorruptRecord:
        return None


def stored_value(key: Key, facts: KeyFacts) -> StoredValue:
    """What L2 has, and what that is worth; who wrote it is for the log to say."""
    if facts.nonsense:
        return StoredValue("not_ours", "what lies there is no record: something else writes under this name")
    if facts.record is None:
        return StoredValue("none", "nothing lies under this key" + _loading(facts))
    record = record_of(key, facts)
    if record is None:
        return StoredValue("damaged", "the record is damaged, or not ours: a read takes it for a miss")
    state, why = _worth(key, facts, record)
    return _described(StoredValue(state, why), facts, record)


def _worth(key: Key, facts: KeyFacts, record: Record) -> tuple[str, str]:
    now_ms = facts.server_us / 1000
    if record.epoch != facts.epoch or facts.is_over:
        epoch = record.epoch.decode("ascii", errors="backslashreplace")
        return (
            "other_epoch",
            f"of epoch {epoch}, which is over, as L2 has lost its history since: a read takes it for a miss",
        )
    for bucket, low in facts.low.items():
        if record.seq < low:
            of = "this tenant's bucket" if bucket == key.family.bucket else "scopes of all tenants"
            return "forgotten", (
                f"not believed: what was stored before seq {low} may have been invalidated, and L2 has forgotten that, "
                f"as {of} had too many marks"
            )
    for name, seq in sorted(facts.invalidated.items(), key=lambda scope: -scope[1]):
        if seq > record.seq:
            return "invalidated", f"invalidated by seq {seq}: {scope_in_words(name)}"
    if 0 < record.expires_ms <= now_ms:
        return "expired", f"expired {seconds((now_ms - record.expires_ms) / 1000)} ago"
    if record.not_found:
        return "not_found", "valid: the source has said that there is nothing"
    return "valid", "valid"


def _described(value: StoredValue, facts: KeyFacts, record: Record) -> StoredValue:
    now_s, tags = facts.server_us / 1e6, tuple(shown(tag.rpartition("\x1f")[2]) for tag in record.tags)
    created_s, soft_s, expires_s = record.created_ms / 1000, record.soft_ms / 1000, record.expires_ms / 1000
    says = [value.says, f"loaded or written {seconds(now_s - created_s)} ago"]
    if soft_s:
        says.append(
            f"soft expiry {_when(soft_s - now_s)}" + (": the next read has it loaded anew" if soft_s <= now_s else "")
        )
    if value.state != "expired":
        says.append(f"expires {_when(expires_s - now_s)}" if expires_s else "never expires")
    cut_short = expires_s > now_s and is_cut_short(record, facts.born_us, facts.guard_ms)
    if cut_short:
        says.append(why_cut_short(facts.guard_ms))
    says.append(f"seq {record.seq}, version {record.version.hex()}, {len(facts.record or b''):,} bytes")
    if record.policy_version != 1:
        says.append(f"of version {record.policy_version} of its policy")
    if record.is_encrypted:
        says.append("encrypted")
    if tags:
        says.append(f"tags {' '.join(tags)}")
    return replace(
        value,
        says=", ".join(says) + _loading(facts),
        created_at=moment(created_s),
        soft_expiry=moment(soft_s) if soft_s else None,
        expires_at=moment(expires_s) if expires_s else None,
        cut_short=cut_short,
        epoch=record.epoch.decode("ascii", errors="backslashreplace"),
        seq=record.seq,
        version=record.version.hex(),
        size_bytes=len(facts.record or b""),
        tags=tags,
    )


def is_cut_short(record: Record, born_us: int, guard_ms: int) -> bool:
    """Whether it ends with the write guards that its epoch's beginning may have lost, and not by its time to live."""
    return guard_ms > 0 and record.expires_ms == born_us // 1000 + guard_ms


def why_cut_short(guard_ms: int) -> str:
    """What that is, for people."""
    return (
        f"sooner than its TTL says: L2 was empty or had lost its data, and what is stored within guard_max_s "
        f"({guard_ms / 1000:g} s) of such a beginning expires at the end of that time"
    )


def _loading(facts: KeyFacts) -> str:
    """What the fill lease says."""
    letter, epoch = facts.fill_lease[:1], facts.fill_lease[1:17]
    if not letter or epoch != facts.epoch:
        return ""
    return "; the source has just failed, and is left alone" if letter == b"r" else "; a node loads it now"


def _when(left_s: float) -> str:
    return f"in {seconds(left_s)}" if left_s > 0 else f"{seconds(-left_s)} ago"
