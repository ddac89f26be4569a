"""The options of a relay."""

from __future__ import annotations

from dataclasses import dataclass

from cachebus.consumers.worker.commands import given
from cachebus.errors import ConfigError
from cachebus.producers.outbox.table import DEFAULT, OutboxTable


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How a relay works. `ConfigError` for options that can't be."""

    table: str = DEFAULT
    """"NAME" or "SCHEMA.NAME"."""
    batch: int = 500
    """The most rows of a batch."""
    poll_interval_s: float = 0.25
    """How often it looks for rows without a notification: those are only a hint, and may be turned off."""
    hold_s: float = 5.0
    """How long a batch may be in hand while L2 does not answer. After that its rows are freed, since an open
    transaction keeps the database from vacuuming."""

    def __post_init__(self) -> None:
        OutboxTable.of(self.table)
        if not 1 <= self.batch <= 10_000:
            raise ConfigError("an outbox relay's batch must be 1 to 10000 rows")
        if not (0.001 <= self.poll_interval_s <= 3600 and 0.05 <= self.hold_s <= 300):
            raise ConfigError("an outbox relay polls every 0.001 to 3600 s, and holds rows for 0.05 to 300 s")

    def found_by(self, namespace: str) -> dict[str, str | None]:
        """The options by which commands find the rows of this namespace; None for defaults."""
        return {"--table": None if self.table == DEFAULT else self.table, "--namespace": given("namespace", namespace)}
