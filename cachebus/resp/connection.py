"""Commands and their replies, pipelined over one socket; the reads of one loop tick are one MGET."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, cast

from cachebus.base.budget import NESTED, Budget
from cachebus.base.clock import Clock
from cachebus.base.patience import Patience
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.handshake import join
from cachebus.resp.link import ALONE_MIN, Link, OnLost, fail
from cachebus.resp.replies import NONSENSE, NOTHING, Misshapen, Reads, again, knows_no_script, pack, read_by, value_of
from cachebus.resp.script import Script

BATCH_MAX: Final = 512
"""Keys of one MGET: more would hold the server, and other clients, for too long."""

_set_result = asyncio.Future.set_result
_STRINGS: Final = frozenset((bytes, type(None)))


class Connection(Link):
    """One connection for any number of callers of one event loop. Use `Connection.open`."""

    def __init__(self, address: Address, *, timeout_s: float, clock: Clock, grouped: bool = False) -> None:
        super().__init__(address, timeout_s=timeout_s, clock=clock)
        self._keys: list[bytes | str] = []
        self._grouped = grouped
        self._giving: set[str] = set()
        """SHA1s of scripts whose source is under way."""

    @classmethod
    async def open(
        cls, address: Address, patience: Patience, *, on_lost: OnLost | None = None, grouped: bool = False
    ) -> Connection:
        """Connect and log in within its `connect_timeout_s`; raises `L2Unavailable` in a line that names the server.

        A server that owes an answer is lost when for `timeout_s` (at most an eighth more) no byte arrives from it, nor
        leaves of a question still on its way: everything pending fails and `on_lost` is called, as it is once for any
        loss but `close`. `grouped`: keys of different hash tags may not share an MGET, as in a Cluster.
        """
        connection = cls(address, timeout_s=patience.timeout_s, clock=patience.clock, grouped=grouped)
        await join(connection, address, patience.connect_timeout_s, on_lost)
        return connection

    def get(self, key: bytes | str) -> asyncio.Future[bytes | None]:
        """The value of a string key, or None if there is none.

        Gathered until the end of the loop tick: it never overtakes an earlier `call`, but a later one may overtake it.
        (A key of another type reads as None in an MGET and fails as WRONGTYPE when it is alone.)
        """
        getters = self._getters
        if not getters and not self._asked and self._lone_ticks >= ALONE_MIN:
            return self.call("GET", key, reads=value_of)  # nobody to share with
        future = self._new_future()
        if getters or self._schedule_flush(future):
            self._keys.append(key)
            getters.append(future)
            if len(getters) >= BATCH_MAX:
                self._collect()
        return future

    async def script(
        self,
        script: Script,
        keys: Sequence[bytes | str],
        args: Sequence[bytes | str | int],
        reads: Reads | None = None,
        began_s: float | None = None,
    ) -> Any:
        """Run a script by its SHA1, as `call` does; the source travels only when the server does not know it (any
        more). That is one call, which waits no longer than one: since `began_s`, or from now on."""
        if began_s is None:
            began_s = self._clock()
        by_name = pack(("EVALSHA", script.sha, len(keys), *keys, *args))
        try:
            return await self.call_packed(by_name, reads)
        except L2Unavailable as error:
            if not knows_no_script(error):
                raise
        # Nothing ran, so this is no repetition.
        budget = Budget(self._clock, self._timeout_s, self._clock() - began_s, NESTED)
        if script.sha in self._giving:
            # Others have been told so in the same breath: behind the source that one of them has sent, all find it.
            try:
                return await budget.spent_on(self.call_packed(by_name, reads))
            except L2Unavailable as error:
                if not knows_no_script(error):
                    raise
        # EVAL also loads it for the next time. It is sent in any case, however little time is left for this call.
        answer = self.call("EVAL", script.source, len(keys), *keys, *args, reads=reads)
        self._giving.add(script.sha)
        answer.add_done_callback(lambda _: self._giving.discard(script.sha))
        return await budget.spent_on(answer)

    def _collect(self) -> None:
        getters, keys = self._getters, self._keys
        if not getters:
            return
        self._getters, self._keys = [], []
        if len(getters) > 1:
            keys, getters = self._named_once(keys, getters)
        if self._grouped and self._collect_by_tag(keys, getters):
            return
        try:
            packed = pack(("GET", *keys) if len(keys) == 1 else ("MGET", *keys))
        except (TypeError, UnicodeError) as error:
            self._collect_singly(keys, getters, error)
            return
        self._out.append(packed)
        if len(getters) == 1:
            self._asked.append((getters[0], value_of))
        else:
            self._asked.append(getters)
            self._batched += len(getters) - 1

    def _named_once(
        self, keys: list[bytes | str], getters: list[asyncio.Future[Any]]
    ) -> tuple[list[bytes | str], list[asyncio.Future[Any]]]:
        """Each key once, however many ask for it: its value travels once, and all are given the same."""
        try:
            if len(set(keys)) == len(keys):
                return keys, getters
        except TypeError:  # what can't be a key is told when it is packed
            return keys, getters
        askers: dict[bytes | str, list[asyncio.Future[Any]]] = {}
        for key, future in zip(keys, getters, strict=True):
            askers.setdefault(key, []).append(future)
        return list(askers), [self._for_all(several) for several in askers.values()]

    def _for_all(self, several: list[asyncio.Future[Any]]) -> asyncio.Future[Any]:
        if len(several) == 1:
            return several[0]
        future = self._new_future()
        future.add_done_callback(partial(_hand_on, several))
        return future

    def _collect_by_tag(self, keys: list[bytes | str], getters: list[asyncio.Future[Any]]) -> bool:
        """One MGET for each hash tag; False where there is one only."""
        groups: dict[str, tuple[list[bytes | str], list[asyncio.Future[Any]]]] = {}
        for key, future in zip(keys, getters, strict=True):
            text = key if isinstance(key, str) else key.decode(errors="replace")
            of_tag = groups.setdefault(text.partition("}")[0], ([], []))
            of_tag[0].append(key)
            of_tag[1].append(future)
        if len(groups) == 1:
            return False
        for self._keys, self._getters in groups.values():
            self._collect()
        return True

    def _collect_singly(
        self, keys: list[bytes | str], getters: list[asyncio.Future[Any]], error: TypeError | UnicodeError
    ) -> None:
        """One key cannot be packed: its caller alone shall hear of it."""
        if len(keys) == 1:
            fail(getters[0], error)
            return
        for key, future in zip(keys, getters, strict=True):
            self._keys, self._getters = [key], [future]
            self._collect()

    def buffer_updated(self, nbytes: int) -> None:
        """Hand each reply to whoever asked, in order."""
        self.last_reply_s = self._clock()
        asked, next_reply = self._asked, self._next_reply
        try:
            self._feed(self._buffer, 0, nbytes)
            unsent = len(self._out)  # asked, but the server cannot know
            reply = next_reply()
            while reply is not NOTHING:
                if len(asked) == unsent:
                    self._unasked(reply)
                    return
                waiting = asked[0]  # and stays there until its reply is read: what is nonsense fails it too
                if isinstance(waiting, list):
                    self._resolve(waiting, reply)
                else:
                    future, reads = waiting if isinstance(waiting, tuple) else (waiting, None)
                    if isinstance(reply, CacheBusError):
                        fail(future, reply)
                    else:
                        found = reply if reads is None else read_by(reads, reply)
                        if not future.done():
                            future.set_result(found)
                asked.popleft()
                self._answered += 1
                reply = next_reply()
        except NONSENSE:
            self._nonsense()

    def _resolve(self, getters: list[asyncio.Future[Any]], reply: Any) -> None:
        """Give an MGET's reply to its callers; `Misshapen`."""
        if isinstance(reply, CacheBusError):
            for future in getters:
                fail(future, again(reply))
        else:
            _share(getters, reply)
        self._batched -= len(getters) - 1


def _hand_on(several: list[asyncio.Future[Any]], answer: asyncio.Future[Any]) -> None:
    error = answer.exception()
    for future in several:
        if isinstance(error, CacheBusError):
            fail(future, again(error))
        elif error is not None:
            fail(future, cast("Exception", error))
        elif not future.done():
            future.set_result(answer.result())


def _share(getters: list[asyncio.Future[Any]], reply: Any) -> None:
    if reply.__class__ is not list or len(reply) != len(getters) or not _STRINGS.issuperset(map(type, reply)):
        raise Misshapen("not a string, or nothing, for each key")
    settling = map(_set_result, getters, reply)
    while True:
        try:
            deque(settling, maxlen=0)
            return
        except asyncio.InvalidStateError:
            continue  # a caller that was cancelled; the map goes on behind it
