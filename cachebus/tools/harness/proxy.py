"""A TCP proxy between one node and its server that behaves like a bad network on request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Self, cast

from cachebus.resp import Address
from cachebus.tools.harness.stream import Direction, Kind, OneWay, Spoil, Stream

HOST: Final = "127.0.0.1"
TURNS: Final = 4
"""Of the loop, from a connection's being accepted to its end where it is refused."""
CONNECT_S: Final = 5.0
ALL_KINDS: Final[tuple[Kind, ...]] = ("data", "events")
BOTH: Final[tuple[Direction, ...]] = ("up", "down")

Dial = Callable[[Callable[[], asyncio.Protocol]], Awaitable[object]]


def dialer(address: Address) -> Dial:
    """How to reach a server: over TCP, TLS (verified here, for the name in its certificate) or a unix socket."""

    async def dial(protocol: Callable[[], asyncio.Protocol]) -> object:
        loop = asyncio.get_running_loop()
        if address.path is not None:
            return await loop.create_unix_connection(protocol, address.path)
        name = address.host if address.ssl else None
        return await loop.create_connection(protocol, address.host, address.port, ssl=address.ssl, server_hostname=name)

    return dial


class Proxy:
    """Passes bytes both ways, until told otherwise. An async context manager. Listens on loopback alone.

    A connection counts as one of data, and, once it subscribes, as one of events. `hold`, `delay`, `slow`, `spoil` and
    `garble` change how bytes pass from now on. `cut` breaks connections and refuses new ones; `reset` only breaks them.
    `restore` ends all of that. Held bytes arrive then, even those of a node that has disconnected meanwhile, as they
    may in a real network.
    """

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._server: asyncio.Server | None = None
        self._refusing = False
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.ways: dict[tuple[Kind, Direction], OneWay] = {(kind, way): OneWay() for kind in ALL_KINDS for way in BOTH}
        self.port = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _End(self._accept), HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for _turn in range(TURNS):  # what was accepted just now comes yet, is refused, and is gone
            await asyncio.sleep(0)

    def hold(self, kinds: Iterable[Kind] = ALL_KINDS, directions: Iterable[Direction] = BOTH) -> None:
        """Let no byte pass. Connections stay open, and new ones are accepted."""
        for way in self._chosen(kinds, directions):
            way.held = True
        if all(way.held for way in self.ways.values()):
            self._passing.clear()

    def delay(
        self, seconds: Callable[[], float], kinds: Iterable[Kind] = ALL_KINDS, directions: Iterable[Direction] = BOTH
    ) -> None:
        """Delay bytes, each piece by `seconds()`."""
        for way in self._chosen(kinds, directions):
            way.delay = seconds

    def slow(self, rate: float | None, directions: Iterable[Direction] = BOTH) -> None:
        """Let only so many bytes a second pass, of all connections together; None: as many as come, again."""
        for way in self._chosen(ALL_KINDS, directions):
            way.rate, way.free_s = rate, 0.0
        for pair in list(self._pairs):
            pair.flush()

    def spoil(self, spoil: Spoil) -> None:
        """Replace each reply on a subscription, so each message, by what `spoil(reply)` returns."""
        self.ways["events", "down"].spoil = spoil

    def garble(self, spoil: Spoil) -> None:
        """Replace the bytes of replies to commands, as they come, by what `spoil(bytes)` returns."""
        self.ways["data", "down"].spoil = spoil

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self._refusing = True
        self.reset()

    def lead(self, dial: Dial) -> None:
        """Connect to another server from now on, as if a name was moved to it. Present connections break."""
        self._dial = dial
        self.reset()

    def reset(self, kinds: Iterable[Kind] = ALL_KINDS) -> None:
        """Break the connections of these kinds. New ones are accepted."""
        for pair in [pair for pair in self._pairs if pair.kind in kinds]:
            pair.cut()

    def tear(self) -> None:
        """Break the data connection in the middle of its next reply."""
        self.ways["data", "down"].tear = lambda: self.reset(("data",))

    def restore(self) -> None:
        """Let all bytes pass again."""
        self._refusing = False
        for way in self.ways.values():
            way.held, way.delay, way.spoil, way.tear = False, None, None, None
        self._passing.set()
        self.slow(None)

    def _chosen(self, kinds: Iterable[Kind], directions: Iterable[Direction]) -> list[OneWay]:
        chosen = set(directions)
        return [self.ways[kind, direction] for kind in kinds for direction in chosen]

    def _accept(self, end: _End) -> None:
        if self._refusing:
            end.transport.abort()
            return
        pair = _Pair(self.ways, end, self._pairs.discard)
        self._pairs.add(pair)
        task = asyncio.get_running_loop().create_task(self._connect(pair))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, pair: _Pair) -> None:
        try:
            await self._passing.wait()
            async with asyncio.timeout(CONNECT_S):
                await self._dial(lambda: _End(pair.reach))
        except OSError:  # TimeoutError is one
            pair.cut()


