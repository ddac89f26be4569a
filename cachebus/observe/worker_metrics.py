"""Metrics of a service of several workers (extra `metrics`): each serves its own at a port of its own.

Workers that share one port answer a scrape in turn, so that each figure would jump from one's to another's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from cachebus.errors import ConfigError


@contextmanager
def worker_metrics(
    ports: Sequence[int], *, address: str = "127.0.0.1", registry: CollectorRegistry = REGISTRY
) -> Iterator[int]:
    """Serve the metrics of this process at the first of these ports that is free: `with worker_metrics(range(9100,
    9104)) as number:`.

    - `ports`: as many as there may be workers, one more for each that may be replaced while it still ends
    - `address`: where it listens; Prometheus on another machine needs "0.0.0.0"

    Gives the number of the port among them, from 0: that of this worker. One that takes the place of another that has
    ended has its number. Raises `ConfigError` where none is free.
    """
    for number, port in enumerate(ports):
        try:
            server, thread = start_http_server(port, addr=address, registry=registry)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        try:
            yield number
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        return
    raise ConfigError(f"none of the {len(ports)} ports for metrics is free at {address}: give one to each worker")
