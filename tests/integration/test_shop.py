"""The shop of examples/shop: one service without a cache, over cachebus, and over cashews. All answer alike."""

from __future__ import annotations

import difflib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from cachebus.tools.servers.daemon import free_port
from tests.support.caches import until

SHOP = Path(__file__).parents[2] / "examples" / "shop"
ROOT = SHOP.parents[1]
MOST_LINES = 25


def added(name: str) -> int:
    """How many lines a service has beyond, or other than, the one without a cache."""
    plain, other = ((SHOP / one).read_text().splitlines() for one in ("plain.py", name))
    return sum(line.startswith("+ ") for line in difflib.ndiff(plain, other))


@contextmanager
def served(service: str, folder: Path, redis_url: str) -> Iterator[httpx.Client]:
    """A process of the service, and a client of it for the shop "acme"."""
    port = free_port()
    environment = {
        **os.environ,
        "CACHEBUS_URL": redis_url,
        "DATABASE": str(folder / "shop.db"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(SHOP), f"{service}:app", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"shop": "acme"}, trust_env=False) as client:
                yield client
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
            assert "Traceback" not in errors, errors
        finally:
            process.kill()


def asked(folder: Path) -> int:
    """How often the database was asked."""
    with sqlite3.connect(folder / "shop.db") as connection:
        return int(connection.execute("SELECT count(*) FROM asked").fetchone()[0])


async def answers(client: httpx.Client) -> None:
    async def are_given() -> bool:
        try:
            return client.get("/products/404").status_code == 404
        except httpx.TransportError:
            return False

    await until(are_given)


def product(number: int, cents: int) -> dict[str, object]:
    return {"id": number, "name": f"p{number}", "cents": cents}


@pytest.mark.parametrize("service", ["plain", "with_cachebus", "with_cashews"])
async def test_the_service_answers_with_and_without_a_cache(service: str, redis_url: str, tmp_path: Path) -> None:
    with served(service, tmp_path, redis_url) as one, served(service, tmp_path, redis_url) as two:
        await answers(one)
        await answers(two)
        for number in range(1, 5):
            one.put("/products", json=product(number, 100 * number))
        assert [each["id"] for each in two.get("/products", params={"ids": [4, 9, 1]}).json()] == [4, 1]
        assert two.get("/cheapest").json() == [1, 2, 3]
        before = asked(tmp_path)
        for _ in range(5):
            assert two.get("/products/4").json() == product(4, 400)
            assert two.get("/cheapest").json() == [1, 2, 3]
        assert (asked(tmp_path) - before == 0) is (service != "plain")
        one.put("/products", json=product(4, 1))

        async def is_new() -> bool:
            return (two.get("/products/4").json()["cents"], two.get("/cheapest").json()) == (1, [4, 1, 2])

        await until(is_new)
        assert two.get("/products/4", headers={"shop": "other"}).status_code == 404


def test_the_cache_costs_few_lines() -> None:
    assert 0 < added("with_cachebus.py") <= MOST_LINES
    assert added("with_cachebus.py") <= added("with_cashews.py")