class _End(asyncio.Protocol):
    """One end of a pair: the node's or the server's."""

    def __init__(self, made: Callable[[_End], None]) -> None:
        self._made = made
        self.transport: asyncio.Transport
        self.onto: Stream | None = None
        """Where what comes in goes."""
        self.heard: Callable[[bytes], None] | None = None
        """Looks at the bytes first; until it takes itself away."""
        self.lost: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._made(self)

    def data_received(self, data: bytes) -> None:
        if self.heard is not None:
            self.heard(data)
        if self.onto is not None:
            self.onto.take(data)

    def eof_received(self) -> bool:
        return False  # one direction at its end is the connection at its end: nothing here speaks on half closed

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost()


class _Pair:
    """A node's connection and the one to the server that goes with it."""

    def __init__(self, ways: dict[tuple[Kind, Direction], OneWay], node: _End, gone: Callable[[_Pair], None]) -> None:
        self._ways = ways
        self._gone = gone
        self._node: _End | None = node
        self._server: _End | None = None
        self._ended = self._reached = False
        self.kind: Kind = "data"
        self._up, self._down = Stream(ways["data", "up"]), Stream(ways["data", "down"])
        self._up.source = self._down.sink = node.transport
        node.onto, node.heard, node.lost = self._up, self._look, self._node_lost

    def reach(self, server: _End) -> None:
        """The server's end is there."""
        if self._ended:
            server.transport.abort()
            return
        self._server, self._reached = server, True
        self._up.sink = self._down.source = server.transport
        server.onto, server.lost = self._down if self._node is not None else None, self._server_lost
        self._up.flush()
        if self._node is None:
            self._close_behind()

    def flush(self) -> None:
        """Its ways have changed."""
        self._up.flush()
        self._down.flush()
        if self._node is None:
            self._close_behind()
        elif self._reached and self._server is None:
            self._close_before()

    def cut(self) -> None:
        """Break both ends now."""
        if self._ended:
            return
        self._ended = True
        self._gone(self)
        for stream in (self._up, self._down):
            stream.drop()
        for end in (self._node, self._server):
            if end is not None:
                end.transport.abort()

    def _look(self, data: bytes) -> None:
        if b"SUBSCRIBE" not in data:
            return
        # What the handshake before it brought has passed whole: replies are cut into frames from here on.
        self.kind = "events"
        assert self._node is not None
        self._node.heard = None
        self._up.way = self._ways["events", "up"]
        self._down = stream = Stream(self._ways["events", "down"], framed=True)
        stream.sink = self._node.transport
        if self._server is not None:
            stream.source, self._server.onto = self._server.transport, stream

    # A hang-up is the last that arrives: where bytes are held, so is it.

    def _node_lost(self) -> None:
        self._node = None
        self._down.drop()
        if self._server is not None:
            self._server.onto = None  # nobody is left to hear it
        if self._up.passed:
            self.cut()

    def _server_lost(self) -> None:
        self._server = None
        self._up.drop()
        if self._down.passed:
            self.cut()

    def _close_behind(self) -> None:
        """The node has hung up: once its last bytes are through, so does this."""
        if self._up.passed and self._server is not None and not self._ended:
            self._server.transport.close()

    def _close_before(self) -> None:
        """So has the server."""
        if self._down.passed and self._node is not None and not self._ended:
            self._node.transport.close()
