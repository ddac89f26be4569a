"""Our RESP client beside redis-py with hiredis: one server, one process, rounds interleaved, medians.

Run `python -m tests.bench.resp_bench [rounds]`. Each line shows both and the ratio that matters, with its goal.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import hiredis
import redis.asyncio

from cachebus.base.clock import monotonic, perf_counter
from cachebus.base.patience import Patience
from cachebus.resp import Connection, Script, Subscriber, parse_address
from cachebus.tools.servers.redis import EmbeddedServer

CALLERS = 100
GETS_A_CALLER = 20
SINGLE_GETS = 100
SCRIPTS = 100
MESSAGES = 60
FLOOD = 20_000
VALUE = b"x" * 200
SCRIPT = Script("redis.call('SET', KEYS[1], ARGV[1]); return redis.call('INCRBY', KEYS[1], ARGV[2])")

Read = Callable[[str], Awaitable[Any]]


class Bare(asyncio.BufferedProtocol):
    """The least that asyncio can do, for comparison: no order, no errors, no watching, one question at a time."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(65_536))
        self._reader = hiredis.Reader()
        self._transport: Any = None
        self._waiting: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type]
        self._waiting.set_result(self._reader.gets())

    def get(self, key: str) -> asyncio.Future[Any]:
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(hiredis.pack_command(("GET", key)))
        return self._waiting


@dataclass(frozen=True, slots=True)
class Peers:
    """The two clients, connected to one server, with a listener each."""

    ours: Connection
    bare: Bare
    theirs: redis.asyncio.Redis
    our_ears: Subscriber
    their_ears: Any
    heard: asyncio.Queue[float]


async def many_callers(get: Read) -> float:
    """Seconds a GET with 100 callers at once, each reading one key after the other."""

    async def caller(number: int) -> None:
        for turn in range(GETS_A_CALLER):
            await get(f"key:{(number * 7 + turn) % 1000}")

    started = perf_counter()
    await asyncio.gather(*[caller(number) for number in range(CALLERS)])
    return (perf_counter() - started) / (CALLERS * GETS_A_CALLER)


async def one_caller(get: Read) -> float:
    """Seconds a GET when nobody else asks."""
    started = perf_counter()
    for turn in range(SINGLE_GETS):
        await get(f"key:{turn}")
    return (perf_counter() - started) / SINGLE_GETS


async def scripts(run: Callable[[], Awaitable[Any]]) -> float:
    """Seconds an EVALSHA."""
    started = perf_counter()
    for _ in range(SCRIPTS):
        await run()
    return (perf_counter() - started) / SCRIPTS


async def our_messages(peers: Peers) -> list[float]:
    """Seconds from each PUBLISH until the message is there, ours on both sides."""
    times = []
    for _ in range(MESSAGES):
        started = perf_counter()
        published = peers.ours.call(b"PUBLISH", b"ours", b"m" * 100)
        times.append(await peers.heard.get() - started)
        await published
    return times


async def their_messages(peers: Peers) -> list[float]:
    """The same with redis-py."""
    times: list[float] = []

    async def listen() -> None:
        async for message in peers.their_ears.listen():
            if message["type"] == "message":
                heard.set_result(perf_counter())
            if len(times) == MESSAGES - 1:
                return

    listening = asyncio.create_task(listen())
    for _ in range(MESSAGES):
        heard = asyncio.get_running_loop().create_future()
        started = perf_counter()
        publishing = asyncio.create_task(peers.theirs.publish("theirs", b"m" * 100))
        times.append(await heard - started)
        await publishing
    await listening
    return times


