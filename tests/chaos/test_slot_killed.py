"""The worker of a slot killed under load: a sample of what `python -m tests.campaign.slot`, and `slot_values`, do by
hundreds."""

from __future__ import annotations

from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.campaign import slot_values
from tests.campaign.slot import PREPARING, Tally, campaign
from tests.support.history import seeds

LIVES = 10


def told(tally: Tally, seed: int, more: str = "") -> str:
    replay = f"replay: python -m tests.campaign.slot --lives {LIVES} --seed {seed}{more}"
    return "\n".join((tally.told(), replay, *tally.broken[:20]))


async def test_killed_at_any_moment_the_worker_of_a_slot_loses_no_committed_row_and_tells_none_that_was_undone(
    database: str, redis_url: str
) -> None:
    for seed in seeds(1):
        tally = await campaign(database, redis_url, lives=LIVES, seed=seed)
        assert not tally.broken, told(tally, seed, " --calm")
        assert tally.committed and tally.undone and tally.self_killed, told(tally, seed)


async def test_killed_while_all_that_it_looks_at_is_changed_or_dropped_it_loses_none(
    own_server: EmbeddedServer,
) -> None:
    for seed in seeds(1):
        with PostgresServer(settings=PREPARING) as postgres:
            servers = postgres, own_server
            tally = await campaign(postgres.url, own_server.url, lives=LIVES, seed=seed, servers=servers)
        assert not tally.broken, told(tally, seed)
        assert tally.committed and tally.undone and tally.faults, told(tally, seed)


async def test_once_a_worker_says_that_all_is_in_order_caches_have_what_the_database_has(redis_url: str) -> None:
    for seed in seeds(1):
        with PostgresServer(settings=slot_values.SETTINGS) as postgres:
            tally = await slot_values.Rounds(postgres.url, redis_url, seed, calm=False).run(LIVES)
        replay = f"replay: python -m tests.campaign.slot_values --lives {LIVES} --seed {seed}"
        assert not tally.broken, "\n".join((tally.told(), replay, *tally.broken))
        assert tally.compared and tally.faults, tally.told()
