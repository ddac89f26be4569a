"""The relay: it applies the committed rows of an outbox, at least once."""

from __future__ import annotations

from collections.abc import Iterable

from cachebus.cascade import Cascade
from cachebus.consumers.outbox.kinds import source_of
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.worker.cascades import digest
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.settings import Settings


class OutboxRelay(SourceWorker):
    """Takes rows, applies them in L2, and only then deletes them. Several relays share a table. `ConfigError`.

    If it is killed, its rows come again to another relay. What can't be applied is moved to the table of dead letters,
    with the reason. Rows of other namespaces are left alone.
    """

    def __init__(
        self,
        database_url: str,
        settings: Settings,
        cascades: Iterable[Cascade] = (),
        options: RelayOptions | None = None,
    ) -> None:
        source, followed = source_of(database_url, settings.namespace, options or RelayOptions()), tuple(cascades)
        source.followed = digest(followed)
        super().__init__("outbox", source, settings, followed)
