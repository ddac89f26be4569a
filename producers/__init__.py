"""Write-path emitters: say from anywhere that data was replaced, without holding a cache."""

from producers.base import Producer
from producers.command import Command, InvalidCommand
from producers.direct import DirectProducer

__all__ = ["Command", "DirectProducer", "InvalidCommand", "Producer"]
