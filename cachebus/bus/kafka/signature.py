"""Signatures of messages on Kafka, of events and of commands: HMAC-SHA256 with a key that both ends have."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final, Self

from pydantic import SecretStr

from cachebus.settings import keys_of

SIGNATURE: Final = "signature"
"""The header with the HMAC-SHA256, in 64 hexadecimal digits, of a message's context, a zero byte, and its value."""

FINGERPRINT: Final = 8
"""Hexadecimal digits of the HMAC that tells a key from others. No message has an empty context, as that one has."""


class Keyring:
    """Keys of which the first signs and all are accepted, so that they can be changed while messages travel.

    The context is what a value must not be taken out of: where it is said, and for whom.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def of(cls, secret: SecretStr | None) -> Self | None:
        """The keys of a setting; None where it is not set."""
        return None if secret is None else cls([key.encode() for key in keys_of(secret)])

    def sign(self, context: bytes, value: bytes) -> bytes:
        """The signature by the first key."""
        return _signature(self._keys[0], context, value)

    def accepts(self, context: bytes, value: bytes, signature: bytes | None) -> bool:
        """Whether one of the keys made this signature of them."""
        # A zero byte in the context would let the beginning of a value be passed off as the end of its context.
        if not signature or b"\0" in context:
            return False
        return any(hmac.compare_digest(_signature(key, context, value), signature) for key in self._keys)

    def fingerprints(self, of: bytes) -> list[str]:
        """What tells each key from others, for this purpose alone: too short to sign with, or to find a key by."""
        return [_signature(key, b"", b"fingerprint of " + of)[:FINGERPRINT].decode() for key in self._keys]


def _signature(key: bytes, context: bytes, value: bytes) -> bytes:
    return hmac.new(key, context + b"\0" + value, "sha256").hexdigest().encode()
