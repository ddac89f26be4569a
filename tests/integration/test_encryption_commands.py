"""What commands show of records that are encrypted, or of another version of their type's policy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cachebus import Policy
from tests.support.caches import nodes
from tests.support.command import ran
from tests.support.secret_keys import keys

ASKED = ("get", "doc", "7", "--tenant", "acme")


@pytest.mark.parametrize(
    ("names", "version", "status", "said"),
    [
        (("k2", "k1"), 3, 0, "{'a': 1}"),
        (("k2", "k1"), None, 0, "{'a': 1}"),
        (("k2",), 3, 1, "it is encrypted by the key 'k1', which this process does not have"),
        ((), 3, 1, "it is encrypted, and this process has no keys (CACHEBUS_ENCRYPTION)"),
        (("k1",), 2, 1, "it was stored by version 3 of its policy, which is 2 here: a read takes it for a miss"),
    ],
)
async def test_get(
    redis_url: str, tmp_path: Path, names: tuple[str, ...], version: int | None, status: int, said: str
) -> None:
    env = {"CACHEBUS_ENCRYPTION": keys(*names)} if names else {}
    if version is not None:
        env["CACHEBUS_POLICIES"] = json.dumps({"doc": {"version": version}})
    async with nodes(redis_url, 1, policies={"doc": Policy(version=3)}, encryption=keys("k1"), l2_timeout_s=10.0) as (
        cache,
    ):
        await cache.set("doc", "7", {"a": 1}, tenant_id="acme")

        async def run(*more: str) -> tuple[int, str, str]:
            return await asyncio.to_thread(ran, *ASKED, "--url", redis_url, *more, folder=tmp_path, env=env)

        ended, out, errors = await run()
        assert ended == status
        assert said in (errors if status else out)
        assert "of version 3 of its policy" in out
        told = json.loads((await run("--json"))[1])
        assert told["found"] is not bool(status)
        assert told["policy_version"] == 3
        assert told["encrypted_by"] == ("k1" if version != 2 else None)
        for secret in keys("k1", "k2").split(","):
            assert secret.partition(":")[2] not in out + errors + str(told)


async def test_explain(redis_url: str) -> None:
    async with nodes(redis_url, 1, policies={"doc": Policy(version=3)}, encryption=keys("k1"), l2_timeout_s=10.0) as (
        cache,
    ):
        await cache.set("doc", "7", {"a": 1}, tenant_id="acme")
        stored = (await cache.explain("doc", "7", tenant_id="acme")).stored
        assert stored.state == "valid"
        assert "of version 3 of its policy, encrypted" in stored.says
