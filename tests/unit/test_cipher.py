"""What encrypts values, and what it takes for keys."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cachebus import ConfigError, Settings
from cachebus.values.cipher import NotDecrypted, ValueCipher, named_key
from cachebus.values.key_source import KeySource
from cachebus.values.secret_keys import keys_in
from cachebus.values.xaes import Xaes256Gcm

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY).decode()


def cipher(*ids: str, namespace: str = "cachebus") -> ValueCipher:
    made = ValueCipher(namespace)
    made.use({each: each.encode().ljust(32, b".") for each in ids})
    return made


@pytest.mark.parametrize(
    ("byte", "bound", "expected"),
    [
        (1, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (3, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
)
def test_it_is_xaes_256_gcm(byte: int, bound: bytes, expected: str) -> None:
    """The specification's own vectors: of one key the first bit of CMAC's subkey is set, of the other it is not."""
    aead, nonce, text = Xaes256Gcm(bytes([byte]) * 32), b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM"
    sealed = aead.encrypt(nonce, text, bound)
    assert sealed.hex() == expected
    assert aead.decrypt(nonce, sealed, bound) == text
    assert aead.decrypt(nonce, sealed, bound + b"x") is None


def test_a_nonce_is_drawn_for_each() -> None:
    one = cipher("a")
    sealed = {one.encrypt(b"value", b"bound") for _ in range(100)}
    assert len({each[2:26] for each in sealed}) == 100
    assert {one.decrypt(each, b"bound") for each in sealed} == {b"value"}


def test_the_first_encrypts_and_all_decrypt() -> None:
    old, both = cipher("a"), cipher("b", "a")
    assert both.decrypt(old.encrypt(b"v", b""), b"") == b"v"
    assert named_key(both.encrypt(b"v", b"")) == "b"
    with pytest.raises(NotDecrypted, match="'b', which this process does not have"):
        old.decrypt(both.encrypt(b"v", b""), b"")


def test_every_bit_counts() -> None:
    one = cipher("a")
    sealed = one.encrypt(b"v", b"bound")
    for bit in range(len(sealed) * 8):
        wrong = bytearray(sealed)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NotDecrypted):
            one.decrypt(bytes(wrong), b"bound")
    for size in range(len(sealed)):
        with pytest.raises(NotDecrypted):
            one.decrypt(sealed[:size], b"bound")
    for bound, namespace in ((b"other", "cachebus"), (b"bound", "other")):
        with pytest.raises(NotDecrypted, match="authenticate"):
            cipher("a", namespace=namespace).decrypt(sealed, bound)


def test_before_there_are_keys_nothing_is_encrypted() -> None:
    with pytest.raises(ConfigError, match="no keys yet"):
        ValueCipher("cachebus").encrypt(b"v", b"")


@pytest.mark.parametrize(
    "text",
    [
        f"a:{TEXT}",
        f" a : {TEXT} , b:{base64.b64encode(b'x' * 32).decode()}",
        f"# made in spring\na:{TEXT}\n\nb:{base64.b64encode(b'x' * 32).decode()} # and this before\n",
        f"a:{TEXT.rstrip('=')}",
        f"a:{base64.urlsafe_b64encode(KEY).decode()}",
    ],
)
def test_keys_as_text(text: str) -> None:
    found = keys_in(SecretStr(text))
    assert next(iter(found.items())) == ("a", KEY)
    assert keys_in(found) == found


WRONG: list[Any] = [
    "",
    "a",
    TEXT,
    f"a:{TEXT}x",
    "a:!!!!",
    f"a b:{TEXT}",
    f"{'a' * 33}:{TEXT}",
    f"a:{TEXT},a:{TEXT}",
    f"a:{base64.b64encode(b'short').decode()}",
    f"a:{TEXT},file:{TEXT}",
    "file:",
    "provider:nothing",
    "provider:tests.no.such:thing",
    "provider:tests.unit.test_cipher:KEY",
    7,
    b"a",
]


@pytest.mark.parametrize("given", WRONG, ids=repr)
def test_what_are_no_keys_is_told_early_and_shows_none(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"encryption \(CACHEBUS_ENCRYPTION\)") as error:
        Settings(encryption=given)
    assert TEXT[:20] not in str(error.value)
    assert error.value.__cause__ is None


def test_keys_show_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_ENCRYPTION", f"a:{TEXT}")
    settings = Settings(url="memory://x")
    assert isinstance(settings.encryption, SecretStr)
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert TEXT[:20] not in shown
    assert settings.model_copy(update={"shards": 2}).encryption == settings.encryption


async def test_a_file_and_a_provider(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"a:{TEXT}\n")
    for given in (f"file:{file}", "provider:tests.unit.test_cipher:given_keys", given_keys, awaited_keys):
        made = ValueCipher("cachebus")
        source = KeySource(Settings(encryption=given).encryption, made, 5.0)  # type: ignore[arg-type]
        await source.read()
        assert Xaes256Gcm(KEY).decrypt(b"n" * 24, Xaes256Gcm(KEY).encrypt(b"n" * 24, b"", b""), b"") == b""
        assert named_key(made.encrypt(b"v", b"")) == "a"


def given_keys() -> dict[str, bytes]:
    return {"a": KEY}


async def awaited_keys() -> str:
    return f"a:{TEXT}"


@pytest.mark.parametrize("text", ["", "a:secretsecretsecret", None])
async def test_a_file_without_keys_is_told_without_what_is_in_it(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"encryption \(CACHEBUS_ENCRYPTION\): the provider KeyFile") as error:
        await KeySource(Settings(encryption=f"file:{file}").encryption, ValueCipher("x"), 5.0).read()
    assert "secretsecret" not in str(error.value)


def test_importing_cachebus_imports_no_cryptography() -> None:
    code = "import cachebus, sys; cachebus.Settings(url='memory://x'); assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", ".exceptions", ".hazmat.primitives.ciphers", ".hazmat.primitives.ciphers.aead"):
        monkeypatch.setitem(sys.modules, f"cryptography{name}", None)
    with pytest.raises(ConfigError, match=r"pip install 'cachebus\[encryption\]'"):
        cipher("a")
