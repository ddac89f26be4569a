"""What `Settings` and `Policy` say to type checkers that they take: every field, as what may be given for it."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel, SecretStr

from cachebus import Policy, Settings
from cachebus.policy import PolicyOptions
from cachebus.settings import SettingsOptions


def may_be_given(kind: Any) -> Any:
    """What a caller may give for a field of this type: what is wider than the type, as pydantic makes it of that."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is SecretStr:
        return str | SecretStr
    if kind is Policy:
        return Policy | PolicyOptions
    if origin is Annotated:
        return may_be_given(arguments[0])
    if origin in (Union, types.UnionType):
        return Union[tuple(may_be_given(each) for each in arguments)]  # noqa: UP007
    if origin is tuple:
        return Sequence[may_be_given(arguments[0])]  # type: ignore[misc]
    if origin is dict:
        return Mapping[arguments[0], may_be_given(arguments[1])]  # type: ignore[misc,valid-type]
    return kind


@pytest.mark.parametrize(("model", "options"), [(Settings, SettingsOptions), (Policy, PolicyOptions)])
def test_every_field_is_an_option(model: type[BaseModel], options: Any) -> None:
    expected = {field.alias or name: may_be_given(field.annotation) for name, field in model.model_fields.items()}
    assert get_type_hints(options) == expected
    assert options.__optional_keys__ == set(expected)


def test_what_may_be_given_is_taken() -> None:
    """Where it is not of the field's own type."""
    settings = Settings(
        url="memory://", password=SecretStr("x"), policies={"page": {"ttl_s": 60, "copy": True, "tags": ["pages"]}}
    )
    assert settings.policies == {"page": Policy(ttl_s=60, copy=True, tags=("pages",))}
    assert Policy(retry_on=[KeyError]).retry_on == (KeyError,)
