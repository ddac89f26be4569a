"""Write-path emitters: say from anywhere that data was replaced, without holding a cache."""

from producers.base import Producer
from producers.command import Command, InvalidCommand
from producers.direct import DirectProducer
from producers.kafka import KafkaProducer
from producers.outbox import Outbox, OutboxProducer, SyncOutboxProducer, SyncProducer

__all__ = [
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
