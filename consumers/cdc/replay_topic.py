"""Dead letters of Debezium's messages brought back: tried again by the rules as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachebus.plan import Plan
from consumers.apply import REFUSED, Applier
from consumers.cdc.debezium import parse_envelope
from consumers.cdc.kafka import KafkaSource
from consumers.cdc.replay import Replayed
from consumers.cdc.router import Router
from consumers.dead import DeadLetter
from consumers.topics.dead_topic import DeadTopic, letter_of
from consumers.topics.replay import each_letter

UNSURE = b"{}"
"""In the place of the message's key, which the letter has not: nothing of an old row is sure but by a rule's word."""


async def replay_topic(source: KafkaSource, router: Router, applier: Applier) -> Replayed:
    """Try all dead letters that are in the topic now, once each; those that stay dead are written behind them anew,
    with one attempt more. How far it has come is kept as the offsets of the group "NAME-replay". The applier is open.

    Raises aiokafka's errors; what was not committed is tried again by the next.
    """
    dead_topic = DeadTopic(source.client(), source.dead_topic)
    applied = dead = 0

    async def tried(records: Sequence[Any]) -> None:
        nonlocal applied, dead
        still = await _tried(records, router, applier)
        if still:
            await dead_topic.put(still)
        applied, dead = applied + len(records) - len(still), dead + len(still)

    await each_letter(source.membership(), dead_topic, tried)
    return Replayed(applied, dead)


async def _tried(records: Sequence[Any], router: Router, applier: Applier) -> list[DeadLetter]:
    """Apply what can be; the others, as letters with the new reason."""
    plans: list[Plan] = []
    still: list[DeadLetter] = []
    for record in records:
        letter = letter_of(record)
        try:
            change = parse_envelope(letter.payload, UNSURE)
            commands = [] if change is None else router.commands(change)
            plans += [applier.plan_of(command) for command in commands]
        except REFUSED as error:
            still.append(letter._replace(reason=str(error), attempts=letter.attempts + 1))
    await applier.apply(plans)
    return still
