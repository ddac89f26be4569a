"""Whether a record of L2 may be believed by this node, what it stands for, and whether it enters L1.

1. `as_of` notes what the node knows before a plain get is sent, and `judged` holds the answer against what it knows by
   then.
2. What the script in L2 has judged already is decoded (`decode_and_admit`).
3. What is believed enters L1 where its type and its reservation allow (`admit`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from cachebus.base.log import logger
from cachebus.core.admission import Offer
from cachebus.core.answers import INF, Reservation
from cachebus.core.node import Node
from cachebus.keys.key import Key
from cachebus.policy import PolicyTable, Rules
from cachebus.reading.unreadable import UnreadableLog
from cachebus.values import CorruptValue
from cachebus.values import decode as decode_value
from cachebus.values.cipher import NotDecrypted
from cachebus.wire import record as records
from cachebus.wire.packing import copier, decrypt, unpack
from cachebus.wire.record import HEADER, MAGIC, Record, is_of
from cachebus.wire.terms import terms_of

DAMAGED = "it is damaged, or of another key"
LARGE_BYTES = 16_384
"""To decode a record of more costs far more than to see whether another caller has just done so."""

MISSING: object = type("Missing", (), {"__repr__": lambda self: "MISSING", "__slots__": ()})()
"""Stands for "nothing there" where None may be a value."""


ASK_L2: object = object()
"""Stands for "ask L2 itself": what this node knew has changed meanwhile."""

NOT_FOUND: object = object()
"""Stands for "the source has nothing": what a `get` takes for absent, unlike a None that was stored."""


class AsOf(NamedTuple):
    """As of when what was read, loaded or written is: a reservation taken before, and `at_s` on this node's clock. What
    is invalidated from then on keeps it out of L1."""

    reservation: Reservation
    at_s: float


class Judge:
    """What one node makes of records."""

    def __init__(self, node: Node, policies: PolicyTable) -> None:
        self.node = node
        self.clock = node.clock
        self.policies = policies
        self.unreadable = UnreadableLog(node.clock, node.counters)
        self._just: dict[int, tuple[bytes, object]] = {}
        """By the identity of what a server has sent in this tick: that, and the value."""
        self._shards = node.shards
        self._noted: list[tuple[object, AsOf]] = [
            (None, AsOf(shard.reserve(), shard.fresh_as_of_s)) for shard in node.shards
        ]

    def rules(self, key: Key) -> Rules:
        """Those of its data type."""
        return self.policies.rules(key.family.data_type)

    def as_of(self, key: Key) -> AsOf:
        """As of when a plain get's answer will be; to be called before it is asked."""
        shard = self._shards[key.shard]
        # Between two events every read would note the same: made once, as a reservation costs more than a comparison.
        state = shard.epoch, shard.drop_count, shard.applied, shard.valid_until_s
        noted_at, as_of = self._noted[key.shard]
        if noted_at != state:
            as_of = AsOf(shard.reserve(), shard.fresh_as_of_s)
            self._noted[key.shard] = state, as_of
        return as_of

    def judged(self, key: Key, data: bytes, as_of: AsOf, admit: bool) -> object:
        """What a record stands for that a plain get brought.

        1. Its value, where it is of this epoch, unexpired, and in no scope that was invalidated since.
        2. MISSING where it is not, or where this node can't read it.
        3. ASK_L2 where L2 must be asked: the node entered another epoch meanwhile, or may lack an invalidation.

        It reads the header where it lies: a `Record` is made only for what enters L1, or is special.
        """
        shard = self._shards[key.shard]
        if shard.epoch != as_of.reservation.epoch:
            return ASK_L2
        if len(data) < HEADER.size:
            return self._corrupt(key, DAMAGED)
        header = HEADER.unpack_from(data)
        magic, kind, epoch, seq, expires_ms, _, _, _, _, version, tags, more = header
        if magic != MAGIC:
            return self._corrupt(key, DAMAGED)
        if epoch != shard.epoch or 0 < expires_ms <= self.node.server_now_s(key.shard) * 1000:
            return MISSING
        if shard.doubts.noted and shard.doubts.open(key.scopes, shard.fresh_as_of_s):
            return ASK_L2
        if (shard.invalidated or shard.low) and shard.hides(seq, key.family.bucket, key.scopes):
            self.node.counters.lost_to_watermarks += shard.below(seq, key.family.bucket)
            return MISSING
        if id(data) not in self._just and not is_of(key.crc, data, header):
            return self._corrupt(key, DAMAGED)
        rules = self.policies.rules(key.family.data_type)
        is_special = tags or more or kind > 0xFF or rules.cipher is not None or version != rules.version
        try:
            if is_special or (admit and rules.l1):
                record = records.made(data, header)
                if tags and shard.hides(seq, key.family.bucket, record.tags):
                    return MISSING
                if tags and shard.doubts.noted and shard.doubts.open(record.tags, shard.fresh_as_of_s):
                    return ASK_L2
                return self.decode_and_admit(key, record, as_of if admit else None, data)
            known = self._just.get(id(data))
            payload, own_type = data[HEADER.size :], rules.form.own_type
            return known[1] if known else self._keep(data, decode_value(kind, payload, rules.model, own_type), rules)
        except (CorruptValue, records.CorruptRecord) as error:
            return self._corrupt(key, getattr(error, "in_log", "") or str(error))

    def _keep(self, data: bytes, value: object, rules: Rules) -> object:
        """The value, kept for others who have asked with this one: what a server sent once is decoded once."""
        if len(data) > LARGE_BYTES and not rules.copy:
            if not self._just:
                asyncio.get_running_loop().call_soon(self._just.clear)
            self._just[id(data)] = data, value
        return value

    def _corrupt(self, key: Key, why: str) -> object:
        """A record that this node can't read counts as absent: damage, or another release with another model."""
        self.node.counters.of(key.family.data_type).serialization_errors += 1
        self._tell_corrupt(key, why)
        return MISSING

    def _tell_corrupt(self, key: Key, why: str) -> None:
        data_type = key.family.data_type
        self.node.counters.records_corrupt += 1
        if logger.once("can't be read", data_type, why):
            logger.warning("a {} in L2 can't be read, and counts as absent: {}", data_type, why)

    def decoded(self, key: Key, data: bytes, *, looked_up: bool = False) -> Record | None:
        """The key's record in these bytes; one that is damaged, or another key's, is told, and a counted miss.
        `looked_up`: whoever asks has looked the key up just before, and has counted it for its type then."""
        try:
            return records.decode(data, key.l2)
        except records.CorruptRecord:
            if looked_up:
                self._tell_corrupt(key, DAMAGED)
            else:
                self._corrupt(key, DAMAGED)
            return None

    def expired(self, index: int, record: Record) -> bool:
        """Whether the record's hard expiry is over, by the L2 server's clock."""
        return 0 < record.expires_ms <= self.node.server_now_s(index) * 1000

    def soft_version(self, index: int, record: Record) -> bytes:
        """The record's version where its soft expiry is over, so that it is to be refreshed; else b""."""
        is_over = 0 < record.soft_ms <= self.node.server_now_s(index) * 1000
        return record.version if is_over else b""

    def decode_and_admit(self, key: Key, record: Record, admits: AsOf | None, data: bytes = b"") -> object:
        """The value of a record that may be believed. `admits`: as of when it was read, where it may enter L1. `data`:
        the bytes it was read from."""
        shard = self._shards[key.shard]
        if (
            record.epoch == shard.epoch
            and (shard.invalidated or shard.low)
            and shard.hides(record.seq, key.family.bucket, (*key.scopes, *record.tags))
        ):
            return MISSING  # L2 found it valid, but this node has heard since then that it is not
        if self.node.is_blocked(key, record.tags):
            return MISSING  # this node knows better, and L2 will
        rules = self.policies.rules(key.family.data_type)
        if not self._is_readable(key, record, rules):
            return MISSING
        try:
            known = self._just.get(id(data))
            value = known[1] if known else self._keep(data, unpack(record, rules), rules)
        except CorruptValue as error:
            return self._corrupt(key, error.in_log or str(error))
        if admits is not None and rules.l1:
            self.admit(key, value, record, admits)
            copy = copier(record, value, rules)
            if copy is not None:
                return copy()  # what is in memory is nobody's to change, this caller's neither
        return NOT_FOUND if record.not_found else value

    def _is_readable(self, key: Key, record: Record, rules: Rules) -> bool:
        """Whether the record is of this node's version and could be decrypted, as it is from now on."""
        if record.policy_version != rules.version:
            self.unreadable.note_other_version()
            return False
        try:
            decrypt(record, rules, key.l2)
        except NotDecrypted as error:
            self.unreadable.note_not_decrypted(error, key.family.data_type)
            return False
        return True

    def copier_of(self, key: Key, record: Record, value: object) -> Callable[[], object] | None:
        """What makes a fresh value for each caller, of a record that this value was read from in this tick."""
        rules = self.rules(key)
        if rules.copy and record.is_encrypted:
            decrypt(record, rules, key.l2)
        return copier(record, value, rules)

    def admit(self, key: Key, value: object, record: Record, as_of: AsOf, *, fenced: bool = True) -> bool:
        """Let a value into L1 by the rules of its type, if nothing replaced it meanwhile; whether it is there.

        `fenced=False`: L2 did not confirm it.
        """
        rules = self.rules(key)
        own_s = terms_of(record.more).l1_ttl_s if record.more else None
        l1_ttl_s = own_s or (INF if rules.l1_ttl_s is None else rules.l1_ttl_s)
        try:
            decode = self.copier_of(key, record, value)
        except NotDecrypted as error:
            self.unreadable.note_not_decrypted(error, key.family.data_type)
            return False  # its key was taken away since it was read
        fallback_s = rules.fail_safe_s or 0.0
        return self.node.admit(
            Offer(key, value, record, as_of.reservation, as_of.at_s, l1_ttl_s, fallback_s, decode, fenced)
        )
