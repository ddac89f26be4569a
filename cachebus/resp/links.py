"""The links to the primaries, by shard. Each primary has attempts of its own to connect to it: one at a time, shared by
all who want the link, with pauses in between. The failure of one changes nothing for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Generic, TypeVar

from cachebus.base.backoff import Attempts
from cachebus.base.clock import Clock
from cachebus.base.ignored import ignore_error
from cachebus.base.kept import kept
from cachebus.base.losses import Losses
from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.link import Link
from cachebus.resp.replies import is_replicas
from cachebus.resp.route import Route
from cachebus.resp.tasks import ended, shared

L = TypeVar("L", bound=Link)
Opens = Callable[[Address], Awaitable[L]]

SUSPECT_S: Final = 5.0
"""For so long after a refusal its shard's primary is looked for: about as long as a failover takes."""


class PrimaryLink(Generic[L]):
    """One server: the link to it, and the attempt to make one."""

    def __init__(self, address: Address, opens: Opens[L], clock: Clock, on_lost: Callable[[L, str], None]) -> None:
        self.address = address
        self.attempts = Attempts(clock)
        self.opened = 0
        """How often there was a link."""
        self._opens = opens
        self._on_lost = on_lost
        self._link: L | None = None
        self._attempt: asyncio.Task[L] | None = None
        self._showing: asyncio.Task[None] | None = None
        """Verifies the server; None once it has begun to ask."""
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
            self._attempt.add_done_callback(ignore_error)
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
            self.attempts.failed()
            raise
        link.on_lost = lambda error: self._lost(link, str(error))
        self._link = link
        self.opened += 1
        return link

    def showing(self, verify: Callable[[L, Address], Awaitable[None]]) -> asyncio.Task[None]:
        """Have the server show once more that it is one of ours: by one question for all who call in one tick. Where it
        does not, the link is closed."""
        if self._showing is None:
            self._showing = asyncio.create_task(self._show(verify), name="cachebus-verify")
            self._showing.add_done_callback(ignore_error)
        return self._showing

    async def _show(self, verify: Callable[[L, Address], Awaitable[None]]) -> None:
        await asyncio.sleep(0)
        self._showing, link = None, self.link
        if link is None:
            return  # the next link is verified when it opens
        try:
            await verify(link, self.address)
        except L2Unavailable:
            if link is self.link:
                self.leave()
            raise

    def _lost(self, link: L, why: str = "") -> None:
        self.attempts.failed()
        self._on_lost(link, why)

    def leave(self) -> None:
        """Close the link, and connect after the pause to whichever server is there then; what is pending fails."""
        if (link := self.link) is not None:
            link.close()
            self._lost(link)

    def drop(self) -> asyncio.Task[L] | None:
        """Close the link; what is pending fails. Ends the attempt, too, and gives it."""
        for task in (self._attempt, self._showing):
            if task is not None:
                task.cancel()
        if self._link is not None:
            self._link.close()
        return self._attempt


