"""Several workers of one service, as uvicorn runs them: each a node, and each with metrics, under its own number."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest, make_asgi_app

from cachebus import Cache, ConfigError, lifespan
from cachebus.observe.prometheus import CacheCollector
from cachebus.observe.worker_metrics import worker_metrics
from cachebus.tools.servers.daemon import free_port
from tests.support.caches import quick, until
from tests.support.command import ROOT, ran
from tests.support.pages import DOCS, file


def scraped(port: int) -> str:
    """What Prometheus is told there; "" where nobody is."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def ports_in_a_row(count: int) -> range:
    """Free ones."""
    for _ in range(50):
        first = free_port()
        try:
            for port in range(first, first + count):
                with worker_metrics([port], registry=CollectorRegistry()):
                    pass
        except ConfigError:
            continue
        return range(first, first + count)
    raise AssertionError("no free ports in a row")


@contextmanager
def served(folder: Path, ports: range, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The service of the page, by two workers."""
    code = file(DOCS / "howto/monitoring.md", "service.py")
    (folder / "service.py").write_text(code.replace("range(9100, 9104)", repr(ports)))
    command = [sys.executable, "-m", "uvicorn", "service:app", "--workers", "2", "--port", str(free_port())]
    with subprocess.Popen(
        [*command, "--app-dir", str(folder), "--log-level", "warning"],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        cwd=folder,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def spawned(pid: int) -> list[int]:
    """Its workers: children that are no helpers of Python's."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def test_each_worker_shows_as_itself(redis_url: str, tmp_path: Path) -> None:
    ports, name = ports_in_a_row(3), f"workers-{token_hex(4)}"
    (folder := tmp_path / "tmp").mkdir()
    environment = {"CACHEBUS_URL": redis_url, "CACHEBUS_NAMESPACE": name, "CACHEBUS_STALENESS_BOUND_S": "4"}

    def labels(port: int) -> str:
        lines = [line for line in scraped(port).splitlines() if line.startswith("cachebus_l1_entries{")]
        return lines[0].partition(" ")[0] if lines else ""

    def expected(number: int) -> str:
        return f'cachebus_l1_entries{{node="orders",worker="{number}"}}'

    def nodes() -> list[str]:
        status, out, errors = ran("nodes", "--json", "--url", redis_url, "--namespace", name, folder=folder)
        assert (status, errors) == (0, "")
        return sorted(json.loads(line)["node"].rpartition("-")[0] for line in out.splitlines())

    async def both() -> bool:
        told = [await asyncio.to_thread(labels, port) for port in ports]
        return told == [expected(0), expected(1), ""]

    with served(tmp_path, ports, environment) as process:
        await until(both, within_s=60.0)
        assert await asyncio.to_thread(nodes) == ["orders-0", "orders-1"]
        before = spawned(process.pid)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)

        async def another() -> bool:
            return len(set(spawned(process.pid)) - set(before)) == 1 and await both()

        await until(another, within_s=60.0)  # in the place of the one that was killed, under its number


async def test_the_service_of_the_page_may_be_started_twice_in_one_process() -> None:
    """As a suite starts it."""
    scope, (port, *_) = dict[str, Any](), ports_in_a_row(1)
    code = file(DOCS / "howto/monitoring.md", "service.py").replace("range(9100, 9104)", f"[{port}]")
    exec(code.replace("Settings(", "Settings(url='memory://', "), scope)
    for _ in range(2):
        async with scope["running"](scope["app"]):
            assert "cachebus_flights{" in await asyncio.to_thread(scraped, port)


async def test_there_is_a_port_for_each_or_it_says_so() -> None:
    ports = ports_in_a_row(2)
    with worker_metrics(ports, registry=CollectorRegistry()) as first:
        with worker_metrics(ports, registry=CollectorRegistry()) as second:
            assert (first, second) == (0, 1)
            with pytest.raises(ConfigError, match="none of the 2 ports"), worker_metrics(ports):
                pass
        with worker_metrics(ports, registry=CollectorRegistry()) as again:
            assert again == 1


def test_the_multiprocess_mode_leaves_a_cache_out(tmp_path: Path) -> None:
    """As the page says. Should it ever not, the page is to be written anew."""
    code = (
        "import asyncio\n"
        "from cachebus import Cache\n"
        "from cachebus.observe.prometheus import CacheCollector\n"
        "from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest, multiprocess\n"
        "async def main():\n"
        "    async with Cache.open('memory://') as cache:\n"
        "        REGISTRY.register(CacheCollector(cache.stats))\n"
        "        Counter('mine', 'of the service').inc()\n"
        "        registry = CollectorRegistry()\n"
        "        multiprocess.MultiProcessCollector(registry)\n"
        "        print(b'mine_total 1.0' in generate_latest(registry), b'cachebus' in generate_latest(registry))\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


async def test_a_collector_carries_labels_and_the_name() -> None:
    registry = CollectorRegistry()
    async with Cache(quick("memory://")) as cache, Cache(quick("memory://")) as other:
        registry.register(CacheCollector(cache.stats, labels={"node": "orders", "worker": 3}))
        registry.register(CacheCollector(other.stats, name="other", labels={"node": "orders", "worker": 3}))
        text = generate_latest(registry).decode()
    assert 'cachebus_flights{node="orders",worker="3"} 0.0' in text
    assert 'cachebus_flights{cache="other",node="orders",worker="3"} 0.0' in text


async def test_the_metrics_application_mounted_in_a_service(redis_url: str) -> None:
    registry, app = CollectorRegistry(), FastAPI()
    app.mount("/metrics", make_asgi_app(registry))

    @app.get("/plain")
    def plain() -> str:
        return generate_latest(registry).decode()

    async with lifespan(quick(redis_url)) as cache:
        registry.register(CacheCollector(cache.stats, labels={"worker": 0}))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            for text in ((await client.get("/metrics/")).text, (await client.get("/plain")).json()):
                assert 'cachebus_flights{worker="0"} 0.0' in text
