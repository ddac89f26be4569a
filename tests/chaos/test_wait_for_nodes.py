"""`wait="nodes"` beside real processes: fast while all live; else until whoever does not answer can't serve its memory.

After each return no read that begins anywhere gives what was replaced: not at once, and not when a stopped process or a
cut connection comes back.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from cachebus import Cache, Receipt
from cachebus.base.clock import monotonic
from cachebus.producers import DirectProducer
from cachebus.resp import parse_address
from cachebus.tools.harness.proxy import Proxy, dialer
from tests.support.caches import D_S, deaf, nodes, parts, past, quick, until
from tests.support.processes import Told, running

NODE = """
import asyncio, json, sys, time
from cachebus import Cache, Settings
from pathlib import Path

async def main(url, source):
    settings = Settings(url=url, staleness_bound_s=0.6, probe_interval_s=0.1, gap_grace_s=0.02, l2_timeout_s=0.3,
                        node_name=sys.argv[3], keep_without_l2=False)
    load = lambda: Path(source).read_text()
    async with Cache.open(settings) as cache:
        while True:
            for key in "ab":
                started_s = time.monotonic()
                value = await cache.get_or_load("config", key, load, tenant_id="acme", tags=["t"])
                print(json.dumps([started_s, value]), flush=True)
            await asyncio.sleep(0.002)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""
DEAF: dict[str, Any] = {"node_name": "deaf", "probe_interval_s": 0.2, "keep_without_l2": False}
SOON_S = D_S * 0.9
"""Less than it takes when somebody does not answer, also on a machine that does other things."""


class Site:
    """A source, processes that read it all the time, and a node that writes."""

    def __init__(self, url: str, source: Path, writer: Cache) -> None:
        self.url, self.source, self.writer = url, source, writer
        self.version = 0
        self.returned: list[tuple[float, int]] = []

    async def change(self, write: Callable[[], Awaitable[Receipt]]) -> tuple[Receipt, float]:
        """A change at the source, and the write that tells of it: its receipt, and how long it took."""
        self.version += 1
        new = self.source.with_suffix(".new")
        new.write_text(f"{self.version:08}")
        new.replace(self.source)  # whole, for those who read meanwhile
        began_s = monotonic()
        receipt = await write()
        returned_s = monotonic()
        self.returned.append((returned_s, self.version))
        return receipt, returned_s - began_s

    async def invalidate(self) -> tuple[Receipt, float]:
        """The change, told by an invalidation of the scope."""
        return await self.change(lambda: self.writer.invalidate_scope("acme", "config", wait="nodes"))

    def stale(self, *processes: Told) -> list[tuple[float, int, int]]:
        """Reads that began after a return, and gave something older: how long after, what, and what was due."""
        return [
            (at_s - returned_s, int(value), version)
            for process in processes
            for at_s, value in process.reads
            for returned_s, version in self.returned
            if at_s > returned_s and int(value) < version
        ]


@asynccontextmanager
async def site(url: str, folder: Path, *, keep_without_l2: bool = False) -> AsyncIterator[Site]:
    """A writer that has watched the register of nodes for long enough, where no node keeps what it loads alone."""
    source = folder / "source"
    source.write_text("00000000")
    async with nodes(url, 1, keep_without_l2=keep_without_l2) as (writer,):
        made = Site(url, source, writer)
        await past(monotonic() + D_S)
        yield made


def name_in(ids: tuple[str, ...]) -> list[str]:
    """The names that the processes were given, of these nodes' ids."""
    return sorted(node.rpartition("-")[0] for node in ids)


async def ready(*processes: Told) -> None:
    """Until all of them read."""
    await until(lambda: all(len(process.reads) > 20 for process in processes))


async def test_while_all_live_it_is_fast_and_nobody_reads_old_values_after_it(redis_url: str, tmp_path: Path) -> None:
    async with site(redis_url, tmp_path) as s:
        args = (redis_url, str(s.source))
        with running(NODE, *args, "one") as one, running(NODE, *args, "two") as two:
            await ready(one, two)
            took = []
            writes: list[Callable[[], Awaitable[Receipt]]] = [
                lambda: s.writer.invalidate_scope("acme", "config", wait="nodes"),
                lambda: s.writer.invalidate_tags(["t"], "acme", wait="nodes"),
            ]
            for turn in range(40):
                receipt, took_s = await s.change(writes[turn % 2])
                took.append(took_s)
                assert receipt.lapsed == ()
                assert len(receipt.confirmed) == 3
                assert {"one", "two"} < set(name_in(receipt.confirmed))
                read_by = monotonic() + 0.01
                await until(lambda read_by=read_by: min(one.reads[-1][0], two.reads[-1][0]) > read_by)
        assert median(took) < SOON_S / 5
        assert s.stale(one, two) == []


