"""Dead letters brought back: tried again by the rules as they are now."""

from __future__ import annotations

import json
from typing import NamedTuple

import asyncpg
from pydantic import SecretStr

from cachebus.base.clock import wall_s
from cachebus.consumers.cdc.rules.change import OPS, parse_change
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.slot.catalogue import kin_of, plain_url, tables_of
from cachebus.consumers.cdc.slot.storage import DEAD, SLOTS
from cachebus.consumers.worker import database_session
from cachebus.consumers.worker.apply import REFUSED, Applier
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Meaning
from cachebus.errors import ConfigError
from cachebus.keys.plan import Plan

TAKE = f"SELECT id, payload FROM {DEAD} WHERE slot = $1 AND id > $2 ORDER BY id LIMIT $3"
KEEP = f"UPDATE {DEAD} SET attempts = attempts + 1, reason = $2, at = to_timestamp($3) WHERE id = $1"
NAMES = f"SELECT slot FROM {SLOTS} UNION SELECT slot FROM {DEAD} ORDER BY slot LIMIT 20"
AT_ONCE = 500


class Replayed(NamedTuple):
    """What became of the dead letters."""

    applied: int
    dead: int
    """Those that stay where they are: with the new reason, and counted once more."""


async def replay(dsn: SecretStr, slot: str, router: Router, applier: Applier) -> Replayed:
    """Try all dead letters of a slot again, once each; those that are applied are removed. Of one of which only a part
    can be applied that part is, and it stays. The applier is open.

    Raises `OSError` or asyncpg's errors where the database can't be reached; what was applied till then is removed.
    """
    connection = await asyncpg.connect(plain_url(dsn))
    applied = dead = last = 0
    try:
        await connection.execute(database_session.SET)
        await _known(connection, slot)
        router.inherits(kin_of(await tables_of(connection, router.rules.rule)))
        while rows := await connection.fetch(TAKE, slot, last, AT_ONCE):
            last = rows[-1]["id"]
            done: list[int] = []
            kept: list[tuple[int, str, float]] = []
            plans: list[Plan] = []
            for row in rows:
                mine, problems = _meant(row["payload"], router, applier)
                plans += mine
                if problems:
                    kept.append((row["id"], clean("; ".join(problems)), wall_s()))
                else:
                    done.append(row["id"])
            await applier.apply(plans)
            await connection.execute(f"DELETE FROM {DEAD} WHERE id = ANY ($1::bigint[])", done)
            await connection.executemany(KEEP, kept)
            applied, dead = applied + len(done), dead + len(kept)
    finally:
        await connection.close()
    return Replayed(applied, dead)


async def _known(connection: asyncpg.Connection, slot: str) -> None:
    """`ConfigError` for a slot of which nothing is known: its name is mistyped."""
    names = [row["slot"] for row in await connection.fetch(NAMES)]
    if slot not in names:
        there = f"there is {', '.join(map(clean, names))}" if names else "there is none at all"
        raise ConfigError(f"no worker has followed a slot {slot} in this database: {there} (--slot, --namespace)")


def _meant(payload: str, router: Router, applier: Applier) -> tuple[list[Plan], list[str]]:
    """What it asks for as things are now, and what of it still can't be used."""
    plans: list[Plan] = []
    problems: list[str] = []
    for line in payload.split("\n"):
        try:
            meaning = Meaning([line]) if _is_command(line) else router.meaning(parse_change(line))
        except REFUSED as error:
            problems.append(str(error))
            continue
        problems += meaning.problems
        found = applier.planned(meaning.commands)
        plans += found.plans
        problems += found.problems
    return plans, problems


def _is_command(line: str) -> bool:
    """One that was held for a primary that was away, and could not be used any more when it was back."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("op") not in (None, *OPS)
