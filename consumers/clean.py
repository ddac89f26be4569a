"""Text of others as logs, health and dead letters can have it: one line, readable, none of it an instruction."""

from __future__ import annotations

from typing import Final

LONGEST: Final = 500


def clean(text: str, longest: int = LONGEST) -> str:
    r"""The text in printable ASCII, anything else as in "\n" or "\u65e5": so that no line of a log can be forged, every
    database and every broker takes it, and a terminal does nothing by it. Of a longer one the beginning."""
    shown = text[:longest].encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= longest and len(text) <= longest else f"{shown[: longest - 3]}..."


def told(error: BaseException) -> str:
    """An error in a line: its kind, and the first line of what it says. Databases' further lines show values."""
    name, said = type(error).__name__, str(error).splitlines()
    return clean(f"{name}: {said[0]}") if said else name
