"""A whole run: cachebus under load, with an incident half way; then the same load without coherence; and the
verdict."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.tools.demo import catalogue
from cachebus.tools.demo.board import Board, View
from cachebus.tools.demo.event_log import LoggedEvent, read_event_log
from cachebus.tools.demo.figures import Figures, figures_of
from cachebus.tools.demo.incident import Action, Incident, too_short
from cachebus.tools.demo.pipeline import DIRECT, QUIET_BOUNDS, Pipeline, build_pipeline
from cachebus.tools.demo.plan import SOURCE_LATENCY_S, DemoPlan, Workload
from cachebus.tools.demo.screen import DemoScreen
from cachebus.tools.demo.server import DemoServer, connected, served
from cachebus.tools.harness.messages import TICK_S, Job, Tick
from cachebus.tools.harness.proxy import HOST, Proxy, dialer
from cachebus.tools.harness.supervisor import ProcessFleet

VICTIM: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run."""

    plan: DemoPlan
    coherent: Figures
    incident: Incident | None
    off: Figures | None
    """The same with coherence off."""

    def broken(self) -> list[str]:
        """The promises that did not hold, a line each."""
        found = []
        if self.coherent.stale_beyond:
            found.append(
                f"{self.coherent.stale_beyond:,} reads gave what an invalidation had replaced "
                f"more than {self.plan.bound_s:g} s before (the stalest {self.coherent.oldest_s:.2f} s)"
            )
        if self.coherent.own_missed:
            found.append(f"{self.coherent.own_missed:,} reads missed a write that their own node had made")
        if self.coherent.failed:
            found.append(f"{self.coherent.failed:,} reads failed")
        incident = self.incident
        if incident is not None and incident.kept_lease:
            found.append(f"node {incident.node} kept its lease while it was cut off")
        if incident is not None and incident.overdue:
            found.append(f"node {incident.node} did not recover")
        if self.coherent.lost:
            found.append(f"{self.coherent.lost:,} committed writes were never told to the caches")
        if self.plan.writes != DIRECT and self.coherent.lags.unheard:
            found.append(f"{self.coherent.lags.unheard:,} times a node never heard of a committed write")
        return found


async def run(plan: DemoPlan, load: Workload, screen: DemoScreen) -> Outcome:
    """Do it all; leaves nothing behind. `ConfigError`, `L2Unavailable` at the start, `NodeCrashed` later."""
    with TemporaryDirectory(prefix="cachebus-demo-") as folder:
        async with served(plan.redis_url, load.words) as server:
            screen.say(f"server: {server.label}")
            if plan.cut and not Incident.fits(load.duration_s, plan.bound_s):
                screen.say(too_short(load.duration_s, plan.bound_s))
            async with build_pipeline(plan, server, load.words, Path(folder)) as pipeline:
                if pipeline is not None:
                    screen.say(f"and: {pipeline.label}")
                coherent = _Phase(plan, load, Path(folder, "coherent"), server, pipeline)
                figures = await coherent.run(screen)
        off = None
        if plan.compare:
            off = await _Phase(plan, load, Path(folder, "off"), None).run(screen)
        return Outcome(plan, figures, coherent.incident, off)


