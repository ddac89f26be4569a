"""The producer that invalidates in L2 itself, for synchronous code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from cachebus.base.choices import Wait
from cachebus.cascade import Cascade
from cachebus.errors import ConfigError, InvalidationFailed
from cachebus.producers.base import Order, Orders
from cachebus.producers.direct import DirectProducer
from cachebus.producers.outbox.sync import SyncProducer
from cachebus.receipt import Receipt
from cachebus.settings import Settings
from cachebus.threads.crossing import Limit
from cachebus.threads.resident import Resident

USUAL_S = 60.0


class BlockingProducer(Resident[DirectProducer], SyncProducer):
    """Invalidates in L2 itself: `with BlockingProducer.open(url) as producer: producer.invalidate("config", "x", "a")`.

    As `DirectProducer`, from any thread. Made at import time it is opened by its first call, in each process anew: also
    behind a fork. It shares the event loop of `BlockingCache`.
    """

    _WHAT = "producer"

    def __init__(
        self,
        settings: Settings | str | None = None,
        cascades: Iterable[Cascade] = (),
        *,
        timeout_s: float | None = None,
    ) -> None:
        """As `open`."""
        super().__init__(settings)
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0 seconds, not {timeout_s!r}")
        self._cascades = tuple(cascades)
        self._orders = Orders(self.settings.shards, self._cascades, self.settings.default_tenant)
        self._usual = Limit(timeout_s or USUAL_S + 2 * self.settings.staleness_bound_s, InvalidationFailed)
        self._make()  # which says what is wrong with the settings

    @classmethod
    def open(
        cls, settings: Settings | str | None = None, cascades: Iterable[Cascade] = (), *, timeout_s: float | None = None
    ) -> Self:
        """A producer, to be entered by `with`, or called, which opens it. As `DirectProducer.open`.

        `timeout_s`: how long a call waits at most, in seconds, before it raises `InvalidationFailed`; None: a minute,
        and twice the staleness bound.
        """
        return cls(settings, cascades, timeout_s=timeout_s)

    def _make(self) -> DirectProducer:
        return DirectProducer(self.settings, self._cascades)

    def probe(self) -> None:
        """As `DirectProducer.probe`."""
        self._ask(lambda producer: producer.probe())

    def invalidate_type(self, data_type: str, *, wait: Wait | None = None, reason: str | None = None) -> Receipt:
        """Say that a data type is replaced, whatever the tenant. As `Cache.invalidate_type`."""
        return self._ask(lambda producer: producer.invalidate_type(data_type, wait=wait, reason=reason))

    def clear(self, *, wait: Wait | None = None, reason: str | None = None) -> Receipt:
        """Say that everything is replaced, of all tenants. As `Cache.clear`."""
        return self._ask(lambda producer: producer.clear(wait=wait, reason=reason))

    def _send(self, order: Order, wait: Wait | None) -> Receipt:
        return self._ask(lambda producer: producer.send(order.plan, wait))
