"""Templates: text with the columns of a row in it."""

from __future__ import annotations

from string import Formatter
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from consumers.cdc.change import Row, UnusableChange


class Template:
    """`Template("doc:{id}")`: `{id}` stands for the row's column `id`. `ValueError` for what is none.

    Only text and whole numbers can be part of a name: what else a column holds is written differently by each source.
    """

    __slots__ = ("_parts", "columns", "text")

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("is empty")
        self.text = text
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}; a brace itself is written twice") from None
        for _, name, spec, conversion in parsed:
            if spec or conversion:
                raise ValueError(f"{text!r}: a column takes no format, only its name")
            if name == "":
                raise ValueError(f"{text!r}: name a column between the braces")
        self._parts = [(literal, name) for literal, name, _, _ in parsed]
        self.columns = frozenset(name for _, name in self._parts if name is not None)

    def fill(self, row: Row) -> str | None:
        """The text for this row; None where a column is null; `UnusableChange` where one is unknown or no text."""
        if len(self._parts) == 1 and not self._parts[0][0]:  # a column alone, the usual case
            return _text(row, self._parts[0][1] or "")
        made = []
        for literal, name in self._parts:
            made.append(literal)
            if name is not None:
                value = _text(row, name)
                if value is None:
                    return None
                made.append(value)
        return "".join(made)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(strict=True))


def _text(row: Row, name: str) -> str | None:
    try:
        value = row[name]
    except KeyError:
        raise UnusableChange(f"the column {name!r} is not known: {_remedy(name)}") from None
    if value is None or type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    raise UnusableChange(f"the column {name!r} holds neither text nor a whole number")


def _remedy(name: str) -> str:
    return f"the table has none, or its key lacks {name!r} and it has no REPLICA IDENTITY FULL (or no rule says so)"
