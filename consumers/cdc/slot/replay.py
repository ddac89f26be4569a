"""Replays dead letters of a slot, by the rules as they are now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic import SecretStr

from cachebus.base.clock import wall_s
from cachebus.consumers.cdc.rules.change import OPS, parse_change
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.slot import locks
from cachebus.consumers.cdc.slot.catalogue import plain_url, tables_of
from cachebus.consumers.cdc.slot.connecting import connected
from cachebus.consumers.cdc.slot.lineage import known_of
from cachebus.consumers.cdc.slot.storage import DEAD, SLOTS
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.apply import PATIENCE_S, REFUSED, Applier
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.source import Meaning
from cachebus.errors import ConfigError
from cachebus.keys.plan import Plan

if TYPE_CHECKING:
    import asyncpg

COMMAND_TIMEOUT_S: Final = 10.0
TAKE = f"SELECT id, payload FROM {DEAD} WHERE slot = $1 AND id > $2 ORDER BY id LIMIT $3"
KEEP = f"UPDATE {DEAD} SET attempts = attempts + 1, reason = $2, at = to_timestamp($3) WHERE id = $1"
NAMES = f"SELECT slot FROM {SLOTS} UNION SELECT slot FROM {DEAD} ORDER BY slot LIMIT 20"
AT_ONCE = 500


class Replayed(NamedTuple):
    """The result of a replay."""

    applied: int
    dead: int
    """Letters that failed again. They stay, with the new reason and one attempt more."""


async def replay(dsn: SecretStr, slot: str, router: Router, applier: Applier) -> Replayed:
    """Try all dead letters of a slot once each, and remove those that are applied. If only a part of a letter can be
    applied, that part is, and the letter stays.

    `applier`: open. Raises one of `OUT_OF_REACH` if the database can't be reached, or somebody has a table locked, or
    letters, and `L2Unavailable` where L2 is away for ten seconds. What was applied by then is removed, except letters
    that are locked, and those beside them.
    """
    async with connected(plain_url(dsn), slot, command_timeout_s=COMMAND_TIMEOUT_S) as connection:
        try:
            return await _replayed(connection, slot, router, applier)
        except locks.LOCKED:
            for table in (DEAD, SLOTS):
                if found := await locks.finding_of(connection, table):
                    raise locks.TableLocked(found) from None
            if by := await table_locks.holders_of_rows(connection, DEAD, "slot = $1", slot):
                stays = "what was set aside is applied, and stays there"
                raise locks.TableLocked(table_locks.finding("storage", DEAD, by, stays)) from None
            raise


async def _replayed(connection: asyncpg.Connection, slot: str, router: Router, applier: Applier) -> Replayed:
    applied = dead = last = 0
    await _known(connection, slot)
    router.learn(known_of(await tables_of(connection, router.rules.rule)))
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
        await applier.apply(plans, PATIENCE_S)
        await connection.execute(f"DELETE FROM {DEAD} WHERE id = ANY ($1::bigint[])", done)
        await connection.executemany(KEEP, kept)
        applied, dead = applied + len(done), dead + len(kept)
    return Replayed(applied, dead)


async def _known(connection: asyncpg.Connection, slot: str) -> None:
    """Raises `ConfigError` for an unknown slot: its name may be mistyped."""
    names = [row["slot"] for row in await connection.fetch(NAMES)]
    if slot not in names:
        there = f"there is {', '.join(map(clean, names))}" if names else "there is none at all"
        raise ConfigError(f"no worker has followed a slot {slot} in this database: {there} (--slot, --namespace)")


def _meant(payload: str, router: Router, applier: Applier) -> tuple[list[Plan], list[str]]:
    """The plans of a letter by the present rules, and the problems that it still has."""
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
    """Whether the letter is a command. Such a letter was held for a primary that was away, and could not be applied
    later."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("op") not in (None, *OPS)
