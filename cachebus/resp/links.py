"""The links to the primaries, by shard. Each primary is a thing of its own: one attempt at a time to connect to it,
shared by all who want it, with pauses of its own; what becomes of one decides nothing for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Generic, TypeVar

from cachebus.base.backoff import Attempts
from cachebus.base.clock import Clock
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.link import Link
from cachebus.resp.replies import is_replicas
from cachebus.resp.route import Route
from cachebus.resp.tasks import ended, heard, shared

L = TypeVar("L", bound=Link)
Opens = Callable[[Address], Awaitable[L]]

SUSPECT_S: Final = 5.0
"""For so long after a refusal its shard's primary is looked for: about as long as a failover takes."""


class Primary(Generic[L]):
    """One server: the link to it, and the attempt to make one."""

    def __init__(self, address: Address, opens: Opens[L], clock: Clock, on_lost: Callable[[L], None]) -> None:
        self.address = address
        self.attempts = Attempts(clock)
        self.opened = 0
        """How often there was a link."""
        self._opens = opens
        self._on_lost = on_lost
        self._link: L | None = None
        self._attempt: asyncio.Task[L] | None = None
        self.guests = 0
        """Commands that are under way here for shards that lie elsewhere."""

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
        await asyncio.sleep(self.attempts.wait_s)
        if self.link is not None:
            return self.link
        try:
            link = await self._opens(self.address)
            if link.closed:
                raise L2Unavailable(f"{self.address} closed the connection")
        except BaseException:
            self.attempts.over()
            raise
        link.on_lost = lambda _: self._lost(link)
        self._link = link
        self.opened += 1
        return link

    def _lost(self, link: L) -> None:
        self.attempts.over()
        self._on_lost(link)

    def leave(self) -> None:
        """Let go of the server, for whichever is there after the pause; what is pending fails."""
        if (link := self.link) is not None:
            link.close()
            self._lost(link)

    def drop(self) -> asyncio.Task[L] | None:
        """Close the link; what is pending fails. Ends the attempt, too, and gives it."""
        if self._attempt is not None:
            self._attempt.cancel()
        if self._link is not None:
            self._link.close()
        return self._attempt


