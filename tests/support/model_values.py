"""Models made up by hypothesis, each with one value of it; and all that a value is, told without the library."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, time
from decimal import Decimal
from typing import Any, Optional

from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr, create_model

from tests.support.roundtrip import datetimes

_LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**70), 2**70),
    float: st.floats(),
    bool: st.booleans(),
    str: st.text(max_size=8),
    bytes: st.binary(max_size=8),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    datetime: datetimes.filter(lambda d: d.utcoffset() is None or d.utcoffset().total_seconds() % 60 == 0),
}


@dataclass(frozen=True)
class Made:
    """A type, a value of it, and whether something in the value is known to get lost."""

    kind: Any
    value: Any
    loses: bool = False


@st.composite
def made(draw: st.DrawFn, depth: int = 3) -> Made:
    """Any type that a field may have."""
    shape = draw(st.sampled_from(["leaf", "leaf", "list", "dict", "optional", "pydantic", "dataclass"]))
    if depth == 0 or shape == "leaf":
        kind = draw(st.sampled_from([*_LEAVES]))
        return Made(kind, draw(_LEAVES[kind]))
    if shape in ("pydantic", "dataclass"):
        return draw(models(depth - 1, shape))
    inner = draw(made(depth - 1))
    if shape == "optional":
        nothing = draw(st.booleans())
        return Made(Optional[inner.kind], None if nothing else inner.value, inner.loses and not nothing)  # noqa: UP045
    count = draw(st.integers(0, 3))
    if shape == "list":
        return Made(list[inner.kind], [inner.value] * count, inner.loses and count > 0)
    return Made(dict[str, inner.kind], {f"k{i}": inner.value for i in range(count)}, inner.loses and count > 0)


@st.composite
def models(draw: st.DrawFn, depth: int = 3, shape: str | None = None) -> Made:
    """A pydantic model or a dataclass."""
    shape = shape or draw(st.sampled_from(["pydantic", "dataclass"]))
    fields = {f"f{i}": draw(made(depth)) for i in range(draw(st.integers(0, 3)))}
    return draw(_pydantic(fields) if shape == "pydantic" else _dataclass(fields))


@st.composite
def _pydantic(draw: st.DrawFn, fields: dict[str, Made]) -> Made:
    definitions: dict[str, Any] = {name: (field.kind, ...) for name, field in fields.items()}
    given: dict[str, Any] = {name: field.value for name, field in fields.items()}
    loses = any(field.loses for field in fields.values())
    extras = draw(st.sets(st.sampled_from(["unset", "excluded", "private", "child"]), max_size=2))
    if "unset" in extras:
        definitions["unset"] = (int, 7)
    if "excluded" in extras:
        definitions["excluded"] = (int, Field(1, exclude=True))
        given["excluded"] = draw(st.sampled_from([1, 2]))
        loses = loses or given["excluded"] != 1
    base = create_model("Base", **definitions)
    kind: type[BaseModel] = base
    if "private" in extras:
        kind = base = type("Private", (base,), {"__annotations__": {"_own": int}, "_own": PrivateAttr(1)})
    if "child" in extras:
        kind, loses = type("Child", (base,), {}), True
    value = kind(**given)
    if "private" in extras and draw(st.booleans()):
        value._own, loses = 2, True  # type: ignore[attr-defined]
    return Made(base, value, loses)


@st.composite
def _dataclass(draw: st.DrawFn, fields: dict[str, Made]) -> Made:
    kind = dataclasses.make_dataclass(
        "Row", [(name, field.kind) for name, field in fields.items()], slots=draw(st.booleans())
    )
    loses = any(field.loses for field in fields.values())
    more = draw(st.sampled_from(["", "", "child", "set beside"]))
    made_of = type("Child", (kind,), {}) if more == "child" else kind
    value = made_of(*(field.value for field in fields.values()))
    if more == "set beside" and hasattr(value, "__dict__"):
        value.beside, loses = 1, True
    return Made(kind, value, loses or more == "child")


def described(value: Any) -> Any:
    """All that a value is: its type, its parts, what was set on it, private attributes. Equal for equal values only."""
    kind = type(value)
    if isinstance(value, BaseModel):
        private = {**(value.__pydantic_private__ or {})}
        parts = {name: getattr(value, name) for name in kind.model_fields}
        return id(kind), described(parts), described(private), sorted(value.model_fields_set)
    if dataclasses.is_dataclass(kind):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
        return id(kind), described(parts), getattr(value, "beside", None)
    if isinstance(value, dict):
        return kind, [(key, described(item)) for key, item in value.items()]
    if isinstance(value, list):
        return kind, [described(item) for item in value]
    if isinstance(value, (datetime, time)):
        return kind, value.isoformat(), value.fold
    return kind, repr(value)
