"""What our sessions in PostgreSQL do not take from the database or the role that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ORDINARY: Final[Mapping[str, str]] = {
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
}
"""ALTER DATABASE or ALTER ROLE may give others. In a transaction that only reads nothing can be remembered or removed;
one that keeps its snapshot never sees that what it waits for was committed, and fails where two write one row."""
# Not in the startup packet, which poolers refuse.
SET: Final = "; ".join(f"SET {name} = '{value}'" for name, value in ORDINARY.items())
