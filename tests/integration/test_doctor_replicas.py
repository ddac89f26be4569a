"""What the doctor says of replicas, their watchers, and primaries that have lost theirs: by servers that are so."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from cachebus import Settings
from cachebus.l2.names import ShardNames
from cachebus.resp import slot_of
from cachebus.resp.cluster_map import SLOTS
from cachebus.tools.doctor import access, timing
from cachebus.tools.doctor.examine import examined
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import until
from tests.support.command import ran
from tests.support.doctor import findings, of, type_in, type_in_at
from tests.support.one_port import one_port_cluster
from tests.support.replicas import QUICK, SHARED, led
from tests.support.servers import any_binary

ADVICE, PROBLEM = Severity.ADVICE, Severity.PROBLEM


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CLOCK_WINDOW_S", 0.01)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as servers:
        yield servers


async def typed(folder: Path, url: str, *options: str, **env: str) -> tuple[int, str, str]:
    """What the command says: exit status, output, errors."""
    return await asyncio.to_thread(partial(ran, "doctor", url, *options, folder=folder, env=env))


def following(stack: ExitStack, primary: EmbeddedServer, port: int) -> socket.socket:
    """One that follows as a replica at that port would, and is none."""
    connection = stack.enter_context(primary.connected())
    for words in (f"REPLCONF listening-port {port}", "REPLCONF capa psync2"):
        connection.sendall(f"{words}\r\n".encode())
        assert connection.recv(100) == b"+OK\r\n"
    connection.sendall(b"PSYNC ? -1\r\n")
    return connection


# -- a primary that refuses to write -----------------------------------------------------------------------------------


async def test_the_fence_of_a_deposed_primary_stays_up(stack: ExitStack) -> None:
    """Its replicas were promoted away: that it refuses is what keeps the promises."""
    primary, *replicas = await led(stack, 2, "min-replicas-to-write 1")
    assert primary.command("SET", "x", "1") == "+OK"
    for replica in replicas:
        replica.command("REPLICAOF", "NO", "ONE")
    await until(lambda: primary.command("SET", "x", "2").startswith("-NOREPLICAS"))
    finding = of(await findings(primary.url), "replication")
    assert finding is not None
    assert finding.level is PROBLEM
    assert (finding.mend, finding.conf) == ((), ())
    assert "deposed" in finding.means
    assert "primary" in finding.otherwise


async def test_the_fence_of_a_deposed_primary_stays_up_when_it_has_forgotten_its_replicas(stack: ExitStack) -> None:
    """Once repl-backlog-ttl is over, or after a restart, it is as one that no replica has ever followed: no command is
    printed that would have it write. Nor is one told that everything is well when somebody has had it write."""
    primary, *replicas = await led(stack, 2, "min-replicas-to-write 1", "repl-backlog-ttl 1")
    promoted, other = replicas
    promoted.command("REPLICAOF", "NO", "ONE")
    other.command("REPLICAOF", "127.0.0.1", str(promoted.port))
    await until(lambda: promoted.command("SET", "x", "1") == "+OK", within_s=30.0)

    async def forgotten() -> bool:
        return b"repl_backlog_active:0" in await ask(primary, "INFO", "replication")

    await until(forgotten, within_s=30.0)
    assert primary.command("SET", "x", "1").startswith("-NOREPLICAS")
    for restarted in (False, True):
        if restarted:
            primary.kill()
            primary.restart()
        found = await findings(primary.url)
        refusing = of(found, "replication")
        assert refusing is not None
        assert refusing.level is PROBLEM
        assert (refusing.mend, refusing.conf) == ((), ())
        assert "deposed" in refusing.means
        assert "0 is right only for a server that is to have no replicas" in refusing.otherwise
        assert not any("ever followed" in finding.says for finding in found)
        primary.command("CONFIG", "SET", "min-replicas-to-write", "0")
        assert primary.command("SET", "x", "1") == promoted.command("SET", "x", "2") == "+OK"
        (writing,) = [finding for finding in await findings(primary.url) if finding.check == "replication"]
        assert writing.level is (Severity.OK if restarted else Severity.ADVICE)
        assert ("does not remember" if restarted else "two primaries write") in writing.means


async def test_no_command_lowers_what_a_primary_waits_for(stack: ExitStack) -> None:
    """Not of a server that no replica ever followed either: in words only."""
    (primary,) = await led(stack, 0, "min-replicas-to-write 1")
    found = await findings(primary.url)
    finding = of(found, "replication")
    assert finding is not None
    assert finding.level is PROBLEM
    assert "min-replicas-to-write 0" not in str([(each.mend, each.conf) for each in found])
    assert "is to have no replicas" in finding.otherwise


# -- how many replicas there are ---------------------------------------------------------------------------------------


async def test_in_a_cluster_on_one_port_each_primary_has_its_own_replicas(stack: ExitStack) -> None:
    right = ("min-replicas-to-write 1", "cluster-allow-replica-migration no")
    nodes = await one_port_cluster(stack, 2, *SHARED, *QUICK, *right)
    settings = Settings(url=f"redis+cluster://{nodes[0].host}:{nodes[0].port}")
    primaries = (await deployment_of(settings)).primaries
    assert {primary.address.host for primary in primaries} == {nodes[0].host, nodes[1].host}
    for primary in primaries:
        (replica,) = primary.watched.known or ()
        assert replica.address.host == nodes[2 if primary.address.host == nodes[0].host else 3].host
        assert not replica.away
        found = (await examined(settings, primary, rounds=3))[1]
        told = [finding for finding in found if finding.check in ("replication", "replicas")]
        assert PROBLEM not in {finding.level for finding in told}
        assert any("1 replica" in finding.says for finding in told)


async def test_what_never_acknowledges_is_no_replica_and_what_does_is_counted(stack: ExitStack) -> None:
    """A backup, or a reader of changes, follows as a replica does."""
    primary, *_ = await led(stack, 2, "min-replicas-to-write 1")
    (followed,) = [f for f in await findings(primary.url) if f.check == "replication"]
    assert followed.says.startswith("2 replicas")
    reader = following(stack, primary, 1)

    async def third(said: bytes) -> bool:
        """Whether this is told of the reader, when all others have acknowledged something."""
        text: bytes = await ask(primary, "INFO", "replication")
        (its,) = [line for line in text.splitlines() if b",port=1," in line] or [b""]
        return said in its and text.count(b"offset=0,") == (b"offset=0," in said) and b"repl_offset:0" not in text

    await until(lambda: third(b"state=online,offset=0,"))
    (followed,) = [f for f in await findings(primary.url) if f.check == "replication"]
    assert followed.says.startswith("2 replicas")
    reader.sendall(b"REPLCONF ACK 1\r\n")
    await until(lambda: third(b"offset=1,"))
    (followed,) = [f for f in await findings(primary.url) if f.check == "replication"]
    assert followed.says.startswith("3 replicas")
    assert followed.level is PROBLEM


# -- what a failover would leave -------------------------------------------------------------------------------------


async def test_replicas_that_wait_for_more_than_a_failover_leaves(stack: ExitStack) -> None:
    """Each refuses every write once it is promoted. No command lowers it: that is said in words."""
    primary, *replicas = await led(stack, 2, "min-replicas-to-write 2")
    finding = of(await findings(primary.url, ask_replicas=True), "after failover")
    assert finding is not None
    assert finding.level is PROBLEM
    assert all(f"127.0.0.1:{replica.port}" in finding.says for replica in replicas)
    assert "1 is enough" in finding.otherwise
    assert finding.mend == ()
    replicas[0].command("CONFIG", "SET", "min-replicas-to-write", "1")
    finding = of(await findings(primary.url, ask_replicas=True), "after failover")
    assert finding is not None
    assert f"at 127.0.0.1:{replicas[1].port}" in finding.says
    replicas[1].command("CONFIG", "SET", "min-replicas-to-write", "1")
    assert of(await findings(primary.url, ask_replicas=True), "after failover") is None


async def test_a_primary_that_could_follow_nobody(stack: ExitStack) -> None:
    """It never needed a password to show; once another is promoted, it does."""
    primary, *replicas = await led(stack, 2, "min-replicas-to-write 1")
    for replica in replicas:
        replica.command("CONFIG", "SET", "masterauth", APP_SECRET)
    for server in (primary, *replicas):
        server.command("CONFIG", "SET", "requirepass", APP_SECRET)
    url = primary.url.replace("redis://", f"redis://:{APP_SECRET}@")
    found = await findings(url, ask_replicas=True)
    barred = of(found, "after failover")
    assert barred is not None
    assert barred.level is PROBLEM
    assert f"127.0.0.1:{primary.port} has no masterauth" in barred.says
    assert APP_SECRET not in str(found)
    with primary.connected() as raw:
        raw.sendall(f"AUTH {APP_SECRET}\r\nCONFIG SET masterauth {APP_SECRET}\r\n".encode())
        assert raw.recv(100).startswith(b"+OK")
    assert of(await findings(url, ask_replicas=True), "after failover") is None


async def test_a_password_to_show_that_is_no_longer_taken(stack: ExitStack) -> None:
    """Links stand until they break: nothing else shows it."""
    primary, *replicas = await led(stack, 2, "min-replicas-to-write 1")
    for server in (primary, *replicas):
        server.command("CONFIG", "SET", "masterauth", "0ld-pass-word")
        server.command("CONFIG", "SET", "requirepass", APP_SECRET)
        server.password = APP_SECRET
    wrong = [each for each in await findings(primary.url, ask_replicas=True) if each.check == "after failover"]
    assert [each.level for each in wrong] == [PROBLEM] * 3
    assert all("shows a password (masterauth) that" in each.says for each in wrong)
    assert not any(secret in str(wrong) for secret in (APP_SECRET, "0ld-pass-word"))
    for server in (primary, *replicas):
        server.command("ACL", "SETUSER", "default", ">0ld-pass-word")
    assert of(await findings(primary.url, ask_replicas=True), "after failover") is None, "both are taken for a while"
    for server in (primary, *replicas):
        server.command("ACL", "SETUSER", "default", "<0ld-pass-word")
        server.command("CONFIG", "SET", "masterauth", APP_SECRET)
    assert of(await findings(primary.url, ask_replicas=True), "after failover") is None


async def test_a_password_to_show_that_nobody_can_compare_is_not_said_to_be_right(stack: ExitStack) -> None:
    primary, replica = await led(stack, 1)
    for server in (primary, replica):
        server.command("CONFIG", "SET", "masterauth", "0ld-pass-word")
        server.command("ACL", "SETUSER", "looker", "on", f">{APP_SECRET}", "~*", "&*", "+@all", "-acl|getuser", "-acl")
        server.command("CONFIG", "SET", "requirepass", "another")
    url = primary.url.replace("redis://", f"redis://looker:{APP_SECRET}@")
    found = [each for each in await findings(url, ask_replicas=True) if each.check == "after failover"]
    assert [each.level for each in found] == [Severity.UNKNOWN] * 2
    assert "ACL GETUSER" in found[0].otherwise


# -- a Cluster of which a part is away ---------------------------------------------------------------------------------


async def test_slots_that_nobody_serves_are_a_problem(tmp_path: Path) -> None:
    async with ClusterGroup(any_binary(), primaries=2, replicas=0) as group:
        bare, others = group.servers
        slots = {shard: slot_of(ShardNames("cachebus", shard).meta) for shard in range(8)}
        taken = sorted(shard for shard, slot in slots.items() if slot < SLOTS // 2)
        gone = [slots[shard] for shard in taken]
        for server in (others, bare):
            await ask(server, "CLUSTER", "DELSLOTS", *gone)
        settings = Settings(url=group.url, shards=8)
        found = list((await deployment_of(settings)).findings)
        finding = of(found, "slots")
        assert finding is not None
        assert finding.level is PROBLEM
        assert f"shards {', '.join(map(str, taken))}" in finding.says
        status, out, _ = await typed(tmp_path, group.url, "--json", CACHEBUS_SHARDS="8")
        assert status == 1
        (told,) = [each for each in json.loads(out)["findings"] if each["level"] == "problem"]
        assert told["check"] == "slots"
        command = re.search(r"CLUSTER ADDSLOTS [\d ]+", finding.otherwise)
        assert command is not None
        assert await ask(bare, *command[0].split()) == b"OK"
        assert of(list((await deployment_of(settings)).findings), "slots") is None


@pytest.mark.parametrize("how", ["dead", "frozen"])
async def test_a_primary_that_is_away_hides_nothing_of_the_others(tmp_path: Path, how: str) -> None:
    async with ClusterGroup(any_binary(), primaries=3, replicas=0) as group:
        away = group.servers[1]
        if how == "dead":
            away.kill()
        else:
            away.pause()
        status, out, errors = await typed(tmp_path, group.url, "--json", CACHEBUS_SHARDS="8")
        assert (status, errors) == (1, "")
        servers = {each["address"]: each["findings"] for each in json.loads(out)["servers"]}
        assert len(servers) == 3
        (told,) = servers.pop(f"127.0.0.1:{away.port}")
        assert (told["check"], told["level"]) == ("reach", "problem")
        assert "one of 3 primaries" in told["means"]
        assert "of 8 shards" in told["means"]
        assert all(len(found) > 10 for found in servers.values())
        if how == "dead":
            status, out, _ = await typed(tmp_path, group.url, CACHEBUS_SHARDS="8")
            assert status == 1
            assert all(f"127.0.0.1:{server.port}" in out for server in group.servers)
        else:
            away.resume()


async def test_a_server_that_is_away_is_told_as_json_too(tmp_path: Path) -> None:
    status, out, errors = await typed(tmp_path, "redis://127.0.0.1:1/0", "--json")
    told = json.loads(out)
    assert (status, told["status"]) == (2, 2)
    (server,) = told["servers"]
    assert "127.0.0.1:1" in server["findings"][0]["says"]
    assert len(errors.splitlines()) == 1
    status, out, _ = await typed(tmp_path, "redis+cluster://127.0.0.1:1", "--json")
    told = json.loads(out)
    assert (status, told["status"], told["servers"]) == (2, 2, [])
    assert "127.0.0.1:1" in told["error"]


async def test_a_cluster_of_two_primaries_never_fails_over(tmp_path: Path) -> None:
    async with ClusterGroup(any_binary(), primaries=2, replicas=1) as group:
        found = [f for f in (await deployment_of(Settings(url=group.url))).findings if f.check == "failover"]
        (two,) = [finding for finding in found if finding.level is PROBLEM]
        assert "only 2 primaries have slots" in two.says
        assert "three primaries" in two.otherwise
        dead, other = group.servers[:2]
        dead.kill()

        async def held_for_dead() -> bool:
            return b"master,fail" in await ask(other, "CLUSTER", "NODES")

        await until(held_for_dead)
        status, out, _ = await typed(tmp_path, group.url, "--json", CACHEBUS_SHARDS="8")
        assert status == 1
        told = json.loads(out)
        (left,) = [f for f in told["findings"] if (f["check"], f["level"]) == ("failover", "problem")]
        assert "1 of 2 primaries are there" in left["says"]
        assert "lack nothing" not in out


async def test_three_primaries_are_enough() -> None:
    async with ClusterGroup(any_binary(), primaries=3, replicas=1) as group:
        found = (await deployment_of(Settings(url=group.url))).findings
        assert not [f for f in found if f.check == "failover" and f.level is PROBLEM]


async def test_a_trial_is_made_at_the_primary_that_is_looked_at(tmp_path: Path) -> None:
    """Each is told of what it refuses itself, also while another one is away."""
    async with ClusterGroup(any_binary(), primaries=3, replicas=0) as group:
        for server in group.servers:
            await ask(server, "ACL", "SETUSER", "app", "on", f">{APP_SECRET}", "allkeys", "allchannels", "+@all")
        bad, away = group.servers[1:]
        await ask(bad, "ACL", "SETUSER", "app", "-hset", "-set", "-xadd")
        url = group.url.replace("redis+cluster://", f"redis+cluster://app:{APP_SECRET}@")
        for gone in (False, True):
            if gone:
                away.kill()
            status, out, errors = await typed(tmp_path, url, "--json", "--probe-writes", CACHEBUS_SHARDS="8")
            assert (status, errors) == (1, "")
            servers = {each["address"]: each["findings"] for each in json.loads(out)["servers"]}
            lacking = {
                address
                for address, found in servers.items()
                for finding in found
                if (finding["check"], finding["level"]) == ("permissions", "problem")
            }
            assert lacking == {f"127.0.0.1:{bad.port}"}
            out_of_reach = {address for address, found in servers.items() if found[0]["check"] == "reach"}
            assert out_of_reach == ({f"127.0.0.1:{away.port}"} if gone else set())


# -- the replicas themselves -------------------------------------------------------------------------------------------

APP_SECRET = "s3cret-of-the-app"


async def app(server: EmbeddedServer, *less: str) -> str:
    """A user for the app, and the URL with it."""
    rights = access.rules(Settings(), access.needed(Settings()))
    given = ("ACL", "SETUSER", "app", "reset", "on", f">{APP_SECRET}", "resetchannels", *rights.split())
    await ask(server, *given, "+config|get", "+acl|dryrun", "+acl|whoami", *less)
    return server.url.replace("redis://", f"redis://app:{APP_SECRET}@")


async def of_replicas(url: str) -> list[Finding]:
    """What is not right with the replicas."""
    found = await findings(url, ask_replicas=True)
    return [finding for finding in found if finding.check == "replicas" and finding.level is not Severity.OK]


async def test_a_login_that_a_replica_refuses_is_a_problem(stack: ExitStack) -> None:
    primary, *replicas = await led(stack, 2, "min-replicas-to-write 1")
    url = await app(primary)
    found = await of_replicas(url)
    assert [finding.level for finding in found] == [PROBLEM] * len(found)
    assert all("this login is not let in" in finding.says for finding in found)
    assert all(any(f":{replica.port}" in finding.says for finding in found) for replica in replicas)
    assert not any(APP_SECRET in str(finding) for finding in found)
    for replica in replicas:
        await app(replica)
    assert await of_replicas(url) == []


async def test_rights_that_are_lacking_at_a_replica_are_told_and_mended(stack: ExitStack) -> None:
    primary, one, other = await led(stack, 2, "min-replicas-to-write 1")
    url = await app(primary)
    await app(one, "-eval", "-evalsha")
    await app(other, "resetkeys", "resetchannels")
    found = await of_replicas(url)
    assert {finding.at: finding.level for finding in found} == {
        f"127.0.0.1:{replica.port}": PROBLEM for replica in (one, other)
    }
    for finding in found:
        type_in_at((one, other), finding)
    assert await of_replicas(url) == []


async def test_settings_that_are_worse_at_a_replica_are_told_and_mended(stack: ExitStack) -> None:
    primary, one, _ = await led(stack, 2, "min-replicas-to-write 1")
    assert await of_replicas(primary.url) == []
    type_in(
        one,
        (
            "CONFIG SET maxmemory 32mb",
            "CONFIG SET maxmemory-policy noeviction",
            "CONFIG SET timeout 30",
            'CONFIG SET client-output-buffer-limit "pubsub 1kb 1kb 1"',
        ),
    )
    found = await of_replicas(primary.url)
    assert len(found) == 4
    assert {finding.at for finding in found} == {f"127.0.0.1:{one.port}"}
    assert PROBLEM in {finding.level for finding in found}
    for finding in found:
        type_in(one, finding.mend)
    assert await of_replicas(primary.url) == []


async def test_a_password_is_given_only_to_whom_others_name_than_the_server(stack: ExitStack) -> None:
    """Who may follow a server may have it name any address."""
    primary, *_ = await led(stack, 1, "min-replicas-to-write 1")
    url = await app(primary)
    ear = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    ear.setblocking(False)
    port = ear.getsockname()[1]
    following(stack, primary, port)

    async def named() -> bool:
        return f"port={port},".encode() in await ask(primary, "INFO", "replication")

    await until(named)
    (unasked,) = [finding for finding in await findings(url) if finding.check == "replicas"]
    assert unasked.level is Severity.UNKNOWN
    assert "--ask-replicas" in unasked.otherwise
    with pytest.raises(BlockingIOError):
        ear.accept()


async def test_without_config_what_is_right_is_no_problem(stack: ExitStack) -> None:
    """As on managed servers, and with the user that --acl makes: INFO tells only that some are waited for."""
    primary, *_ = await led(stack, 3, "min-replicas-to-write 2")
    rights = ("~*", "&*", "+@all", "-config")
    primary.command("ACL", "SETUSER", "managed", "on", f">{APP_SECRET}", *rights)
    found = await findings(primary.url.replace("redis://", f"redis://managed:{APP_SECRET}@"))
    finding = of(found, "replication")
    assert finding is not None
    assert finding.level is Severity.UNKNOWN
    assert "3 replicas it takes 2" in finding.means
    assert PROBLEM not in {finding.level for finding in found}
    primary.command("CONFIG", "SET", "min-replicas-to-write", "0")
    finding = of(await findings(primary.url.replace("redis://", f"redis://managed:{APP_SECRET}@")), "replication")
    assert finding is not None
    assert finding.level is PROBLEM


async def test_a_lag_of_nothing_refuses_nothing(stack: ExitStack) -> None:
    primary, *replicas = await led(stack, 2, "min-replicas-to-write 1", "min-replicas-max-lag 0")
    for replica in replicas:
        replica.kill()

    async def alone() -> bool:
        return b"connected_slaves:0" in await ask(primary, "INFO", "replication")

    await until(alone)
    assert primary.command("SET", "x", "1") == "+OK"
    finding = of(await findings(primary.url), "replication")
    assert finding is not None
    assert finding.level is PROBLEM
    assert "NOREPLICAS" not in finding.means
    assert "turns min-replicas-to-write off" in finding.means
