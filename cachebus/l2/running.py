"""Running scripts at their shards' primaries. One that finds another history than the one that its shard's meta speaks
of does nothing and says so; a new epoch is begun then, and it is asked again: all that in the time of one call. The
same happens where what is to be believed was replied in an epoch that the caller has left.

A node of a Cluster that leaves it for another one is emptied before, and its connections go on: so where an epoch is
another one, or is to be, the server shows again that it is of ours. Nothing else would tell.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from cachebus.base.budget import NESTED, Budget
from cachebus.base.clock import Clock
from cachebus.core.ports import Caller
from cachebus.errors import L2Unavailable
from cachebus.l2.arguments import Prologue, TakeoverArgs
from cachebus.l2.names import ShardNames
from cachebus.l2.redirect import FollowedCommand, Follower, as_command, leads_takeover
from cachebus.l2.replies import position_of, unless_none
from cachebus.l2.scripts import load_scripts
from cachebus.resp import Connection, Links, Reads, is_no_primarys, leads_elsewhere

T = TypeVar("T")

TAKEOVERS_MAX: Final = 4
"""New epochs in a row that one call puts up with: more, and the servers change faster than anything can be done."""

PROLOGUE_ARGS: Final = len(Prologue._fields)
BELIEVED: Final = frozenset(("probe", "marks", "nodes", "read", "fill_lease"))
"""Scripts whose reply says what may be served; they may be asked again."""


class Question(NamedTuple, Generic[T]):
    """What a script is asked. Which part of it reads which ARGV is said in docs/protocol.md, "The scripts"."""

    reads: Callable[[Any], T]
    """Reads the reply."""
    name: str
    """The script's."""
    shard: int
    caller: Caller
    keys: Sequence[str]
    """Its KEYS from 2 on. The first is read by `_prologue.lua`."""
    args: Sequence[Any]
    """Its ARGV from 5 on. Those before are read by `_prologue.lua`."""
    bucket: str = ""


class _Sending(NamedTuple):
    """A question as it is sent: with what all scripts read in front."""

    name: str
    shard: int
    caller: Caller
    keys: tuple[str, ...]
    args: tuple[Any, ...]
    reads: Reads

    @property
    def prologue(self) -> tuple[Any, ...]:
        """The ARGV that all scripts read."""
        return self.args[:PROLOGUE_ARGS]

    def may_believe(self, reply: Any) -> bool:
        """Whether the script has done what it was asked, in an epoch that the caller has not left."""
        return reply is not None and not (self.name in BELIEVED and reply.epoch in self.caller.former_epochs)


