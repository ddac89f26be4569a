"""Producers send invalidations from code that has no cache: straight to L2, by an outbox, or by Kafka."""

from cachebus.producers.base import Producer
from cachebus.producers.blocking import BlockingProducer
from cachebus.producers.command import Command, InvalidCommand
from cachebus.producers.direct import DirectProducer
from cachebus.producers.kafka import KafkaProducer
from cachebus.producers.outbox import Outbox, OutboxProducer, SyncOutboxProducer, SyncProducer

__all__ = [
    "BlockingProducer",
    "Command",
    "DirectProducer",
    "InvalidCommand",
    "KafkaProducer",
    "Outbox",
    "OutboxProducer",
    "Producer",
    "SyncOutboxProducer",
    "SyncProducer",
]
