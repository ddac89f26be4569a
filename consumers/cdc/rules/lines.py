"""Finds the line of a table or key in a TOML file: Python's parser tells lines for syntax errors only."""

from __future__ import annotations

import re
from collections.abc import Sequence

_header = re.compile(r"^\s*\[\[?\s*([\w.\-\"']+)\s*\]\]?\s*(?:#.*)?$").match
_key = re.compile(r"^\s*[\"']?([\w\-]+)[\"']?\s*(?:=|\.)").match
_string = re.compile(r"\"(?:\\.|[^\"\\])*\"|'[^']*'").sub


class Lines:
    """The lines of a file's tables and keys; the first line is 1."""

    def __init__(self, text: str) -> None:
        self._tables: dict[tuple[str, int], int] = {}
        self._keys: dict[tuple[str, int, str], int] = {}
        counts: dict[str, int] = {}
        table, index, depth, quote = "", 0, 0, ""
        for number, line in enumerate(text.splitlines(), 1):
            inside = bool(depth or quote)
            quote, bare = _outside(line, quote)
            if not inside and (found := _header(line)):
                table = found[1]
                index = counts[table] = counts.get(table, -1) + 1
                self._tables[table, index] = number
                continue
            if not inside and (found := _key(line)):
                self._keys.setdefault((table, index, found[1]), number)
            depth = max(0, depth + sum(bare.count(c) for c in "[{") - sum(bare.count(c) for c in "]}"))

    def of(self, where: Sequence[str | int]) -> int | None:
        """The line of this path: ("rule", 2, "tenant_id") is that key of the third `[[rule]]`. If the key is missing it
        is the line of its table; None if that is missing too."""
        table, *rest = where or ("",)
        index = rest.pop(0) if rest and isinstance(rest[0], int) else 0
        key = str(rest[0]) if rest else ""
        for found in (
            self._keys.get((str(table), int(index), key)),
            self._tables.get((str(table), int(index))),
            self._keys.get(("", 0, str(table))),
        ):
            if found is not None:
                return found
        return None


def _outside(line: str, quote: str) -> tuple[str, str]:
    """The quotes of the multi-line string that is open at the line's end ("" for none), and the part of the line that
    is in no string or comment."""
    bare = ""
    while True:
        if quote:
            _, end, line = line.partition(quote)
            if not end:
                return quote, bare
            quote = ""
        starts = [at for at in (line.find('"""'), line.find("'''")) if at >= 0]
        if not starts:
            return "", bare + _string("", line).partition("#")[0]
        quote = line[min(starts) : min(starts) + 3]
        bare += _string("", line[: min(starts)])
        line = line[min(starts) + 3 :]