async def flood(peers: Peers) -> tuple[float, float]:
    """Messages a second that each listener takes while one of ours publishes as fast as the server lets it."""
    rates = []
    for channel in (b"ours", b"theirs"):
        seen = asyncio.create_task(_count_theirs(peers) if channel == b"theirs" else _count_ours(peers))
        started = perf_counter()
        for _ in range(FLOOD // 1000):
            sent = [peers.ours.call(b"PUBLISH", channel, b"m" * 100) for _ in range(1000)]
            await asyncio.gather(*sent)
        await seen
        rates.append(FLOOD / (perf_counter() - started))
    return rates[0], rates[1]


async def _count_ours(peers: Peers) -> None:
    for _ in range(FLOOD):
        await peers.heard.get()


async def _count_theirs(peers: Peers) -> None:
    seen = 0
    async for _ in peers.their_ears.listen():
        seen += 1
        if seen == FLOOD:
            return


def line(what: str, ours_s: float, theirs_s: float, *, faster: float = 0, at_most: float = 0) -> None:
    """Print a row; a goal is either how many times as fast, or which part of the time."""
    ratio = theirs_s / ours_s if faster else ours_s / theirs_s
    goal = f">= {faster:g} x" if faster else f"<= {at_most:g} x"
    met = ratio >= faster if faster else ratio <= at_most
    print(f"{what:<34}{ours_s * 1e6:9.2f}{theirs_s * 1e6:11.2f}{ratio:9.2f} x   {goal:<9}{'' if met else 'MISSED'}")


async def measure(peers: Peers, rounds: int) -> None:
    """Interleave, then print medians of the rounds."""
    their_script = peers.theirs.register_script(SCRIPT.source)
    await peers.ours.script(SCRIPT, ["s"], [1, 2])
    await their_script(["s"], [1, 2])

    async def our_script() -> None:
        await peers.ours.script(SCRIPT, ["s"], [1, 2])

    async def their_evalsha() -> None:
        await peers.theirs.evalsha(SCRIPT.sha, 1, "s", 1, 2)  # type: ignore[misc]

    table: dict[str, list[float]] = {}
    ours_late: list[float] = []
    theirs_late: list[float] = []
    for _ in range(rounds):
        for name, get in (("ours", peers.ours.get), ("theirs", peers.theirs.get)):
            table.setdefault("many " + name, []).append(await many_callers(get))
            table.setdefault("one " + name, []).append(await one_caller(get))
        table.setdefault("one bare", []).append(await one_caller(peers.bare.get))
        table.setdefault("script ours", []).append(await scripts(our_script))
        table.setdefault("script theirs", []).append(await scripts(their_evalsha))
        ours_late += await our_messages(peers)
        theirs_late += await their_messages(peers)
    middle = {name: median(values) for name, values in table.items()}
    print(f"{'':<34}{'ours us':>9}{'redis-py':>11}{'ratio':>9}     goal")
    line("GET, 100 callers at once", middle["many ours"], middle["many theirs"], faster=20)
    line("GET, one caller", middle["one ours"], middle["one theirs"], at_most=0.4)
    line("  (a bare asyncio protocol)", middle["one bare"], middle["one theirs"], at_most=0.4)
    line("EVALSHA, one caller", middle["script ours"], middle["script theirs"], at_most=0.5)
    line("PUBLISH -> message, p50", median(ours_late), median(theirs_late), at_most=0.6)
    line("PUBLISH -> message, p99", quantiles(ours_late, n=100)[98], quantiles(theirs_late, n=100)[98], at_most=1.0)


async def main(rounds: int) -> None:
    """Start a server, connect both, measure."""
    with EmbeddedServer() as server:
        address = parse_address(server.url)
        heard: asyncio.Queue[float] = asyncio.Queue()
        ours = await Connection.open(address, Patience(5.0, 5.0, monotonic))
        our_ears = await Subscriber.open(
            address, Patience(5.0, 5.0, monotonic), on_push=lambda _channel, _payload: heard.put_nowait(perf_counter())
        )
        await our_ears.subscribe("ours")
        theirs = redis.asyncio.Redis(port=server.port, max_connections=CALLERS + 8)
        their_ears = theirs.pubsub(ignore_subscribe_messages=True)
        await their_ears.subscribe("theirs")
        await asyncio.gather(*[ours.call("SET", f"key:{number}", VALUE) for number in range(1000)])
        loop = asyncio.get_running_loop()
        _, bare = await loop.create_connection(Bare, address.host, address.port)
        peers = Peers(ours, bare, theirs, our_ears, their_ears, heard)
        print(f"{server.binary.name}, redis-py {redis.__version__}, {loop.__class__.__module__}")
        await measure(peers, rounds)
        mine, other = await flood(peers)
        print(f"{'flood, messages a second':<34}{mine:9.0f}{other:11.0f}{mine / other:9.2f} x")
        await their_ears.aclose()
        await theirs.aclose()
        our_ears.close()
        ours.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 15))
