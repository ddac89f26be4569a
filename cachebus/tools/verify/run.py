"""A whole run: the fleet under load and faults, then at rest, then the verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.settings import CLUSTER_SHARDS
from cachebus.tools.harness.proxy import Proxy
from cachebus.tools.verify.checker.evidence import Evidence
from cachebus.tools.verify.checker.history import History, writes_of
from cachebus.tools.verify.checker.judge import judge
from cachebus.tools.verify.checker.verdict import Verdict
from cachebus.tools.verify.fleet import messages, source_of_truth
from cachebus.tools.verify.fleet.data_types import LOAD_S
from cachebus.tools.verify.fleet.history_log import all_records
from cachebus.tools.verify.fleet.items import CACHES, SourceItem, keys_of, make_items
from cachebus.tools.verify.fleet.messages import VerifyJob
from cachebus.tools.verify.fleet.processes import FleetUnderTest
from cachebus.tools.verify.fleet.setup import bound_of
from cachebus.tools.verify.nemesis.faults import FAULTS, possible, schedule
from cachebus.tools.verify.plan import VerifyPlan
from cachebus.tools.verify.target.broker import Broker, started_broker
from cachebus.tools.verify.target.group_watch import BY_ITSELF, GroupWatch
from cachebus.tools.verify.target.node_proxies import NodeProxies, NodeProxy
from cachebus.tools.verify.target.server import KAFKA, REDIS, ServerUnderTest, standing
from cachebus.tools.verify.target.testbed import Occurrence, Testbed, inject

STEP_S: Final = 0.1
LONGEST_LOAD_S: Final = 2 * LOAD_S + 1.0
SLACK_S: Final = 0.1
"""How long after the bound all must be at rest."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is."""

    elapsed_s: float
    seconds: float
    reads: int
    writes: int
    faults: int
    under_way: tuple[str, ...]
    doing: str = ""
    """What is done after the load has ended."""


class RunListener:
    """Is told of a run while it lasts. This one ignores it."""

    def say(self, line: str) -> None:
        """A line to keep."""

    def show(self, progress: RunProgress) -> None:
        """The progress, which replaces what was shown before."""


