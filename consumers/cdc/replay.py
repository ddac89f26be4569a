"""Dead letters brought back: tried again by the rules as they are now."""

from __future__ import annotations

from typing import NamedTuple

import asyncpg
from pydantic import SecretStr

from cachebus.clock import wall_s
from cachebus.plan import Plan
from consumers.apply import REFUSED, Applier
from consumers.cdc.catalogue import plain_url
from consumers.cdc.change import parse_change
from consumers.cdc.router import Router
from consumers.clean import clean

TAKE = "SELECT id, payload FROM cachebus_cdc_dead WHERE slot = $1 AND id > $2 ORDER BY id LIMIT $3"
KEEP = "UPDATE cachebus_cdc_dead SET attempts = attempts + 1, reason = $2, at = to_timestamp($3) WHERE id = $1"
AT_ONCE = 500


class Replayed(NamedTuple):
    """What became of the dead letters."""

    applied: int
    dead: int
    """Those that stay where they are: with the new reason, and counted once more."""


def _planned(payload: str, router: Router, applier: Applier) -> tuple[list[Plan], list[str]]:
    """What of a letter can be applied: a change, or a command that was held; and what can't."""
    try:
        asked, problems = router.meaning(parse_change(payload))
    except REFUSED:
        return [applier.plan_of(payload)], []
    plans, wrong = list[Plan](), list(problems)
    for command in asked:
        try:
            plans.append(applier.plan_of(command))
        except REFUSED as error:
            wrong.append(str(error))
    return plans, wrong


async def replay(dsn: SecretStr, slot: str, router: Router, applier: Applier) -> Replayed:
    """Try all dead letters of a slot again, once each; those that are applied are removed. The applier is open.

    Raises `OSError` or asyncpg's errors where the database can't be reached; what was applied till then is removed.
    """
    connection = await asyncpg.connect(plain_url(dsn))
    applied = dead = last = 0
    try:
        while rows := await connection.fetch(TAKE, slot, last, AT_ONCE):
            last = rows[-1]["id"]
            done: list[int] = []
            kept: list[tuple[int, str, float]] = []
            plans: list[Plan] = []
            for row in rows:
                try:
                    found, problems = _planned(row["payload"], router, applier)
                except REFUSED as error:
                    found, problems = [], [str(error)]
                plans += found
                if problems:
                    kept.append((row["id"], clean("; ".join(problems)), wall_s()))
                else:
                    done.append(row["id"])
            await applier.apply(plans)
            await connection.execute("DELETE FROM cachebus_cdc_dead WHERE id = ANY ($1::bigint[])", done)
            await connection.executemany(KEEP, kept)
            applied, dead = applied + len(done), dead + len(kept)
    finally:
        await connection.close()
    return Replayed(applied, dead)
