"""The facts that the checks judge. They are gathered first and judged afterwards, so that judging needs no server.

Settings are asked for by name: `CONFIG GET *` would return the server's passwords, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from cachebus.base.clock import monotonic
from cachebus.core.ports import NodeRow
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.l2.replies import BucketState
from cachebus.resp import Address, Connection, Reads
from cachebus.settings import Settings
from cachebus.tools.doctor.finding import Finding

ASK_TIMEOUT_S: Final = 5.0
"""The doctor is patient: a slow server is a finding, not an outage."""
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
    "lua-time-limit",
    "busy-reply-threshold",
    "stream-node-max-entries",
    "stream-node-max-bytes",
    "notify-keyspace-events",
    "repl-backlog-ttl",
    "cluster-allow-replica-migration",
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
    asks_password: bool = False
    """Whether it refuses clients without a password."""
    shows_password: bool | None = None
    """Whether it sends a password to a primary that it follows, so whether `masterauth` is set; None if unknown."""

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
    subscribers: int | None = None
    now_us: int = 0


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
    def place(self) -> tuple[str, int]:
        """Its address, as its primary names it."""
        return self.ip or self.address.host, self.address.port


@dataclass(frozen=True, slots=True)
class Watched:
    """What Sentinels, or the nodes of a Cluster, say of one primary whose replicas they would promote."""

    kind: str = ""
    """The kind of deployment, as in `Places`; "" if nobody is known to promote replicas."""
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


class Asker:
    """Asks over one connection. A refusal is an answer, not an error."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    async def open(cls, address: Address, connect_timeout_s: float) -> Asker:
        """Connect; `L2Unavailable` names host and port."""
        limits: dict[str, Any] = {"timeout_s": ASK_TIMEOUT_S, "connect_timeout_s": connect_timeout_s}
        try:
            return cls(await Connection.open(address, clock=monotonic, **limits))
        except L2Unavailable as error:
            if "MISCONF" not in str(error):
                raise
            return cls(await _Echoing.open(address, clock=monotonic, **limits))

    async def ask(self, *args: str | bytes | int) -> tuple[Any, str]:
        """The reply, and the refusal ("" if there is none). Raises if the connection is gone."""
        try:
            return await self.connection.call(*args), ""
        except CacheBusError as error:
            if self.connection.closed:
                raise
            return None, str(error)

    async def now_us(self) -> int:
        """The server's clock, in microseconds; `L2Unavailable` where it is not told."""
        told, refused = await self.ask("TIME")
        if refused:
            raise L2Unavailable(f"the server does not tell its clock: {refused}")
        seconds, micros = told
        return int(seconds) * 1_000_000 + int(micros)

    def close(self) -> None:
        """Give the connection back."""
        self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


async def asked(whom: Address, *questions: tuple[str, ...]) -> list[tuple[Any, str]]:
    """The answers to some questions, each as from `Asker.ask`, over a connection of its own. Never raises."""
    answers: list[tuple[Any, str]] = []
    try:
        asker = await Asker.open(whom, ASK_TIMEOUT_S)
        try:
            answers.extend([await asker.ask(*question) for question in questions])
        finally:
            asker.close()
    except CacheBusError as error:
        answers += [(None, str(error))] * (len(questions) - len(answers))
    return answers


class _Echoing(Connection):
    """A connection that logs in by ECHO. A server that can't save refuses PING as if it were a write, but not ECHO."""

    def call(self, *args: bytes | str | int, reads: Reads | None = None) -> asyncio.Future[Any]:
        """As `Connection.call`, with ECHO in place of PING."""
        return super().call(*(("ECHO", "PING") if args == ("PING",) else args), reads=reads)


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
    secret, unknown = await asker.ask("CONFIG", "GET", "masterauth")
    shows = None if unknown else any(texts(secret).values())
    asks = bool(address.password) and await _asks_password(address)
    return Server(address, _fields(text or b""), info_refused, config, config_refused, user, asks, shows)


async def _asks_password(address: Address) -> bool:
    ((_, refused),) = await asked(replace(address, username=None, password=None), ("PING",))
    return "NOAUTH" in refused


def _fields(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value.strip() for name, colon, value in lines if colon}


def texts(flat: Sequence[bytes] | None) -> dict[str, str]:
    """A flat reply of names and values as a mapping."""
    words = [word.decode(errors="replace") for word in flat or ()]
    return dict(zip(words[::2], words[1::2], strict=False))


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
