"""The README's code does what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import cachebus
from cachebus import producers

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(needle: str) -> str:
    """The one block of code that has this in it."""
    found = [code for code in BLOCKS if needle in code]
    assert len(found) == 1, f"{len(found)} blocks of the README have {needle!r}"
    return found[0]


async def run_inside(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block's statements inside a coroutine; gives its local variables."""
    body = textwrap.indent(code, "    ")
    scope: dict[str, Any] = dict(names)
    exec(f"async def block():\n{body}\n    return locals()", scope)
    found: dict[str, Any] = await scope["block"]()
    return found


def test_a_second_process_sees_the_firsts_invalidation(redis_url: str, tmp_path: Path) -> None:
    """Both programs of the first five minutes, as two processes."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "CACHEBUS_URL": redis_url, "PYTHONUNBUFFERED": "1", "PYTHONPATH": root}
    for name, needle in (("reader.py", "async def load_limits"), ("writer.py", "invalidated at")):
        (tmp_path / name).write_text(block(needle))
    with subprocess.Popen(
        [sys.executable, tmp_path / "reader.py"], env=environment, stdout=subprocess.PIPE, text=True
    ) as reader:
        try:
            assert reader.stdout is not None
            lines = [reader.stdout.readline().strip() for _ in range(2)]
            subprocess.run([sys.executable, tmp_path / "writer.py"], env=environment, check=True, capture_output=True)
            lines += [line.strip() for line in reader.stdout]
        finally:
            reader.kill()
    assert lines[:2] == ["loading from the source", "{'requests_per_minute': 100}"]
    written = lines.index("{'requests_per_minute': 500}")
    loaded_anew = lines.index("loading from the source", 1)
    assert written < loaded_anew
    assert lines[-1] == "{'requests_per_minute': 100}"


async def test_what_you_can_call(redis_url: str) -> None:
    code = block("search_hierarchy=True").replace("redis://localhost:6379/0", redis_url)
    names = {
        "Cache": cachebus.Cache,
        "value": {"a": 1},
        "agent_id": "a7",
        "ids": ["1", "2"],
        "load_agent": lambda agent_id: {"agent": agent_id},
    }
    # The block assigns `value` after using it: a parameter it is.
    code = "value = {'a': 1}\n" + code
    found = await run_inside(code, names)
    assert found["value"] == {"agent": "a7"}
    assert found["first"] is True


async def test_the_process_wide_form(redis_url: str) -> None:
    code = block("invalidate_coordinated(").replace("redis://localhost:6379/0", redis_url)
    head, _, calls = code.partition('await CacheManager.get("config", "limits", "acme")')
    applications: list[Any] = []
    scope: dict[str, Any] = {"FastAPI": lambda *, lifespan: applications.append(lifespan)}
    exec(head, scope)
    names = {**scope, "agent_id": "a7", "doc_id": 7, "from_db": lambda i: {"id": i}, "make_default": lambda: 0}
    try:
        async with applications[0](object()):
            assert await cachebus.CacheManager.get("config", "limits", "acme") is None
            found = await run_inside(calls, names)
    finally:
        cachebus.CacheManager._configured = None
    assert found["value"] == {"id": "a7"}
    assert found["metrics"]["source"] == "database"
    assert found["counts"] == {"document": 1, "embedding": 1, "query_result": 1}


async def test_producer(redis_url: str) -> None:
    code = block("DirectProducer.open").replace("redis://localhost:6379/0", redis_url)
    async with cachebus.Cache.open(redis_url) as cache:
        await cache.set("agent_config", "a7", 1, tenant_id="acme")
        await run_inside(code.partition("\n\n")[2], {"DirectProducer": producers.DirectProducer})
        assert await cache.get("agent_config", "a7", tenant_id="acme", use_memory=False) is None


@pytest.mark.parametrize("name", re.findall(r"^\| `([a-z_0-9]+)`", README, re.MULTILINE))
def test_every_setting_named_exists(name: str) -> None:
    assert name in cachebus.Settings.model_fields


async def test_verify_in_a_suite_of_ones_own(redis_url: str) -> None:
    code = block("from cachebus.testing import verify")
    assert "redis://localhost:6379/0" in code
    assert "seconds=20" in code
    scope: dict[str, Any] = {}
    exec(code.replace("redis://localhost:6379/0", redis_url).replace("seconds=20", "seconds=2"), scope)
    await scope["test_our_redis_keeps_the_promises"]()
