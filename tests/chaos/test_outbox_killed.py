"""The relay of the outbox killed under load: a sample of what `python -m tests.campaign.relay` does by hundreds."""

from __future__ import annotations

from tests.campaign.relay import campaign
from tests.support.history import seeds

LIVES = 10


async def test_killed_at_any_moment_a_relay_loses_no_committed_write_and_tells_none_that_was_undone(
    database: str, redis_url: str
) -> None:
    for seed in seeds(1):
        tally = await campaign(database, redis_url, lives=LIVES, seed=seed)
        told = tally.told(), f"replay: python -m tests.campaign.relay --lives {LIVES} --seed {seed}"
        assert not tally.broken, "\n".join((*told, *tally.broken[:20]))
        assert tally.committed and tally.undone and tally.self_killed, told
        assert tally.doubled, told  # else none was killed between the shared store and the commit
