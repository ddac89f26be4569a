"""Splits a server's bytes into complete replies, so that the proxy can drop a whole message, and not half of it."""

from __future__ import annotations

from random import Random
from typing import Final

_NESTED: Final = b"*>~"
_MESSAGES: Final = (b"*3\r\n$7\r\nmessage\r\n", b"*3\r\n$8\r\nsmessage\r\n", b">3\r\n$7\r\nmessage\r\n")
HEADER_BYTES: Final = 58
"""The length of an event's head, checksums included."""
SEQ_AT: Final = 27
"""The place of the lowest byte of the seq in it."""


class Frames:
    """Splits a stream of bytes into complete replies, in whatever pieces it comes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; returns the replies that are complete by now, in order."""
        data = self._rest + data
        frames, at = [], 0
        while (end := _end_of(data, at)) is not None:
            frames.append(data[at:end])
            at = end
        self._rest = data[at:]
        return frames


def is_message(frame: bytes) -> bool:
    """Whether a reply is a published message."""
    return frame.startswith(_MESSAGES)


def garbled(frame: bytes) -> bytes:
    """The message with a byte changed in the middle of its payload."""
    place = len(frame) - 2 - _payload_bytes(frame) // 2 - 1
    return frame[:place] + bytes([frame[place] ^ 0x5A]) + frame[place + 1 :]


def garbled_head(frame: bytes, dice: Random) -> bytes:
    """The message with a bit changed in the head of its event, most likely in the seq."""
    payload = _payload_bytes(frame)
    if payload < HEADER_BYTES:
        return frame  # it is no event
    place = len(frame) - 2 - payload + (SEQ_AT if dice.random() < 0.7 else dice.randrange(HEADER_BYTES))
    return frame[:place] + bytes([frame[place] ^ 1 << dice.randrange(3)]) + frame[place + 1 :]


def _payload_bytes(frame: bytes) -> int:
    at = frame.index(b"\r\n") + 2
    for _ in range(2):
        end = _end_of(frame, at)
        assert end is not None
        at = end
    return int(frame[at + 1 : frame.index(b"\r\n", at)])


def _end_of(data: bytes, at: int) -> int | None:
    """Where the reply that begins at this place ends; None if it is not complete."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    rest = line_end + 2
    if data[at] in _NESTED:
        for _ in range(int(data[at + 1 : line_end])):
            end = _end_of(data, rest)
            if end is None:
                return None
            rest = end
        return rest
    if data[at] != ord("$"):
        return rest
    length = int(data[at + 1 : line_end])
    if length < 0:
        return rest
    rest += length + 2
    return rest if rest <= len(data) else None