class Links(Generic[L]):
    """One link to each primary, made by `opens`. `by_shard` stays the same list; `on_changed` hears which shards lost
    theirs, were given another, or have their primary elsewhere. `trusts_own_links`: a primary that was confirmed here
    counts more than what anybody else says of where it is."""

    def __init__(
        self,
        route: Route,
        opens: Opens[L],
        *,
        clock: Clock,
        on_changed: Callable[[Sequence[int]], None],
        trusts_own_links: bool = False,
    ) -> None:
        self.route = route
        self.by_shard: list[L | None] = [None] * route.shards
        self._from: list[Address | None] = [None] * route.shards
        """By shard: whose link that is, or was."""
        self._opens = opens
        self._clock = clock
        self._on_changed = on_changed
        self._primaries: dict[Address, Primary[L]] = {}
        self.unconfirmed = [True] * route.shards
        """By shard: whether its server has yet to do what only a primary does."""
        self._reaching = 0
        """How many wait for a link now: the primaries are looked for meanwhile."""
        self._suspected: dict[int, float] = {}
        """By shard: until when its primary is looked for, though it has a link."""
        self._seeking: asyncio.Task[None] | None = None
        self._stirred: dict[int, asyncio.Future[None]] = {}
        """By shard: done, and taken away, when its primary has moved."""
        self._troubles = [""] * route.shards
        """Why the last attempt failed: whoever has no connection is told, and mends a URL by it."""
        self._forgotten = 0
        self._closed = False
        self._tidying: asyncio.Handle | None = None
        route.watch(self._moved, self._confirmed if trusts_own_links else None, self._leave)

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
        its = self._from[shard]
        return its is place or its == place

    def of(self, shard: int) -> L:
        """The shard's link; `L2Unavailable`."""
        link = self.by_shard[shard]
        if link is None or link.closed:
            raise L2Unavailable(f"not connected to {self.route}{self._troubles[shard]}")
        return link

    async def connect(self) -> None:
        """Have a link for every shard, after `close` too; `L2Unavailable` if any can't, though the others then have."""
        self.reopen()
        shards = range(len(self.by_shard))
        for trouble in await asyncio.gather(*map(self.reach, shards), return_exceptions=True):
            if isinstance(trouble, BaseException):
                raise trouble

    def reopen(self) -> None:
        """Let links be made again, after `close`."""
        self._closed = False

    async def reach(self, shard: int) -> L:
        """The shard's link, made if need be: by one attempt, which begins when the primary's pause is over, so who
        calls this again and again storms nobody. `L2Unavailable` when it fails; how long it lasts is the caller's to
        bound."""
        if not self.reaches(shard):
            self._reaching += 1
            try:
                self._give(shard, *await self._reached(shard))
            except L2Unavailable as error:
                self._troubles[shard] = f" ({error})"
                raise
            finally:
                self._reaching -= 1
        self._troubles[shard] = ""
        return self.of(shard)

    async def _reached(self, shard: int) -> tuple[Address, L]:
        """Tries where the primary is known to be, and goes on elsewhere as soon as somebody says that it is there."""
        while True:
            address = self.route.known[shard]
            if address is None:
                address = await self._found(shard)
            attempt = self._primary(address).attempt()
            self._seek()
            waits: set[asyncio.Future[Any]] = {attempt, self._stir(shard)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self.route.known[shard] == address and attempt.done():
                return address, await shared(attempt)

    async def _found(self, shard: int) -> Address:
        self._refuse_if_closed()
        await self.route.look(self._clock())
        address = self.route.known[shard]
        if address is None:
            raise L2Unavailable(f"{self.route}: no server has the slot of shard {shard}")
        return address

    async def follow(self, shard: int, host: str, port: int, by: L) -> None:
        """A server said that the shard is elsewhere now; `L2Unavailable`. What comes `by` another link than the shard's
        is the word of a third party."""
        if by is self.by_shard[shard] or not self._confirmed(shard):
            self.route.moved(shard, host, port)
        await self.reach(shard)

    @asynccontextmanager
    async def aside(self, shard: int, host: str, port: int) -> AsyncIterator[L]:
        """A link to a server that has the shard's keys only in part as yet: for one command, during which it is not
        let go of; `L2Unavailable`."""
        primary = self._primary(self.route.beside(shard, host, port))
        primary.guests += 1
        try:
            yield await shared(primary.attempt())
        finally:
            primary.guests -= 1

    def suspect_primary(self, shard: int) -> None:
        """Its server has refused what a primary does: look whether another one is it."""
        self.unconfirmed[shard] = True
        self._suspected[shard] = self._clock() + SUSPECT_S
        self._seek()

    def refused(self, shard: int, error: L2Unavailable, link: L | None) -> None:
        """The same, by this link and for this reason; a replica at a fixed place is left."""
        self.suspect_primary(shard)
        if is_replicas(error) and link is self.by_shard[shard]:  # else there is another one already
            self.route.left()

    def confirm_primary(self, shard: int) -> None:
        """Its server has done what only a primary does."""
        self.unconfirmed[shard] = False
        self._suspected.pop(shard, None)
        place = self.route.known[shard]
        if place is not None and place in self._primaries:
            self._primaries[place].attempts.succeeded()

    async def close(self) -> None:
        """Drop every link, at once, and return when no task of theirs is left; what is pending fails. Until `connect`
        no link is made any more."""
        self._closed = True
        tasks: list[asyncio.Task[Any] | None] = [self._seeking]
        primaries, self._primaries = self._primaries, {}
        for primary in primaries.values():
            self._forgotten += primary.opened
            tasks.append(primary.drop())
        if self._tidying is not None:
            self._tidying.cancel()
            self._tidying = None
        self.route.stop()
        await ended(*tasks)
        await self.route.close()

    # -- changes ----------------------------------------------------------------------------------------------------

    def _confirmed(self, shard: int) -> bool:
        return not self.unconfirmed[shard] and self.reaches(shard)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise L2Unavailable("the connections were closed")

    def _primary(self, address: Address) -> Primary[L]:
        self._refuse_if_closed()
        primary = self._primaries.get(address)
        if primary is None:
            primary = self._primaries[address] = Primary(address, self._opens, self._clock, self._lost)
            self._tidy_soon()
        return primary

    def _tidy_soon(self) -> None:
        if self._tidying is None:  # once for all that come or are given theirs in one tick: it looks at every shard
            self._tidying = asyncio.get_running_loop().call_soon(self._tidy)

    def _give(self, shard: int, address: Address, link: L) -> None:
        if self.by_shard[shard] is not link:
            self.by_shard[shard], self._from[shard] = link, address
            self.unconfirmed[shard] = True
            self._on_changed([shard])
            self._tidy_soon()

    def _lost(self, link: L) -> None:
        lost = [shard for shard, its in enumerate(self.by_shard) if its is link]
        for shard in lost:
            self.unconfirmed[shard] = True
        self._on_changed(lost)

    def _leave(self) -> None:
        for primary in list(self._primaries.values()):
            primary.leave()

    def _stir(self, shard: int) -> asyncio.Future[None]:
        stirred = self._stirred.get(shard)
        if stirred is None:
            stirred = self._stirred[shard] = asyncio.get_running_loop().create_future()
        return stirred

    def _moved(self, shards: Sequence[int]) -> None:
        for shard in shards:
            if (stirred := self._stirred.pop(shard, None)) is not None:
                stirred.set_result(None)
        self._on_changed(shards)

    def _seek(self) -> None:
        """Look for the primaries as long as anybody waits for one, or doubts one."""
        if self.route.moves and not self._closed and (self._seeking is None or self._seeking.done()):
            self._seeking = asyncio.create_task(self._sought(), name="cachebus-seek")
            self._seeking.add_done_callback(heard)

    async def _sought(self) -> None:
        while self._reaching or self._doubts():
            with suppress(L2Unavailable):
                await self.route.look(self._clock())

    def _doubts(self) -> bool:
        now_s = self._clock()
        for shard in [shard for shard, until_s in self._suspected.items() if until_s <= now_s]:
            del self._suspected[shard]
        return bool(self._suspected)

    def _tidy(self) -> None:
        """Let go of servers that no shard has, or is to have."""
        self._tidying = None
        used = {id(place): place for place in self.route.known}
        for link, its in zip(self.by_shard, self._from, strict=True):
            if link is not None and not link.closed:
                used[id(its)] = its
        places = set(used.values())
        for address, primary in list(self._primaries.items()):
            if address not in places and not primary.guests:
                self._forgotten += self._primaries.pop(address).opened
                primary.drop()
