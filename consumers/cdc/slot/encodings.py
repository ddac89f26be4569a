"""Encodings of databases, for rows that the server can't convert to UTF-8 since some bytes are no characters."""

from __future__ import annotations

from typing import Final

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
