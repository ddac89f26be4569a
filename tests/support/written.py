"""SQL for an outbox, whichever database it is in."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from tests.support.changes import tell


async def asked(outbox: str, *statements: str) -> None:
    """Ask its database for these, one behind the other."""
    if not outbox.startswith("sqlite"):
        await tell(outbox, statements)
        return
    with closing(sqlite3.connect(outbox.removeprefix("sqlite:///"), timeout=10)) as connection, connection:
        for sql in statements:
            connection.execute(sql)
