"""Policies: what they refuse and how they say it, and the plain rules that the data path reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from cachebus import values
from cachebus.base.lifetimes import TTL_MAX_S, TTL_PERMANENT, check_ttl
from cachebus.errors import ConfigError
from cachebus.policy import (
    DEFAULT_TTL_MAPPING,
    RULES_MAX,
    TTL_EXTENDED,
    TTL_SHORT,
    TTL_STANDARD,
    Policy,
    PolicyTable,
    Rules,
)


@dataclass
class Item:
    n: int


def test_ttl_constants() -> None:
    assert (300, 3600, 86_400, math.inf) == (TTL_SHORT, TTL_STANDARD, TTL_EXTENDED, TTL_PERMANENT)
    assert DEFAULT_TTL_MAPPING == {
        "embedding": 86_400,
        "query_result": 3600,
        "agent_config": 3600,
        "vector_store": 3600,
        "token_counter": 300,
        "system": 86_400,
    }
    with pytest.raises(TypeError):
        DEFAULT_TTL_MAPPING["system"] = 1  # type: ignore[index]


@pytest.mark.parametrize("ttl", [1, 0.001, 5.5, TTL_PERMANENT, TTL_MAX_S])
def test_a_ttl_that_is_one(ttl: float) -> None:
    assert check_ttl(ttl) == ttl
    assert type(check_ttl(ttl)) is float


@pytest.mark.parametrize("ttl", [0, -1, -math.inf, math.nan, True, "60", None, b"1", 1j, TTL_MAX_S * 2, 10**400, 1e-9])
def test_a_ttl_that_is_none(ttl: Any) -> None:
    with pytest.raises(ValueError, match="ttl must be"):
        check_ttl(ttl)


def test_defaults() -> None:
    policy = Policy()
    assert (policy.ttl_s, policy.ttl_jitter, policy.l1, policy.negative_ttl_s) == (None, 0, True, None)
    assert (policy.load_timeout_s, policy.retries, policy.retry_on) == (30, 2, (ConnectionError, TimeoutError, OSError))
    assert (policy.codec, policy.max_value_bytes, policy.copy_values, policy.tags) == ("msgpack", 8 << 20, False, ())


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Policy().ttl_s = 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ttl_s": 0}, "policy ttl_s: Input should be greater than 0"),
        ({"ttl_s": math.nan}, "policy ttl_s: Input should be greater than 0"),
        ({"ttl_s": True}, "policy ttl_s: a number of seconds is needed, not a bool"),
        ({"ttl_s": 1e300}, "policy ttl_s: ttl must be at most 1e.10 s; what shall never expire has TTL_PERMANENT"),
        ({"ttl_s": 1e-9}, "policy ttl_s: ttl must be at least 0.001 s: records count in ms"),
        ({"tags": ("t",) * 256}, "policy tags: a value takes at most 255 tags"),
        ({"max_value_bytes": 1 << 30}, "policy max_value_bytes: Input should be less than or equal to 524288000"),
        ({"l1_ttl_s": math.inf}, "policy l1_ttl_s: Input should be"),
        ({"negative_ttl_s": -1}, "policy negative_ttl_s: "),
        ({"load_timeout_s": math.inf}, "policy load_timeout_s: "),
        ({"ttl_jitter": 0.6}, "policy ttl_jitter: Input should be less than or equal to 0.5"),
        ({"retries": -1}, "policy retries: "),
        ({"retry_on": (KeyboardInterrupt,)}, "policy retry_on.0: "),
        ({"codec": "pickle"}, "policy codec: "),
        ({"compress_over_bytes": 0}, "policy compress_over_bytes: "),
        ({"max_value_bytes": 0}, "policy max_value_bytes: "),
        ({"model": "Item"}, r"policy model: a type is needed, such as a pydantic model or list\[Item\], not str"),
        ({"model": Item, "codec": "raw"}, "model needs codec msgpack: what codec raw gives fits no model"),
        ({"tags": ["doc:{doc_id}"]}, "has the unknown placeholder {doc_id}; known are resource_id, tenant_id"),
        ({"tags": ["{resource_id.__class__}"]}, "unknown placeholder"),
        ({"tags": ["{}"]}, "a placeholder has a name between its braces"),
        ({"tags": ["{resource_id!r}"]}, "takes neither format nor conversion"),
        ({"tags": ["{resource_id:{tenant_id}}"]}, "takes neither format nor conversion"),
        ({"tags": ["{resource_id"]}, "policy tags: "),
        ({"tags": ["t:{tenant_id}{resource_id}"]}, "policy tags: .*nothing parts {tenant_id} and {resource_id}"),
        ({"tags": [""]}, "policy tags: a template is empty"),
        ({"soft_ttl_s": 10, "ttl_s": 10}, "policy: soft_ttl_s must be below ttl_s"),
        ({"load_soft_timeout_s": 30, "fail_safe_s": 1}, "load_soft_timeout_s must be below load_timeout_s"),
        ({"load_soft_timeout_s": 1}, "load_soft_timeout_s needs fail_safe_s"),
        ({"ttl": 5}, "policy ttl: there is no such field, did you mean ttl_s?"),
    ],
)
def test_what_is_refused_and_how_it_is_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(**fields)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"policy ttl_s: .*; policy retries: .*"):
        Policy(ttl_s=-1, retries=-1)


def test_what_is_accepted() -> None:
    full = Policy(
        ttl_s=TTL_PERMANENT,
        ttl_jitter=0.5,
        l1=False,
        l1_ttl_s=1,
        negative_ttl_s=2,
        soft_ttl_s=3,
        fail_safe_s=4,
        load_soft_timeout_s=0.5,
        load_timeout_s=6,
        retries=0,
        retry_on=(KeyError,),
        retry_backoff_s=0.1,
        model=list[Item],
        codec="msgpack",
        compress_over_bytes=10,
        max_value_bytes=100,
        copy=True,
        tags=("all", "doc:{resource_id}:{tenant_id}"),
        version=7,
    )
    rules = Rules("thing", full)
    form = (full.codec, full.compress_over_bytes, full.max_value_bytes, full.model, full.lossy, None)
    for name in Rules.__slots__:
        expected = {"data_type": "thing", "copy": True, "form": form}.get(name, getattr(full, name, None))
        is_ = getattr(rules, name)
        assert (tuple(tag.text for tag in is_) if name == "tags" else is_) == expected, name
    assert not hasattr(rules, "__dict__")


def test_the_codecs_are_those_there_are() -> None:
    for codec in values.CODECS:
        assert Policy(codec=codec).codec == codec


def test_rules_take_the_ttl_of_their_type() -> None:
    table = PolicyTable()
    assert table.rules("embedding").ttl_s == TTL_EXTENDED
    assert table.rules("token_counter").ttl_s == TTL_SHORT
    assert table.rules("anything else").ttl_s == TTL_STANDARD
    assert table.rules("embedding") is table.rules("embedding")


def test_a_registered_policy_takes_the_place_of_the_default() -> None:
    table = PolicyTable({"embedding": Policy(ttl_s=5)})
    assert table.rules("embedding").ttl_s == 5
    table.register("embedding", Policy(l1=False))
    assert table.rules("embedding").ttl_s == TTL_EXTENDED
    assert not table.rules("embedding").l1


def test_a_soft_ttl_is_checked_against_the_types_ttl() -> None:
    with pytest.raises(ConfigError, match=r"policy of 'token_counter': soft_ttl_s must be below ttl_s \(300 s\)"):
        PolicyTable({"token_counter": Policy(soft_ttl_s=300)})


def test_made_up_types_do_not_fill_the_memory() -> None:
    table = PolicyTable({"mine": Policy(ttl_s=5)})
    for i in range(RULES_MAX + 10):
        table.rules(f"type-{i}")
    assert len(table._rules) <= RULES_MAX
    assert table.rules("mine").ttl_s == 5
