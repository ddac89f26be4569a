"""The facts that the checks judge. They are gathered first and judged afterwards, so that judging needs no server.

Settings are asked for by name: `CONFIG GET *` would return the server's passwords, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cachebus.core.ports import NodeRow
from cachebus.l2.replies import BucketState
from cachebus.resp import Address
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import Asker, texts
from cachebus.tools.doctor.finding import Finding
from cachebus.tools.doctor.logins import NO_LOGINS, Logins, logins_of
from cachebus.tools.doctor.some import some

SETTINGS: Final = (
    "maxmemory",
    "maxmemory-policy",
    "save",
    "appendonly",
    "appendfsync",
    "stop-writes-on-bgsave-error",
    "enable-debug-command",
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "client-output-buffer-limit",
    "timeout",
    "tcp-keepalive",
    "maxclients",
    "maxmemory-clients",
    "proto-max-bulk-len",
    "client-query-buffer-limit",
    "lua-time-limit",
    "busy-reply-threshold",
    "stream-node-max-entries",
    "stream-node-max-bytes",
    "notify-keyspace-events",
    "repl-backlog-ttl",
    "cluster-allow-replica-migration",
    "cluster-require-full-coverage",
)


@dataclass(frozen=True, slots=True)
class Server:
    """What one server says of itself. If it refuses a question, the refusal is kept as the reason."""

    address: Address
    info: Mapping[str, str]
    info_refused: str
    config: Mapping[str, str]
    config_refused: str
    user: str
    logins: Logins = NO_LOGINS
    """What it logs in with at a primary, and whom it lets in."""

    @property
    def version(self) -> tuple[int, ...]:
        """The version of Redis that it is, or is compatible with; empty if it does not say."""
        return numbers(self.info.get("redis_version", ""))

    @property
    def name(self) -> str:
        """Kind and version, such as "valkey 8.1.8"."""
        kind = self.info.get("server_name", "redis")
        return f"{kind} {self.info.get(f'{kind}_version', '') or self.info.get('redis_version', '?')}"

    @property
    def line(self) -> tuple[str, tuple[int, ...]]:
        """Kind and version, as far as they say what it can do: ("valkey", (8, 1)); no version if it does not say."""
        kind, _, version = self.name.partition(" ")
        return kind, numbers(version)[:2]

    @property
    def followers(self) -> list[Mapping[str, str]]:
        """What INFO says of each follower: `ip`, `port`, `state`, `offset`, `lag`."""
        lines = [
            value
            for name, value in sorted(self.info.items())
            if name.startswith("slave") and name.removeprefix("slave").isdecimal()
        ]
        return [dict(pair.partition("=")[::2] for pair in line.split(",")) for line in lines]

    def number(self, name: str) -> int | None:
        """A number in INFO; None if it is missing."""
        return whole(self.info.get(name))

    def setting(self, name: str) -> int | None:
        """A setting that is a number; None if it is missing."""
        return whole(self.config.get(name))


@dataclass(frozen=True, slots=True)
class Timing:
    """Measured times in seconds: sorted round trips of PING and of a script that reads, and clocks."""

    pings_s: Sequence[float]
    scripts_s: Sequence[float]
    script_refused: str = ""
    offset_s: float = 0.0
    """The server's wall clock minus this machine's."""
    offset_error_s: float = 0.0
    drift: float = 0.0
    """How much faster the server's clock ran than ours, in seconds per second."""
    drift_error: float = 0.0
    suspended_s: float = 0.0
    """How long this machine was suspended since it was booted."""


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """One shard of the namespace as it lies in L2."""

    index: int
    meta: Mapping[str, str]
    refused: str = ""
    invalidated_scopes: int | None = None
    buckets: Mapping[str, BucketState] = field(default_factory=dict)
    log_first: int | None = None
    log_last: int | None = None
    nodes: Mapping[str, NodeRow] = field(default_factory=dict)
    all_nodes: bool = True
    """Whether these are all rows: more than a bound are not read."""
    nodes_refused: str = ""
    """Why they could not be read."""
    subscribers: int | None = None
    now_us: int = 0
    made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was made of it, by what: once, where there is much of it."""


@dataclass(frozen=True, slots=True)
class Replica:
    """What a replica says of itself."""

    address: Address
    server: Server | None = None
    """None if it could not be asked."""
    lacking: Sequence[Finding] = ()
    """The rights that this login lacks there."""
    refused: str = ""
    """Why it could not be asked."""


@dataclass(frozen=True, slots=True)
class KnownReplica:
    """A replica, as it is known to those who would promote it: Sentinels, or the nodes of a Cluster."""

    address: Address
    away: str = ""
    """Why it is away, in their words; "" if it is not."""
    promotable: bool = True
    id: str = ""
    """Its id, in a Cluster."""
    ip: str = ""
    """Its IP, where `address` has a name."""

    @property
    def may_take_over(self) -> bool:
        """Whether it can be promoted as things are: one that is away can't."""
        return self.promotable and not self.away

    @property
    def place(self) -> tuple[str, int]:
        """Its address, as its primary names it."""
        return self.ip or self.address.host, self.address.port


