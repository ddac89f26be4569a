"""XAES-256-GCM (C2SP): AES-256-GCM under a key of its own for each message, made of the first half of a 192-bit nonce.

AES-GCM's own nonces have 96 bits, of which no more than 2^32 may be drawn at random for a key. Of these 2^80 may. It is
made of what the library `cryptography` has wherever it runs: AES, and AES-GCM.
"""

from __future__ import annotations

from typing import Final

from cachebus.errors import ConfigError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16
MISSING: Final = "encryption needs the library cryptography: pip install 'cachebus[encryption]'"
_HALF: Final = 12
_BLOCK: Final = 16


class Xaes256Gcm:
    """One key. Not to be used by two threads at once."""

    __slots__ = ("_aead", "_encrypt_blocks", "_mask", "_wrong_tag")

    def __init__(self, key: bytes) -> None:
        """`key`: 32 bytes; `ConfigError` where the library is not installed."""
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers import Cipher
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.ciphers.algorithms import AES
            from cryptography.hazmat.primitives.ciphers.modes import ECB
        except ImportError as error:
            raise ConfigError(MISSING) from error
        self._aead, self._wrong_tag = AESGCM, InvalidTag
        # Whole blocks only, so nothing is left in it between two calls. No data goes through it: two blocks of CMAC do.
        self._encrypt_blocks = Cipher(AES(key), ECB()).encryptor().update  # noqa: S305
        self._mask = int.from_bytes(self._subkey() * 2, "big")

    def _subkey(self) -> bytes:
        """CMAC's K1: what AES makes of zeros, doubled in GF(2^128)."""
        whole = int.from_bytes(self._encrypt_blocks(bytes(_BLOCK)), "big") << 1
        doubled = whole ^ 0x87 if whole >> 128 else whole
        return (doubled & (1 << 128) - 1).to_bytes(_BLOCK, "big")

    def _derived(self, half: bytes) -> bytes:
        blocks = int.from_bytes(b"\0\1X\0" + half + b"\0\2X\0" + half, "big") ^ self._mask
        return self._encrypt_blocks(blocks.to_bytes(2 * _BLOCK, "big"))

    def encrypt(self, nonce: bytes, data: bytes, bound: bytes) -> bytes:
        """The ciphertext, with its tag behind it. `nonce`: 24 random bytes, never used twice. `bound`: what it is
        authenticated with."""
        return self._aead(self._derived(nonce[:_HALF])).encrypt(nonce[_HALF:], data, bound)

    def decrypt(self, nonce: bytes, data: bytes, bound: bytes) -> bytes | None:
        """What was encrypted with this nonce and bound to this; None of anything else."""
        try:
            return self._aead(self._derived(nonce[:_HALF])).decrypt(nonce[_HALF:], data, bound)
        except self._wrong_tag:
            return None
