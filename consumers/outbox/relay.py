"""From committed rows of an outbox to every cache, at least once."""

from __future__ import annotations

from collections.abc import Iterable

from cachebus.cascade import Cascade
from cachebus.consumers.outbox.kinds import source_of
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.settings import Settings


class OutboxRelay(SourceWorker):
    """Takes rows, applies them in L2, and only then lets them go; several share a table's work. `ConfigError`.

    Killed anywhere, its rows come again to whoever is there. What can't be applied is moved to the table of the dead
    with the reason; rows of other namespaces are left alone.
    """

    def __init__(
        self,
        database_url: str,
        settings: Settings,
        cascades: Iterable[Cascade] = (),
        options: RelayOptions | None = None,
    ) -> None:
        source = source_of(database_url, settings.namespace, options or RelayOptions())
        super().__init__("outbox", source, settings, cascades)
