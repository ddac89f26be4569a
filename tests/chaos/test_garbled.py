"""Replies to commands that are damaged on their way: no read is given another key's value, none fails by a surprise.

A byte changes, is lost, or comes twice, in heads and in what they announce; whole answers are lost or come twice. So
they are damaged, or answer other questions than those that they are taken for.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from cachebus import Cache, L2Unavailable, Policy
from cachebus.base.backoff import Backoff
from cachebus.resp import parse_address
from cachebus.tools.harness.proxy import Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, parts, until

TENANTS, IDS, READERS, GARBLED = ("acme", "evil"), 40, 12, 100
POLICY = Policy(ttl_s=0.2, soft_ttl_s=0.1, fail_safe_s=60, fail_safe_throttle_s=0.1)


@dataclass
class Garbler:
    """Damages some pieces, by a seed. What follows a damaged one passes: a connection is to live a while."""

    dice: random.Random
    every: int = 8
    count: int = 0
    _whole: int = 0

    def __call__(self, piece: bytes) -> list[bytes]:
        self._whole += 1
        if self._whole < self.every or self.count >= GARBLED:
            return [piece]
        self._whole = self.dice.randrange(self.every)
        self.count += 1
        if (how := self.dice.randrange(10)) < 3:  # whole answers: each is well-formed, and another question's
            return [piece, piece] if how else []
        at = self.dice.randrange(len(piece))
        heads = [i for i in range(len(piece)) if piece[i : i + 1] in (b"*", b"$", b":")]
        if heads and self.dice.random() < 0.6:  # in what says how much comes, and of which kind
            at = min(self.dice.choice(heads) + self.dice.randrange(2), len(piece) - 1)
        if how == 3:
            return [piece[:at], piece[at + 1 :]]
        if how == 4:
            return [piece[: at + 1], piece[at:]]
        byte = self.dice.choice(b"0123456789*$:+-_~%,#(=>") if how < 8 else piece[at] ^ 1 << self.dice.randrange(8)
        return [piece[:at], bytes([byte]), piece[at + 1 :]]


def value(tenant: str, number: int) -> list[Any]:
    """Says whose it is."""
    return [tenant, number, "x" * (number % 7)]


@dataclass
class Reads:
    """Reads of every kind of one node, all at once, and what came of them."""

    cache: Cache
    dice: random.Random
    receipt: str
    wrong: list[object] = field(default_factory=list)
    raised: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)

    async def until_all(self, garbler: Garbler) -> None:
        store = parts(self.cache).store
        while garbler.count < GARBLED:
            await asyncio.gather(*(self._one() for _ in range(READERS)))
            await until(lambda: store.connected)

    async def _one(self) -> None:
        tenant, number = self.dice.choice(TENANTS), self.dice.randrange(IDS)
        verb, read = self.dice.choice(list(self._verbs(tenant, number).items()))
        try:
            for found in await read():
                if found is not None and found != value(tenant, number):
                    self.wrong.append((verb, tenant, number, found))
                self.right[verb] += found is not None
        except L2Unavailable:
            self.raised[verb] += 1

    def _verbs(self, tenant: str, number: int) -> dict[str, Callable[[], Awaitable[list[Any]]]]:
        cache, where = self.cache, ("doc", number, tenant)

        async def load() -> list[Any]:
            return value(tenant, number)

        async def many(**more: Any) -> list[Any]:
            found = await cache.get_many("doc", range(number, number + 9), tenant, **more)
            self.wrong += [(tenant, i, got) for i, got in found.items() if got != value(tenant, int(i))]
            return [found.get(number)]

        async def only(read: Awaitable[Any]) -> list[Any]:
            return [await read]

        return {
            "get": lambda: only(cache.get(*where)),
            "from L2": lambda: only(cache.get(*where, use_memory=False)),
            "with a token": lambda: only(cache.get(*where, after=self.receipt)),
            "many": many,
            "many by script": lambda: many(after=self.receipt),
            "searched": lambda: only(cache.get(*where, agent_id="a7", search_hierarchy=True)),
            "loaded": lambda: only(cache.get_or_load("doc", number, load, tenant)),
            "loaded from L2": lambda: only(cache.get_or_load("doc", number, load, tenant, use_memory=False)),
            "loaded by a search": lambda: only(
                cache.get_or_load("doc", number, load, tenant, agent_id="a7", search_hierarchy=True)
            ),
        }


@asynccontextmanager
async def garbled(server: EmbeddedServer, garbler: Garbler, **settings: Any) -> AsyncIterator[Cache]:
    """A node whose commands are answered through a garbler."""
    async with Proxy(dialer(parse_address(server.url))) as proxy:
        more = {"lease_ms": 200, "l2_timeout_s": 0.5, "policies": {"doc": POLICY}, **settings}
        async with nodes(f"redis://127.0.0.1:{proxy.port}/0", 1, **more) as (cache,):
            proxy.garble(garbler)
            yield cache
            proxy.restore()


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_read_is_given_another_keys_value_or_fails_by_a_surprise(
    redis_server: EmbeddedServer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "longer", lambda _: None)  # a hundred pauses of two seconds would take minutes
    trouble: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: trouble.append(told))
    garbler = Garbler(random.Random(seed))
    async with (
        nodes(redis_server.url, 1, policies={"doc": POLICY}) as (writer,),
        garbled(redis_server, garbler) as cache,
    ):
        for tenant in TENANTS:
            for number in range(IDS + 9):
                receipt = await writer.set("doc", number, value(tenant, number), tenant, ttl=3600)
        reads = Reads(cache, random.Random(seed), str(receipt))
        await reads.until_all(garbler)
        assert not reads.wrong
        assert not trouble
        assert len(reads.right) == 9, "all verbs had answers"
        assert sum(reads.right.values()) > 200
        garbler.every = 10**9

        async def all_answered() -> bool:
            try:  # an answer that was lost is waited for until the connection is given up
                for tenant in TENANTS:
                    for number in range(IDS):
                        assert await cache.get("doc", number, tenant) in (value(tenant, number), None)
            except L2Unavailable:
                return False
            return cache.ready()

        await until(all_answered)
