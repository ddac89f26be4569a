"""A user whose probes are answered and whose writes are refused: leases live, and every write of the node raises."""

from __future__ import annotations

import pytest

from cachebus import Cache, Health, InvalidationFailed, L2Unavailable, Settings
from cachebus.observe import Counters
from cachebus.reading.refusals import PASSING, TELL_EVERY_S, Asked, RefusalLog
from cachebus.resp import Refused
from cachebus.testing import FakeClock
from cachebus.tools.doctor.access import user_of_its_own
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import quick, until
from tests.support.doctor import findings, of
from tests.support.logs import told

WELL = Health(serving=True, coherent=True)


def refused(cache: Cache) -> list[str]:
    """What it says of refused writes."""
    return [said for said in cache.health().degraded if said.startswith("L2 has refused ")]


@pytest.fixture
def url(own_server: EmbeddedServer) -> str:
    """The server for a user that the doctor has made."""
    made = user_of_its_own(Settings(url=own_server.url), "svc").replace(">PASSWORD", ">Zx9-pass")
    assert own_server.command(*made.split()) == "+OK"
    return own_server.url.replace("redis://", "redis://svc:Zx9-pass@")


async def test_a_user_that_may_not_publish(own_server: EmbeddedServer, url: str) -> None:
    with told("WARNING", of="refuses") as lines:
        async with Cache(quick(url)) as cache:
            await cache.set("config", "x", 1, "acme")
            assert cache.health() == WELL
            own_server.command("ACL", "SETUSER", "svc", "resetchannels")
            for _ in range(2):
                with pytest.raises(L2Unavailable):
                    await cache.set("config", "x", 2, "acme")
                with pytest.raises(InvalidationFailed):
                    await cache.invalidate("config", "x", "acme")
                with pytest.raises(InvalidationFailed):
                    async with cache.write_guard([("config", "x")], "acme", db_timeout_s=5):
                        pass
            said = refused(cache)
            assert [text.partition(":")[0] for text in said] == [
                "L2 has refused values in the last minute",
                "L2 has refused invalidations in the last minute",
                "L2 has refused write guards in the last minute",
            ]
            assert [text.partition(":")[0] for text in lines] == [
                "L2 refuses values of config",
                "L2 refuses invalidations of this node",
                "L2 refuses write guards of this node",
            ], "once a minute"
            assert all("channel" in text and "`cachebus doctor" in text for text in [*said, *lines])
            assert cache.health().serving

            own_server.command("ACL", "SETUSER", "svc", "&*")
            await cache.set("config", "x", 2, "acme")
            await cache.invalidate("config", "x", "acme")
            async with cache.write_guard([("config", "x")], "acme", db_timeout_s=5):
                pass
            await until(lambda: cache.health() == WELL)


async def test_a_command_that_is_lacking_and_what_waits_for_it(own_server: EmbeddedServer, url: str) -> None:
    async with Cache(quick(url, pending_max=10)) as cache:
        own_server.command("ACL", "SETUSER", "svc", "-del", "-hincrby")
        assert (await cache.invalidate("config", "x", "acme")).status == "pending"
        assert [text.partition(":")[0] for text in refused(cache)] == [
            "L2 has refused invalidations in the last minute"
        ]
        with pytest.raises(L2Unavailable):
            await cache.increment("hits", "acme")
        assert len(refused(cache)) == 2
        own_server.command("ACL", "SETUSER", "svc", "+del", "+hincrby")
        assert await cache.increment("hits", "acme") == 1
        await until(lambda: cache.health() == WELL)


async def test_the_doctor_names_the_lacking_channel_and_nothing_else(own_server: EmbeddedServer, url: str) -> None:
    own_server.command("ACL", "SETUSER", "svc", "resetchannels")
    found = await findings(url, probe_writes=True)
    lacking = of(found, "permissions")
    assert lacking is not None
    assert any("&{cachebus:*}:events:*" in command for command in lacking.mend)
    assert of(found, "operations") is None


def refuse(refusals: RefusalLog, asked: Asked, data_type: str, why: str) -> None:
    with pytest.raises(Refused), refusals.of(asked, data_type):
        raise Refused(why)


def test_it_is_told_for_a_minute_and_in_the_log_once_in_it_for_each_type_and_reason() -> None:
    clock = FakeClock()
    refusals = RefusalLog(clock, Counters())
    with told("WARNING") as lines:
        for number, why in enumerate(("NOPERM on line", "OOM on line", "NOPERM on line", "OOM on line")):
            for data_type in ("config", "price"):
                refuse(refusals, "values", data_type, f"{why} {number}")
        assert [line.partition(" on ")[0] for line in lines] == [
            "L2 refuses values of config: NOPERM",
            "L2 refuses values of price: NOPERM",
            "L2 refuses values of config: OOM",
            "L2 refuses values of price: OOM",
        ]
        assert len(refusals.lately()) == 1
        clock.advance(TELL_EVERY_S)
        assert refusals.lately() == []
        refuse(refusals, "values", "config", "OOM on line 5")
        assert len(lines) == 5


@pytest.mark.parametrize("why", [f"{code} is over soon" for code in PASSING])
def test_what_passes_is_told_by_who_probes(why: str) -> None:
    """As of reads: a failover is one outage, and not one more thing that is wrong for each who writes."""
    refusals = RefusalLog(FakeClock(), Counters())
    with told("WARNING") as lines:
        refuse(refusals, "invalidations", "", why)
    assert (lines, refusals.lately()) == ([], [])


def test_one_that_is_done_ends_its_kind_alone() -> None:
    refusals = RefusalLog(FakeClock(), Counters())
    with told("WARNING"):
        refuse(refusals, "values", "config", "OOM")
        refuse(refusals, "invalidations", "", "NOPERM")
        refusals.count(Refused("NOPERM"), "reads", "config")
    with refusals.of("values", "price"):
        pass
    assert [text.partition(" in the last")[0] for text in refusals.lately()] == [
        "L2 has refused reads",
        "L2 has refused invalidations",
    ]
