"""What the doctor says of how servers are put together: Sentinels' names and times, what a Cluster covers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from cachebus import Settings
from cachebus.errors import L2Unavailable
from cachebus.tools.doctor import timing
from cachebus.tools.doctor.examine import examined
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from tests.support.caches import until
from tests.support.doctor import findings, of, type_in
from tests.support.servers import KINDS, any_binary, binary_of

ADVICE, PROBLEM = Severity.ADVICE, Severity.PROBLEM


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CLOCK_WINDOW_S", 0.01)


async def wrong(url: str) -> list[Finding]:
    """What is not right with the whole deployment."""
    return [each for each in (await deployment_of(Settings(url=url))).findings if each.level is not Severity.OK]


@pytest.fixture
async def group() -> AsyncIterator[SentinelGroup]:
    async with SentinelGroup(any_binary(), replicas=1, min_replicas=1) as running:
        await running.be_patient(5000)
        yield running


async def test_one_sentinel_under_three_names_is_one(group: SentinelGroup) -> None:
    first, *others = (f"127.0.0.1:{sentinel.port}" for sentinel in group.sentinels)
    again = first.replace("127.0.0.1", "localhost")
    (one, several) = await wrong(f"redis+sentinel://{first},{again},{first}/{SERVICE}/0")
    assert "the URL names 1 of 3 Sentinels" in one.says
    assert several.level is ADVICE
    assert first in several.says and again in several.says and "are one Sentinel" in several.says
    (several,) = await wrong(f"redis+sentinel://{','.join([first, again, *others])}/{SERVICE}/0")
    assert "are one Sentinel" in several.says
    assert await wrong(f"redis+sentinel://{','.join([first, *others])}/{SERVICE}/0") == []


@pytest.mark.parametrize(
    ("option", "value", "check", "says"),
    [
        ("down-after-milliseconds", 3_600_000, "failover", "For 60 min after a primary has died"),
        ("failover-timeout", 3_600_000, "failover timeout", "the next one after 120 min"),
        ("failover-timeout", 500, "failover timeout", "perhaps none comes through"),
    ],
)
async def test_times_of_sentinels_that_make_no_sense_are_told_and_mended(
    group: SentinelGroup, option: str, value: int, check: str, says: str
) -> None:
    for sentinel in group.sentinels:
        await ask(sentinel, "SENTINEL", "SET", SERVICE, option, value)
    (finding,) = await wrong(group.url)
    assert (finding.check, finding.level) == (check, ADVICE)
    assert str(value) in finding.says and says in finding.means
    assert finding.at == "every Sentinel"
    for sentinel in group.sentinels:
        type_in(sentinel, finding.mend)
    assert await wrong(group.url) == []


async def test_a_cluster_without_replicas_and_what_becomes_of_the_others() -> None:
    async with ClusterGroup(any_binary(), primaries=3, replicas=0) as group:
        await group.be_patient(5000)
        (bare,) = await wrong(group.url)
        assert (bare.check, bare.level) == ("failover", ADVICE)
        one = f"redis+cluster://127.0.0.1:{group.servers[0].port}"
        for url, said in (
            (one, "the URL names only one server that is there"),
            (
                f"{one},127.0.0.1:{group.servers[1].port},127.0.0.1:1",
                "1 of 3 that the URL names do not answer: 127.0.0.1:1",
            ),
        ):
            (few, _) = await wrong(url)
            assert (few.check, few.level, few.says) == ("cluster", ADVICE, said)
        assert "3 of 3 primaries have no replica" in bare.says
        assert "All others go on, as cluster-require-full-coverage is no." in bare.means
        head = group.servers[0]
        await ask(head, "CONFIG", "SET", "cluster-require-full-coverage", "yes")
        (bare,) = await wrong(group.url)
        assert "CLUSTERDOWN" in bare.means and "is yes." in bare.means
        settings = Settings(url=group.url)

        async def full() -> list[Finding]:
            return [
                each
                for primary in (await deployment_of(settings)).primaries
                for each in (await examined(settings, primary, rounds=3))[1]
                if each.check == "full coverage"
            ]

        (finding,) = await full()
        assert finding.level is ADVICE
        type_in(head, finding.mend)
        assert await full() == []
        await ask(head, "CONFIG", "SET", "cluster-node-timeout", 3_600_000)
        for server in group.servers[1:]:
            await ask(server, "CONFIG", "SET", "cluster-node-timeout", 3_600_000)
        (late,) = [each for each in await wrong(group.url) if "cluster-node-timeout" in each.says]
        assert late.level is ADVICE and "For 60 min" in late.means
        for server in group.servers:
            type_in(server, late.mend)
        assert [each.says for each in await wrong(group.url)] == [bare.says]


async def test_a_slot_without_a_server_is_told_with_what_becomes_of_the_others() -> None:
    """Slot 0 is no shard's of ours."""
    async with ClusterGroup(any_binary(), primaries=3, replicas=0) as group:
        await group.be_patient(5000)
        for server in group.servers:
            await ask(server, "CLUSTER", "DELSLOTS", 0)

        async def told() -> bool:
            return of([each for each in await wrong(group.url) if each.check == "slots"], "slots") is not None

        await until(told)
        (slots,) = [each for each in await wrong(group.url) if each.check == "slots"]
        assert slots.level is PROBLEM
        assert "All others go on" in slots.means


