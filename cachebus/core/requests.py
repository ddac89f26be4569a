"""What a store is asked for, beside the key or shard and the caller."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from cachebus.keys.key import Key
from cachebus.wire.record import Record


class FallbackKind(IntEnum):
    """The fallback that a caller would take while the source cools down, rather than load: `NONE`, an expired `RECORD`
    of L2, or what it holds of its `OWN`."""

    NONE = 0
    RECORD = 1
    OWN = 2


class FillLeaseRequest(NamedTuple):
    """The right to load a value, for `px_ms`."""

    token: str
    """The holder's: who asks again by it is answered alike."""
    px_ms: int
    refresh: bool = False
    """Also where there is a valid record."""
    fallback: FallbackKind = FallbackKind.NONE
    """What the caller would serve, while the source is left alone."""
    tags: Sequence[str] = ()
    """The scopes of the tags that the load will give its record."""
    unreadable: bytes = b""
    """The version of a record that the asker can't read, and that is none for it."""


class FillRequest(NamedTuple):
    """A loaded record, to be kept for `px_ms` if its fill lease still stands."""

    token: str
    record: Record
    px_ms: int
    over: bytes = b""
    """Only in the place of this version; b"": of any."""


class GuardRequest(NamedTuple):
    """A token on keys and scopes for at most `px_ms`; with 0 it is taken away."""

    keys: Sequence[Key]
    scopes: Sequence[str]
    token: str
    """16 characters."""
    px_ms: int


class WriteRequest(NamedTuple):
    """A record, to be kept for `px_ms`, and what is replaced by it."""

    record: Record
    px_ms: int
    body: bytes
    """Of the event that tells of it."""
    others: Sequence[Key] = ()
    """Keys that are invalidated with it."""
    scopes: Sequence[str] = ()
    if_absent: bool = False
    """Only where there is no valid record."""
    over: bytes = b""
    """Only in the place of a valid record of this version; b"": of any, or of none."""
