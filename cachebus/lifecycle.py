"""A cache's parts brought to life, looked at, and brought to rest."""

from __future__ import annotations

import asyncio

from loguru import logger

from cachebus.errors import BusUnavailable, CacheBusError, L2Unavailable
from cachebus.factory import Parts
from cachebus.observe import Stats


async def attach(parts: Parts) -> None:
    """Connect, listen, read where every shard is, and begin to tend; `L2Unavailable`, `ProtocolMismatch`."""
    settings = parts.settings
    trouble: BaseException | None = None
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            await parts.heartbeat.attach()
    except (L2Unavailable, BusUnavailable) as error:
        trouble = error
    except TimeoutError:
        trouble = L2Unavailable(f"no answer in {settings.connect_timeout_s:g} s")
    if trouble is not None:
        if not settings.start_degraded:
            raise L2Unavailable(f"{trouble} (at start, {settings.safe_url})") from trouble
        logger.warning("starting degraded, without L2: {}", trouble)
    parts.heartbeat.start()


async def stop(parts: Parts) -> None:
    """Let loads end, hand leases back, leave the fleet, disconnect. Cancelled meanwhile, it does so at once."""
    settings = parts.settings
    try:
        await parts.reader.flights.close(settings.close_timeout_s)
        await parts.heartbeat.stop()
        if settings.enabled:
            there = [shard.index for shard in parts.node.shards if shard.epoch]
            leaving = (parts.store.leave(shard, parts.node.caller(shard)) for shard in there)
            for trouble in await asyncio.gather(*leaving, return_exceptions=True):
                if trouble is not None:
                    raise trouble
    except CacheBusError as error:  # out of reach, or laid out anew by others
        logger.debug("could not take leave of L2: {}", error)
    finally:
        parts.heartbeat.cancel()
        await parts.bus.close()
        await parts.store.close()
        parts.node.l1.clear()


def is_ready(parts: Parts) -> bool:
    """Whether every shard's lease is live."""
    now_s = parts.node.clock()
    return not parts.settings.enabled or all(now_s < shard.valid_until for shard in parts.node.shards)


def figures(parts: Parts) -> Stats:
    """All counters, and how things stand now."""
    node, counters = parts.node, parts.node.counters
    hits = node.l1_hits()
    types = {t: counters.of(t).snapshot(hits.get(t, 0)) for t in sorted({*counters.types, *hits})}
    counts = {
        name: getattr(counters, name)
        for name in Stats.__dataclass_fields__
        if isinstance(getattr(counters, name, None), int)
    }
    return Stats(
        node=node.id,
        types=types,
        shards=node.shard_stats(node.clock()),
        l1_entries=len(node.l1),
        l1_bytes=node.l1.bytes,
        l1_evictions=node.l1.evictions,
        flushes=dict(counters.flushes),
        l2_connected=parts.store.connected,
        bus_connected=parts.bus.connected,
        flights=len(parts.reader.flights),
        load_latency=counters.load_latency.snapshot(),
        l2_latency=counters.l2_latency.snapshot(),
        bus_lag=counters.bus_lag.snapshot(),
        **counts,
    )
