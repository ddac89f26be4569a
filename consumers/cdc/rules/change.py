"""A change of one row, whatever source it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Op = Literal["insert", "update", "delete", "truncate"]
OPS: Final[tuple[Op, ...]] = ("insert", "update", "delete", "truncate")
Row = Mapping[str, Any]
LONGEST_KEPT: Final = 8192
"""Characters of a value in a dead letter. No name is as long, and a letter of hundreds of MB could be kept nowhere."""


class OtherText(str):
    """The text of a value that is neither text nor an integer. It can be compared, but it can't be part of a name,
    since each source writes it in its own way."""

    __slots__ = ()


class OddText(OtherText):
    """Text with bytes that its database's encoding has no character for, which are written as in "\\x81"."""

    __slots__ = ()


class UnusableChange(ValueError):
    """The data is no row change, or lacks what a rule needs. The message names the column, and shows no value."""


class RowChange(NamedTuple):
    """What happened to one row, or (truncate) to all rows of a table.

    A row has only the columns whose values are known. `old` may be None, or have the key alone, as the table's REPLICA
    IDENTITY says. `new` may lack large values that an update did not change.
    """

    op: Op
    schema: str
    table: str
    new: Row | None = None
    old: Row | None = None
    position: str = ""
    """Its position in the source: an LSN, or a topic's partition and offset."""
    committed_at_s: float | None = None
    """When it was committed, in Unix seconds, where that is known."""
    sure: frozenset[str] | None = None
    """The columns of `old` that are real, where the source may have made up others; None: all of them."""

    def only_sure(self) -> RowChange:
        """The change without values that the source may have made up."""
        if self.sure is None or self.old is None:
            return self
        return self._replace(old={name: value for name, value in self.old.items() if name in self.sure}, sure=None)

    def without_nulls(self) -> RowChange:
        """The change without the nulls of its old row, where they may stand for values that are not told."""
        if self.old is None:
            return self
        return self._replace(old={name: value for name, value in self.old.items() if value is not None})

    def before(self) -> Row | None:
        """The row before the change. Unknown values are taken from the new row."""
        if self.old is None or self.op != "update" or self.new is None:
            return self.old
        return {**self.new, **self.old}

    def after(self) -> Row | None:
        """The row after the change. Large values that an update did not change are taken from the old row."""
        if self.new is None or self.op != "update" or self.old is None:
            return self.new
        return {**self.old, **self.new}

    def touched(self, columns: frozenset[str]) -> bool:
        """Whether an update changed one of these columns, or may have, where a value is not known."""
        if self.op != "update" or self.old is None or self.new is None:
            return True
        return any(name not in self.old or self.old[name] != self.new[name] for name in columns if name in self.new)

    def payload(self) -> bytes:
        """The change as JSON, for a dead letter; `parse_change` reads it. Of values that are too long for any name only
        their length is told: an old one is left out, so that it counts as changed."""
        found = {
            "op": self.op,
            "schema": self.schema,
            "table": self.table,
            "new": _plain(self.new),
            "old": _plain(self.old and {name: value for name, value in self.old.items() if not _is_long(value)}),
            "position": self.position,
            "committed_at_s": self.committed_at_s,
        }
        return json.dumps({name: value for name, value in found.items() if value not in (None, "")}).encode()


def _plain(row: Row | None) -> dict[str, Any] | None:
    """The row for JSON, in which `OtherText` stays distinct from text."""
    return None if row is None else {name: _as_json(value) for name, value in row.items()}


def _as_json(value: Any) -> Any:
    if _is_long(value):
        return {"text": f"({len(value)} characters are left out)"}
    return {"text": str(value)} if isinstance(value, OtherText) else value


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > LONGEST_KEPT


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    op: Op
    schema_: str = Field(alias="schema", min_length=1)
    table: str = Field(min_length=1)
    new: dict[str, Any] | None = None
    old: dict[str, Any] | None = None
    position: str = ""
    committed_at_s: float | None = None


def parse_change(data: bytes | str) -> RowChange:
    """The change in this JSON, as `RowChange.payload` writes it; `UnusableChange`."""
    try:
        plain = _Plain.model_validate_json(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" if problem["loc"] else str(problem["msg"])
            for problem in error.errors(include_url=False)
        )
        raise UnusableChange(f"no row change: {problems}") from None
    fields = plain.model_dump(by_alias=True)
    return RowChange(**fields)