@pytest.mark.parametrize("ending", ["stopped", "killed"])
async def test_who_does_not_answer_is_waited_for_until_its_lease_has_lapsed_and_is_named(
    redis_url: str, tmp_path: Path, ending: str
) -> None:
    async with site(redis_url, tmp_path) as s:
        args = (redis_url, str(s.source))
        with running(NODE, *args, "one") as one, running(NODE, *args, "two") as two:
            await ready(one, two)
            one.process.send_signal(signal.SIGSTOP if ending == "stopped" else signal.SIGKILL)
            receipt, took_s = await s.invalidate()
            assert D_S * 0.98 < took_s < D_S + SOON_S
            assert name_in(receipt.lapsed) == ["one"]
            assert "two" in name_in(receipt.confirmed)
            # Its row stands still, which proves nothing: it may load for itself. So each wait takes D.
            receipt, took_s = await s.invalidate()
            assert D_S * 0.98 < took_s < D_S + SOON_S
            assert name_in(receipt.lapsed) == ["one"]
            if ending == "killed":
                (gone,) = receipt.lapsed
                store, caller = parts(s.writer).store, parts(s.writer).node.caller(0)
                assert await store.forget(0, caller, gone, lives=True)
                assert (await s.invalidate())[1] > D_S * 0.98, "it may have lived when it was forgotten"
                receipt, took_s = await s.invalidate()
                assert took_s < SOON_S
                assert receipt.lapsed == ()
            if ending == "stopped":
                one.process.send_signal(signal.SIGCONT)
                continued_s = monotonic()
                await until(lambda: one.reads[-1][0] > continued_s + 0.1)

                async def counted() -> bool:
                    receipt, _ = await s.invalidate()
                    return "one" in name_in(receipt.confirmed)

                await until(counted)  # once it has probed again
                counted_s = monotonic()
                await until(lambda: one.reads[-1][0] > counted_s + 0.1)
        assert s.stale(one, two) == []


@pytest.mark.parametrize("fault", ["hold", "cut"])
async def test_a_node_that_is_cut_off_is_waited_for_likewise(redis_url: str, tmp_path: Path, fault: str) -> None:
    async with site(redis_url, tmp_path) as s, Proxy(dialer(parse_address(redis_url))) as proxy:
        through = f"redis://127.0.0.1:{proxy.port}"
        with running(NODE, through, str(s.source), "one") as one:
            await ready(one)
            getattr(proxy, fault)()
            receipt, took_s = await s.invalidate()
            assert D_S * 0.98 < took_s < D_S + SOON_S
            assert name_in(receipt.lapsed) == ["one"]
            returned_s = monotonic()
            await until(lambda: one.reads[-1][0] > returned_s + 0.1)  # it goes on, without L2
            proxy.restore()
            await until(lambda: len(one.reads) and one.reads[-1][0] > returned_s + 0.5)
        assert s.stale(one) == []


@pytest.mark.parametrize("fault", ["hold", "cut"])
@pytest.mark.parametrize("attached", [True, False], ids=["attached", "started degraded"])
async def test_what_a_node_that_is_cut_off_loads_for_itself_is_waited_for_each_time(
    redis_url: str, tmp_path: Path, fault: str, attached: bool
) -> None:
    """One that never attached has no row, so nobody can wait for it: it keeps nothing, if its settings say so."""
    more = {} if attached else {"keep_without_l2": False}
    async with (
        site(redis_url, tmp_path, keep_without_l2=attached) as s,
        Proxy(dialer(parse_address(redis_url))) as proxy,
    ):
        if not attached:
            getattr(proxy, fault)()
        settings = quick(
            f"redis://127.0.0.1:{proxy.port}",
            node_name="cut",
            l2_timeout_s=0.2,
            connect_timeout_s=0.2,
            start_degraded=True,
            **more,
        )
        async with Cache.open(settings) as cut:
            getattr(proxy, fault)()
            await past(monotonic() + D_S)
            await s.invalidate()
            loads = 0

            def load() -> str:
                nonlocal loads
                loads += 1
                return s.source.read_text()

            for _ in range(3):
                await past(monotonic() + D_S / 3)
                before = await cut.get_or_load("config", "x", load, "acme")
                assert before == f"{s.version:08}"
                receipt, _ = await s.change(lambda: s.writer.invalidate("config", "x", "acme", wait="nodes"))
                assert name_in(receipt.lapsed) == (["cut"] if attached else [])
                assert await cut.get_or_load("config", "x", load, "acme") == f"{s.version:08}"
            if not attached:
                before_loads = loads
                await cut.get_or_load("config", "x", load, "acme")
                assert loads == before_loads + 1, "nothing is kept, though flights are shared"
            proxy.restore()


LOSSES = {"the rows": ("DEL", "{cachebus:0}:nodes"), "everything": ("FLUSHALL",), "meta": ("DEL", "{cachebus:0}:meta")}


