"""What a slot's worker keeps in the database, and the database has lost: it has come back without its last commits, or
others have removed it."""

from __future__ import annotations

from collections.abc import Sequence

from cachebus.consumers.worker.apply import Carried
from cachebus.keys.plan import Plan
from tests.support.caches import until
from tests.support.cdc_surroundings import at_work, worker
from tests.support.changes import Heard, fetched, tell

TABLE = "CREATE TABLE o (id text PRIMARY KEY, tenant_id text)", "ALTER TABLE o REPLICA IDENTITY FULL"
MANY = "INSERT INTO o SELECT g || repeat('q', {} * (g % 2)), 'acme' FROM generate_series(1000, 1999) g"
TOO_LONG = 600
"""No cache takes such a name."""
END = "INSERT INTO o VALUES ('end', 'acme')"
ENDS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-cdc%'"
COUNT = """
SELECT count(*) FROM (SELECT source FROM cachebus_cdc_dead
                      UNION SELECT command::json ->> 2 FROM cachebus_cdc_held WHERE shard = -2) AS letters
"""


async def test_letters_of_a_transaction_are_set_aside_once_more_where_they_were_lost(
    database: str, redis_url: str
) -> None:
    """The database has a transaction that is half done, and not the letters of that half, which were written behind
    it."""
    await tell(database, TABLE)
    one = worker(database, redis_url, batch=100)
    heard = Heard(one)
    carry, lost = one._applier.carry, 0

    async def disturbed(plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        nonlocal lost
        if not lost and heard.has("o", "1700"):
            lost = await fetched(database, COUNT)
            await tell(database, ["DELETE FROM cachebus_cdc_dead", ENDS])
        return await carry(plans, within_s)

    one._applier.carry = disturbed  # type: ignore[method-assign]
    async with at_work(one):
        await until(lambda: one.follows)
        await tell(database, [MANY.format(TOO_LONG), END])
        await until(lambda: heard.has("o", "end"), within_s=60)
    assert lost
    assert await fetched(database, COUNT) == 500


async def test_commands_of_a_transaction_are_held_once_more_where_they_were_lost(database: str, redis_url: str) -> None:
    """Likewise, where a primary of L2 is away."""
    await tell(database, TABLE)
    one = worker(database, redis_url, batch=100)
    heard = Heard(one)
    carry, lost = one._applier.carry, 0

    async def disturbed(plans: Sequence[Plan], within_s: float | None = None) -> Carried:
        nonlocal lost
        if lost:
            return await carry(plans, within_s)
        if heard.has("o", "1700"):
            lost = await fetched(database, "SELECT count(*) FROM cachebus_cdc_held")
            await tell(database, ["DELETE FROM cachebus_cdc_held", ENDS])
            return await carry(plans, within_s)
        away = {place for place, plan in enumerate(plans) if _is_odd(plan)}
        carried = await carry([plan for plan in plans if not _is_odd(plan)], within_s)
        return Carried(away, carried.late, carried.failed)

    one._applier.carry = disturbed  # type: ignore[method-assign]
    async with at_work(one):
        await until(lambda: one.follows)
        await tell(database, [MANY.format(0), END])
        await until(lambda: heard.has("o", "end"), within_s=60)
        await until(lambda: all(heard.has("o", str(number)) for number in range(1000, 2000)), within_s=20)
    assert lost


def _is_odd(plan: Plan) -> bool:
    return any(key.l2[-1] in "13579" for key in plan.keys)
