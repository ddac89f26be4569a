"""Running scripts at their shards' primaries. One that finds another history than the one that its shard's meta speaks
of does nothing and says so; a new epoch is begun then, and it is asked again: all that in the time of one call. The
same happens where what is to be believed was replied in an epoch that the caller has left."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from cachebus.base.budget import NESTED, Budget
from cachebus.base.clock import Clock
from cachebus.core.ports import Caller
from cachebus.errors import L2Unavailable
from cachebus.l2.names import ShardNames
from cachebus.l2.redirect import Follower, as_command, leads_takeover
from cachebus.l2.replies import position_of, unless_none
from cachebus.l2.scripts import load_scripts
from cachebus.resp import Connection, Links, Reads, is_no_primarys, leads_elsewhere

T = TypeVar("T")

TAKEOVERS_MAX: Final = 4
"""New epochs in a row that one call puts up with: more, and the servers change faster than anything can be done."""

BELIEVED: Final = frozenset(("probe", "marks", "nodes", "read", "lease"))
"""Scripts whose reply says what may be served; they may be asked again."""


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

    def hops(self, shard: int) -> int:
        """How often a server has said of the shard that it is elsewhere, or on its way."""
        return 0 if self._follower is None else self._follower.hops[shard]

    def run(
        self,
        reads: Callable[[Any], T],
        name: str,
        shard: int,
        caller: Caller,
        keys: Sequence[str],
        args: Sequence[Any],
        bucket: str = "",
    ) -> Awaitable[T]:
        """What a script replies, as `reads` reads it.

        `keys` are its KEYS from 2 on, `args` its ARGV from 5 on; those before are read by `_prologue.lua`. Which part
        of a script reads which ARGV is said in docs/protocol.md, "The scripts".
        """
        keys = self._names[shard].meta, *keys
        args = self._facts, str(caller.applied), caller.epoch, bucket, *args
        return self._sent(partial(unless_none, reads), name, shard, caller, keys, args)

    async def asked(self, reads: Reads, shard: int, question: tuple[str, ...]) -> Any:
        """What a plain command replies."""
        if self._follower is None:
            return await self._links.of(shard).call(*question, reads=reads)
        began_s = self._clock()
        return await self._follower.run(
            shard, lambda connection: connection.call(*question, reads=reads), question, reads, began_s
        )

    async def _sent(
        self, reads: Reads, name: str, shard: int, caller: Caller, keys: tuple[str, ...], args: tuple[Any, ...]
    ) -> Any:
        began_s, link = self._clock(), self._by_shard[shard]
        try:
            reply = await self._once(reads, name, shard, keys, args, began_s)
            if reply is None or (name in BELIEVED and reply.epoch in caller.left):
                reply = await self._sent_anew(reads, name, shard, caller, keys, args, began_s, reply)
        except L2Unavailable as error:
            if is_no_primarys(error):
                self._links.refused(shard, error, link)
            raise
        if self._unconfirmed[shard] and link is self._by_shard[shard]:  # else another server may have answered
            self._links.confirm_primary(shard)
        return reply

    async def _sent_anew(
        self,
        reads: Reads,
        name: str,
        shard: int,
        caller: Caller,
        keys: tuple[str, ...],
        args: tuple[Any, ...],
        began_s: float,
        reply: Any,
    ) -> Any:
        budget = Budget(self._clock, self._timeout_s, self._clock() - began_s, NESTED)
        for _ in range(TAKEOVERS_MAX):
            left = b"" if reply is None else reply.epoch
            await budget.spent_on(self._take_over(shard, caller, args[3], left, began_s))
            reply = await budget.spent_on(self._once(reads, name, shard, keys, args, began_s))
            if reply is not None and not (name in BELIEVED and reply.epoch in caller.left):
                return reply
        raise L2Unavailable("the servers behind this shard change too fast")

    async def _once(
        self, reads: Reads, name: str, shard: int, keys: tuple[str, ...], args: tuple[Any, ...], began_s: float
    ) -> Any:
        script = self.scripts[name]
        if self._follower is None:
            return await self._links.of(shard).script(script, keys, args, reads, began_s)
        return await self._follower.run(
            shard,
            lambda connection: connection.script(script, keys, args, reads, began_s),
            as_command(script, keys, args),
            reads,
            began_s,
            leads_takeover if name == "takeover" else leads_elsewhere,
        )

    async def _take_over(self, shard: int, caller: Caller, bucket: str, left: bytes, began_s: float) -> None:
        """Begin a new epoch, unless somebody was faster. `left`: one that is over, as its server does not know."""
        mode = "sharded" if self._links.route.clustered else "plain"
        args = (
            self._facts,
            str(caller.applied),
            caller.epoch,
            bucket,
            secrets.token_hex(8),
            mode,
            str(caller.bound_ms),
            str(caller.guard_ms),
            flag(caller.keeps_without_l2),
            left,
        )
        await self._once(position_of, "takeover", shard, (self._names[shard].meta,), args, began_s)


def flag(said: bool) -> str:
    """As the scripts are told it."""
    return "1" if said else "0"
