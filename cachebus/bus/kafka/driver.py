"""The driver's clients, told where brokers are by whichever answers. By itself the driver asks one after another, each
for the whole of its time, and connects to one at a time: a broker that hangs would hold up all that the others lead."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, Final, TypeVar

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaConnectionError, KafkaError, StaleMetadata
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.util import create_task

from cachebus.base.log import logger
from cachebus.bus.kafka.brokers import Brokers, StrangerError
from cachebus.bus.kafka.connection import BrokerAddress
from cachebus.bus.kafka.tokens import DriverConnection
from cachebus.errors import BusUnavailable

Client = TypeVar("Client")
ANY: Final = "any"
"""The id of whichever broker answers."""
SECURITY: Final = (
    "ssl_context",
    "security_protocol",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "sasl_oauth_token_provider",
)
"""The driver's arguments for TLS and SASL."""
CONNECTION: Final = ("client_id", "request_timeout_ms", *SECURITY)
"""What a connection takes over from its client."""


def by_any(client: Client, brokers: Brokers) -> Client:
    """Have one of the driver's clients, which is not started yet, ask these brokers. Whoever made them forgets them."""
    inner: Any = getattr(client, "client", None) or client._client  # type: ignore[attr-defined]
    inner.__class__ = _ClientOfAny
    inner.brokers = brokers
    inner.opening = defaultdict(asyncio.Lock)
    inner.is_closed = False
    return client


class _ClientOfAny(AIOKafkaClient):  # type: ignore[misc]
    """Raises the driver's errors."""

    brokers: Brokers
    _sync_task: asyncio.Task[None] | None
    opening: defaultdict[tuple[Any, Any], asyncio.Lock]
    """By broker and purpose: who connects to it."""
    is_closed: bool
    """Not all that the driver begins has ended when it is closed: what connects then is turned away."""

    async def close(self) -> None:
        """Close all connections, and open no other."""
        self.is_closed = True
        await super().close()

    async def bootstrap(self) -> None:
        """Learn which brokers there are, and go on asking."""
        metadata = await self._asked(MetadataRequest([]))
        self.cluster.update_metadata(metadata)
        self.brokers.know(BrokerAddress(host, port) for _, host, port, *_ in metadata.brokers)
        if self._sync_task is None:
            self._sync_task = create_task(self._md_synchronizer())

    async def _metadata_update(self, cluster: Any, topics: Any) -> bool:
        try:
            metadata = await self._asked(MetadataRequest(list(topics) if topics else None))
            if not metadata.brokers:
                return False
            cluster.update_metadata(metadata)
        except Exception as error:  # noqa: BLE001 (damaged answers raise anything, and the driver would ask no more)
            logger.debug("{}", error)
            cluster.failed_update(None)
            return False
        self.brokers.know(BrokerAddress(host, port) for _, host, port, *_ in metadata.brokers)
        return True

    async def _asked(self, request: Any) -> Any:
        try:
            return await self.brokers.ask(request)
        except BusUnavailable as error:
            if isinstance(error.__cause__, KafkaError):
                raise error.__cause__ from None
            raise KafkaConnectionError(str(error)) from error

    def get_random_node(self) -> str:
        """Whom the driver asks what anybody knows."""
        return ANY

    async def ready(self, node_id: Any, *, group: Any = ConnectionGroup.DEFAULT) -> bool:
        """Whether there is a connection to it now."""
        return node_id == ANY or await super().ready(node_id, group=group)  # type: ignore[no-any-return]

    async def send(self, node_id: Any, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
        """The answer of a broker."""
        return await (self._asked(request) if node_id == ANY else super().send(node_id, request, group=group))

    async def _get_conn(self, node_id: Any, *, group: Any = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
        key = (node_id, group)
        try:
            async with self.opening[key]:
                if self.is_closed:
                    return None
                connection = self._conns.get(key)
                if connection is None or not connection.connected():
                    self._conns.pop(key, None)
                    connection = self._conns[key] = await self._connected(node_id)
                return connection
        except (OSError, TimeoutError, KafkaError) as error:
            logger.debug("the Kafka broker {}: {!r}", node_id, error)
            self.force_metadata_update()
            return None

    async def _connected(self, node_id: Any) -> Any:
        broker = self.cluster.broker_metadata(node_id)
        if broker is None:
            raise StaleMetadata(f"no broker {node_id} is known")
        connection = DriverConnection(
            broker.host,
            broker.port,
            on_close=self._on_connection_closed,
            max_idle_ms=self._connections_max_idle_ms,
            **{name: getattr(self, f"_{name}") for name in CONNECTION},
        )
        is_ours = False
        try:
            await connection.connect()
            said = await connection.send(MetadataRequest([]))
            is_ours = self.brokers.recognise(getattr(said, "cluster_id", None))
        finally:
            if not is_ours or self.is_closed:
                connection.close()
        if not is_ours:
            raise StrangerError(BrokerAddress(broker.host, broker.port))
        return connection
