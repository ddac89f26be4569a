"""Dead letters of Debezium's messages brought back: tried again by the rules as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cachebus.plan import Plan
from consumers.apply import REFUSED, Applier
from consumers.cdc.debezium import parse_envelope
from consumers.cdc.kafka import KafkaSource
from consumers.cdc.replay import Replayed
from consumers.cdc.router import Router
from consumers.clean import clean
from consumers.dead import DeadLetter
from consumers.topics.dead_topic import DeadTopic, letter_of
from consumers.topics.replay import each_letter

UNSURE: Final = b"{}"
"""In the place of a key that was too long to be kept: nothing of an old row is sure but by a rule's word."""


async def replay_topic(source: KafkaSource, router: Router, applier: Applier) -> Replayed:
    """Try all dead letters that are in the topic now, once each; those that stay dead are written behind them anew,
    with one attempt more. How far it has come is kept as the offsets of the group "NAME-replay". The applier is open.

    Raises aiokafka's errors; what was not committed is tried again by the next.
    """
    member = source.membership()
    dead_topic = DeadTopic(member.clients, member.dead_topic)
    applied = dead = 0

    async def tried(records: Sequence[Any]) -> None:
        nonlocal applied, dead
        still = await _tried(records, router, applier)
        if still:
            await dead_topic.put(still)
        applied, dead = applied + len(records) - len(still), dead + len(still)

    await each_letter(member, dead_topic, tried)
    return Replayed(applied, dead)


async def _tried(records: Sequence[Any], router: Router, applier: Applier) -> list[DeadLetter]:
    """Apply what can be; the others, as letters with the new reason. What of a change can be named is applied beside
    its letter."""
    plans: list[Plan] = []
    still: list[DeadLetter] = []
    for record in records:
        letter = letter_of(record)
        found, problems = _planned(letter, router, applier)
        plans += found
        if problems:
            still.append(letter._replace(reason=clean("; ".join(problems)), attempts=letter.attempts + 1))
    await applier.apply(plans)
    return still


def _planned(letter: DeadLetter, router: Router, applier: Applier) -> tuple[list[Plan], list[str]]:
    plans: list[Plan] = []
    try:
        change = parse_envelope(letter.payload, UNSURE if letter.key_cut else letter.key)
        if change is None:
            return [], []
        commands, problems = router.meaning(change)
        problems = list(problems)
        for command in commands:
            try:
                plans.append(applier.plan_of(command))
            except REFUSED as error:
                problems.append(str(error))
    except REFUSED as error:
        return plans, [str(error)]
    except Exception as error:  # noqa: BLE001 -- whatever one letter does to us, the others are tried
        return plans, [f"{type(error).__name__} while it was read"]
    return plans, problems
