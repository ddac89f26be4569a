"""Keys that change while nodes run, nodes without them, and the way to encryption and back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cachebus import Cache, ConfigError, Policy
from cachebus.values.cipher import named_key
from tests.support.caches import Source, asked, nodes, parts, until
from tests.support.logs import told
from tests.support.secret_keys import SECRETS, Stored, connected, keys

POLICIES = {"doc": Policy(l1=False, negative_ttl_s=60)}


async def load(cache: Cache, source: Source, resource_id: str = "7") -> Any:
    return await cache.get_or_load("doc", resource_id, source.load, tenant_id="acme")


async def read(cache: Cache, resource_id: str = "7") -> Any:
    return await cache.get("doc", resource_id, tenant_id="acme")


async def test_keys_are_changed_in_three_steps_and_nobody_loads(redis_url: str) -> None:
    """Each node is restarted with the next setting, one after the other, and what lies there stays readable."""
    source = Source(**{str(i): i for i in range(8)})
    steps = [("k1",), ("k1", "k2"), ("k2", "k1")]
    i = 0
    async with connected(redis_url) as redis:
        for before, after in pairwise(steps):
            async with (
                nodes(redis_url, 1, policies=POLICIES, encryption=keys(*before)) as (old,),
                nodes(redis_url, 1, policies=POLICIES, encryption=keys(*after)) as (new,),
            ):
                for writer, reader in ((old, new), (new, old)):
                    calls = source.calls
                    assert await load(writer, source, str(i)) == i
                    assert await load(reader, source, str(i)) == i
                    assert source.calls == calls + 1
                    i += 1
                assert not old.stats().records_not_decrypted + new.stats().records_not_decrypted
                assert named_key((await Stored(redis, new, str(i - 1)).record()).payload) == after[0]
        async with nodes(redis_url, 1, policies=POLICIES, encryption=keys("k2")) as (last,):
            assert await load(last, source, str(i - 1)) == i - 1
            assert source.calls == i
            assert await load(last, source, "0") == 0
            assert source.calls == i + 1, "what only the old key opens is loaded anew"


async def test_a_file_that_changes_is_read_anew_where_a_record_names_a_new_key(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.values.key_source.PAUSE_S", 0.0)
    file = tmp_path / "keys"
    file.write_text(keys("k1"))
    async with (
        nodes(redis_url, 1, policies=POLICIES, encryption=f"file:{file}") as (node,),
        nodes(redis_url, 1, policies=POLICIES, encryption=keys("k2", "k1")) as (ahead,),
    ):
        await node.set("doc", "7", "old", tenant_id="acme")
        await ahead.set("doc", "8", "new", tenant_id="acme")
        file.write_text("nonsense")

        with told("WARNING") as lines:
            assert await read(node, "8") is None
            await until(lambda: any("the provider KeyFile gave" in line for line in lines))
        assert await read(node) == "old", "those that are here stay"
        file.write_text(keys("k2", "k1"))

        async def found() -> bool:
            return await read(node, "8") == "new"

        await until(found)
        assert await read(node) == "old"
        await node.set("doc", "7", "newer", tenant_id="acme")
        async with connected(redis_url) as redis:
            assert named_key((await Stored(redis, node, "7").record()).payload) == "k2"


async def test_a_callable_is_asked_again_after_a_while(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.values.key_source.PAUSE_S", 0.0)
    monkeypatch.setattr("cachebus.values.key_source.READ_EVERY_S", 0.05)
    given = {"k1": SECRETS["k1"]}
    async with (
        nodes(redis_url, 1, policies=POLICIES, encryption=lambda: dict(given)) as (node,),
        connected(redis_url) as redis,
    ):
        await node.set("doc", "7", "old", tenant_id="acme")
        given = {"k2": SECRETS["k2"], **given}

        async def by_the_new_one() -> bool:
            await node.set("doc", "8", "new", tenant_id="acme")
            return named_key((await Stored(redis, node, "8").record()).payload) == "k2"

        await until(by_the_new_one)
        assert await read(node) == "old"


async def test_without_its_keys_a_cache_does_not_open(redis_url: str, tmp_path: Path) -> None:
    def fails() -> str:
        raise RuntimeError("secret")

    for given in (f"file:{tmp_path / 'none'}", fails):
        with pytest.raises(ConfigError, match="encryption") as error:
            async with nodes(redis_url, 1, encryption=given):
                pass
        assert "secret" not in str(error.value)


async def test_a_node_without_keys_leaves_alone_what_it_cant_read(redis_url: str) -> None:
    """Else it and the others would replace each other's records for ever, and everybody could read them."""
    source = Source(**{"7": "value"})
    async with (
        nodes(redis_url, 1, policies=POLICIES, encryption=keys("k1")) as (keyed,),
        nodes(redis_url, 1, staleness_bound_s=30.0) as (bare,),
        connected(redis_url) as redis,
    ):
        assert await load(keyed, source) == "value"
        lies = Stored(redis, keyed, "7")
        before = await lies.read()
        with told() as lines:
            for _ in range(5):
                assert await load(bare, source) == "value"
        assert source.calls == 2, "its memory keeps what it loads, for the staleness bound"
        assert await lies.read() == before
        assert len([line for line in lines if "has no keys (CACHEBUS_ENCRYPTION)" in line]) == 1
        assert await load(keyed, source) == "value"
        assert source.calls == 2
        # An invalidation holds for both, whoever sends it.
        source.values["7"] = "newer"
        receipt = await keyed.invalidate("doc", "7", tenant_id="acme", wait="nodes")
        assert await bare.get("doc", "7", tenant_id="acme", after=receipt) is None
        assert await load(keyed, source) == "newer"
        assert await load(bare, source) == "newer"
        source.values["7"] = "newest"
        await bare.invalidate("doc", "7", tenant_id="acme", wait="nodes")
        assert await load(keyed, source) == "newest"
        assert await load(bare, source) == "newest"
        # What it writes is the new value, and lies there as it can write it.
        await bare.set("doc", "7", "plain", tenant_id="acme")
        assert await read(keyed) is None
        assert await load(keyed, source) == "newest"
        assert (await lies.record()).is_encrypted


