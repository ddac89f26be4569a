"""Templates: text with the columns of a row in it."""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from cachebus.base import templates
from cachebus.base.ids import text_of
from cachebus.consumers.cdc.rules.change import OddText, Row, UnusableChange
from cachebus.errors import ConfigError


class RowTemplate:
    """`RowTemplate("doc:{id}")`: `{id}` stands for the row's column `id`. `ValueError` for a text that is no template.

    It is filled in like the library's own templates. Only text and integers can be part of a name: each source writes
    other values in its own way.
    """

    __slots__ = ("_template", "column", "columns", "fixed", "text")

    def __init__(self, text: str) -> None:
        try:
            self._template = templates.Template(text)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        self.text = self._template.text
        self.columns = frozenset(self._template.fields)
        self.fixed = None if self.columns else self._template.fill({})
        """The text, where it is the same for every row."""
        self.column = next((name for name in self.columns if self.text == f"{{{name}}}"), None)
        """The column whose text it is, where it is nothing else."""

    def fill(self, row: Row) -> str | None:
        """The text for this row; None where a column is null; `UnusableChange` where one is unknown or no text."""
        if self.fixed is not None:
            return self.fixed
        if self.column is not None:
            value = _value(row, self.column)
            return value if value is None else text_of(self.column, value)
        values: dict[str, str | int] = {}
        for name in self._template.fields:
            value = _value(row, name)
            if value is None:
                return None
            values[name] = value
        return self._template.fill(values)

    def __repr__(self) -> str:
        return f"RowTemplate({self.text!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(strict=True))


def _value(row: Row, name: str) -> str | int | None:
    try:
        value = row[name]
    except KeyError:
        raise UnusableChange(f"the column {name!r} is not known: {_remedy(name)}") from None
    if type(value) is str or type(value) is int or value is None:
        return value
    if isinstance(value, OddText):
        raise UnusableChange(f"the column {name!r} holds bytes that the database's encoding has no character for")
    raise UnusableChange(f"the column {name!r} holds neither text nor a whole number")


def _remedy(name: str) -> str:
    return f"the table has none, or its key lacks {name!r} and it has no REPLICA IDENTITY FULL (or no rule says so)"