class _Phase:
    """One fleet under load, from its start to its figures."""

    def __init__(
        self,
        plan: DemoPlan,
        load: Workload,
        directory: Path,
        server: DemoServer | None,
        pipeline: Pipeline | None = None,
    ) -> None:
        self._plan, self._load, self._directory, self._server, self._pipeline = plan, load, directory, server, pipeline
        self._board = Board(plan.nodes)
        self._began_s = 0.0
        self.incident: Incident | None = None
        if server is not None and plan.cut and Incident.fits(load.duration_s, plan.bound_s):
            self.incident = Incident(min(VICTIM, plan.nodes), plan.bound_s)

    async def run(self, screen: DemoScreen) -> Figures:
        """Run it; the nodes have ended when this returns or raises."""
        self._directory.mkdir()
        catalogue.create(self._directory / catalogue.FILE, self._load.words)
        async with AsyncExitStack() as stack:
            proxy = None
            if self._server is not None and self.incident is not None:
                proxy = await stack.enter_async_context(Proxy(dialer(self._server.address)))
            jobs = [self._job(node, proxy) for node in range(1, self._plan.nodes + 1)]
            fleet = await stack.enter_async_context(ProcessFleet(jobs, self._listener(screen)))
            self._began_s = monotonic()
            fleet.go()
            await self._until_over(fleet, proxy, screen)
            if self.incident is not None:
                self.incident.ended_s = monotonic()
            ticks = await fleet.stop()
            took_s = monotonic() - self._began_s
            screen.rest()
        return await figures_of(
            self._directory, ticks, took_s, self._plan.bound_s, self.incident, await self._events_of_workers()
        )

    async def _events_of_workers(self) -> dict[str, list[LoggedEvent]] | None:
        """The invalidations by workers; None where the writers invalidate themselves."""
        if self._server is None or self._pipeline is None or self._pipeline.database is None:
            return None
        async with connected(self._server.address) as connection:
            return await read_event_log(connection, self._server.namespace)

    async def _until_over(self, fleet: ProcessFleet, proxy: Proxy | None, screen: DemoScreen) -> None:
        """Run until the time is over, or the accesses are."""
        while True:
            elapsed_s = monotonic() - self._began_s
            progress = elapsed_s / self._load.duration_s
            if self._load.accesses:
                progress = max(progress, self._board.accesses / self._load.accesses)
            screen.show(self._view(min(progress, 1.0), elapsed_s))
            if elapsed_s >= self._load.duration_s or self._board.over:
                return
            line = None if self._pipeline is None else self._pipeline.due(progress)
            if line is not None:
                self._tell(screen, line)
            if self.incident is not None and proxy is not None:
                self._intervene(self.incident, proxy, progress, screen)
            await fleet.watch(TICK_S)

    def _intervene(self, incident: Incident, proxy: Proxy, progress: float, screen: DemoScreen) -> None:
        do = incident.due(progress, monotonic())
        if do is Action.HOLD:
            proxy.hold()
            self._tell(
                screen, f"node {incident.node}: now its connections hang: they stay open, and nothing comes through"
            )
        elif do is Action.RESTORE:
            proxy.restore()
            self._tell(screen, f"node {incident.node}: its network is back")

    def _listener(self, screen: DemoScreen) -> Callable[[Tick], None]:
        def on_tick(tick: Tick) -> None:
            self._board.add(tick)
            line = self.incident.see(tick, self._board.head) if self.incident is not None else None
            if line is not None:
                self._tell(screen, line)

        return on_tick

    def _tell(self, screen: DemoScreen, line: str) -> None:
        screen.say(f"{monotonic() - self._began_s:5.1f} s  {line}")

    def _view(self, progress: float, elapsed_s: float) -> View:
        incident = self.incident

        def state(node: int) -> str:
            return incident.state() if incident is not None and incident.node == node else ""

        return View(self._title(), self._server is not None, progress, elapsed_s, self._board.rows(state))

    def _title(self) -> str:
        if self._server is None:
            return f"the same with coherence off: a dict with a TTL of {self._plan.ttl_s:g} s in each node"
        plan = self._plan
        by = "" if plan.writes == DIRECT else f" by {plan.writes}"
        return f"cachebus: {plan.nodes} nodes, {plan.write_ratio:.1%} writes{by}, staleness bound {plan.bound_s:g} s"

    def _job(self, node: int, proxy: Proxy | None) -> Job:
        plan, server, pipeline = self._plan, self._server, self._pipeline
        url = None if server is None else server.url
        if server is not None and proxy is not None and self.incident is not None and node == self.incident.node:
            url = server.url_by(HOST, proxy.port)
        return Job(
            node=node,
            nodes=plan.nodes,
            directory=str(self._directory),
            url=url,
            namespace="" if server is None else server.namespace,
            bound_s=plan.bound_s,
            l1_entries=plan.l1_entries,
            ttl_s=plan.ttl_s,
            rate=self._load.rate,
            write_ratio=plan.write_ratio,
            source_latency_s=SOURCE_LATENCY_S,
            seed=plan.seed,
            trace=None if plan.trace is None else str(plan.trace),
            database=None if pipeline is None else pipeline.database,
            writes=plan.writes if pipeline is not None else DIRECT,
            writes_for_s=None if pipeline is None else self._load.duration_s - QUIET_BOUNDS * plan.bound_s,
            kafka=None if pipeline is None else pipeline.kafka,
        )
