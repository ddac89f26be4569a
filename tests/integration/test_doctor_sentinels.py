"""What the doctor says of Sentinels: whether they can fail over, after how long, and what they know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cachebus import Settings
from cachebus.errors import L2Unavailable
from cachebus.tools.doctor import timing
from cachebus.tools.doctor.examine import examined
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import Deployment, Primary, deployment_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup
from tests.support.caches import until
from tests.support.doctor import of
from tests.support.servers import any_binary

OK, ADVICE, PROBLEM, UNKNOWN = Severity
DOWN_MS = 3000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CLOCK_WINDOW_S", 0.01)


@pytest.fixture
async def group() -> AsyncIterator[SentinelGroup]:
    """Two replicas and three Sentinels, set up as they should be."""
    async with SentinelGroup(any_binary(), min_replicas=1) as running:
        await watch(running, "down-after-milliseconds", DOWN_MS)
        for server in running.data:
            await ask(server, "CONFIG", "SET", "maxmemory", "64mb")
            await ask(server, "CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        yield running


async def watch(group: SentinelGroup, option: str, value: int, *which: EmbeddedServer) -> None:
    """Set an option of some of the Sentinels, or all."""
    for sentinel in which or group.sentinels:
        await ask(sentinel, "SENTINEL", "SET", SERVICE, option, value)


async def seen(group: SentinelGroup) -> Deployment:
    return await deployment_of(Settings(url=group.url))


async def told(group: SentinelGroup) -> dict[str, list[Finding]]:
    """What is not right with the Sentinels, by check."""
    found: dict[str, list[Finding]] = {}
    for finding in (await seen(group)).findings:
        if finding.level is not OK:
            found.setdefault(finding.check, []).append(finding)
    return found


async def typed(servers: list[EmbeddedServer], finding: Finding) -> None:
    """Type its commands at each of these servers."""
    assert finding.mend
    for server in servers:
        for command in finding.mend:
            assert await ask(server, *command.split()) == b"OK"


async def agreed(group: SentinelGroup) -> bool:
    """Whether all of those that run would agree."""
    try:
        asked = [sentinel for sentinel in group.sentinels if sentinel.running]
        for sentinel in asked:
            await ask(sentinel, "SENTINEL", "CKQUORUM", SERVICE)
    except L2Unavailable:
        return False
    return True


async def test_sentinels_that_are_as_they_should_be(group: SentinelGroup) -> None:
    await until(lambda: agreed(group))
    assert await told(group) == {}
    (primary,) = (await seen(group)).primaries
    assert (primary.watched.failover_s, len(primary.watched.known or ())) == (3.0, 2)


async def test_too_few_sentinels_to_fail_over(group: SentinelGroup) -> None:
    for sentinel in group.sentinels[1:]:
        sentinel.kill()

    async def lost() -> bool:
        return not await agreed(group)

    await until(lost, within_s=30.0)
    found = await told(group)
    (silent,), (failover,) = found["sentinels"], found["failover"]
    assert silent.level is PROBLEM, "a failover takes more than half"
    assert "2 of 3 Sentinels do not answer" in silent.says
    assert all(f"127.0.0.1:{sentinel.port}" in silent.says for sentinel in group.sentinels[1:])
    assert failover.level is PROBLEM
    assert "NOQUORUM" in failover.says
    assert failover.mend == (), "who knows no others yet is no reason for a quorum of one"
    for sentinel in group.sentinels[1:]:
        sentinel.start()
    await watch(group, "down-after-milliseconds", DOWN_MS)
    await until(lambda: agreed(group), within_s=30.0)
    assert await told(group) == {}


async def test_sentinels_that_watch_the_service_no_more(group: SentinelGroup) -> None:
    """One of three is of no account; two of three are no failover. They lack no right."""
    await until(lambda: agreed(group))
    for sentinel, level in zip(group.sentinels[1:], (ADVICE, PROBLEM), strict=True):
        await ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
        found = await told(group)
        assert not [each for each in found.get("failover", []) if each.level is UNKNOWN]
        (forgotten,) = [each for each in found["failover"] if "not watch" in each.says]
        assert forgotten.level is level
    await typed(group.sentinels[1:], forgotten)
    await watch(group, "down-after-milliseconds", DOWN_MS)
    await until(lambda: agreed(group), within_s=30.0)
    assert await told(group) == {}


async def test_a_primary_that_they_watch_and_that_the_url_names_by_itself(group: SentinelGroup) -> None:
    """Whoever is there after a failover is at a replica."""
    for url, count in ((group.data[0].url, 1), (group.url, 0)):
        settings = Settings(url=url)
        (primary,) = (await deployment_of(settings)).primaries

        async def seen_there(settings: Settings = settings, primary: Primary = primary) -> list[Finding]:
            _, found = await examined(settings, primary, rounds=3)
            return [each for each in found if "the URL names it by itself" in each.says]

        async def told(count: int = count, seen_there: Callable[[], Awaitable[list[Finding]]] = seen_there) -> bool:
            return len(await seen_there()) == count  # they meet there every two seconds

        await until(told)


async def test_two_sentinels_that_name_two_primaries_lead_all_nodes_to_one_of_them() -> None:
    async with SentinelGroup(any_binary(), sentinels=1) as one, SentinelGroup(any_binary(), sentinels=1) as other:
        hosts = ",".join(f"127.0.0.1:{group.sentinels[0].port}" for group in (one, other))
        settings = Settings(url=f"redis+sentinel://{hosts}/{SERVICE}/0")
        found = [await deployment_of(settings) for _ in range(10)]
        assert len({each.primaries[0].address for each in found}) == 1
        assert any(
            each.level is PROBLEM and "1 of 2 Sentinels names another primary" in each.says
            for each in found[0].findings
        )


async def test_a_quorum_beyond_all_and_replicas_that_may_not_be_promoted(group: SentinelGroup) -> None:
    await watch(group, "quorum", 5)
    for replica in group.data[1:]:
        await ask(replica, "CONFIG", "SET", "replica-priority", "0")

    async def both() -> list[Finding]:
        found = (await told(group)).get("failover", [])
        return found if len(found) == 2 else []

    quorum, priority = await until(both, within_s=30.0)  # Sentinels ask replicas every ten seconds
    assert quorum.level is priority.level is PROBLEM
    assert (quorum.at, quorum.mend) == ("every Sentinel", (f"SENTINEL SET {SERVICE} quorum 2",))
    await typed(group.sentinels, quorum)
    await typed(group.data[1:], priority)

    async def mended() -> bool:
        return await told(group) == {}

    await until(mended, within_s=30.0)


async def test_the_least_time_of_all_sentinels_counts(group: SentinelGroup) -> None:
    await watch(group, "down-after-milliseconds", 60_000, group.sentinels[0])
    for server in group.data:
        await ask(server, "CONFIG", "SET", "min-replicas-max-lag", "10")
    (differs,) = (await told(group))["sentinels"]
    assert "3 s, 60 s" in differs.says
    (primary,) = (await seen(group)).primaries
    assert primary.watched.failover_s == 3.0
    late = of((await examined(Settings(url=group.url), primary, rounds=3))[1], "replication")
    assert late is not None
    assert late.level is ADVICE
    await typed([group.data[0]], late)
    assert await ask(group.data[0], "CONFIG", "GET", "min-replicas-max-lag") == [b"min-replicas-max-lag", b"1"]


async def test_a_failover_before_any_lag_is_over(group: SentinelGroup) -> None:
    await watch(group, "down-after-milliseconds", 500)
    (soon,) = (await told(group))["failover"]
    assert soon.level is ADVICE
    await typed(group.sentinels, soon)
    assert await told(group) == {}


async def test_sentinels_that_tell_no_more_than_they_must(group: SentinelGroup) -> None:
    rights = ("+auth", "+hello", "+ping", "+client|setname", "+sentinel|get-master-addr-by-name")
    for sentinel in group.sentinels:
        await ask(sentinel, "ACL", "SETUSER", "least", "on", ">secret", *rights)
    settings = Settings(url=f"{group.url}?sentinel_username=least&sentinel_password=secret")
    deployment = await deployment_of(settings)
    finding = of(list(deployment.findings), "failover")
    assert finding is not None
    assert finding.level is UNKNOWN
    assert "SENTINEL MASTER" in finding.otherwise
    assert "secret" not in finding.says
    (primary,) = deployment.primaries
    assert primary.watched.known is None
    for replica in group.data[1:]:
        replica.kill()
    await until(lambda: group.data[0].command("SET", "x", "1").startswith("-NOREPLICAS"))
    refusing = of((await examined(settings, primary, rounds=3))[1], "replication")
    assert refusing is not None
    assert refusing.mend == ()


async def test_a_sentinel_that_names_another_primary(group: SentinelGroup) -> None:
    astray = group.sentinels[0]
    await ask(astray, "SENTINEL", "REMOVE", SERVICE)
    with EmbeddedServer(any_binary()) as other:
        await ask(astray, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", other.port, 1)
        found = (await told(group))["sentinels"]
        assert any(f"names 127.0.0.1:{other.port}" in finding.says for finding in found)
        (primary,) = (await seen(group)).primaries
        assert primary.address.port == group.data[0].port
        assert len(primary.watched.known or ()) == 2


async def test_replicas_that_are_gone_count_and_are_named(group: SentinelGroup) -> None:
    """Two replaced by others: of four, two are there."""
    primary, *old = group.data
    follow = ["min-replicas-to-write 1", "min-replicas-max-lag 1", f"replicaof 127.0.0.1 {primary.port}"]
    new = [EmbeddedServer(any_binary(), conf=follow).start() for _ in old]
    group.servers += new
    await watch(group, "down-after-milliseconds", 2000)

    async def known(count: int, away: int) -> bool:
        replicas = (await seen(group)).primaries[0].watched.known or ()
        return (len(replicas), sum(bool(replica.away) for replica in replicas)) == (count, away)

    await until(lambda: known(4, 0), within_s=30.0)
    for server in old:
        server.kill()
    await until(lambda: known(4, 2), within_s=30.0)
    settings, ports = Settings(url=group.url), {f"127.0.0.1:{server.port}" for server in old}
    found = (await examined(settings, (await seen(group)).primaries[0], rounds=3))[1]
    gone, few = of(found, "replicas away"), of(found, "replication")
    assert gone is not None
    assert few is not None
    assert (gone.level, few.level) == (ADVICE, PROBLEM)
    assert few.mend[0] == "CONFIG SET min-replicas-to-write 2"
    assert f"SENTINEL RESET {SERVICE}" in few.otherwise
    assert "then 1 is enough" in few.otherwise
    assert all(port in gone.says and port in few.otherwise for port in ports)
    for sentinel in group.sentinels:
        assert await ask(sentinel, "SENTINEL", "RESET", SERVICE) == 1
    await until(lambda: known(2, 0), within_s=30.0)
    found = (await examined(settings, (await seen(group)).primaries[0], rounds=3))[1]
    assert of(found, "replicas away") is None
    assert of(found, "replication") is None


async def test_the_replicas_that_sentinels_name_are_asked(group: SentinelGroup) -> None:
    """Without an option; one that hangs is told, and is no problem while Sentinels do not know."""
    settings, (primary,) = Settings(url=group.url), (await seen(group)).primaries
    for replica in group.data[1:]:
        await ask(replica, "CONFIG", "SET", "min-replicas-to-write", "0")
    found = (await examined(settings, primary, rounds=3))[1]
    wrong = of(found, "replicas")
    assert wrong is not None
    assert all(f"127.0.0.1:{replica.port}" in wrong.at for replica in group.data[1:])
    await typed(group.data[1:], wrong)
    group.data[1].pause()
    found = (await examined(settings, primary, rounds=3))[1]
    hangs = of(found, "replicas")
    assert hangs is not None
    assert hangs.level is ADVICE
    assert f"the replica 127.0.0.1:{group.data[1].port}: out of reach" in hangs.says
    group.data[1].resume()


async def test_a_replica_that_hangs_is_counted_once(group: SentinelGroup) -> None:
    """Sentinels hold it for dead while the primary still lists it: no command is told with which nothing is written."""
    primary, _, hangs = group.data
    for server in group.data:
        await ask(server, "CONFIG", "SET", "repl-timeout", "60")
    hangs.pause()

    async def dead() -> bool:
        known = (await seen(group)).primaries[0].watched.known or ()
        return [replica.address.port for replica in known if replica.away] == [hangs.port]

    await until(dead, within_s=30.0)
    assert f"port={hangs.port},state=online".encode() in await ask(primary, "INFO", "replication")
    found = (await examined(Settings(url=group.url), (await seen(group)).primaries[0], rounds=3))[1]
    assert of(found, "replication") is None
    away = of(found, "replicas away")
    assert away is not None
    assert str(hangs.port) in away.says
    primary.command("CONFIG", "SET", "min-replicas-to-write", "0")
    hangs.resume()


async def test_sentinels_that_are_not_let_in_would_promote_nobody(group: SentinelGroup) -> None:
    """After a change of passwords, for one: the replicas follow, and count once."""
    await until(lambda: agreed(group))
    for server in group.data:
        await ask(server, "CONFIG", "SET", "masterauth", "n3w-secret")
    for server in group.data:
        await ask(server, "CONFIG", "SET", "requirepass", "n3w-secret")
    login = group.url.replace("redis+sentinel://", "redis+sentinel://:n3w-secret@")
    for server in group.data:
        with server.connected() as raw:
            raw.sendall(b"AUTH n3w-secret\r\nCLIENT KILL TYPE normal\r\nCLIENT KILL TYPE pubsub\r\n")
            assert raw.recv(100).startswith(b"+OK")

    async def told_so() -> bool:
        deployment = await deployment_of(Settings(url=login))
        known = deployment.primaries[0].watched.known or ()
        return sum(bool(replica.away) for replica in known) == 2 and any(
            "hold the primary for dead" in finding.says for finding in deployment.findings
        )

    await until(told_so, within_s=30.0)
    deployment = await deployment_of(Settings(url=login))
    assert OK not in {finding.level for finding in deployment.findings if finding.check == "sentinels"}
    held = [finding for finding in deployment.findings if "hold the primary for dead" in finding.says]
    assert [finding.level for finding in held] == [PROBLEM]
    assert "auth-pass" in held[0].otherwise
    found = (await examined(Settings(url=login), deployment.primaries[0], rounds=3))[1]
    assert of(found, "replication") is None
    away = of(found, "replicas away")
    assert away is not None
    assert away.level is PROBLEM
    assert "RESET" not in away.otherwise


async def test_a_replica_whose_link_is_down_is_none_to_count_on(group: SentinelGroup) -> None:
    primary, _, apart = group.data
    await ask(apart, "CONFIG", "SET", "masteruser", "nobody")
    await ask(apart, "CONFIG", "SET", "masterauth", "wrong")
    await ask(primary, "CLIENT", "KILL", "TYPE", "replica")

    async def followed() -> int:
        text: bytes = await ask(primary, "INFO", "replication")
        return text.count(b"state=online") - text.count(b"offset=0,")

    async def down() -> bool:
        return b"master_link_status:down" in await ask(apart, "INFO", "replication") and await followed() == 1

    await until(down, within_s=30.0)
    settings = Settings(url=group.url)
    found = (await examined(settings, (await seen(group)).primaries[0], rounds=3))[1]
    link, left = of(found, "replicas"), of(found, "after failover")
    assert link is not None
    assert left is not None
    assert (link.level, left.level) == (PROBLEM, ADVICE)
    assert f"127.0.0.1:{apart.port}: it does not follow" in link.says
    assert "masterauth" in link.otherwise
    await ask(apart, "CONFIG", "SET", "masteruser", "")
    await ask(apart, "CONFIG", "SET", "masterauth", "")

    async def well() -> bool:
        found = (await examined(settings, (await seen(group)).primaries[0], rounds=3))[1]
        return of(found, "replicas") is None and of(found, "after failover") is None

    await until(well, within_s=30.0)


async def test_a_url_that_names_one_of_three(group: SentinelGroup) -> None:
    await until(lambda: agreed(group))
    one = f"redis+sentinel://127.0.0.1:{group.sentinels[0].port}/{SERVICE}/0"
    few = of(list((await deployment_of(Settings(url=one))).findings), "sentinels")
    assert few is not None
    assert few.level is ADVICE
    assert "the URL names 1 of 3 Sentinels" in few.says


async def test_two_sentinels_are_too_few() -> None:
    async with SentinelGroup(any_binary(), replicas=1, sentinels=2) as group:
        await until(lambda: agreed(group))
        few = of(list((await seen(group)).findings), "sentinels")
    assert few is not None
    assert few.level is ADVICE
    assert "only 2 of them" in few.says


async def test_replicas_that_are_not_announced_are_told(group: SentinelGroup) -> None:
    """Sentinels promote them, and name none."""
    for replica in group.data[1:]:
        if replica.binary.version < (6, 2):
            return
        await ask(replica, "CONFIG", "SET", "replica-announced", "no")
        await ask(replica, "CONFIG", "SET", "min-replicas-to-write", "0")
    settings = Settings(url=group.url)

    async def unnamed() -> bool:
        return (await seen(group)).primaries[0].watched.known == []

    await until(unnamed, within_s=30.0)
    (primary,) = (await seen(group)).primaries
    unasked = of((await examined(settings, primary, rounds=3))[1], "replicas")
    assert unasked is not None
    assert unasked.level is UNKNOWN
    assert "2 replicas" in unasked.says
    asked = of((await examined(settings, primary, rounds=3, ask_replicas=True))[1], "replicas")
    assert asked is not None
    assert asked.level is PROBLEM
    await typed(group.data[1:], asked)