async def test_replicas_of_another_version_than_their_primary_are_told() -> None:
    older, newer = binary_of(KINDS[-1]), binary_of(KINDS[0])
    with EmbeddedServer(older) as primary, EmbeddedServer(older) as same, EmbeddedServer(newer) as other:
        for replica in (same, other):
            replica.command("REPLICAOF", "127.0.0.1", str(primary.port))

        async def told() -> list[Finding]:
            return [each for each in await findings(primary.url, ask_replicas=True) if each.check == "replicas"]

        async def follow() -> bool:
            return b"connected_slaves:2" in await ask(primary, "INFO", "replication")

        await until(follow)
        versions = [each for each in await told() if "the primary " in each.says and " it is " in each.says]
        (finding,) = [each for each in versions if "maxmemory" not in each.says]
        assert finding.level is ADVICE
        assert finding.at == f"127.0.0.1:{other.port}"
        assert newer.name.replace("-", " ") in finding.says and older.name.replace("-", " ") in finding.says


async def test_the_one_replica_that_may_be_promoted_is_away() -> None:
    """Then none is, however many there are."""
    async with SentinelGroup(any_binary(), replicas=2) as group:
        barred, able = group.data[1:]
        await ask(barred, "CONFIG", "SET", "replica-priority", "0")
        able.kill()

        async def nobody() -> list[Finding]:
            return [each for each in await wrong(group.url) if each.says.startswith("no replica may be promoted")]

        (finding,) = await until(nobody, within_s=30.0)
        assert finding.level is PROBLEM
        assert f"127.0.0.1:{able.port} is away, and the others have replica-priority 0" in finding.says
        type_in(barred, finding.mend)

        async def mended() -> bool:
            return await nobody() == []

        await until(mended, within_s=30.0)  # Sentinels ask replicas every ten seconds


async def test_the_one_replica_of_a_primary_of_a_cluster_is_away() -> None:
    async with ClusterGroup(any_binary(), primaries=3, replicas=1) as group:
        (lost,) = group.servers[3:4]
        lost.kill()

        async def nobody() -> list[Finding]:
            return [each for each in await wrong(group.url) if each.says.startswith("no replica of a primary")]

        (finding,) = await until(nobody, within_s=30.0)
        assert finding.level is PROBLEM
        assert f"127.0.0.1:{lost.port} is away" in finding.means
        assert (finding.mend, finding.otherwise) == ((), "bring back those that are away")


async def test_sentinels_that_were_made_anew_are_known_twice(group: SentinelGroup) -> None:
    """Three live of five known: when one more dies, no failover is possible."""
    primary = group.data[0].port
    for old in group.sentinels[1:]:
        old.stop()
    conf = [f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2", f"sentinel down-after-milliseconds {SERVICE} 500"]
    new = [EmbeddedServer(any_binary(), extra=("--sentinel",), conf=conf).start() for _ in group.sentinels[1:]]
    group.servers += new
    group.sentinels[1:] = new

    async def gone() -> list[Finding]:
        return [each for each in await wrong(group.url) if "knows 5 Sentinels, and 2 of them are gone" in each.says]

    (finding,) = await until(gone, within_s=30.0)
    assert "none is possible once one more dies" in finding.means
    command = re.search(r"SENTINEL RESET \S+(?=,)", finding.otherwise)
    assert command is not None
    await ask(group.sentinels[0], *command[0].split())

    async def mended() -> bool:
        return not [each for each in await wrong(group.url) if "knows" in each.says]

    await until(mended, within_s=30.0)


async def test_a_quorum_of_all_leaves_none_to_spare(group: SentinelGroup) -> None:
    for sentinel in group.sentinels:
        await ask(sentinel, "SENTINEL", "SET", SERVICE, "quorum", 3)
    (finding,) = [each for each in await wrong(group.url) if "the quorum is 3, of 3 Sentinels" in each.says]
    assert finding.level is ADVICE
    for sentinel in group.sentinels:
        type_in(sentinel, finding.mend)
    assert not [each for each in await wrong(group.url) if "quorum" in each.says]


async def test_a_server_for_data_among_the_sentinels_is_named(group: SentinelGroup) -> None:
    data, (one, two, _) = group.data[0], group.sentinels
    hosts = [f"127.0.0.1:{each.port}" for each in (one, two, data)]
    found = await wrong(f"redis+sentinel://{','.join(hosts)}/{SERVICE}/0")
    (stranger,) = [each for each in found if "no Sentinel" in each.says]
    assert stranger.level is ADVICE
    assert stranger.says == f"1 of 3 is no Sentinel: 127.0.0.1:{data.port}"
    assert not [each for each in found if each.level is Severity.UNKNOWN], "no right is lacking"
    with pytest.raises(L2Unavailable, match=f"127.0.0.1:{data.port}"):
        await deployment_of(Settings(url=f"redis+sentinel://{hosts[2]}/{SERVICE}/0"))
