"""The links to the primaries, by shard. Each primary is a thing of its own: one attempt at a time to connect to it,
shared by all who want it, with pauses of its own; what becomes of one decides nothing for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from cachebus.backoff import Backoff
from cachebus.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.link import Link
from cachebus.resp.route import Route
from cachebus.resp.tasks import ended, heard, shared

L = TypeVar("L", bound=Link)
Opens = Callable[[Address], Awaitable[L]]


class Primary(Generic[L]):
    """One server: the link to it, and the attempt to make one."""

    def __init__(self, address: Address, opens: Opens[L], clock: Clock, on_lost: Callable[[L], None]) -> None:
        self.address = address
        self.pauses = Backoff()
        self.opened = 0
        """How often there was a link."""
        self._opens = opens
        self._clock = clock
        self._on_lost = on_lost
        self._link: L | None = None
        self._next_s = float("-inf")
        self._attempt: asyncio.Task[L] | None = None

    @property
    def link(self) -> L | None:
        """The link, if there is one now."""
        return None if self._link is None or self._link.closed else self._link

    def attempt(self) -> asyncio.Task[L]:
        """The attempt under way, or a new one, which begins when the pause after the last is over."""
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(self._try(), name="cachebus-connect")
            self._attempt.add_done_callback(heard)
        return self._attempt

    async def _try(self) -> L:
        await asyncio.sleep(max(0.0, self._next_s - self._clock()))
        if self.link is not None:
            return self.link
        try:
            link = await self._opens(self.address)
            if link.closed:
                raise L2Unavailable(f"{self.address} closed the connection")
        except BaseException:
            self._rest()
            raise
        link.on_lost = lambda _: self._lost(link)
        self._link = link
        self.opened += 1
        return link

    def _rest(self) -> None:
        self._next_s = self._clock() + self.pauses.next_s()
        self.pauses.longer()

    def _lost(self, link: L) -> None:
        self._rest()
        self._on_lost(link)

    def drop(self) -> None:
        """Close the link; what is pending fails. Ends the attempt, too."""
        if self._attempt is not None:
            self._attempt.cancel()
        if self._link is not None:
            self._link.close()

    async def close(self) -> None:
        """`drop`, and return when the attempt has ended."""
        self.drop()
        await ended(self._attempt)


class Links(Generic[L]):
    """One link to each primary, made by `opens`. `by_shard` stays the same list; `on_changed` hears which shards lost
    theirs, were given another, or have their primary elsewhere."""

    def __init__(
        self, route: Route, opens: Opens[L], *, clock: Clock, on_changed: Callable[[Sequence[int]], None]
    ) -> None:
        self.route = route
        self.by_shard: list[L | None] = [None] * route.shards
        self._opens = opens
        self._clock = clock
        self._on_changed = on_changed
        self._primaries: dict[Address, Primary[L]] = {}
        self.unproved = [True] * route.shards
        """By shard: whether its server has yet to do what only a primary does. Until then it is looked for."""
        self._seeking: asyncio.Task[None] | None = None
        self._stirred: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, and replaced, when any primary has moved."""
        self._troubles = [""] * route.shards
        """Why the last attempt failed: whoever has no connection is told, and mends a URL by it."""
        self._forgotten = 0
        self._life = 0
        """How often all was closed."""
        route.watch(self._moved)

    @property
    def connected(self) -> bool:
        """Whether every shard has a link to where its primary is known to be."""
        return all(map(self.reaches, range(len(self.by_shard))))

    @property
    def opened(self) -> int:
        """How many links there have been."""
        return self._forgotten + sum(primary.opened for primary in self._primaries.values())

    def reaches(self, shard: int) -> bool:
        """Whether the shard has a link to where its primary is known to be."""
        link, place = self.by_shard[shard], self.route.known[shard]
        if link is None or link.closed or place is None:
            return False
        primary = self._primaries.get(place)
        return primary is not None and primary.link is link

    def of(self, shard: int) -> L:
        """The shard's link; `L2Unavailable`."""
        link = self.by_shard[shard]
        if link is None or link.closed:
            raise L2Unavailable(f"not connected to {self.route}{self._troubles[shard]}")
        return link

    async def connect(self) -> None:
        """Have a link for every shard; `L2Unavailable` if any can't, though the others then have."""
        shards = range(len(self.by_shard))
        for trouble in await asyncio.gather(*map(self.reach, shards), return_exceptions=True):
            if isinstance(trouble, BaseException):
                raise trouble

    async def reach(self, shard: int) -> L:
        """The shard's link, made if need be: by one attempt, which begins when the primary's pause is over, so who
        calls this again and again storms nobody. `L2Unavailable` when it fails; how long it lasts is the caller's to
        bound."""
        if not self.reaches(shard):
            try:
                self._give(shard, await self._reached(shard))
            except L2Unavailable as error:
                self._troubles[shard] = f" ({error})"
                raise
        self._troubles[shard] = ""
        return self.of(shard)

    async def _reached(self, shard: int) -> L:
        """Tries where the primary is known to be, and goes on elsewhere as soon as somebody says that it is there."""
        life = self._life
        while life == self._life:
            if self.route.moves:
                self._seek()
            address = self.route.known[shard]
            if address is None:
                address = await self._found(shard)
            attempt = self._primary(address).attempt()
            waits: set[asyncio.Future[Any]] = {attempt, self._stirred}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self.route.known[shard] == address and attempt.done():
                return await shared(attempt)
        raise L2Unavailable("the connections were closed")

    async def _found(self, shard: int) -> Address:
        await self.route.look(self._clock())
        address = self.route.known[shard]
        if address is None:
            raise L2Unavailable(f"{self.route}: no server has the slot of shard {shard}")
        return address

    async def follow(self, shard: int, host: str, port: int) -> None:
        """A server said that the shard is elsewhere now; `L2Unavailable`."""
        self.route.moved(shard, host, port)
        await self.reach(shard)

    async def aside(self, shard: int, host: str, port: int) -> L:
        """A link to a server that has the shard's keys only in part as yet: for one command; `L2Unavailable`."""
        return await shared(self._primary(self.route.beside(shard, host, port)).attempt())

    def doubt(self, shard: int) -> None:
        """Its server has refused what a primary does: look whether another one is it."""
        self.unproved[shard] = True
        if self.route.moves:
            self._seek()

    def prove(self, shard: int) -> None:
        """Its server has done what only a primary does."""
        self.unproved[shard] = False
        place = self.route.known[shard]
        if place is not None and place in self._primaries:
            self._primaries[place].pauses.reset()

    async def close(self) -> None:
        """Drop every link; what is pending fails."""
        self._life += 1
        await ended(self._seeking)
        await self.route.close()
        primaries, self._primaries = self._primaries, {}
        self._forgotten += sum(primary.opened for primary in primaries.values())
        for primary in primaries.values():
            await primary.close()

    # -- changes ----------------------------------------------------------------------------------------------------

    def _primary(self, address: Address) -> Primary[L]:
        primary = self._primaries.get(address)
        if primary is None:
            primary = self._primaries[address] = Primary(address, self._opens, self._clock, self._lost)
        return primary

    def _give(self, shard: int, link: L) -> None:
        if self.by_shard[shard] is not link:
            self.by_shard[shard] = link
            self.unproved[shard] = True
            self._on_changed([shard])
            self._tidy()

    def _lost(self, link: L) -> None:
        lost = [shard for shard, its in enumerate(self.by_shard) if its is link]
        for shard in lost:
            self.unproved[shard] = True
        self._on_changed(lost)

    def _moved(self, shards: Sequence[int]) -> None:
        self._stirred.set_result(None)
        self._stirred = asyncio.get_running_loop().create_future()
        self._on_changed(shards)

    def _seek(self) -> None:
        """Look for the primaries until each is proved to be where it is known to be."""
        if self._seeking is None or self._seeking.done():
            self._seeking = asyncio.create_task(self._sought(), name="cachebus-seek")
            self._seeking.add_done_callback(heard)

    async def _sought(self) -> None:
        while any(self.unproved):
            with suppress(L2Unavailable):
                await self.route.look(self._clock())

    def _tidy(self) -> None:
        """Let go of servers that no shard has, or is to have."""
        places, links = set(self.route.known), set(map(id, self.by_shard))
        for address, primary in list(self._primaries.items()):
            if address not in places and id(primary.link) not in links:
                self._forgotten += self._primaries.pop(address).opened
                primary.drop()
