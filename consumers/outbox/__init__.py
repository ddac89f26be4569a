"""The relay of the transactional outbox: it applies committed rows, and deletes them."""

from cachebus.consumers.outbox.kinds import create_tables, replay
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.relay import OutboxRelay

__all__ = ["OutboxRelay", "RelayOptions", "create_tables", "replay"]
