"""Settings of our own sessions in PostgreSQL, over the defaults of the database and the role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ORDINARY: Final[Mapping[str, str]] = {
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
}
"""ALTER DATABASE and ALTER ROLE may set others, which break a worker:

1. A read-only transaction can neither store nor delete rows.
2. A transaction that keeps its snapshot never sees the commit that it waits for, and fails where two write one row.
"""
# Sent as a statement: poolers refuse settings in the startup packet.
SET: Final = "; ".join(f"SET {name} = '{value}'" for name, value in ORDINARY.items())

_VANISHED: Final[Mapping[str, str]] = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""Of a worker whose host has vanished the server ends the session, with its locks and what it shows, within about
eleven seconds; else once TCP gives up, after hours. Settings that a release lacks are left out by `SETTINGS`."""
VANISHED: Final = ", ".join(f"('{name}', '{value}')" for name, value in _VANISHED.items())
SETTINGS: Final = """
SELECT set_config(s.name, v.value, false) FROM pg_settings s JOIN (VALUES {}) AS v (name, value) USING (name)
"""
