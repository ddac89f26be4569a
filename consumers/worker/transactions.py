"""What ends a session, or a transaction, of PostgreSQL that holds a worker up: SQL that can be obeyed as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cachebus.consumers.worker.clean import clean

SEVERAL: Final = 5
"""So many sessions are named."""


def ends_session(pid: int) -> str:
    """The SQL that ends a session, and with it what it has open."""
    return f"SELECT pg_terminate_backend({pid});"


def ends_prepared(gid: str, database: str) -> str:
    """Who decides of a prepared transaction, and the SQL that decides where nobody does. It is obeyed in the
    transaction's own database alone."""
    quoted = literal(clean(gid, 2000))
    return (
        f"let the coordinator of {quoted} decide; else, in the database {clean(database)}: COMMIT PREPARED {quoted}; "
        f"or ROLLBACK PREPARED {quoted};"
    )


def ends_either(pid: int, gid: str | None, database: str) -> str:
    """What ends a transaction: of the session `pid`, or the prepared one `gid`, if there is one."""
    return ends_session(pid) if gid is None else ends_prepared(gid, database)


def literal(text: str) -> str:
    """The text, quoted as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def joined(sentences: Iterable[str]) -> str:
    """Sentences in one line, with one semicolon between two of them, also where SQL ends with its own."""
    some = [one for one in sentences if one]
    return " ".join([*(f"{one.removesuffix(';')};" for one in some[:-1]), *some[-1:]])


def workers_named(sessions: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Sessions of other workers, each with its `pid` and `host`, as the end of a sentence; and what ends those whose
    workers are there no more: until TCP gives up, the server takes a host that has vanished for one that is silent."""
    named = sessions[:SEVERAL]
    who = [f"the session {one['pid']}" + (f" from {one['host']}" if one["host"] else "") for one in named]
    more = f" and {len(sessions) - SEVERAL} more" if len(sessions) > SEVERAL else ""
    ends = " ".join(ends_session(one["pid"]) for one in named)
    return f"{', '.join(who)}{more}", f"if its worker's host has vanished, end the session that is left of it: {ends}"
