"""A connection to one broker: asked one thing after another, and closed whole by whoever gives it up."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

from cachebus.base.log import logger
from cachebus.bus.kafka.client import KafkaAccess
from cachebus.errors import BusUnavailable
from cachebus.resp import names

PIECES: Final = 5
"""Patience is spent in so many pieces. A stall of this process costs one of them: the answers that have come meanwhile
are read in the next."""
LONGEST_PAUSE_S: Final = 15.0
"""The longest pause that a broker's quota is believed; by default it asks for eleven seconds at most."""
PORT: Final = 9092
NEVER_MS: Final = 86_400_000
"""The driver's own time limit, which sees no stalls."""


class BrokerAddress(NamedTuple):
    """Where a broker is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses_of(servers: str) -> list[BrokerAddress]:
    """host:port, separated by commas; the port is Kafka's own where there is none."""
    found = (re.fullmatch(r"\s*(\[[^]]*\]|[^:]*)(?::(\d+))?\s*", server) for server in servers.split(","))
    return [BrokerAddress(one[1].strip("[] "), int(one[2] or PORT)) for one in found if one is not None]


def unavailable(access: KafkaAccess, why: object) -> BusUnavailable:
    """The error that says it, with the brokers' addresses; `why`: a text or an error."""
    return BusUnavailable(f"Kafka at {access.servers}: {str(why) or type(why).__name__}")


class KafkaConnection:
    """Raises the driver's errors, and OSError."""

    def __init__(self, driver: Any, address: BrokerAddress) -> None:
        """Use `open`."""
        self._driver = driver
        self.address = address
        self.on_lost: Callable[[], object] | None = None
        """Called once when it is lost, by whichever end."""
        self._pause_until_s = 0.0
        driver._on_close_cb = self._closed

    @classmethod
    async def open(cls, access: KafkaAccess, address: BrokerAddress) -> Self:
        """Connect, within `connect_timeout_s`, TLS and SASL included."""
        from cachebus.bus.kafka.tokens import DriverConnection  # which needs the driver

        arguments = access.arguments()
        del arguments["bootstrap_servers"], arguments["retry_backoff_ms"]
        driver = DriverConnection(*address, **{**arguments, "request_timeout_ms": NEVER_MS})
        try:
            async with asyncio.timeout(access.connect_timeout_s):
                await names.addresses_of(address.host)  # else the driver waits for it in the application's threads
                await driver.connect()
        except BaseException as error:  # it counts as connected before it is logged in
            await dropped(driver)
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"{address} did not answer in {access.connect_timeout_s:g} s") from None
            raise
        return cls(driver, address)

    @property
    def lost(self) -> bool:
        """Whether nothing can be asked any more."""
        return not self._driver.connected()

    @property
    def pause_s(self) -> float:
        """How long nothing should be asked: a quota is used up. Until then the broker reads nothing that is sent."""
        return max(0.0, self._pause_until_s - asyncio.get_running_loop().time())

    async def ask(self, request: Any, patience_s: float) -> Any:
        """The answer, after the pause that is due; `TimeoutError` when there is none in that time, and the connection
        is lost then."""
        await asyncio.sleep(self.pause_s)
        answer = asyncio.ensure_future(self._driver.send(request))
        try:
            for _ in range(PIECES):
                await asyncio.wait([answer], timeout=patience_s / PIECES)
                if answer.done():
                    self._heed(answer.result())
                    return answer.result()
        finally:
            answer.cancel()
        self._driver.close()
        raise TimeoutError(f"{self.address} did not answer in {patience_s:g} s")

    def _heed(self, answer: Any) -> None:
        pause_s = min(getattr(answer, "throttle_time_ms", 0) / 1000, LONGEST_PAUSE_S)
        if pause_s > 0:
            self._pause_until_s = asyncio.get_running_loop().time() + pause_s
            logger.info("the Kafka broker {} has a pause of {:g} s made, by a quota", self.address, pause_s)

    def _closed(self, driver: Any, reason: object) -> None:
        if self.on_lost is not None:
            self.on_lost()

    async def close(self) -> None:
        """Give it back. What is asked fails."""
        await dropped(self._driver)


async def dropped(driver: Any) -> None:
    """Close without a farewell: one that hangs would not take it."""
    if driver._protocol is None:
        return
    transport = driver._protocol._transport
    if transport is not None:
        transport.abort()
    driver.close()
    await asyncio.wait([driver._closed_fut], timeout=1.0)
