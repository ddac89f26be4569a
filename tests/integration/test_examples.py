"""What lies in examples/ runs, and does what it says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from cachebus import Cache
from cachebus.tools.servers.daemon import free_port
from tests.conftest import connected
from tests.support.caches import until
from tests.support.command import cachebus, ran

EXAMPLES = Path(__file__).parents[2] / "examples"
ROOT = EXAMPLES.parent


@contextmanager
def service(folder: Path, redis_url: str) -> Iterator[str]:
    """A process of the service, and its address."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_service:app", "--port", str(port)]
    environment = {
        **os.environ,
        "CACHEBUS_URL": redis_url,
        "DATABASE": str(folder / "agents.db"),
        "PYTHONPATH": f"{ROOT}",
    }
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
            assert "Traceback" not in errors, errors
        finally:
            process.kill()


async def test_two_processes_of_the_service_agree(redis_url: str, tmp_path: Path) -> None:
    with service(tmp_path, redis_url) as one, service(tmp_path, redis_url) as two:
        async with httpx.AsyncClient(trust_env=False) as client:

            async def is_ready(address: str) -> bool:
                try:
                    return (await client.get(f"{address}/health/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            async def both() -> bool:
                return await is_ready(one) and await is_ready(two)

            await until(both, within_s=30)
            assert (await client.get(f"{two}/acme/agents/a7")).status_code == 404
            for name in ("Ada", "Grace"):
                written = await client.put(f"{one}/acme/agents/a7", params={"name": name})
                receipt = {"Cache-Receipt": written.headers["Cache-Receipt"]}
                read = await client.get(f"{two}/acme/agents/a7", headers=receipt)
                assert read.json() == {"id": "a7", "name": name}


async def test_a_committed_row_reaches_the_cache_by_the_outbox(database: str, redis_url: str, tmp_path: Path) -> None:
    environment = {"CACHEBUS_URL": redis_url, "CACHEBUS_DATABASE_URL": database, "CACHEBUS_HEALTH_PORT": "0"}
    status, _, errors = ran("worker", "outbox", "--create-table", folder=tmp_path, env=environment)
    assert status == 0, errors
    with cachebus("worker", "outbox", folder=tmp_path, env=environment) as worker:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, EXAMPLES / "outbox_postgres.py"],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        worker.signal(signal.SIGTERM)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the cache has Ada\nthe cache has Grace\n"


async def test_the_rules_of_the_worker_name_what_changed(database: str, redis_url: str, tmp_path: Path) -> None:
    rules = str(EXAMPLES / "cdc_worker.toml")
    status, out, errors = ran("worker", "cdc", "--check", rules, folder=tmp_path)
    assert status == 0, errors
    assert "1 rules" in out
    environment = {"CACHEBUS_URL": redis_url, "CACHEBUS_DATABASE_URL": database}
    port = free_port()
    async with connected(database) as connection, Cache.open(redis_url) as cache:
        await connection.execute(
            "CREATE TABLE product (tenant text, id bigint, price numeric, PRIMARY KEY (tenant, id))"
        )
        await connection.execute("INSERT INTO product VALUES ('acme', 7, 10)")
        started = ("worker", "cdc", "--source", "postgres", "--rules", rules, "--health-port", str(port))
        with cachebus(*started, folder=tmp_path, env=environment) as worker:
            await until(lambda: _is_ready(port), within_s=30)
            await cache.set("product", 7, "cached", tenant_id="acme")
            await cache.set("product_list", "all", "cached", tenant_id="acme")
            await connection.execute("DELETE FROM product WHERE id = 7")

            async def gone() -> bool:
                found = [await cache.get(*key, tenant_id="acme") for key in (("product", 7), ("product_list", "all"))]
                return found == [None, None]

            await until(gone)
            worker.signal(signal.SIGTERM)


async def _is_ready(port: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            answer = await client.get(f"http://127.0.0.1:{port}/health/ready")
        except httpx.TransportError:
            return False
    return answer.status_code == 200 and bool(json.loads(answer.text))
