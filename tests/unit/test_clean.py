"""Text of others, as it may be shown."""

from __future__ import annotations

import pytest

from cachebus.consumers.worker.clean import without

URL = "postgresql://relay:pa%20ss%3Aword@db.internal,other:5432/shop?sslmode=require&s3cret=1&options=-c%20hid%3Dx%3Dyz"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('role "relay" does not exist', 'role "***" does not exist'),
        ('database "shop" and shopping', 'database "***" and shopping'),
        ("pa ss:word or pa%20ss%3Aword", "*** or ***"),
        ("Connect call failed ('db.internal', 5432)", "Connect call failed ('***', ***)"),
        ("unrecognized configuration parameter s3cret, hid", "unrecognized configuration parameter ***, ***"),
        ("`sslmode` parameter must be one of", "`sslmode` parameter must be one of"),
        ("", ""),
    ],
)
def test_nothing_of_a_url_is_shown(said: str, shown: str) -> None:
    assert without(said, URL) == shown


def test_without_a_url_there_is_nothing_to_hide() -> None:
    assert without("a b c", "") == "a b c"
