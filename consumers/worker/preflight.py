"""A worker looked at without being started: whether all is there that it needs, and so that it can be relied on."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Finding, Source
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.errors import CacheBusError
from cachebus.producers.direct import DirectProducer

WITHIN_S: Final = 15.0
L2: Final = "l2"


class Seen(NamedTuple):
    """What was looked at, and what is wrong with it: nothing, as a rule."""

    what: str
    """ "l2", the source's part ("database", "kafka"), or one of its assumptions."""
    findings: tuple[Finding, ...] = ()
    looked_at: bool = True
    """False where something else was in the way."""


async def examined(worker: SourceWorker, within_s: float = WITHIN_S) -> list[Seen]:
    """L2, the source, and all that is assumed of it, in the order of what needs what. Nothing is changed, and nothing
    taken; `ConfigError` for what can't even be tried."""
    source = worker.source
    seen = [Seen(L2, await _of_l2(worker, within_s))]
    try:
        async with asyncio.timeout(within_s), source.opened() as session:
            findings = (await session.look()).findings
    except TimeoutError:
        return [*seen, *_in_the_way(source, f"it did not answer in {within_s:g} s")]
    except source.trouble as error:
        return [*seen, *_in_the_way(source, source.describe(error))]
    of = {name: tuple(finding for finding in findings if finding.assumption == name) for name in source.assumptions}
    return [*seen, Seen(source.part), *(Seen(name, found) for name, found in of.items())]


async def _of_l2(worker: SourceWorker, within_s: float) -> tuple[Finding, ...]:
    try:
        async with asyncio.timeout(within_s), DirectProducer.open(worker.settings) as producer:
            await producer.probe()
    except TimeoutError:
        return (Finding(L2, L2, f"it did not answer in {within_s:g} s"),)
    except CacheBusError as error:
        return (Finding(L2, L2, clean(str(error))),)
    return ()


def _in_the_way(source: Source, problem: str) -> list[Seen]:
    found = Finding(source.part, source.part, problem)
    return [Seen(source.part, (found,)), *(Seen(name, looked_at=False) for name in source.assumptions)]
