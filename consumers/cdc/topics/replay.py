"""Replays dead letters of Debezium's messages, by the rules as they are now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from cachebus.base.clock import monotonic
from cachebus.bus.kafka.brokers import Brokers
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.slot.replay import Replayed
from cachebus.consumers.cdc.topics.debezium import parse_envelope
from cachebus.consumers.cdc.topics.kafka import KafkaSource
from cachebus.consumers.topics.dead_topic import DeadTopic, letter_of
from cachebus.consumers.topics.replay import each_letter
from cachebus.consumers.worker.apply import AWAY, AWAY_S, PATIENCE_S, REFUSED, Applier
from cachebus.consumers.worker.clean import clean, describe
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.errors import L2Unavailable
from cachebus.keys.plan import Plan

UNSURE: Final = b"{}"
"""Replaces a key that was too long to be kept: no column of an old row is sure then, unless a rule says so."""


async def replay_topic(source: KafkaSource, router: Router, applier: Applier) -> Replayed:
    """Try all dead letters that are in the topic now, once each. Those that fail again are appended, with one attempt
    more.

    `applier`: open. The offsets of the group "NAME-replay" keep how far it has come. Raises aiokafka's errors, and
    `L2Unavailable` where L2 is away for ten seconds. What was not committed is tried again by the next replay.
    """
    member = source.membership()
    brokers = Brokers(member.access)
    dead_topic = DeadTopic(member, brokers)
    applied = dead = 0

    async def tried(records: Sequence[Any]) -> None:
        nonlocal applied, dead
        still = await _tried(records, router, applier)
        if still:
            await dead_topic.put(still)
        applied, dead = applied + len(records) - len(still), dead + len(still)

    try:
        await each_letter(member, dead_topic, tried)
    finally:
        await brokers.forget()
    return Replayed(applied, dead)


async def _tried(records: Sequence[Any], router: Router, applier: Applier) -> list[DeadLetter]:
    """Apply the letters that can be applied; returns the others, with the new reason. Of a change with a problem, the
    rest is applied."""
    letters = [letter_of(record) for record in records]
    planned = [_planned(letter, router, applier) for letter in letters]
    plans = [(plan, problems) for found, problems in planned for plan in found]
    until_s = monotonic() + PATIENCE_S
    while plans:
        carried = await applier.carry([plan for plan, _ in plans], max(0.0, until_s - monotonic()))
        for place, error in carried.failed.items():
            plans[place][1].append(describe(error))
        plans = [plans[place] for place in sorted(carried.away | carried.late)]
        if plans:
            if monotonic() >= until_s:
                raise L2Unavailable(AWAY)
            await asyncio.sleep(AWAY_S)
    return [
        letter._replace(reason=clean("; ".join(problems)), attempts=letter.attempts + 1)
        for letter, (_, problems) in zip(letters, planned, strict=True)
        if problems
    ]


def _planned(letter: DeadLetter, router: Router, applier: Applier) -> tuple[list[Plan], list[str]]:
    try:
        change = parse_envelope(letter.payload, UNSURE if letter.key_cut else letter.key)
        if change is None:
            return [], []
        commands, problems = router.meaning(change)
        found = applier.planned(commands)
    except REFUSED as error:
        return [], [str(error)]
    except Exception as error:  # noqa: BLE001 -- whatever is wrong with one letter, the others are tried
        return [], [f"{type(error).__name__} while it was read"]
    return [*found.plans], [*problems, *found.problems]
