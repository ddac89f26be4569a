"""What the doctor says of Sentinels that name another primary than the others: what it says to do must harm nobody."""

from __future__ import annotations

from cachebus import Settings
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from tests.support.caches import until
from tests.support.servers import any_binary


def url_of(*sentinels: EmbeddedServer) -> str:
    return f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in sentinels)}/{SERVICE}/0"


async def naming(url: str) -> list[Finding]:
    """What is said of those that name another primary."""
    found = (await deployment_of(Settings(url=url))).findings
    return [each for each in found if "another primary" in each.says]


async def test_a_sentinel_of_another_group_that_lives_is_to_be_taken_out_of_the_url_and_left_alone() -> None:
    """Obeyed, REMOVE and MONITOR would take it from its own group."""
    async with SentinelGroup(any_binary(), replicas=1) as ours, SentinelGroup(any_binary(), replicas=1) as theirs:
        for mixed, level in (
            ((*ours.sentinels[:2], theirs.sentinels[0]), Severity.ADVICE),
            ((ours.sentinels[0], theirs.sentinels[0]), Severity.PROBLEM),
        ):
            (finding,) = await naming(url_of(*mixed))
            assert finding.level is level
            assert bool(finding.promises) == (level is Severity.PROBLEM), "what the other one takes no node sees"
            assert "take it out of the URL" in finding.otherwise
            assert "REMOVE" not in finding.otherwise
        assert await naming(url_of(*ours.sentinels)) == []


async def test_a_sentinel_that_a_failover_left_behind_is_to_watch_anew() -> None:
    """Its primary is dead, or knew ours as a replica: that is no other group."""
    async with SentinelGroup(any_binary(), replicas=1) as group:
        behind, primary, replica = group.sentinels[0], *group.data
        await ask(behind, "SENTINEL", "REMOVE", SERVICE)
        await ask(behind, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", replica.port, 2)
        (finding,) = await naming(group.url)
        assert f"names 127.0.0.1:{replica.port}" in finding.says
        assert "SENTINEL REMOVE there" in finding.otherwise
        assert str(primary.port) not in finding.says


async def test_one_primary_by_two_names_is_told_as_one() -> None:
    async with SentinelGroup(any_binary(), replicas=1) as group:
        renaming, primary = group.sentinels[0], group.data[0]
        for option in ("resolve-hostnames", "announce-hostnames"):
            await ask(renaming, "SENTINEL", "CONFIG", "SET", option, "yes")
        await ask(renaming, "SENTINEL", "REMOVE", SERVICE)
        await ask(renaming, "SENTINEL", "MONITOR", SERVICE, "localhost", primary.port, 2)

        async def known() -> bool:  # it asks its primary once a second
            (finding,) = await naming(group.url)
            return "it is the same server" in finding.otherwise

        await until(known)
        (finding,) = await naming(group.url)
        assert "localhost" in finding.says
        assert "REMOVE" not in finding.otherwise
