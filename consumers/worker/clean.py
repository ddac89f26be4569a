"""Makes text from outside safe for logs, health and dead letters: one line of printable ASCII, without secrets."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from cachebus.base.masking import masked

LONGEST: Final = 500


def clean(text: str, longest: int = LONGEST) -> str:
    r"""The text in printable ASCII; other characters are escaped, as in "\n" or "\u65e5". So nobody can forge a line of
    a log, every database and broker takes it, and a terminal is not controlled by it. `longest`: where it is cut."""
    shown = text[:longest].encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= longest and len(text) <= longest else f"{shown[: longest - 3]}..."


def describe(error: BaseException) -> str:
    """An error in one line: its type, and the first line of its message. Further lines of databases show values. The
    message of a function in the database may show them too, so the function is named instead."""
    name, said = type(error).__name__, str(error).splitlines()
    if isinstance(context := getattr(error, "context", None), str) and context:
        raised_by = re.search(r'["\w.]+\([^()]*\)', context)
        return clean(f"{name}: raised by {raised_by[0] if raised_by else 'a function of the database'}")
    return clean(f"{name}: {said[0]}") if said else name


def without(text: str, url: str) -> str:
    """The text with `***` where a part of the URL stands in it: passwords, hosts, names, and secrets in a wrong place.
    Public words, ports, and the user before a password stay; so does a word that the text has of itself."""
    _, _, rest = url.partition("://")
    words: set[str] = set()
    for part in re.split(r"[/:@?&=,;#\[\]]", rest):
        words |= {part, unquote(part), *re.split(r"[\s=]", unquote(part))}
    return masked(text, words - _PUBLIC - _shown(rest))


def _shown(rest: str) -> set[str]:
    """The ports and the user of a well-formed URL, which may be shown. `rest`: the URL without its scheme."""
    whole = re.fullmatch(r"(?:([^:/@?]+):([^@/?]+)@)?([\w.,:-]*)(?:[/?].*)?", rest)
    if whole is None:
        return set()
    user, password, hosts = whole.groups()
    ports = set(re.findall(r":(\d{1,5})(?=,|$)", hosts)) - {password}
    return ports | ({user, unquote(user)} - {password, unquote(password)} if user else set())


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
