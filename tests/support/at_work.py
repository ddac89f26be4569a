"""A worker at work on a source in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cachebus.consumers.worker.source_worker import SourceWorker
from tests.support.caches import quick
from tests.support.memory_source import MemorySource


def invalidation(resource_id: Any, data_type: str = "config", **more: Any) -> bytes:
    """One resource's."""
    command = {"op": "invalidate", "tenant_id": "acme", "data_type": data_type, "resource_id": resource_id}
    return json.dumps(command | more).encode()


@asynccontextmanager
async def at_work(source: MemorySource, url: str, **settings: Any) -> AsyncIterator[SourceWorker]:
    """A worker, drained at the end, which must succeed."""
    worker = SourceWorker("test", source, quick(url, **settings))
    task = asyncio.create_task(worker.run())
    try:
        yield worker
        assert not task.done(), task.exception()
        worker.drain()
        await asyncio.wait_for(task, 10)
    finally:
        task.cancel()
        await asyncio.wait([task])
