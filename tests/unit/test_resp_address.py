"""Reading a server's URL, and keeping its password out of every text."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.errors import ConfigError
from cachebus.resp import Address, Login, parse_address, parse_endpoints
from cachebus.settings import Settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Address()),
        ("redis://cache.example", Address("cache.example")),
        ("redis://cache.example:7000/3", Address("cache.example", 7000, db=3)),
        ("redis://cache.example/?db=4", Address("cache.example", db=4)),
        ("redis://[::1]:7000", Address("::1", 7000)),
        ("redis://:pa%3Ass@h", Address("h", password="pa:ss")),
        ("redis://app:p%2F%40@h", Address("h", username="app", password="p/@")),
        (
            "redis://h?client_name=web&username=u&password=p",
            Address("h", username="u", password="p", client_name="web"),
        ),
        ("valkey://u:p@h:7000/3", Address("h", 7000, db=3, username="u", password="p")),
        ("unix:///run/redis.sock?db=2", Address("", 0, "/run/redis.sock", 2)),
        ("unix://u:p@/run/redis.sock", Address("", 0, "/run/redis.sock", username="u", password="p")),
    ],
)
def test_urls_are_read(url: str, expected: Address) -> None:
    assert parse_address(url) == expected


@pytest.mark.parametrize("kind", ["", "+sentinel", "+cluster"])
@pytest.mark.parametrize(("valkey", "redis"), [("valkey", "redis"), ("valkeys", "rediss")])
def test_valkey_is_another_word_for_redis(valkey: str, redis: str, kind: str) -> None:
    rest = f"{kind}://u:p@h:7000" + ("/mymaster/2" if kind == "+sentinel" else "")
    said, meant = parse_endpoints(valkey + rest), parse_endpoints(redis + rest)
    assert (said.template.ssl is not None) == (meant.template.ssl is not None) == (redis == "rediss")
    plain = [replace(each, ssl=None) for each in (said.template, *said.addresses)]
    assert plain == [replace(each, ssl=None) for each in (meant.template, *meant.addresses)]
    assert (said.kind, said.service) == (meant.kind, meant.service)
    assert Settings(url=valkey + rest).shards == Settings(url=redis + rest).shards


@pytest.mark.parametrize("url", ["valkey+unix:///run/s", "valkey+x://h", "valkeyss://h"])
def test_what_valkey_is_no_word_for(url: str) -> None:
    with pytest.raises(ConfigError, match=r"must begin with|is not a URL"):
        Settings(url=url)
    with pytest.raises(ConfigError, match="must begin with"):
        parse_endpoints(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [("redis://h", "h:6379"), ("redis://[::1]:7000", "[::1]:7000"), ("unix:///run/redis.sock", "/run/redis.sock")],
)
def test_an_address_is_shown_as_its_place(url: str, shown: str) -> None:
    assert str(parse_address(url)) == shown


def test_arguments_win_over_the_url() -> None:
    address = parse_address("redis://a:b@h?client_name=c", Login(username="d", password="e", client_name="f"))
    assert (address.username, address.password, address.client_name) == ("d", "e", "f")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:6379", "must begin with redis://"),
        ("http://h", "must begin with redis://"),
        ("redis://h:99999", "h:99999: the port must be"),
        ("redis://h:0", "h:0: the port must be"),
        ("redis://h:port", "for h: the port must be"),
        ("redis://h:7000/zero", "h:7000: the database"),
        ("redis://h/1/2", "h:6379: the database"),
        ("redis://h?db=-1", "h:6379: the database"),
        ("redis://h?socket_timeout=1", "h:6379: unknown option 'socket_timeout'"),
        ("redis://h?socket_timeout=1&a=1", "h:6379: unknown option 'socket_timeout'"),
        ("redis://h?password=abc&hunter2", "h:6379: unknown option (percent-encode"),
        ("redis://h?ssl_cert_reqs=none", "h:6379: ssl_cert_reqs needs rediss://"),
        ("rediss://h?ssl_cert_reqs=optional", "h:6379: ssl_cert_reqs is"),
        (
            "rediss://h?ssl_ca_certs=/nowhere.pem",
            "h:6379: cannot load the TLS certificates: /nowhere.pem: No such file",
        ),
        ("redis://[::1", "malformed"),
        ("unix://run/redis.sock", "absolute path"),
        ("unix://", "absolute path"),
    ],
)
def test_a_bad_url_is_told_in_one_line(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(url)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://h:1", "redis+cluster://h:1,h:2", "redis+sentinel://h:1/mymaster"])
@pytest.mark.parametrize("option", ["nonsense=1", "nonsense=", "nonsense"])
def test_an_unknown_option_is_told_with_or_without_a_value(url: str, option: str) -> None:
    with pytest.raises(ConfigError, match="unknown option"):
        parse_endpoints(f"{url}?{option}")


@given(st.text(min_size=1), st.text(min_size=1))
def test_an_encoded_login_comes_back(user: str, password: str) -> None:
    url = f"redis://{quote(user, safe='')}:{quote(password, safe='')}@h:6379/0"
    address = parse_address(url)
    assert (address.host, address.username, address.password) == ("h", user, password)


PIECES = st.lists(st.sampled_from([*"/#?@:[]%&= ", "hunter2", "Zebra99", "31337"]), min_size=1, max_size=6).map("".join)


@given(PIECES, st.sampled_from(["redis://app:{}@h:6379/0", "redis://:{}@h/1", "redis://:{}@", "rediss://{}@h:1"]))
def test_a_password_that_is_not_encoded_is_never_shown(password: str, template: str) -> None:
    try:
        address = parse_address(template.format(password))
    except ConfigError as error:
        shown = f"{error} {error.__cause__}"
        assert error.__cause__ is None or error.__suppress_context__
    else:
        shown = f"{address!s}" + ("" if "{}@h:1" in template else f"{address!r}")
    assert not any(secret in shown for secret in ("hunter2", "Zebra99"))


def test_repr_hides_the_password() -> None:
    assert "hunter2" not in repr(parse_address("redis://:hunter2@h"))


def test_tls_verifies_unless_told_otherwise() -> None:
    strict = parse_address("rediss://h").ssl
    lenient = parse_address("rediss://h?ssl_check_hostname=false").ssl
    argued = parse_address("rediss://h", Login(check_hostname=False)).ssl
    blind = parse_address("rediss://h?ssl_cert_reqs=none").ssl
    assert strict and lenient and argued and blind
    assert [context.check_hostname for context in (strict, lenient, argued, blind)] == [True, False, False, False]
    assert [context.verify_mode for context in (strict, lenient, blind)] == [
        ssl.CERT_REQUIRED,
        ssl.CERT_REQUIRED,
        ssl.CERT_NONE,
    ]


def test_authorities_for_a_plain_url_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca_certs needs rediss://"):
        parse_address("redis://h", Login(ca_certs=str(tmp_path / "ca.pem")))
