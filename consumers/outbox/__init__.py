"""The transactional outbox, the reader's end: from committed rows to every cache."""

from consumers.outbox.kinds import create_tables, replay
from consumers.outbox.options import RelayOptions
from consumers.outbox.relay import OutboxRelay

__all__ = ["OutboxRelay", "RelayOptions", "create_tables", "replay"]
