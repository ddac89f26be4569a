"""A primary, replicas and Sentinels on 127.0.0.1, all from the one server program. Failovers take a second or two."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from cachebus.errors import L2Unavailable
from cachebus.tools.servers.redis import HOST, EmbeddedServer, ServerBinary
from cachebus.tools.servers.redis_group import Front, ServerGroup, ask, facts_of

SERVICE: Final = "mymaster"
DOWN_MS: Final = 500
"""After so long without an answer Sentinels hold a primary for dead."""


class SentinelGroup(ServerGroup):
    """A primary, replicas and Sentinels.

    `min_replicas`: how many replicas must have confirmed within a second for the primary to take writes.
    """

    def __init__(
        self,
        binary: ServerBinary | None = None,
        *,
        replicas: int = 2,
        sentinels: int = 3,
        min_replicas: int = 0,
        front: Front | None = None,
    ) -> None:
        super().__init__(binary, [f"min-replicas-to-write {min_replicas}", "min-replicas-max-lag 1"], front)
        self._counts = replicas, sentinels
        self._watched_by = {"down-after-milliseconds": DOWN_MS, "failover-timeout": 3000, "parallel-syncs": replicas}
        self.sentinels: list[EmbeddedServer] = []

    @property
    def data(self) -> list[EmbeddedServer]:
        """The servers that hold data: first the one that was the primary at the start."""
        return [server for server in self.servers if server not in self.sentinels]

    @property
    def url(self) -> str:
        """How clients reach the service."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    async def start(self) -> None:
        """Start data servers, then Sentinels, until each knows all the others."""
        replicas, sentinels = self._counts
        primary = self._holding(await self._port()).start()
        self.servers = [primary]
        for _ in range(replicas):
            replica = self._holding(await self._port(), f"replicaof {HOST} {self.place(primary)}")
            self.servers.append(replica.start())
        await self._port()
        await self._until(lambda: self._replicas_up(primary, replicas), "replicas")
        quorum = sentinels // 2 + 1
        conf = [f"sentinel monitor {SERVICE} {HOST} {self.place(primary)} {quorum}"]
        conf += [f"sentinel {option} {SERVICE} {value}" for option, value in self._watched_by.items()]
        for _ in range(sentinels):
            sentinel = EmbeddedServer(self._binary, extra=("--sentinel",), conf=conf)
            self.sentinels.append(sentinel)
            self.servers.append(sentinel.start())
        await self._until(self._sentinels_know_all, "Sentinels")

    async def _online(self, primary: EmbeddedServer) -> int:
        facts = await facts_of(primary, "INFO", "replication")
        return sum("state=online" in value for value in facts.values())

    async def _replicas_up(self, primary: EmbeddedServer, count: int) -> bool:
        return await self._online(primary) == count

    async def _sentinels_know_all(self) -> bool:
        for sentinel in self.sentinels:
            facts = await self._told_by(sentinel)
            counts = int(facts[b"num-slaves"]), int(facts[b"num-other-sentinels"])
            if counts != (len(self.data) - 1, len(self.sentinels) - 1):
                return False
        return True

    async def _told_by(self, sentinel: EmbeddedServer) -> dict[bytes, bytes]:
        """What one of them says of the primary."""
        flat = await ask(sentinel, "SENTINEL", "MASTER", SERVICE)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def primary(self, *, but: EmbeddedServer | None = None) -> EmbeddedServer:
        """The one that the Sentinels name now, and that says the same of itself; `L2Unavailable` in between. `but`: one
        that it is no more, and that may not answer."""
        for sentinel in self.sentinels:
            if sentinel.running:
                place = await ask(sentinel, "SENTINEL", "get-master-addr-by-name", SERVICE)
                if place is None:  # it has just begun, and knows nothing yet
                    continue
                (server,) = [server for server in self.data if self.place(server) == int(place[1])]
                if server is not but and server.running and (await ask(server, "ROLE"))[0] == b"master":
                    return server
        raise L2Unavailable("no primary at present")

    async def followers(self) -> int:
        """How many replicas follow the primary, each by itself; 0 where there is none, and while Sentinels disagree:
        they may agree on a replica next."""
        try:
            head = await self.primary()
            named = [await ask(each, "SENTINEL", "get-master-addr-by-name", SERVICE) for each in self.sentinels]
            return await self._online(head) if {int(port) for _, port in named} == {self.place(head)} else 0
        except L2Unavailable:
            return 0

    async def is_calm(self) -> bool:
        """Whether no Sentinel holds the primary for dead, or is about to have another one promoted."""
        try:
            told = [await self._told_by(each) for each in self.sentinels]
        except L2Unavailable:
            return False
        return all(facts[b"flags"] == b"master" for facts in told)

    async def set_right(self) -> None:
        """What an operator does where a replica is held for the primary, or replicas follow each other: Sentinels may
        take minutes to see it. Whom they name is declared to be it, as another's data may be older; else one that is
        a primary."""
        try:
            head = await self.primary()
        except L2Unavailable:
            heads = [server for server in self.data if (await ask(server, "ROLE"))[0] == b"master"]
            head = heads[0] if heads else self.data[0]
        await ask(head, "REPLICAOF", "NO", "ONE")
        for server in self.data:
            if server is not head:
                await self.follow(server, head)
        await self.monitor(head)

    async def monitor(self, server: EmbeddedServer) -> None:
        """Have the Sentinels hold a server for the primary, whatever it is."""
        for sentinel in self.sentinels:
            await ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
            await ask(sentinel, "SENTINEL", "MONITOR", SERVICE, HOST, self.place(server), self._counts[1] // 2 + 1)
            for option, value in self._watched_by.items():
                await ask(sentinel, "SENTINEL", "SET", SERVICE, option, value)

    async def follow(self, server: EmbeddedServer, primary: EmbeddedServer) -> None:
        """Have a server be a replica of another one."""
        await ask(server, "REPLICAOF", HOST, self.place(primary))

    async def be_patient(self, down_ms: int = DOWN_MS) -> None:
        """Hold a primary for dead only after so long without an answer."""
        for sentinel in self.sentinels:
            with suppress(L2Unavailable):
                await ask(sentinel, "SENTINEL", "SET", SERVICE, "down-after-milliseconds", down_ms)

    async def until_replicas(self, count: int) -> None:
        """Until the primary has so many replicas that follow it."""

        async def met() -> bool:
            return await self._replicas_up(await self.primary(), count)

        await self._until(met, "replicas")