class Links(Generic[L]):
    """One link to each primary, made by `opens`. `by_shard` stays the same list. `on_changed` is called with the shards
    that lost their link, were given another, or have their primary elsewhere. `trusts_own_links`: a primary that was
    confirmed here stays, whatever anybody else says of where it is."""

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
        self.losses = Losses(clock)
        self.on_lost: Callable[[str], object] = str
        """Hears why a link was lost, of each loss."""
        self.by_shard: list[L | None] = [None] * route.shards
        self._addresses: list[Address | None] = [None] * route.shards
        """By shard: whose link that is, or was."""
        self._opens = opens
        self._clock = clock
        self._on_changed = on_changed
        self._primaries: dict[Address, PrimaryLink[L]] = {}
        self.unconfirmed = [True] * route.shards
        """By shard: whether its server has yet to do what only a primary does."""
        self._reaching = 0
        """How many wait for a link now. As long as any does, the route is refreshed."""
        self._suspected: dict[int, float] = {}
        """By shard: until when the route is refreshed for it, though it has a link."""
        self._refreshing: asyncio.Task[None] | None = None
        self._primary_moved: dict[int, asyncio.Future[None]] = {}
        """By shard: done when its primary has moved, and then removed."""
        self._troubles = [""] * route.shards
        """By shard: why the last attempt failed, for the error of whoever has no connection."""
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
        link, address = self.by_shard[shard], self.route.known[shard]
        if link is None or link.closed or address is None:
            return False
        its = self._addresses[shard]
        return its is address or its == address

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
        """The shard's link, made if need be. `L2Unavailable` where the attempt fails. It begins when the primary's
        pause is over, so a server is not stormed by who calls again and again. The caller bounds how long it waits."""
        if not self.reaches(shard):
            self._reaching += 1
            try:
                self._assign(shard, *await self._reached(shard))
            except L2Unavailable as error:
                self._troubles[shard] = f" ({error})"
                raise
            finally:
                self._reaching -= 1
        self._troubles[shard] = ""
        return self.of(shard)

    async def _reached(self, shard: int) -> tuple[Address, L]:
        """Try where the primary is known to be. As soon as it is known to be elsewhere, try there."""
        while True:
            address = self.route.known[shard]
            if address is None:
                address = await self._found(shard)
            attempt = self._primary(address).attempt()
            self._begin_refreshing()
            waits: set[asyncio.Future[Any]] = {attempt, self._when_moved(shard)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self.route.known[shard] == address and attempt.done():
                return address, await shared(attempt)

    async def _found(self, shard: int) -> Address:
        self._refuse_if_closed()
        await self.route.refresh(self._clock())
        address = self.route.known[shard]
        if address is None:
            raise L2Unavailable(f"{self.route}: no server has the slot of shard {shard}")
        return address

    async def follow(self, shard: int, host: str, port: int, by: L) -> None:
        """A server said, `by` this link, that the shard is elsewhere now; `L2Unavailable`. On another link than the
        shard's that is the word of a third party, which a confirmed primary outweighs."""
        if by is self.by_shard[shard] or not self._confirmed(shard):
            self.route.moved(shard, host, port)
        await self.reach(shard)

    async def show_again(self, shard: int) -> None:
        """Have the shard's server show that it is still one of ours. Where it does not: `L2Unavailable`, and the route
        is refreshed."""
        address = self._addresses[shard]
        if address is None or (primary := self._primaries.get(address)) is None:
            return
        try:
            await shared(primary.showing(self.route.verify))
        except L2Unavailable:
            self.suspect_primary(shard)
            raise

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
        """Its server has refused what a primary does: find out whether another one is the primary."""
        self.unconfirmed[shard] = True
        self._suspected[shard] = self._clock() + SUSPECT_S
        self._begin_refreshing()

    def refused(self, shard: int, error: L2Unavailable, link: L | None) -> None:
        """The same, on this link and with this error. Where that is a replica's, links to fixed addresses are
        closed."""
        self.suspect_primary(shard)
        if is_replicas(error) and link is self.by_shard[shard]:  # else there is another one already
            self.route.drop_links()

    def confirm_primary(self, shard: int) -> None:
        """Its server has done what only a primary does."""
        self.unconfirmed[shard] = False
        self._suspected.pop(shard, None)
        address = self.route.known[shard]
        if address is not None and address in self._primaries:
            self._primaries[address].attempts.succeeded()

    async def close(self) -> None:
        """Drop every link, at once, and return when no task of theirs is left; what is pending fails. Until `connect`
        no link is made any more."""
        self._closed = True
        tasks: list[asyncio.Task[Any] | None] = [self._refreshing]
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

    def _primary(self, address: Address) -> PrimaryLink[L]:
        self._refuse_if_closed()
        primary = self._primaries.get(address)
        if primary is None:
            primary = self._primaries[address] = PrimaryLink(address, self._opens, self._clock, self._lost)
            self._tidy_soon()
        return primary

    def _tidy_soon(self) -> None:
        if self._tidying is None:  # once for all that come or are given theirs in one tick: it looks at every shard
            self._tidying = asyncio.get_running_loop().call_soon(self._tidy)

    def _assign(self, shard: int, address: Address, link: L) -> None:
        if self.by_shard[shard] is not link:
            self.by_shard[shard], self._addresses[shard] = link, address
            self.unconfirmed[shard] = True
            self._on_changed([shard])
            self._tidy_soon()

    def _lost(self, link: L, why: str) -> None:
        """`why`: "" where the link was left, not lost."""
        if why:
            self.losses.note(link.where, why)
            self.on_lost(why)
        lost = [shard for shard, its in enumerate(self.by_shard) if its is link]
        for shard in lost:
            self.unconfirmed[shard] = True
        self._on_changed(lost)

    def _leave(self) -> None:
        for primary in list(self._primaries.values()):
            primary.leave()

    def _when_moved(self, shard: int) -> asyncio.Future[None]:
        moved = self._primary_moved.get(shard)
        if moved is None:
            moved = self._primary_moved[shard] = asyncio.get_running_loop().create_future()
        return moved

    def _moved(self, shards: Sequence[int]) -> None:
        for shard in shards:
            if (moved := self._primary_moved.pop(shard, None)) is not None:
                moved.set_result(None)
        self._on_changed(shards)

    def _begin_refreshing(self) -> None:
        """Refresh the route as long as anybody waits for a link, or suspects a primary."""
        if self.route.moves and not self._closed and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = kept(self._keep_refreshing, "cachebus-refresh")

    async def _keep_refreshing(self) -> None:
        while self._reaching or self._has_suspects():
            with suppress(L2Unavailable):
                await self.route.refresh(self._clock())

    def _has_suspects(self) -> bool:
        now_s = self._clock()
        for shard in [shard for shard, until_s in self._suspected.items() if until_s <= now_s]:
            del self._suspected[shard]
        return bool(self._suspected)

    def _tidy(self) -> None:
        """Let go of servers that no shard has, or is to have."""
        self._tidying = None
        used = {id(address): address for address in self.route.known}
        for link, its in zip(self.by_shard, self._addresses, strict=True):
            if link is not None and not link.closed:
                used[id(its)] = its
        addresses = set(used.values())
        for address, primary in list(self._primaries.items()):
            if address not in addresses and not primary.guests:
                self._forgotten += self._primaries.pop(address).opened
                primary.drop()
