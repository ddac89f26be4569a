"""Checks a worker's L2 and source without starting it: whether all that it needs is there, and set up rightly."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.commands import tries_again
from cachebus.consumers.worker.source import Finding, Source
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.errors import CacheBusError
from cachebus.producers.direct import DirectProducer

WITHIN_S: Final = 15.0
L2: Final = "l2"
EVER_S: Final = 1e9
"""Longer than any letter has lain."""


class Checked(NamedTuple):
    """One thing that was checked, and what is wrong with it."""

    what: str
    """ "l2", the source's part ("database", "kafka"), or one of its assumptions."""
    findings: tuple[Finding, ...] = ()
    looked_at: bool = True
    """False if it could not be checked, since its source is down."""
    warnings: tuple[str, ...] = ()
    """What may be a mistake, or go wrong later. The source has those of all that it assumes."""


async def preflight(worker: SourceWorker, within_s: float = WITHIN_S) -> list[Checked]:
    """Check L2, the source, and each of the source's assumptions, in this order. Changes nothing of the source, and
    takes nothing. In L2 it tries whether it takes writes, which begins a namespace that is new.

    `within_s`: how long each may take to answer, in seconds. `ConfigError` for what can't even be tried.
    """
    source = worker.source
    source.look_once()
    seen = [Checked(L2, await _of_l2(worker, within_s))]
    try:
        async with asyncio.timeout(within_s), source.opened() as session:
            look = await session.look()
            has_letters = await session.has_letters(EVER_S)
    except TimeoutError:
        return [*seen, *_in_the_way(source, f"it did not answer in {within_s:g} s")]
    except source.trouble as error:
        return [*seen, *_in_the_way(source, source.describe(error))]
    of = {
        name: tuple(finding for finding in look.findings if finding.assumption == name) for name in source.assumptions
    }
    warned = [clean(warning, 2000) for warning in look.warnings]
    if has_letters:
        where = f"dead letters lie in {clean(source.letters_at)}"
        warned.append(f"{where}; once what refused them is mended, {tries_again(worker.name, source)}")
    return [*seen, Checked(source.part, warnings=tuple(warned)), *(Checked(name, found) for name, found in of.items())]


async def _of_l2(worker: SourceWorker, within_s: float) -> tuple[Finding, ...]:
    try:
        async with asyncio.timeout(within_s), DirectProducer.open(worker.settings) as producer:
            await producer.probe()
            worker.source.checks_for = producer.identity
    except TimeoutError:
        return (Finding(L2, L2, f"it did not answer in {within_s:g} s"),)
    except CacheBusError as error:
        return (Finding(L2, L2, clean(str(error))),)
    return ()


def _in_the_way(source: Source, problem: str) -> list[Checked]:
    found = Finding(source.part, source.part, problem)
    return [Checked(source.part, (found,)), *(Checked(name, looked_at=False) for name in source.assumptions)]
