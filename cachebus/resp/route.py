"""Where the primary of each shard is: what all routes have in common, and the one that never changes.

`asked_route` has what is common to those that must ask: `Sentinels` and `ClusterMap`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cachebus.resp.address import Address
from cachebus.resp.link import Link

OnMoved = Callable[[Sequence[int]], None]
Holds = Callable[[int], bool]


class Route(ABC):
    """Knows the primary of every shard: `known`, None where nobody serves it, or has been asked yet."""

    clustered = False
    """Whether keys of different shards may lie on different servers, and commands be sent on to others."""
    moves = True
    """Whether a shard may come to lie elsewhere."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.known: list[Address | None] = [None] * shards
        self._watching: list[OnMoved] = []
        self._holding: list[Holds] = []
        self._dropping: list[Callable[[], None]] = []

    def watch(self, on_moved: OnMoved, holds: Holds | None = None, drop: Callable[[], None] | None = None) -> None:
        """Have `on_moved` called with the shards whose primary lies elsewhere from now on. `holds`: whether a shard's
        primary does there, now, what only a primary does: then it stays known, whatever a third party says. `drop`:
        lets go of the server that there is a connection to, for `drop_links`."""
        self._watching.append(on_moved)
        if drop is not None:
            self._dropping.append(drop)
        if holds is not None:
            self._holding.append(holds)

    def drop_links(self) -> None:
        """The server behind a fixed name is a replica now: the name may lead to another one by now, which only a new
        connection does. Where others say where the primaries are, it is they who are asked."""
        if not self.moves:
            for drop in self._dropping:
                drop()

    def refute(self, address: Address) -> None:
        """A server that it has named says that it is no primary. Who asks nobody has nothing to learn from that."""
        return

    async def verify(self, link: Link, address: Address) -> None:
        """Have a server that was just connected to show that it is one of these; `L2Unavailable`, which is `NoPrimary`
        where it says that it is none. It stands at a place that was told, and may be another one by now."""
        return

    @abstractmethod
    async def refresh(self, since_s: float) -> None:
        """Find out where the primaries are, unless somebody has begun to since then; `L2Unavailable` where nobody can
        say. What was known stays known until somebody says another thing."""

    def moved(self, shard: int, host: str, port: int) -> Address:
        """A server said where the shard's slot is now."""
        address = self.beside(shard, host, port)
        if address != self.known[shard]:
            self._move({shard: address})
        return address

    @abstractmethod
    def beside(self, shard: int, host: str, port: int) -> Address:
        """A server that another one has named, which says nothing of the host where that is its own."""

    def _learn(self, addresses: list[Address | None], *, sure: bool) -> None:
        """Take in what a refresh has found. Unless it is `sure`, a shard that anybody holds stays where it is: whoever
        was asked may be cut off from its fellows, or be of another Cluster by now. Who names nobody takes no address
        away: that one is tried until there is a better one."""
        moved = {
            shard: address
            for shard, (known, address) in enumerate(zip(self.known, addresses, strict=True))
            if address not in (None, known) and (sure or not any(holds(shard) for holds in self._holding))
        }
        if moved:
            self._move(moved)

    def _move(self, addresses: Mapping[int, Address | None]) -> None:
        for shard, address in addresses.items():
            self.known[shard] = address
        for on_moved in self._watching:
            on_moved(list(addresses))

    @abstractmethod
    def stop(self) -> None:
        """End a refresh that is under way; awaits nothing."""

    async def close(self) -> None:
        """`stop`, and return when nothing is under way."""
        self.stop()

    @abstractmethod
    def __str__(self) -> str:
        """For logs and errors: no passwords."""


class Fixed(Route):
    """One server, whatever it is."""

    moves = False

    def __init__(self, address: Address, shards: int) -> None:
        super().__init__(shards)
        self._address = address
        self.known = [address] * shards

    async def refresh(self, since_s: float) -> None:
        """It stays where it is."""

    def stop(self) -> None:
        """See `Route.stop`."""

    def beside(self, shard: int, host: str, port: int) -> Address:
        """See `Route.beside`."""
        return replace(self._address, host=host or self._address.host, port=port)

    def __str__(self) -> str:
        return str(self._address)