async def test_what_a_node_without_keys_loads_goes_when_the_source_has_nothing_any_more(redis_url: str) -> None:
    source = Source(**{"7": "value"})
    async with (
        nodes(redis_url, 1, policies={"doc": Policy(l1=False)}, encryption=keys("k1")) as (keyed,),
        nodes(redis_url, 1, staleness_bound_s=30.0) as (bare,),
    ):
        assert await load(keyed, source) == "value"
        source.values.clear()
        assert await load(bare, source) is None
        assert await load(keyed, source) is None, "the source has answered: what it gave before is gone"


async def test_an_unknown_key_or_a_forged_record_is_replaced(redis_url: str) -> None:
    """Else what nobody can read any more would have its key loaded at each read, for as long as it lives."""
    source = Source(**{"7": "value"})
    async with (
        nodes(redis_url, 1, policies=POLICIES, encryption=keys("k1")) as (gone,),
        nodes(redis_url, 1, policies=POLICIES, encryption=keys("k2")) as (node,),
    ):
        await gone.set("doc", "7", "value", tenant_id="acme")
        for _ in range(3):
            assert await load(node, source) == "value"
        assert source.calls == 1
        with asked(node) as counts:
            assert await load(node, source) == "value"
        assert counts["get"] + counts["read"] == 1


async def test_the_way_there_and_back_without_a_wave_of_loads(redis_url: str) -> None:
    """`encryption_required=False` believes what lies there plainly; what is loaded is encrypted from then on."""
    source = Source(**{"7": "value", "8": "other"})
    async with (
        nodes(redis_url, 1, policies=POLICIES) as (bare,),
        nodes(redis_url, 1, policies=POLICIES, encryption=keys("k1"), encryption_required=False) as (moving,),
        connected(redis_url) as redis,
    ):
        assert await load(bare, source) == "value"
        assert await load(moving, source) == "value"
        assert source.calls == 1
        assert await load(moving, source, "8") == "other"
        assert (await Stored(redis, moving, "8").record()).is_encrypted
        async with nodes(redis_url, 1, policies=POLICIES, encryption=keys("k1")) as (strict,):
            assert await read(strict) is None
            assert await read(strict, "8") == "other"
            assert await load(strict, source) == "value"
            assert await load(moving, source) == "value"
            assert source.calls == 3
        assert not parts(moving).policies.rules("doc").cipher.required  # type: ignore[union-attr]