class Running:
    """Runs the scripts of one store."""

    def __init__(
        self, links: Links[Connection], names: Sequence[ShardNames], facts: str, clock: Clock, timeout_s: float
    ) -> None:
        self.scripts = load_scripts()
        self._links = links
        self._by_shard = links.by_shard
        self._unconfirmed = links.unconfirmed
        self._names = names
        self._facts = facts
        self._clock = clock
        self._timeout_s = timeout_s
        self._follower = Follower(links, clock, timeout_s) if links.route.clustered else None
        self._epochs: list[bytes | None] = [None] * len(names)
        """Of a Cluster, by shard: the epoch that its server told last."""

    def hops(self, shard: int) -> int:
        """How often a server has said of the shard that it is elsewhere, or on its way."""
        return 0 if self._follower is None else self._follower.hops[shard]

    def run(self, question: Question[T]) -> Awaitable[T]:
        """What a script replies, as the question's `reads` reads it."""
        reads, name, shard, caller, keys, args, bucket = question
        prologue = Prologue(self._facts, caller.applied, caller.epoch, bucket)
        keys, args = self._behind(prologue, shard, keys, args)
        return self._sent(_Sending(name, shard, caller, keys, args, partial(unless_none, reads)))

    def of_nobody(
        self, shard: int, keys: Sequence[str], args: Sequence[Any]
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """The KEYS and ARGV of what holds in whichever epoch, as no caller is in one."""
        return self._behind(Prologue(self._facts), shard, keys, args)

    def _behind(
        self, prologue: Prologue, shard: int, keys: Sequence[str], args: Sequence[Any]
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """A script's own KEYS and ARGV, behind what all scripts read."""
        return (self._names[shard].meta, *keys), (*prologue, *args)

    async def plain(self, shard: int, *question: str | bytes) -> Any:
        """What a plain command replies, whatever it is."""
        return await self.asked(None, shard, question)

    async def asked(self, reads: Reads | None, shard: int, question: tuple[str | bytes, ...]) -> Any:
        """What a plain command replies."""
        if self._follower is None:
            return await self._links.of(shard).call(*question, reads=reads)
        began_s = self._clock()
        command = FollowedCommand(shard, lambda connection: connection.call(*question, reads=reads), question, reads)
        return await self._follower.run(command, began_s)

    async def _sent(self, sending: _Sending) -> Any:
        shard = sending.shard
        began_s, link = self._clock(), self._by_shard[shard]
        try:
            reply = await self._once(sending, began_s)
            if not sending.may_believe(reply):
                reply = await self._sent_in_another_epoch(sending, reply, began_s)
            if self._follower is not None:
                epoch = getattr(reply, "epoch", None)
                if epoch is not None and epoch != self._epochs[shard]:
                    await self._rest_of(began_s).spent_on(self._links.show_again(shard))
                    self._epochs[shard] = epoch
        except L2Unavailable as error:
            if is_no_primarys(error):
                self._links.refused(shard, error, link)
            raise
        if self._unconfirmed[shard] and link is self._by_shard[shard]:  # else another server may have answered
            self._links.confirm_primary(shard)
        return reply

    async def _sent_in_another_epoch(self, sending: _Sending, reply: Any, began_s: float) -> Any:
        budget = self._rest_of(began_s)
        for _ in range(TAKEOVERS_MAX):
            if self._follower is not None:
                await budget.spent_on(self._links.show_again(sending.shard))
            former_epoch = b"" if reply is None else reply.epoch
            await budget.spent_on(self._take_over(sending, former_epoch, began_s))
            reply = await budget.spent_on(self._once(sending, began_s))
            if sending.may_believe(reply):
                return reply
        raise L2Unavailable("the servers behind this shard change too fast")

    def _rest_of(self, began_s: float) -> Budget:
        """The time that is left of a call."""
        return Budget(self._clock, self._timeout_s, self._clock() - began_s, NESTED)

    async def _once(self, sending: _Sending, began_s: float) -> Any:
        name, shard, _, keys, args, reads = sending
        script = self.scripts[name]
        if self._follower is None:
            return await self._links.of(shard).script(script, keys, args, reads, began_s)
        command = FollowedCommand(
            shard,
            lambda connection: connection.script(script, keys, args, reads, began_s),
            as_command(script, keys, args),
            reads,
            leads_takeover if name == "takeover" else leads_elsewhere,
        )
        return await self._follower.run(command, began_s)

    async def _take_over(self, sending: _Sending, former_epoch: bytes, began_s: float) -> None:
        """Begin a new epoch, unless somebody was faster. `former_epoch`: is over, as its server does not know."""
        mode = "sharded" if self._links.route.clustered else "plain"
        shard, caller = sending.shard, sending.caller
        bound_ms, guard_ms, keeps_without_l2 = caller.largest
        own = TakeoverArgs(
            epoch=secrets.token_hex(8),
            mode=mode,
            bound_ms=bound_ms,
            guard_ms=guard_ms,
            keeps_without_l2=int(keeps_without_l2),
            former_epoch=former_epoch,
        )
        args = *sending.prologue, *own
        meta = (self._names[shard].meta,)
        await self._once(_Sending("takeover", shard, caller, meta, args, position_of), began_s)
