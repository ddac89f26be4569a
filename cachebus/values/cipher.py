"""Encrypts what L2 holds of values, each with what it is bound to: namespace, key, and how it is to be read.

```
bytes
1          length of the id
           id of the key, ASCII
24         nonce: random
           ciphertext, with its tag of 16 bytes
```
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from cachebus.errors import ConfigError
from cachebus.values.xaes import NONCE_BYTES, TAG_BYTES, Xaes256Gcm

NOT_ENCRYPTED = "it is not encrypted, and encryption_required says that it must be"
NO_KEY = "it is encrypted, and this process has no keys (CACHEBUS_ENCRYPTION)"
CUT = "it is encrypted, and cut off"
FORGED = "it does not authenticate: it was changed, belongs to another key or namespace, or another key has this id"


class NotDecrypted(ValueError):
    """A payload that can't be read, or is not to be believed. Says why, and nothing of the value."""


class ValueCipher:
    """The keys of one cache, as they are now. Not to be used by two threads at once."""

    def __init__(self, namespace: str, *, required: bool = True) -> None:
        """`required`: what is not encrypted is not believed."""
        self.required = required
        self._namespace = namespace.encode() + b"\x1f"
        self._ciphers: dict[bytes, Xaes256Gcm] = {}
        self._first = b""
        self._keys: Mapping[str, bytes] = {}
        self.on_unknown: Callable[[], object] | None = None
        """Called where a payload names a key that is not here."""

    def use(self, keys: Mapping[str, bytes]) -> None:
        """Encrypt by the first of these keys from now on, and decrypt by all; `ConfigError`."""
        if list(keys.items()) == list(self._keys.items()):
            return
        ciphers = {key_id.encode(): Xaes256Gcm(key) for key_id, key in keys.items()}
        self._keys, self._ciphers, self._first = dict(keys), ciphers, next(iter(ciphers))

    def encrypt(self, payload: bytes, bound: bytes) -> bytes:
        """What is stored in its place; `ConfigError` before there are keys."""
        if not self._first:
            raise ConfigError("encryption: there are no keys yet")
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._ciphers[self._first].encrypt(nonce, payload, self._namespace + bound)
        return b"".join([bytes([len(self._first)]), self._first, nonce, sealed])

    def decrypt(self, stored: bytes, bound: bytes) -> bytes:
        """What was encrypted; `NotDecrypted`."""
        key_id, at = _key_id(stored)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            if self.on_unknown is not None:
                self.on_unknown()
            raise NotDecrypted(f"it is encrypted by the key {named_key(stored)!r}, which this process does not have")
        nonce, sealed = stored[at : at + NONCE_BYTES], stored[at + NONCE_BYTES :]
        payload = cipher.decrypt(nonce, sealed, self._namespace + bound)
        if payload is None:
            raise NotDecrypted(FORGED)
        return payload


def _key_id(stored: bytes) -> tuple[bytes, int]:
    """The id of the key, and where the nonce begins; `NotDecrypted`."""
    at = 1 + (stored[0] if stored else 0)
    if len(stored) < at + NONCE_BYTES + TAG_BYTES:
        raise NotDecrypted(CUT)
    return stored[1:at], at


def named_key(stored: bytes) -> str:
    """The id of the key that an encrypted payload names, for people; `NotDecrypted`."""
    return _key_id(stored)[0][:32].decode("ascii", errors="backslashreplace")
