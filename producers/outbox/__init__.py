"""The producers of the transactional outbox: an invalidation is a row in the same transaction as the write."""

from cachebus.producers.outbox.producer import Outbox, OutboxProducer
from cachebus.producers.outbox.sync import SyncOutboxProducer, SyncProducer
from cachebus.producers.outbox.table import OutboxTable

__all__ = ["Outbox", "OutboxProducer", "OutboxTable", "SyncOutboxProducer", "SyncProducer"]
