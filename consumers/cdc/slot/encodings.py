"""Encodings of databases, for rows that the server can't convert to UTF-8 since some bytes are no characters."""

from __future__ import annotations

from typing import Final

import asyncpg

IN_NO_ENCODING: Final = (asyncpg.UntranslatableCharacterError, asyncpg.CharacterNotInRepertoireError)
_PYTHONS: Final = {
    **{f"LATIN{number}": f"iso8859_{part}" for number, part in enumerate((1, 2, 3, 4, 9, 10, 13, 14, 15, 16), 1)},
    **{f"ISO_8859_{part}": f"iso8859_{part}" for part in (5, 6, 7, 8)},
    **{f"WIN{page}": f"cp{page}" for page in (866, 874, *range(1250, 1259))},
    **{name: name.lower() for name in ("EUC_JP", "EUC_JIS_2004", "EUC_KR")},
    "EUC_CN": "gb2312",
    "KOI8R": "koi8_r",
    "KOI8U": "koi8_u",
    "SQL_ASCII": "utf_8",
    "UTF8": "utf_8",
}


def python_name(encoding: str) -> str:
    """Python's name of a server's encoding. For an unknown one it is ASCII, which all encodings contain."""
    return _PYTHONS.get(encoding.upper(), "ascii")


_TO_THE_SERVERS: Final = {
    "euc_jp": str.maketrans("\u301c\u2016\u2212\xa2\xa3\xac\xa6", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2\uffe4"),
    "euc_jis_2004": str.maketrans("\uffe3\u2015\uffe5\u2985\u2986", "\u203e\u2014\xa5\uff5f\uff60"),
}
"""The characters that Python takes for others than the server does, which converts all other text."""


def decoded(data: bytes, encoding: str) -> str:
    """The text as the server would convert it, with bytes that are no characters as in "\\x81". `encoding`: Python's
    name."""
    text = data.decode(encoding, "backslashreplace")
    others = _TO_THE_SERVERS.get(encoding)
    return text if others is None else text.translate(others)