@dataclass
class Run:
    """One run of a plan."""

    plan: VerifyPlan
    listener: RunListener = field(default_factory=RunListener)
    items: list[SourceItem] = field(init=False)

    def __post_init__(self) -> None:
        self.items = make_items(CACHES if self.plan.url is None else 1)  # the user's server sees one namespace alone

    @property
    def largest_bound_s(self) -> float:
        """The largest bound of all nodes, in seconds."""
        return max(bound_of(node, self.plan.bound_s) for node in range(1, self.plan.nodes + 1))

    async def verdict(self) -> Verdict:
        """Run the plan, and judge it. Leaves nothing behind. Raises `ConfigError` and `L2Unavailable` at the start, and
        `NodeCrashed` where a node ends by itself."""
        with TemporaryDirectory(prefix="cachebus-verify-") as folder:
            directory, plan = Path(folder), self.plan
            source_of_truth.create(directory, len(self.items))
            async with standing(plan.url, plan.binary, keys_of(self.items), plan.kind, plan.seed) as server:
                self.listener.say(f"server: {server.label}")
                self.listener.say(f"seed: {plan.seed}")
                evidence = await self._run_fleet(server, directory)
            name = server.name if plan.bus == REDIS else f"{server.name}, {plan.bus}"
            return await judge(evidence, seed=plan.seed, server=name, nodes=plan.nodes, seconds=plan.seconds)

    async def _run_fleet(self, server: ServerUnderTest, directory: Path) -> Evidence:
        plan = self.plan
        async with AsyncExitStack() as stack:
            proxies: dict[int, NodeProxy] = {}
            for node in range(1, plan.nodes + 1):
                proxy: NodeProxy = NodeProxies(server.dials) if server.dial is None else Proxy(server.dial)
                proxies[node] = await stack.enter_async_context(proxy)
            broker = await stack.enter_async_context(started_broker(plan.nodes)) if plan.bus == KAFKA else None
            fleet = await stack.enter_async_context(
                FleetUnderTest(self._jobs(server, proxies, directory, broker), plan.nodes)
            )
            testbed = Testbed(self.largest_bound_s, server, proxies, fleet, broker)
            watch = None if server.group is None else await stack.enter_async_context(GroupWatch(server.group))
            await self._under_load(testbed)
            states = await self._to_rest(testbed, directory)
            held = await self._held_leases(testbed)
            await fleet.stop()
            faults = testbed.done if watch is None else [*testbed.done, *watch.unprovoked(testbed.done)]
            with source_of_truth.SourceOfTruth(directory, len(self.items)) as source:
                versions = list(source.versions)
        ended_s = monotonic()
        return Evidence(
            directory,
            self.items,
            {life.name: (life.began_s, min(life.ended_s, ended_s)) for life in fleet.lives},
            [life.tick for life in fleet.lives if life.tick is not None],
            faults,
            frozenset({BY_ITSELF, *(fault.name for fault in FAULTS.values() if fault.ends_leases)}),
            testbed.away,
            plan.bound_s,
            versions,
            tuple(node for node, state in states.items() if state == messages.NOT_READY),
            held,
            {node: state for node, state in states.items() if state not in (messages.READY, messages.NOT_READY)},
            CLUSTER_SHARDS if plan.kind == "cluster" else 1,
            testbed.repaired,
        )

    def _jobs(
        self, server: ServerUnderTest, proxies: dict[int, NodeProxy], directory: Path, broker: Broker | None
    ) -> Callable[[int, int], VerifyJob]:
        plan = self.plan

        def job_of(node: int, life: int) -> VerifyJob:
            proxy = proxies[node]
            url = server.url(None if isinstance(proxy, NodeProxies) else proxy.port)
            return VerifyJob(
                node=node,
                life=life,
                nodes=plan.nodes,
                directory=str(directory),
                url=url,
                namespace=server.namespace,
                bound_s=bound_of(node, plan.bound_s),
                largest_bound_s=self.largest_bound_s,
                rate=plan.rate,
                write_rate=plan.write_rate,
                seed=plan.seed,
                other_url="" if plan.url is not None else server.other(url),
                kafka="" if broker is None else broker.address(node),
                proxy_ports=proxy.ports if isinstance(proxy, NodeProxies) else {},
                encryption=plan.encryption,
            )

        return job_of

    # -- under load ---------------------------------------------------------------------------------------------------

    async def _under_load(self, testbed: Testbed) -> None:
        plan = self.plan
        faults = possible(
            plan.faults,
            own=testbed.server.machine is not None,
            proxied=bool(testbed.proxies),
            kind=plan.kind,
            bus=plan.bus,
        )
        rows = schedule(faults, seed=plan.seed, nodes=plan.nodes, seconds=plan.seconds, bound_s=plan.bound_s)
        testbed.fleet.go()
        began_s = monotonic()
        injecting = [asyncio.create_task(self._inject(testbed, row, began_s)) for row in rows]
        try:
            while (elapsed_s := monotonic() - began_s) < plan.seconds or not all(task.done() for task in injecting):
                self._show(testbed, elapsed_s)
                await testbed.fleet.watch(STEP_S)
                for task in injecting:
                    if task.done():
                        task.result()
        finally:
            for task in injecting:
                task.cancel()
            if injecting:
                await asyncio.wait(injecting)

    async def _inject(self, testbed: Testbed, row: list[Occurrence], began_s: float) -> None:
        """Inject the faults of one row, one after the other."""
        for occurrence in row:
            wait_s = began_s + occurrence.at_s - monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if monotonic() + occurrence.lasts_s > began_s + self.plan.seconds:
                return  # earlier faults took longer than planned
            await inject(testbed, occurrence)

    # -- at rest ------------------------------------------------------------------------------------------------------

    async def _to_rest(self, testbed: Testbed, directory: Path) -> dict[int, str]:
        """Repair everything, wait until it rests, and have every node log what it holds. Returns each node's state."""
        began_s = monotonic()
        if testbed.server.machine is not None:
            await testbed.server.machine.repair()
        if testbed.server.group is not None:
            await testbed.server.group.repair()
        if testbed.broker is not None:
            await testbed.broker.repair()
        for proxy in testbed.proxies.values():
            proxy.restore()
        testbed.repaired = began_s, monotonic()
        self._show(testbed, self.plan.seconds, "waiting for all nodes to be back at work")
        states = await testbed.fleet.ask(messages.QUIET)
        lives = [life.name for life in testbed.fleet.lives]
        writes = (w for name in lives for w in writes_of(name, all_records(directory, name, "writes")))
        unconfirmed = History(len(self.items), writes).unconfirmed()
        if unconfirmed:
            await testbed.fleet.ask(messages.SETTLE, ",".join(map(str, unconfirmed)), node=1)
        self._show(testbed, self.plan.seconds, "at rest: looking into every memory")
        await asyncio.sleep(self.largest_bound_s + SLACK_S)
        await testbed.fleet.ask(messages.LOOK)
        self._show(testbed, self.plan.seconds, "holding every read against the history")
        return states

    async def _held_leases(self, testbed: Testbed) -> int:
        """How many fill leases are still held, after the time in which any load must have ended."""
        machine, until_s = testbed.server.machine, monotonic() + LONGEST_LOAD_S
        if machine is None:
            return 0
        while (held := await machine.held_leases()) and monotonic() < until_s:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(STEP_S)
        return held

    def _show(self, testbed: Testbed, elapsed_s: float, doing: str = "") -> None:
        ticks = [life.tick for life in testbed.fleet.lives if life.tick is not None]
        reads, writes = sum(tick.accesses for tick in ticks), sum(tick.writes for tick in ticks)
        under_way = tuple(testbed.under_way)
        self.listener.show(
            RunProgress(elapsed_s, self.plan.seconds, reads, writes, len(testbed.done), under_way, doing)
        )
