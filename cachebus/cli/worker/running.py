"""What all workers' commands share: their options, their log, and how they are run."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from loguru import logger

from cachebus.base.log import logger as log
from cachebus.cascade import Cascade
from cachebus.cli.worker.checking import check, is_asked
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from cachebus.consumers.worker.worker import Worker

NOT_DRAINED: Final = 1
LOG_FORMAT: Final = "{time:YYYY-MM-DDTHH:mm:ss.SSSZ} {level} {message}"

HealthPort = Annotated[
    int,
    typer.Option(
        "--health-port",
        min=0,
        max=65535,
        envvar="CACHEBUS_HEALTH_PORT",
        help="Where /metrics, /health/live and /health/ready are; 0: nowhere.",
    ),
]
HealthHost = Annotated[
    str,
    typer.Option(
        "--health-host", envvar="CACHEBUS_HEALTH_HOST", help="The address they listen on; 0.0.0.0 for all of them."
    ),
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        "--drain-timeout",
        min=0.0,
        metavar="SECONDS",
        envvar="CACHEBUS_DRAIN_TIMEOUT_S",
        help="How long it may take to finish after SIGTERM.",
    ),
]
Cascades = Annotated[
    Path | None,
    typer.Option(
        "--cascades",
        metavar="FILE",
        envvar="CACHEBUS_CASCADES",
        show_default=False,
        help="Cascades ([[cascade]] in TOML) to follow beside those that a producer followed.",
    ),
]


def cascades_of(path: Path | None) -> list[Cascade]:
    """The cascades of a file, none without one; `ConfigError`."""
    if path is None:
        return []
    from cachebus.consumers.worker.cascades import load_cascades

    return load_cascades(path)


def _abort() -> None:
    """End the process as it is: whatever a worker has in hand may be cut off anywhere."""
    sys.stderr.flush()
    os._exit(NOT_DRAINED)


def run_worker(
    make: Callable[[], Worker], starts: str, *, health_port: int, health_host: str, drain_timeout_s: float
) -> None:
    """Make the worker inside an event loop, run it until it is drained, and end with the exit status that tells how:
    0 drained, 1 ended before that. What is wrong with the set-up is raised as `ConfigError`.

    `starts`: what it reads and for which Redis, without secrets: the log's first line.
    """
    try:
        from cachebus.consumers.monitoring.endpoint import Endpoint
        from cachebus.consumers.worker.clean import clean
        from cachebus.consumers.worker.worker import seldom_collected, serve
    except ImportError as missing:
        raise ConfigError(f"a worker needs {missing.name}: pip install 'cachebus[worker]'") from None
    if is_asked():
        check(make)
    logger.remove()
    logger.add(sys.stderr, level="INFO", format=LOG_FORMAT, diagnose=False, backtrace=False)
    log.use("loguru", for_good=True)

    async def main() -> bool:
        endpoint = Endpoint(health_port, health_host) if health_port else None
        worker = make()
        at = f"health and metrics on {health_host}:{health_port}" if health_port else "no health, no metrics"
        log.info("{}: {}; {}", worker.name, clean(starts, 1000), at)
        with seldom_collected():
            return await serve(worker, endpoint, drain_timeout_s=drain_timeout_s, abort=_abort)

    raise typer.Exit(0 if asyncio.run(main()) else NOT_DRAINED)
