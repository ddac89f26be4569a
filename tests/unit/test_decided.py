"""What a loader may decide of its value: what is refused, and what of it a record says."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from cachebus import TTL_PERMANENT, ConfigError, DontCache, Fresh, NotModified, Policy, Previous
from cachebus.base.parameters import passing_of
from cachebus.keys.key import Keyspace
from cachebus.policy import Rules
from cachebus.reading.previous import settled
from cachebus.reading.request import Loaded, Request
from cachebus.reading.source import WithPrevious, bind, shareable
from cachebus.wire.packing import Given, pack
from cachebus.wire.terms import NO_TERMS, Terms, terms_of

RULES = Rules("doc", Policy(ttl_s=100, soft_ttl_s=50))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ttl_s": 0}, "ttl_s must be a number of seconds above 0"),
        ({"ttl_s": True}, "ttl_s must be a number"),
        ({"ttl_s": "60"}, "ttl_s must be a number"),
        ({"ttl_s": 1e-9}, "at least 0.001 s"),
        ({"soft_ttl_s": -1}, "soft_ttl_s must be a number"),
        ({"soft_ttl_s": math.inf}, "soft_ttl_s must have an end"),
        ({"ttl_s": 5, "soft_ttl_s": 5}, "soft_ttl_s must be below ttl_s"),
        ({"l1_ttl_s": math.inf}, "l1_ttl_s must have an end"),
        ({"l1_ttl_s": math.nan}, "l1_ttl_s must be a number"),
        ({"tags": "red"}, "tags must be a sequence of strings"),
        ({"tags": 7}, "tags must be a sequence of strings"),
        ({"tags": ["a\x1fb"]}, "tag has a control character"),
        ({"tags": [None]}, "tag must be str, int or UUID"),
        ({"version": 7}, "version must be a str, not int"),
        ({"version": "\ud800"}, "lone surrogate"),
        ({"version": "v" * 1025}, "1025 bytes, at most 1024"),
    ],
)
def test_a_wrong_option_is_the_programs_error(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Fresh(1, **wrong)


def test_what_is_right_is_taken_as_it_is_meant() -> None:
    assert Fresh(1, tags=["a", 7, "a"]).tags == ("a", "7")  # type: ignore[list-item]
    assert Fresh(1, ttl_s=TTL_PERMANENT).ttl_s == math.inf
    assert len(Fresh(1, tags=[f"t{i}" for i in range(1000)]).tags) == 1000, (
        "only with the callers' it is known to be many"
    )
    assert Fresh(1) == Fresh(1)
    with pytest.raises(AttributeError):
        Fresh(1).value = 2  # type: ignore[misc]


def test_one_decides() -> None:
    for nested in (Fresh(Fresh(1)), DontCache(NotModified()), Fresh(DontCache(1))):
        with pytest.raises(ConfigError, match="one decides"):
            shareable(nested, test_one_decides)
    with pytest.raises(ConfigError, match="gave an iterator"):
        shareable(Fresh(iter([1])), test_one_decides)


# -- what a loader takes ------------------------------------------------------------------------------------------


def test_previous_goes_by_name_and_takes_nothing_from_the_others() -> None:
    def first(previous: Any, a: Any, b: Any) -> Any:
        return previous, a, b

    def last(resource_id: Any, *, previous: Any = 1) -> Any:
        return previous, resource_id

    for source, given in ((first, ("p", "r", "t")), (last, ("p", "r"))):
        bound = bind(source, "r", "t", "c")
        assert isinstance(bound, WithPrevious)
        assert bound.told("p")() == given  # type: ignore[arg-type]
    for source in (lambda a: a, lambda *args: args, lambda **more: more):
        assert not passing_of(source).takes_previous


# -- what becomes of it -------------------------------------------------------------------------------------------


def request(tenant: str | None = "acme", data_type: str = "doc") -> Request:
    return Request(Keyspace(1).key(data_type, "1", tenant), None, RULES)  # type: ignore[arg-type]


def test_what_does_not_fit_the_type_or_the_key_is_told() -> None:
    with pytest.raises(ConfigError, match="no `previous`"):
        settled(Loaded(None, decided=NotModified()), None, request())
    with pytest.raises(ConfigError, match="soft_ttl_s must be below ttl_s, which is 100 s for 'doc'"):
        settled(Loaded(1, decided=Fresh(1, soft_ttl_s=100)), None, request())
    with pytest.raises(ConfigError, match="tags belong to a tenant"):
        settled(Loaded(1, decided=Fresh(1, tags=["t"])), None, request(None, "system"))
    assert settled(Loaded(1, decided=Fresh(1, soft_ttl_s=100, ttl_s=101)), None, request()).terms.soft_ttl_s == 100


def test_a_record_says_what_the_loader_said() -> None:
    terms = Terms("etag", math.inf, 20.5, 3.0, 2)
    record, _ = pack(1, RULES, 1000.0, Given(math.inf, ["a", "b"], terms=terms))
    assert terms_of(record.more) == terms
    assert (record.expires_ms, record.soft_ms) == (0, 1_020_500)
    assert terms.split(["c", "a", "b"]) == (["c"], ["a", "b"])
    assert pack(1, RULES, 1000.0)[0].more == b""
    shorter, _ = pack(1, RULES, 1000.0, Given(10.0, terms=Terms(soft_ttl_s=20.0)))
    assert shorter.soft_ms == 0, "what a caller wants shorter leaves nothing to refresh"


@pytest.mark.parametrize(
    "more",
    [b"\xc1", b"\x01", b"\x81", msgspec.msgpack.encode({"version": 7, "ttl_ms": "1", "late_tags": 300, "other": [1]})],
)
def test_what_it_says_that_nobody_understands_is_passed_over(more: bytes) -> None:
    assert terms_of(more) == NO_TERMS


def test_previous_is_a_value_of_its_own() -> None:
    assert Previous(1) == Previous(1, "", 0.0, ())
