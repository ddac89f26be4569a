"""What settings say of keys: `ID:KEY` several times, `file:PATH`, `provider:module:name`, or who is asked for them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from cachebus.values.xaes import KEY_BYTES

Keys = Mapping[str, bytes]
"""32 bytes each, by their ids: the first encrypts, all decrypt."""
KeyProvider = Callable[[], str | SecretStr | Keys | Awaitable[str | SecretStr | Keys]]
"""Gives the keys, as text (`ID:KEY`, several by commas or lines) or by their ids. May block: it runs in a thread."""

FILE: Final = "file:"
PROVIDER: Final = "provider:"
_ID: Final = re.compile(r"[A-Za-z0-9_.\-]{1,32}").fullmatch
_RESERVED: Final = ("file", "provider")
_EXPECTED: Final = "expected ID:KEY, with 32 random bytes in base64 as KEY"


class KeyFile:
    """A file of keys, as a provider of them."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __call__(self) -> str:
        """What is in it."""
        return self._path.read_text("utf-8")


def encryption_of(given: Any) -> Any:
    """What a setting says: keys as a secret, or who is asked for them; `ValueError`, which tells no key."""
    if given is None or callable(given):
        return given
    if not isinstance(given, str | SecretStr):
        raise ValueError("expected keys as text, file:PATH, provider:module:name, or a callable that gives the keys")
    text = (given.get_secret_value() if isinstance(given, SecretStr) else given).strip()
    if text.startswith(PROVIDER):
        _imported(text.removeprefix(PROVIDER))
    elif not text.startswith(FILE):
        keys_in(text)
    elif not text.removeprefix(FILE):
        raise ValueError("file: names no file")
    return SecretStr(text)


def provider_in(given: Any) -> KeyProvider | None:
    """Who is asked for the keys, by what `encryption_of` gave; None where it has the keys themselves."""
    if not isinstance(given, SecretStr):
        return given  # type: ignore[no-any-return]
    text = given.get_secret_value()
    if text.startswith(PROVIDER):
        return _imported(text.removeprefix(PROVIDER))
    return KeyFile(text.removeprefix(FILE)) if text.startswith(FILE) else None


def keys_in(given: object) -> dict[str, bytes]:
    """The keys that were given, as text or by their ids; `ValueError`, which tells none of them."""
    if isinstance(given, SecretStr):
        given = given.get_secret_value()
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, str):
        pairs = [_pair(each) for line in given.splitlines() for each in line.split("#")[0].split(",") if each.strip()]
    else:
        raise ValueError(f"no keys, but a {type(given).__name__}")
    keys: dict[str, bytes] = {}
    for key_id, key in pairs:
        if not isinstance(key_id, str) or not _ID(key_id) or key_id in _RESERVED:
            raise ValueError("a key whose id is not 1-32 letters, digits, '_', '-' or '.', or is a reserved word")
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise ValueError(f"a key of another length than {KEY_BYTES} bytes, as {key_id!r}")
        if key_id in keys:
            raise ValueError(f"two keys of one id, {key_id!r}")
        keys[key_id] = key
    if not keys:
        raise ValueError("no key")
    return keys


def _pair(text: str) -> tuple[str, bytes]:
    key_id, separator, encoded = text.strip().partition(":")
    if not separator:
        raise ValueError(f"a key without an id: {_EXPECTED}")
    plain = encoded.strip().replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return key_id.strip(), base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"a key that is not written in base64: {_EXPECTED}") from None


def _imported(name: str) -> KeyProvider:
    module, separator, attribute = name.partition(":")
    if not (separator and module and attribute):
        raise ValueError("expected provider:module:name, as in provider:myservice.secrets:cache_keys")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # noqa: BLE001 (told by its class)
        raise ValueError(f"{name!r} cannot be imported: {type(error).__name__}") from None
    if not callable(found):
        raise ValueError(f"{name!r} is nothing that can be called")
    return found  # type: ignore[no-any-return]
