"""Finds the primaries that a URL stands for: the server it names, the one behind Sentinels, or all of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cachebus.assembly.backends import endpoints_of, route_of
from cachebus.base.clock import monotonic
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.resp import CLUSTER, SENTINEL, Address, Route
from cachebus.settings import Settings
from cachebus.tools.doctor import certificates, cluster, kafka, moves, names, sentinel_views, sentinels
from cachebus.tools.doctor.facts import UNWATCHED, Watched
from cachebus.tools.doctor.finding import Finding, Severity


@dataclass(frozen=True, slots=True)
class Primary:
    """A primary. `shards`: the shards of the namespace that lie there, None for all."""

    address: Address
    shards: Sequence[int] | None = None
    watched: Watched = UNWATCHED

    def has(self, shard: int) -> bool:
        """Whether a shard lies there."""
        return self.shards is None or shard in self.shards

    @property
    def first(self) -> int:
        """A shard that lies there."""
        return self.shards[0] if self.shards else 0


@dataclass(frozen=True, slots=True)
class Deployment:
    """All that a URL stands for."""

    name: str
    """For people: no passwords."""
    primaries: Sequence[Primary]
    findings: Sequence[Finding] = ()
    """Findings that are about no single server."""


async def primaries_of(settings: Settings) -> list[Primary]:
    """The primaries alone, without asking Sentinels or the Cluster about replicas; `ConfigError`, `L2Unavailable`."""
    return (await whereabouts(settings))[0]


async def whereabouts(settings: Settings) -> tuple[list[Primary], dict[int, str]]:
    """The primaries alone, and the shards that no server has, with a sentence for each; raises as `primaries_of`."""
    route = await _route_of(settings)
    lost = {shard: f"no server has the slot of shard {shard}" for shard, at in enumerate(route.known) if at is None}
    return _primaries(route), lost


async def deployment_of(settings: Settings) -> Deployment:
    """The whole deployment, with what Sentinels or the nodes of a Cluster say of it; `ConfigError`, `L2Unavailable`."""
    try:
        route = await _route_of(settings)
    except L2Unavailable as error:
        raise await _explained(settings, error) from error
    endpoints = endpoints_of(settings)
    primaries = _primaries(route)
    addresses = [primary.address for primary in primaries]
    findings = await kafka.findings_of(settings)
    if endpoints.kind == CLUSTER:
        watched = await cluster.watched_in(addresses)
        findings += await cluster.named(endpoints.addresses)
        findings += [*cluster.served(settings, route.known, watched.values())]
        findings += cluster.failing_over(watched, settings.staleness_bound_s)
        if None not in route.known:
            findings += cluster.unserved(watched.values())
        findings += await moves.findings_of(settings, addresses)
    elif endpoints.kind == SENTINEL:
        views = await sentinel_views.views_of(endpoints)
        watched = {addresses[0]: sentinel_views.watched_by(views, endpoints.service, addresses[0])}
        findings += sentinels.failing_over(views, watched[addresses[0]], addresses[0], settings.staleness_bound_s)
    else:
        watched = {}
        findings += await names.findings_of(endpoints.template)
    primaries = [replace(primary, watched=watched.get(primary.address, UNWATCHED)) for primary in primaries]
    replicas = (each.address for one in watched.values() for each in one.known or () if not each.away)
    findings += await certificates.findings_of(settings, certificates.all_of(settings, addresses, replicas))
    return Deployment(str(route), primaries, findings)


async def _explained(settings: Settings, error: L2Unavailable) -> L2Unavailable:
    """The error, with what certificates have to do with it."""
    found = await certificates.findings_of(settings, certificates.all_of(settings, (), ()))
    over = "; ".join(each.says for each in found if each.level is Severity.PROBLEM)
    return L2Unavailable(f"{error}; {over}") if over else error


def _primaries(route: Route) -> list[Primary]:
    places = dict.fromkeys(place for place in route.known if place is not None)
    if not route.clustered:
        return list(map(Primary, places))
    return [Primary(place, [shard for shard, there in enumerate(route.known) if there == place]) for place in places]


async def _route_of(settings: Settings) -> Route:
    if settings.url.get_secret_value().startswith("memory://"):
        raise ConfigError("memory:// is inside one process: there is no server to look at")
    return await route_to(settings)


async def route_to(settings: Settings) -> Route:
    """The route to the namespace, with its primaries found; `L2Unavailable` if none of it is served."""
    route = route_of(settings, monotonic)
    try:
        await route.refresh(monotonic())
    finally:
        await route.close()
    if not any(route.known):
        raise L2Unavailable(f"{route}: none of the slots of {settings.namespace} is served")
    return route
