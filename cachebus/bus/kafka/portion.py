"""How much is asked of one leader at once: over a slow link no more than comes in time."""

from __future__ import annotations

from typing import Final

FETCH_BYTES: Final = 50 * 1024 * 1024
"""The most that comes at once, in all, but for a message that is larger."""
PARTITION_BYTES: Final = 1024 * 1024
"""The most that comes of a partition at once, but for a message that is larger."""
LEAST_BYTES: Final = 16 * 1024
LESS: Final = 4
MORE: Final = 2


class Portion:
    """Less after an answer that did not come in time, and more after each that came in half of it."""

    def __init__(self) -> None:
        self.most_bytes = FETCH_BYTES

    @property
    def least(self) -> bool:
        """Whether no less can be asked for. A batch that is larger comes nevertheless."""
        return self.most_bytes == LEAST_BYTES

    def late(self, partitions: int) -> None:
        """What was asked for of so many partitions was too much."""
        asked_bytes = min(self.most_bytes, partitions * PARTITION_BYTES)
        self.most_bytes = max(LEAST_BYTES, asked_bytes // LESS)

    def came(self, took_s: float, patience_s: float) -> None:
        """It came, and took so long."""
        if took_s < patience_s / MORE:
            self.most_bytes = min(FETCH_BYTES, MORE * self.most_bytes)
