"""A fill lease in memory: the twin of the key that the scripts keep."""

from __future__ import annotations


class MemoryFillLease:
    """Who may fill a key, until when, whether somebody waits for its end, and whether the source is left alone."""

    __slots__ = ("cools_down", "epoch", "token", "until_s", "waited")

    def __init__(self, epoch: bytes, token: str, until_s: float) -> None:
        self.epoch, self.token, self.until_s = epoch, token, until_s
        self.waited = self.cools_down = False
