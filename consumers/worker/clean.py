"""Text of others as logs, health and dead letters can have it: one line, readable, none of it an instruction."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

LONGEST: Final = 500


def clean(text: str, longest: int = LONGEST) -> str:
    r"""The text in printable ASCII, anything else as in "\n" or "\u65e5": so that no line of a log can be forged, every
    database and every broker takes it, and a terminal does nothing by it. Of a longer one the beginning."""
    shown = text[:longest].encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= longest and len(text) <= longest else f"{shown[: longest - 3]}..."


def describe(error: BaseException) -> str:
    """An error in a line: its kind, and the first line of what it says. Databases' further lines show values."""
    name, said = type(error).__name__, str(error).splitlines()
    return clean(f"{name}: {said[0]}") if said else name


def without(text: str, url: str) -> str:
    """The text with `***` for whatever of it is a part of the URL: a password, and also a user, a host, a name, or what
    somebody has put elsewhere by mistake. Names of its parameters and the loopback stay."""
    _, _, rest = url.partition("://")
    words: set[str] = set()
    for part in re.split(r"[/:@?&=,;#\[\]]", rest):
        words |= {part, unquote(part), *re.split(r"[\s=]", unquote(part))}
    for word in sorted(words - _PUBLIC, key=len, reverse=True):
        if len(word) >= SHORTEST:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "***", text)
    return text


SHORTEST: Final = 3
_PUBLIC: Final = frozenset(
    {
        "localhost",
        "127.0.0.1",
        "host",
        "port",
        "user",
        "password",
        "dbname",
        "database",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslcrl",
        "passfile",
        "options",
        "service",
        "servicefile",
        "target_session_attrs",
        "connect_timeout",
        "application_name",
        "krbsrvname",
        "gsslib",
    }
)
