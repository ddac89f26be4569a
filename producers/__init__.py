"""Write-path emitters: say from anywhere that data was replaced, without holding a cache."""

from producers.direct import DirectProducer

__all__ = ["DirectProducer"]
