"""How many shards a namespace has: an operator need not know."""

from __future__ import annotations

from cachebus.errors import L2Unavailable
from cachebus.settings import Settings
from cachebus.tools.doctor.facts import Asker
from cachebus.tools.doctor.namespace import shard_count
from cachebus.tools.doctor.primaries import primaries_of


async def shards_of_namespace(settings: Settings) -> int:
    """As its meta says; what the settings say where there is none. `L2Unavailable`."""
    primary = next((each for each in await primaries_of(settings) if each.first == 0), None)
    if primary is None:
        raise L2Unavailable(f"no server has the slot of shard 0 of {settings.namespace}")
    asker = await Asker.open(primary.address, settings.connect_timeout_s)
    try:
        return await shard_count(asker, settings)
    finally:
        asker.close()
