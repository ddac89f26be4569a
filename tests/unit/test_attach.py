"""The start of a node of which not all shards are there."""

from __future__ import annotations

import pytest

from cachebus import Cache, L2Unavailable, Settings
from cachebus.core.ports import Caller, ProbeReply
from cachebus.l2.memory_store import MemoryStore
from tests.support.logs import told as lines_told

LOADING = "LOADING the server reads its data"


async def test_a_shard_that_refuses_for_a_while_at_the_start_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are there, so the cache opens; what the refusal was is in the log."""
    probe = MemoryStore.probe

    async def refused(store: MemoryStore, shard: int, caller: Caller, *, with_invalidated: bool) -> ProbeReply:
        if shard == 1:
            raise L2Unavailable(LOADING)
        return await probe(store, shard, caller, with_invalidated=with_invalidated)

    monkeypatch.setattr(MemoryStore, "probe", refused)
    with lines_told("WARNING") as told:
        async with Cache(Settings(url="memory://", shards=2, l2_timeout_s=0.05)):
            pass
    assert [text for text in told if LOADING in text] == [f"L2 out of reach: {LOADING}"]
