"""Checks a worker's L2 and source without starting it: whether all that it needs is there, and set up rightly."""

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


class Checked(NamedTuple):
    """One thing that was checked, and what is wrong with it."""

    what: str
    """ "l2", the source's part ("database", "kafka"), or one of its assumptions."""
    findings: tuple[Finding, ...] = ()
    looked_at: bool = True
    """False if it could not be checked, since its source is down."""


async def preflight(worker: SourceWorker, within_s: float = WITHIN_S) -> list[Checked]:
    """Check L2, the source, and each of the source's assumptions, in this order. Changes nothing, and takes nothing.

    `within_s`: how long each may take to answer, in seconds. `ConfigError` for what can't even be tried.
    """
    source = worker.source
    seen = [Checked(L2, await _of_l2(worker, within_s))]
    try:
        async with asyncio.timeout(within_s), source.opened() as session:
            findings = (await session.look()).findings
    except TimeoutError:
        return [*seen, *_in_the_way(source, f"it did not answer in {within_s:g} s")]
    except source.trouble as error:
        return [*seen, *_in_the_way(source, source.describe(error))]
    of = {name: tuple(finding for finding in findings if finding.assumption == name) for name in source.assumptions}
    return [*seen, Checked(source.part), *(Checked(name, found) for name, found in of.items())]


async def _of_l2(worker: SourceWorker, within_s: float) -> tuple[Finding, ...]:
    try:
        async with asyncio.timeout(within_s), DirectProducer.open(worker.settings) as producer:
            await producer.probe()
    except TimeoutError:
        return (Finding(L2, L2, f"it did not answer in {within_s:g} s"),)
    except CacheBusError as error:
        return (Finding(L2, L2, clean(str(error))),)
    return ()


def _in_the_way(source: Source, problem: str) -> list[Checked]:
    found = Finding(source.part, source.part, problem)
    return [Checked(source.part, (found,)), *(Checked(name, looked_at=False) for name in source.assumptions)]