@pytest.mark.parametrize("command", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("keep_without_l2", [True, False], ids=["who waits does too", "who waits does not"])
async def test_who_loads_for_itself_is_waited_for_though_its_row_is_lost(
    redis_url: str, tmp_path: Path, command: tuple[str, ...], keep_without_l2: bool
) -> None:
    """Longer than D after the loss, when no lease is left of before it, and others' rows are there again."""
    async with (
        site(redis_url, tmp_path, keep_without_l2=keep_without_l2) as s,
        Proxy(dialer(parse_address(redis_url))) as proxy,
        nodes(f"redis://127.0.0.1:{proxy.port}", 1, node_name="cut", l2_timeout_s=0.2) as (cut,),
    ):
        await past(monotonic() + D_S / 2)
        proxy.cut()
        await parts(s.writer).store._links.of(0).call(*command)  # type: ignore[attr-defined]

        def load() -> str:
            return s.source.read_text()

        for _ in range(3):
            await past(monotonic() + D_S * 1.2)
            assert await cut.get_or_load("config", "x", load, "acme") == f"{s.version:08}"
            receipt, _ = await s.change(lambda: s.writer.invalidate("config", "x", "acme", wait="nodes"))
            assert receipt.confirmed, "others are there"
            assert await cut.get_or_load("config", "x", load, "acme") == f"{s.version:08}"
        proxy.restore()


async def test_a_producer_remembers_the_largest_bound_when_l2_has_lost_it(redis_url: str) -> None:
    larger_s = 2 * D_S
    async with (
        Proxy(dialer(parse_address(redis_url))) as proxy,
        nodes(f"redis://127.0.0.1:{proxy.port}", 1, staleness_bound_s=larger_s, l2_timeout_s=0.2) as (cut,),
        DirectProducer.open(quick(redis_url)) as producer,
    ):
        await cut.set("config", "x", "old", "acme")
        await producer.invalidate("config", "y", "acme", wait="nodes")
        await cut.probe()
        assert await cut.get("config", "x", "acme") == "old"
        proxy.cut()
        await producer._live().store._links.of(0).call("FLUSHALL")  # type: ignore[attr-defined]
        began_s = monotonic()
        await producer.invalidate("config", "x", "acme", wait="nodes")
        assert monotonic() - began_s >= larger_s * 0.98


async def test_who_has_left_cleanly_is_not_waited_for(redis_url: str, tmp_path: Path) -> None:
    async with site(redis_url, tmp_path) as s:
        async with nodes(redis_url, 1, node_name="guest", keep_without_l2=False):
            assert "guest" in name_in((await s.invalidate())[0].confirmed)
        receipt, took_s = await s.invalidate()
        assert took_s < SOON_S
        assert "guest" not in name_in(receipt.confirmed + receipt.lapsed)


async def test_a_node_that_has_the_change_from_the_log_tells_of_it_soon(redis_url: str, tmp_path: Path) -> None:
    """Its next probe finds the gap, and it need not wait for the one after."""
    async with site(redis_url, tmp_path) as s, nodes(redis_url, 1, **DEAF) as (other,):
        with deaf(other):
            for _ in range(3):
                receipt, took_s = await s.invalidate()
                assert took_s < SOON_S
                assert "deaf" in name_in(receipt.confirmed)


async def test_a_producer_waits_too(redis_url: str, tmp_path: Path) -> None:
    async with site(redis_url, tmp_path) as s, DirectProducer.open(quick(redis_url, keep_without_l2=False)) as producer:
        with running(NODE, redis_url, str(s.source), "one") as one:
            await ready(one)
            for turn in range(5):
                receipt, took_s = await s.change(lambda: producer.invalidate_scope("acme", wait="nodes"))
                assert took_s > D_S * 0.98 if turn == 0 else took_s < SOON_S, "the first learns who is there"
                assert len(receipt.confirmed) == 2
                assert receipt.lapsed == ()
                read_by = monotonic() + 0.01
                await until(lambda read_by=read_by: one.reads[-1][0] > read_by)
        assert s.stale(one) == []


@pytest.mark.parametrize("command", [("FLUSHALL",), ("DEL", "{cachebus:0}:nodes"), ("DEL", "{cachebus:0}:meta")])
async def test_nodes_whose_rows_are_lost_are_waited_for_though_nobody_sees_them(
    redis_url: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """One of them has stopped: nothing tells of it any more."""
    async with site(redis_url, tmp_path) as s:
        with running(NODE, redis_url, str(s.source), "one") as one:
            await ready(one)
            assert (await s.invalidate())[1] < SOON_S
            one.process.send_signal(signal.SIGSTOP)
            connection = parts(s.writer).store._links.of(0)  # type: ignore[attr-defined]
            await connection.call(*command)
            _, took_s = await s.invalidate()
            assert took_s > D_S * 0.9
            one.process.send_signal(signal.SIGCONT)
            continued_s = monotonic()
            await until(lambda: one.reads[-1][0] > continued_s + 0.1)
        assert s.stale(one) == []
