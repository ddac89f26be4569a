"""The other process: a node that applies events, and a listener of redis-py's. Asked by lines of JSON on its input."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

import redis.asyncio

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic, perf_counter

LEFT_ALONE_S: Final = 3600.0


def left_alone(url: str, namespace: str) -> Settings:
    """Settings of a node that does not ask L2 where it stands, which knows of no event that was only made up."""
    return Settings(url=url, namespace=namespace, staleness_bound_s=LEFT_ALONE_S, probe_interval_s=LEFT_ALONE_S / 2)


class Arrivals:
    """What has arrived so far, by number; and a way to wait for a number."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._awaited: tuple[int, asyncio.Future[None]] | None = None

    def arrived(self, number: int, at_s: float) -> None:
        """One more."""
        self._times[number] = at_s
        if self._awaited is not None and number >= self._awaited[0]:
            self._awaited[1].set_result(None)
            self._awaited = None

    async def until(self, number: int) -> dict[int, float]:
        """When each has arrived, once this one has; they are forgotten then."""
        if number not in self._times:
            self._awaited = number, asyncio.get_running_loop().create_future()
            await self._awaited[1]
        found, self._times = self._times, {}
        return found


class OtherNode:
    """Answers the questions."""

    def __init__(self, url: str, client: redis.asyncio.Redis) -> None:
        self._url = url
        self._client = client
        self._rate: asyncio.Future[float]
        self._arrivals = {"applied": Arrivals(), "heard": Arrivals()}

    async def listen(self, ears: redis.asyncio.client.PubSub) -> None:
        """Note when each message of redis-py's is there."""
        async for message in ears.listen():
            self._arrivals["heard"].arrived(int(message["data"]), monotonic())

    async def serve(self, questions: AsyncIterator[dict[str, Any]]) -> None:
        """Answer until there are no more."""
        applied = self._arrivals["applied"]
        async with (
            Cache.open(Settings(url=self._url, namespace="way")) as node,
            Cache.open(left_alone(self._url, "flood")) as flooded,
        ):
            node.on_applied = lambda shard, epoch, seq, at_s: applied.arrived(seq, at_s)
            async for question in questions:
                answer = await self._answer(question, flooded)
                said(answer)

    async def _answer(self, question: dict[str, Any], flooded: Cache) -> Any:
        match question["do"]:
            case "place":
                shard = flooded.stats().shards[0]
                return shard.epoch, shard.applied
            case "watch":
                # Begun before it is answered: what is published after the answer will be counted.
                count = question["count"]
                rate = _ours(flooded, count) if question["who"] == "ours" else await self._theirs(count)
                self._rate = asyncio.ensure_future(rate)
                return "watching"
            case "rate":
                return await self._rate
            case what:
                return await self._arrivals[what].until(question["until"])

    async def _theirs(self, count: int) -> Coroutine[Any, Any, float]:
        """Messages a second that redis-py hands on, from the first to the last."""
        ears = self._client.pubsub(ignore_subscribe_messages=True)
        await ears.subscribe("flood")

        async def rate() -> float:
            seen, started = 0, 0.0
            async with ears:
                async for _ in ears.listen():
                    seen += 1
                    if seen == 1:
                        started = perf_counter()
                    if seen == count:
                        break
            return (count - 1) / (perf_counter() - started)

        return rate()


def _ours(cache: Cache, count: int) -> asyncio.Future[float]:
    """Events a second that the node applies, from the first to the last."""
    last = cache.stats().shards[0].applied + count
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    started = 0.0

    def applied(shard: int, epoch: str, seq: int, at_s: float) -> None:
        nonlocal started
        started = started or at_s
        if seq == last:
            done.set_result((count - 1) / (at_s - started))
            cache.on_applied = None

    cache.on_applied = applied
    return done


def said(answer: Any) -> None:
    """Answer with a line of JSON."""
    print(json.dumps(answer), flush=True)


async def questions() -> AsyncIterator[dict[str, Any]]:
    """The lines of standard input, until it ends: with the process that asks."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


async def main(url: str) -> None:
    """Listen and answer."""
    async with redis.asyncio.Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=True) as ears:
        await ears.subscribe("bare")
        await ears.get_message(timeout=5)
        node = OtherNode(url, client)
        listening = asyncio.create_task(node.listen(ears))
        try:
            await node.serve(questions())
        finally:
            listening.cancel()
            await asyncio.wait([listening])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