@dataclass(frozen=True, slots=True)
class Watched:
    """What Sentinels, or the nodes of a Cluster, say of one primary whose replicas they would promote."""

    kind: str = ""
    """The kind of deployment, as in `Endpoints`; "" if nobody is known to promote replicas."""
    service: str = ""
    """The service's name, with Sentinels."""
    failover_s: float | None = None
    """After how many silent seconds a replica is promoted; None if nobody does that, or it is not known."""
    known: Sequence[KnownReplica] | None = None
    """The replicas that they know, also those that are away; None if nobody says."""
    refused: str = ""
    """Why something is not known."""
    voters: Sequence[bool] = ()
    """Of a Cluster: each primary that has slots, and so a vote, and whether it answers."""
    unserved: Sequence[int] = ()
    """Of a Cluster: the slots that no server has."""
    full_coverage: str = ""
    """Of a Cluster: cluster-require-full-coverage; "" where it is not told."""


UNWATCHED: Final = Watched()


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts about one server, with the settings of the cache that asks."""

    settings: Settings
    server: Server
    timing: Timing
    shards: Sequence[ShardFacts] = ()
    other_databases: Sequence[int] = ()
    """Databases of the same server in which the same namespace lies."""
    watched: Watched = UNWATCHED
    replicas: Sequence[Replica] = ()
    """Those that were asked."""


async def server_of(asker: Asker, address: Address) -> Server:
    """What the server says of itself."""
    text, info_refused = await asker.ask("INFO")
    if info_refused:
        text, info_refused = await asker.ask("INFO", "replication")
    config: dict[str, str] = {}
    config_refused = ""
    for name in SETTINGS:
        reply, config_refused = await asker.ask("CONFIG", "GET", name)
        if config_refused:
            break
        config.update(texts(reply))
    who, _ = await asker.ask("ACL", "WHOAMI")
    user = who.decode() if who else address.username or "default"
    logins = await logins_of(asker, address)
    return Server(address, _fields(text or b""), info_refused, config, config_refused, user, logins)


def _fields(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value.strip() for name, colon, value in lines if colon}


def whole(text: str | None) -> int | None:
    """A whole number; None for anything else."""
    try:
        return int(text or "")
    except ValueError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """A version's numbers: "7.0.15" is (7, 0, 15)."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def size(amount: float) -> str:
    """Bytes for people: "64.0 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GB"


def none_may_take_over(known: Sequence[KnownReplica], barred_by: str) -> str:
    """Why none of these replicas can be promoted, "" where one can. `barred_by`: what is set on one that may not be."""
    if not known or any(each.may_take_over for each in known):
        return ""
    away = [each for each in known if each.promotable]
    if not away:
        return f"each has {barred_by}"
    gone = f"{some([each.address for each in away])} {'is' if len(away) == 1 else 'are'} away"
    return gone if len(away) == len(known) else f"{gone}, and the others have {barred_by}"
