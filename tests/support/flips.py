"""Single bits that change on their way."""

from __future__ import annotations


def flipped(data: bytes, bit: int) -> bytes:
    """The same with this bit changed, counted from the first byte's lowest on."""
    at = bit // 8
    return data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :]
