"""`cachebus explain`: why a read of a key gives what it gives, on each node."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NoReturn

import typer

from cachebus.assembly.backends import redis_store
from cachebus.base.clock import monotonic
from cachebus.cli.operate.get import Agent, AsJson, Collection, Conversation, DataType, Ids, ResourceId, Tenant
from cachebus.cli.operate.layout import layout_of
from cachebus.cli.operate.listening import bus_of
from cachebus.cli.operate.stored import elsewhere
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.errors import BusUnavailable, L2Unavailable
from cachebus.keys.key import Keyspace
from cachebus.keys.naming import Naming
from cachebus.listening.explain import KeyExplainer
from cachebus.listening.explanation import Explanation
from cachebus.listening.inquiries import Inquiries
from cachebus.observe import Counters
from cachebus.settings import Settings
from cachebus.tools.doctor.primaries import route_to

NOT_CACHED: Final = 1


def explain(
    data_type: DataType,
    resource_id: ResourceId,
    tenant: Tenant = None,
    agent: Agent = None,
    conversation: Conversation = None,
    collection: Collection = None,
    as_json: AsJson = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Say why a read gives what it gives: what L2 has for a key, which invalidations touched it last, when, by whom and
    why, and which nodes hold it and may serve it, until when. The first line is the verdict.

    It asks every node over the bus, for a second at most. Of one that does not answer it says what its row in L2
    proves. It changes nothing. Values are never told.

    Exit status: 0, 1 if nothing valid is cached and no node that answered holds it, 2 if the server could not be
    reached or the key is none.
    """
    settings = settings_for(url, namespace)
    found = until_signalled(_explained(settings, (data_type, resource_id, tenant, agent, conversation, collection)))
    sys.stdout.write((json.dumps(found.as_dict()) if as_json else str(found)) + "\n")
    raise typer.Exit(0 if found.cached else NOT_CACHED)


async def _explained(settings: Settings, ids: Ids) -> Explanation:
    layout = await layout_of(settings)
    settings = layout.over(settings)
    key = Naming(Keyspace(settings.shards), settings.default_tenant).key(*ids)

    async def found_elsewhere() -> str:
        with suppress(L2Unavailable):  # other keys may not be looked at by this user, or at this primary
            return await elsewhere(settings, key)
        return ""

    async with _explainer(settings, key.shard, layout.bus) as explainer:
        return await explainer.explain(key, found_elsewhere)


class _NoCarrier:
    """Stands for a bus that these settings do not lead to."""

    store_publishes = False

    def __init__(self, bus: str) -> None:
        self._why = f"the events go over {bus}: set CACHEBUS_BUS={bus}, and all that it needs, as the nodes have it"

    def trouble(self, shard: int) -> str:
        """Why nothing is carried."""
        return self._why

    async def publish(self, shard: int, message: bytes) -> None:
        """Never called."""

    async def close(self) -> None:
        """Nothing to close."""

    def answers(self, shard: int, question: str, *, sharded: bool) -> NoReturn:
        """Say so; `BusUnavailable`."""
        raise BusUnavailable(self._why)


@asynccontextmanager
async def _explainer(settings: Settings, shard: int, bus: str) -> AsyncIterator[KeyExplainer]:
    """Who looks and asks, connected to what has the shard; `L2Unavailable`."""
    route = await route_to(settings)
    store, inquiries = redis_store(settings, route, monotonic), Inquiries(monotonic, answers=False)
    carrier = bus_of(settings, route, inquiries.take, Counters()) if bus == settings.bus else _NoCarrier(bus)
    try:
        await store.reach(shard)
        yield KeyExplainer(store, carrier, inquiries, monotonic)
    finally:
        try:
            await carrier.close()
        finally:
            await store.close()
