"""The pipeline from a committed write to the caches: PostgreSQL, workers, Kafka. One worker is killed during the
run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.errors import ConfigError
from cachebus.tools.demo.plan import DemoPlan
from cachebus.tools.demo.server import DemoServer
from cachebus.tools.servers.child import end, spawn
from cachebus.tools.servers.daemon import HOST, free_port

DIRECT: Final = "direct"
WORKERS: Final = 2
KILLED_AT, REPLACED_AT = 0.2, 0.3
"""When the worker is killed, and when another is started, as shares of the run. The network incident comes later."""
ROOM_BOUNDS: Final = 4.0
"""How long a run must be for workers, in staleness bounds."""
QUIET_BOUNDS: Final = 2.0
"""At the end nothing is written for so many bounds, so that all writes can reach the caches."""
RULES: Final = "rules.toml"
READY_S: Final = 30.0
POLL_S: Final = 0.05
ASK_S: Final = 1.0


@dataclass
class Pipeline:
    """The servers and workers between the writers and the caches."""

    database: str | None
    kafka: str | None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    """The port of each worker's health endpoint."""
    killed: bool = False
    replaced: bool = False
    command: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def label(self) -> str:
        """For people."""
        parts = [f"Kafka, on {self.kafka}"] if self.kafka else []
        if self.database:
            parts += ["PostgreSQL", f"{len(self.workers)} workers"]
        return ", ".join(parts)

    def due(self, progress: float) -> str | None:
        """Kill a worker, or start another, if that is due at this share (0-1) of the run; returns a line for people
        then. `ConfigError` if a worker ended by itself."""
        if not self.workers:
            return None
        self.check()
        if not self.killed and progress >= KILLED_AT:
            self.killed = True
            self.workers[0].kill()
            return f"worker 1 of {len(self.workers)} is killed (SIGKILL), with whatever it had in hand"
        if self.killed and not self.replaced and progress >= REPLACED_AT:
            self.replaced = True
            self.start()
            return "another worker takes its place"
        return None

    def start(self) -> None:
        """Start one more worker."""
        log, port = self.folder / f"worker-{len(self.workers) + 1}.log", free_port()
        self.workers.append(spawn(self.command, log=log, env={**self.environment, "CACHEBUS_HEALTH_PORT": str(port)}))
        self.ports.append(port)

    def ready(self) -> bool:
        """Whether at least one worker is ready: others may be standing by."""
        return any(map(_is_ready, self.ports))

    def check(self) -> None:
        """Raises `ConfigError`, with the end of its log, if a worker ended by itself."""
        for number, worker in enumerate(self.workers, 1):
            if worker.poll() is not None and not (self.killed and number == 1):
                log = (self.folder / f"worker-{number}.log").read_text(errors="replace").strip()
                raise ConfigError(f"worker {number} ended with status {worker.returncode}: {log[-500:]}")

    def stop(self) -> None:
        """End all workers."""
        for worker in self.workers:
            end(worker)


@asynccontextmanager
async def build_pipeline(
    plan: DemoPlan, server: DemoServer, words: Iterable[int], folder: Path
) -> AsyncIterator[Pipeline | None]:
    """The pipeline of a plan, started; None if writers invalidate by themselves, with Redis alone. `ConfigError`."""
    bus, writes, shortest_s = plan.bus, plan.writes, ROOM_BOUNDS * plan.bound_s
    if bus == "redis" and writes == DIRECT:
        yield None
        return
    if writes != DIRECT and plan.duration_s < shortest_s:
        raise ConfigError(f"{plan.duration_s:g} s are too short for workers: {shortest_s:g} s would do (--duration)")
    async with AsyncExitStack() as stack:
        pipeline = Pipeline(None, None, folder=folder)
        if bus == "kafka":
            from cachebus.tools.servers.kafka import KafkaServer

            kafka = await asyncio.to_thread(KafkaServer)
            stack.callback(kafka.stop)
            await asyncio.to_thread(kafka.start)
            pipeline.kafka = kafka.address
        if writes != DIRECT:
            from cachebus.tools.demo.database import create, rules
            from cachebus.tools.servers.postgres import PostgresServer

            postgres = PostgresServer()
            stack.callback(postgres.stop)
            await asyncio.to_thread(postgres.start)
            pipeline.database = postgres.url
            rows = list(words)
            await create(postgres.url, rows)
            (folder / RULES).write_text(rules(rows))
            await _start_workers(pipeline, writes, server)
            stack.callback(pipeline.stop)
        yield pipeline


async def _start_workers(pipeline: Pipeline, writes: str, server: DemoServer) -> None:
    """Start the workers, and wait until they are ready."""
    pipeline.environment = {name: value for name, value in os.environ.items() if not name.startswith("CACHEBUS_")} | {
        "CACHEBUS_URL": server.url,
        "CACHEBUS_NAMESPACE": server.namespace,
        "CACHEBUS_DATABASE_URL": pipeline.database or "",
        **({"CACHEBUS_BUS": "kafka", "CACHEBUS_KAFKA_BOOTSTRAP_SERVERS": pipeline.kafka} if pipeline.kafka else {}),
    }
    program = [sys.executable, "-P", "-m", "cachebus.cli.main", "worker"]
    if writes == "outbox":
        from cachebus.consumers.outbox import create_tables

        await create_tables(pipeline.database or "")
        pipeline.command = [*program, "outbox"]
    else:
        pipeline.command = [*program, "cdc", "--source", "postgres", "--rules", str(pipeline.folder / RULES)]
    for _ in range(WORKERS):
        pipeline.start()
    deadline_s = monotonic() + READY_S
    while not await asyncio.to_thread(pipeline.ready):
        pipeline.check()
        if monotonic() > deadline_s:
            raise ConfigError(f"no worker is ready after {READY_S:g} s")
        await asyncio.sleep(POLL_S)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health/ready", timeout=ASK_S):
            return True
    except OSError:
        return False
