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
