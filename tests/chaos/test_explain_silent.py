"""Nodes that can't answer: what `cache.explain` says of them holds, whatever they do meanwhile, or when they wake.

A process reads a key all the time. It is frozen, or cut off from Redis, and the key is replaced: no read that begins
after the moment that was named gives the old value, and until shortly before it, one that is only cut off gives it.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cachebus import Cache, Explanation
from cachebus.base.clock import monotonic, wall_s
from cachebus.listening.explanation import Holder
from cachebus.resp import parse_address
from cachebus.tools.harness.proxy import Proxy, dialer
from tests.support.caches import nodes, past, until
from tests.support.processes import Told, running

D_S = 3.0
NODE = """
import asyncio, json, sys, time
from cachebus import Cache, Settings
from pathlib import Path

async def main(url, source):
    settings = Settings(url=url, staleness_bound_s=3.0, probe_interval_s=0.2, gap_grace_s=0.02, l2_timeout_s=0.5,
                        node_name="one", keep_without_l2=sys.argv[3] == "keeps")
    load = lambda: Path(source).read_text()
    async with Cache.open(settings) as cache:
        while True:
            started_s = time.monotonic()
            value = await cache.get_or_load("config", "a", load, tenant_id="acme", tags=["t"])
            print(json.dumps([started_s, value]), flush=True)
            await asyncio.sleep(0.002)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


class Stand:
    """A writer, and a process that reads."""

    def __init__(self, writer: Cache, reader: Told, proxy: Proxy, source: Path) -> None:
        self.writer, self.reader, self.proxy, self.source = writer, reader, proxy, source

    async def reads_again(self) -> None:
        """Until it has read something that began from now on."""
        now_s = monotonic()
        await until(lambda: self.reader.reads[-1][0] > now_s + 0.1)

    async def explained(self) -> tuple[Explanation, Holder]:
        """The key, and what is said of the process."""
        found = await self.writer.explain("config", "a", "acme")
        (node,) = [node for node in found.nodes if node.node.startswith("one-")]
        return found, node

    def old_until(self) -> float:
        """When its last read of the old value began, on this machine's wall clock, which Redis has too."""
        return max(at_s for at_s, value in self.reader.reads if value == "old") + wall_s() - monotonic()


@asynccontextmanager
async def stand(url: str, folder: Path, keeps: str) -> AsyncIterator[Stand]:
    source = folder / "source"
    source.write_text("old")
    async with nodes(url, 1, staleness_bound_s=D_S) as (writer,), Proxy(dialer(parse_address(url))) as proxy:
        with running(NODE, f"redis://127.0.0.1:{proxy.port}", str(source), keeps) as reader:
            await until(lambda: len(reader.reads) > 20)
            made = Stand(writer, reader, proxy, source)
            found, node = await made.explained()
            assert (found.case, node.answered, node.serves, node.hit_path) == ("not_replaced", True, True, True)
            assert node.lease_until is not None
            yield made


@pytest.mark.parametrize("keeps", ["keeps", "keeps nothing"])
@pytest.mark.parametrize("fault", ["hold", "cut", "stop"])
async def test_until_when_a_silent_node_may_serve_what_was_replaced(
    redis_url: str, tmp_path: Path, fault: str, keeps: str
) -> None:
    async with stand(redis_url, tmp_path, keeps) as s:
        if fault == "stop":
            s.reader.process.send_signal(signal.SIGSTOP)
        else:
            getattr(s.proxy, fault)()
        s.source.write_text("new")
        receipt = await s.writer.invalidate("config", "a", "acme", reason="import 17")
        found, node = await s.explained()
        assert (node.answered, node.serves, node.replaced) == (False, True, True)
        assert found.case == "may_be_served"
        assert f"node {node.node} does not answer, and may serve what was replaced until at most " in found.verdict
        assert f"seq {receipt.seq} replaced it" in found.verdict
        assert f"by {s.writer.stats().node} (import 17)" in found.verdict
        assert node.until is not None
        until_s = node.until.timestamp()
        assert until_s - found.events[0].at.timestamp() <= D_S
        await past(monotonic() + until_s - wall_s() + 0.05)
        if fault == "stop":
            s.reader.process.send_signal(signal.SIGCONT)
        await s.reads_again()
        assert s.old_until() <= until_s
        if fault != "stop":  # it did serve it, and not for much less
            assert s.old_until() > until_s - 1.5
        found, node = await s.explained()
        assert found.case != "may_be_served"
        assert not node.replaced
        s.proxy.restore()

        async def is_back() -> bool:
            found, node = await s.explained()
            assert found.case not in ("replaced_is_served", "may_be_served")
            return node.answered and node.applied == found.seq

        await until(is_back)


async def test_who_has_applied_the_change_before_it_froze_serves_nothing_older(redis_url: str, tmp_path: Path) -> None:
    async with stand(redis_url, tmp_path, "keeps") as s:
        s.source.write_text("new")
        receipt = await s.writer.invalidate("config", "a", "acme")

        async def knows() -> bool:
            row = (await s.writer._live().store.nodes(0, s.writer._live().node.caller(0))).rows
            return all(one.applied >= receipt.seq for one in row.values())

        await until(knows)
        s.reader.process.send_signal(signal.SIGSTOP)
        found, node = await s.explained()
        assert (node.answered, node.replaced) == (False, False)
        assert "it holds nothing that was replaced" in node.says
        assert found.case in ("nothing", "not_replaced")
