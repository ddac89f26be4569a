"""Ids written out of others: text with named placeholders, such as "doc:{id}".

With one placeholder its value is written as it is, so that `f"doc:{id}"` names the same thing. With several, each value
is escaped, or ("1:2", "3") and ("1", "2:3") would be one id in "{a}:{b}": what parts the placeholders (the punctuation
between them; where there is none, the letters), and "%", is percent-encoded as UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from string import Formatter

from cachebus.base.ids import text_of
from cachebus.errors import ConfigError, InvalidKey

_OF_ESCAPES = frozenset("%0123456789ABCDEF")
"""What escapes are made of can't part two values: it stands in them."""


class Template:
    """`Template("{book}:{page}").fill({"book": "a:b", "page": 7})` is "a%3Ab:7".

    No two different fillings of one template give the same text. `text` is as it was given, `fields` are the
    placeholders in their order. `ConfigError` for an empty text, a placeholder without a name or with a format or
    conversion, and for two placeholders that nothing parts.
    """

    __slots__ = ("_codes", "_end", "_parts", "fields", "text")

    def __init__(self, text: str) -> None:
        if not issubclass(type(text), str):
            raise ConfigError(f"a template is text, not {type(text).__name__}")
        self.text = str.__str__(text)
        if not self.text:
            raise ConfigError("a template is empty")
        self._parts: list[tuple[str, str]] = []
        """Each placeholder with the literal text before it."""
        before = ""
        for literal, field in _parsed(self.text):
            before += literal
            if field is not None:
                self._parts.append((before, field))
                before = ""
        self._end = before
        self.fields = tuple(field for _, field in self._parts)
        self._codes = self._escapes()

    def fill(self, values: Mapping[str, object]) -> str:
        """The text with these values in it, each written by what it is; `InvalidKey` for one that is no id."""
        made: list[str] = []
        for before, field in self._parts:
            try:
                value = values[field]
            except KeyError:
                raise InvalidKey(f"nothing for {{{field}}} in {self.text!r}") from None
            text = text_of(field, value)
            made += (before, text.translate(self._codes) if self._codes else text)
        return "".join((*made, self._end))

    def _escapes(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for (_, first), (between, second) in pairwise(self._parts):
            parting = [c for c in between if not c.isalnum() and c != "%"] or set(between) - _OF_ESCAPES
            if not parting:
                raise ConfigError(
                    f"{self.text!r}: nothing parts {{{first}}} and {{{second}}}: "
                    f'"1" and "23" would be the same id as "12" and "3"; put a ":" between them'
                )
            for character in (*parting, "%"):
                encoded = character.encode("utf-8", "surrogatepass")
                found[ord(character)] = "".join(f"%{byte:02X}" for byte in encoded)
        return found

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def _parsed(text: str) -> Iterator[tuple[str, str | None]]:
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}; a brace itself is written twice") from None
    for literal, field, spec, conversion in parsed:
        if field == "":
            raise ConfigError(f"{text!r}: a placeholder has a name between its braces")
        if spec or conversion:
            raise ConfigError(
                f"{text!r}: the placeholder {{{field}}} takes neither format nor conversion, only its name"
            )
        yield literal, field
