"""Text of others, as it may be shown."""

from __future__ import annotations

import pytest

from cachebus.consumers.worker.clean import without

URL = "postgresql://relay:pa%20ss%3Aword@db.internal,other:5432/shop?sslmode=require&s3cret=1&options=-c%20hid%3Dx%3Dyz"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('role "relay" is not permitted to log in', 'role "relay" is not permitted to log in'),
        ('database "shop" and shopping', 'database "***" and shopping'),
        ("pa ss:word or pa%20ss%3Aword", "*** or ***"),
        ("Connect call failed ('db.internal', 5432)", "Connect call failed ('***', 5432)"),
        ('unrecognized configuration parameter s3cret, "hid"', 'unrecognized configuration parameter ***, "***"'),
        ("`sslmode` parameter must be one of", "`sslmode` parameter must be one of"),
        ("", ""),
    ],
)
def test_nothing_of_a_url_is_shown(said: str, shown: str) -> None:
    assert without(said, URL) == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://s3cret@host/shop",
        "postgresql://s3cret:s3cret@host/shop",
        "postgresql://x:y@z@s3cret:5432/shop",
        "postgresql://x:s3cret/y@host:5432/shop",
        "postgresql://s3cret:x:y/@host",
    ],
)
def test_what_may_be_a_password_is_not_shown(url: str) -> None:
    assert without("s3cret is no good", url) == "*** is no good"


@pytest.mark.parametrize("password", ["for", "user", "authentication", "failed", "a"])
def test_a_password_that_is_an_ordinary_word_eats_no_other(password: str) -> None:
    said = 'password authentication failed for user "relay"'
    assert without(said, f"postgresql://relay:{password}@127.0.0.1:5432/shop") == said


def test_without_a_url_there_is_nothing_to_hide() -> None:
    assert without("a b c", "") == "a b c"
