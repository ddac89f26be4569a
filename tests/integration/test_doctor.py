"""Each wrong setting is made, told, mended by the very command that was printed, and told no more."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import L2Unavailable
from cachebus.keys.key import bucket_of
from cachebus.resp import Connection, parse_address
from cachebus.tools.doctor import access, examine, namespace, timing
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.examine import examined, out_of_reach
from cachebus.tools.doctor.facts import Server
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import Deployment, Primary, deployment_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SentinelGroup
from tests.support.caches import nodes, until
from tests.support.command import Typed, ran
from tests.support.doctor import bad, findings, of, type_in, type_in_at
from tests.support.servers import KINDS, Kind, SharedServers, any_binary, binary_of

OK, ADVICE, PROBLEM = Severity.OK, Severity.ADVICE, Severity.PROBLEM
SECRET = "hunter2-and-more"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CLOCK_WINDOW_S", 0.01)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server of each kind, for this module alone: its settings are changed."""
    kind: Kind = request.param
    with EmbeddedServer(binary_of(kind)) as running:
        running.command("CONFIG", "SET", "maxmemory", "500mb")
        running.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        yield running


WRONG = [
    ("CONFIG SET maxmemory 0", "memory limit", ADVICE),
    ("CONFIG SET maxmemory 100000gb", "memory limit", ADVICE),
    ("CONFIG SET proto-max-bulk-len 1mb", "sizes", ADVICE),
    ("CONFIG SET client-query-buffer-limit 1mb", "sizes", ADVICE),
    ("CONFIG SET maxmemory-policy noeviction", "eviction", PROBLEM),
    ("CONFIG SET maxmemory-policy allkeys-lru", "eviction", ADVICE),
    ("CONFIG SET maxmemory-policy allkeys-random", "eviction", ADVICE),
    ("CONFIG SET maxmemory-policy volatile-ttl", "eviction", ADVICE),
    ("CONFIG SET appendonly yes; CONFIG SET appendfsync always", "appendfsync", ADVICE),
    ('CONFIG SET save "3600 1"; CONFIG SET stop-writes-on-bgsave-error yes', "saving", ADVICE),
    ('CONFIG SET client-output-buffer-limit "pubsub 0 0 0"', "event buffers", ADVICE),
    ('CONFIG SET client-output-buffer-limit "pubsub 1mb 512kb 10"', "event buffers", ADVICE),
    ('CONFIG SET client-output-buffer-limit "normal 1mb 0 0"', "reply buffers", ADVICE),
    ("CONFIG SET timeout 30", "idle connections", ADVICE),
    ("CONFIG SET tcp-keepalive 0", "keepalive", ADVICE),
    ("CONFIG SET tcp-keepalive 7200", "keepalive", ADVICE),
    ("CONFIG SET lua-time-limit 5", "script limit", ADVICE),
    ("CONFIG SET stream-node-max-entries 0; CONFIG SET stream-node-max-bytes 0", "log trimming", ADVICE),
    ("CONFIG SET notify-keyspace-events KEA", "keyspace events", ADVICE),
]


@pytest.mark.parametrize(("wrong", "check", "level"), WRONG, ids=[wrong for wrong, *_ in WRONG])
async def test_a_wrong_setting_is_told_and_mended(
    server: EmbeddedServer, wrong: str, check: str, level: Severity
) -> None:
    assert of(await findings(server.url), check) is None
    type_in(server, tuple(wrong.split("; ")))
    finding = of(await findings(server.url), check)
    assert finding is not None
    assert finding.level is level
    assert finding.means
    assert finding.conf
    type_in(server, finding.mend)
    after = of(await findings(server.url), check)
    server.command("CONFIG", "SET", "appendonly", "no")
    server.command("CONFIG", "SET", "save", "")
    server.command("CONFIG", "SET", "maxmemory", "500mb")
    assert after is None


async def test_lines_for_redis_conf_are_taken_by_a_server(server: EmbeddedServer, tmp_path: Path) -> None:
    """All of them at once, in a server's own file."""
    lines = []
    for wrong, check, _ in WRONG:
        if check == "appendfsync":
            continue  # its mend is the default
        type_in(server, tuple(wrong.split("; ")))
        finding = of(await findings(server.url), check)
        assert finding is not None
        lines += finding.conf
        type_in(server, finding.mend)
        server.command("CONFIG", "SET", "save", "")
        server.command("CONFIG", "SET", "maxmemory", "500mb")
    conf = tmp_path / "told.conf"
    conf.write_text("\n".join(lines) + "\n")
    with EmbeddedServer(server.binary, extra=("--include", str(conf))) as other:
        found = await findings(other.url)
    assert set(bad(found).values()) <= {Severity.UNKNOWN}


async def test_a_server_that_is_as_it_should_be(server: EmbeddedServer) -> None:
    found = await findings(server.url)
    assert bad(found) == {}
    assert server.command("DBSIZE") == ":0", "nothing was written"


async def test_memory_that_is_nearly_full(server: EmbeddedServer) -> None:
    script = "return tonumber(string.match(redis.call('INFO', 'memory'), 'used_memory:(%d+)'))"
    used = int(server.command("EVAL", script, "0").removeprefix(":"))
    type_in(server, (f"CONFIG SET maxmemory {used + used // 20}",))
    finding = of(await findings(server.url), "memory")
    assert finding is not None
    assert finding.level is ADVICE
    type_in(server, finding.mend)
    assert of(await findings(server.url), "memory") is None
    type_in(server, ("CONFIG SET maxmemory 500mb",))


async def test_memory_full_of_what_may_not_be_evicted(own_server: EmbeddedServer) -> None:
    """By the policy that the doctor itself advises, a server refuses writes where no key expires."""
    for number in range(200):
        own_server.command("SET", f"foreign:{number}", "x" * 10_000)
    type_in(own_server, ("CONFIG SET maxmemory-policy volatile-lru", "CONFIG SET maxmemory 1mb"))
    assert own_server.command("SET", "y", "1").startswith("-OOM")
    finding = of(await findings(own_server.url), "memory")
    assert finding is not None
    assert finding.level is PROBLEM
    assert "Every write is refused" in finding.means
    type_in(own_server, finding.mend)
    assert own_server.command("SET", "y", "1") == "+OK"


async def test_a_snapshot_that_fails(server: EmbeddedServer, tmp_path: Path) -> None:
    """Such a server refuses even a PING: the doctor is let in all the same."""
    with EmbeddedServer(server.binary, directory=tmp_path, extra=("--dbfilename", "taken")) as full:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "in the way").touch()
        type_in(full, ('CONFIG SET save "3600 1"',))
        full.command("BGSAVE")
        await until(lambda: full.command("SET", "x", "1").startswith("-MISCONF"))
        finding = of(await findings(full.url), "saving")
        assert finding is not None
        assert finding.level is PROBLEM
        type_in(full, finding.mend)
        assert of(await findings(full.url), "saving") is None
        assert full.command("SET", "x", "1") == "+OK"
        full.kill()  # in order, it would try to save once more, and refuse to end


async def test_too_many_clients(server: EmbeddedServer) -> None:
    type_in(server, ("CONFIG SET maxclients 40",))
    with ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))

        async def told() -> Finding | None:
            return of(await findings(server.url), "clients")

        finding: Finding = await until(told)
        type_in(server, finding.mend)
        assert await told() is None


async def test_replicas(server: EmbeddedServer) -> None:
    """Not set to be waited for; then mended; then away; and asked themselves."""
    follow = (
        "--replicaof",
        "127.0.0.1",
        str(server.port),
        "--maxmemory",
        "500mb",
        "--maxmemory-policy",
        "volatile-lru",
    )
    with EmbeddedServer(server.binary, extra=follow) as replica, EmbeddedServer(server.binary, extra=follow) as other:
        told = of(await findings(replica.url), "role")
        assert told is not None
        assert told.level is PROBLEM
        assert f"127.0.0.1:{server.port}" in told.otherwise

        async def unacknowledged() -> Finding | None:
            return of(await findings(server.url), "replication")

        async def two() -> bool:
            text: bytes = await ask(server, "INFO", "replication")
            return text.count(b"state=online") == 2 and b"offset=0," not in text

        await until(two)
        finding: Finding = await until(unacknowledged)
        assert finding.level is PROBLEM
        assert "G7 restart and failover" in finding.promises
        type_in(server, finding.mend)

        async def mended() -> bool:
            return await unacknowledged() is None

        await until(mended)
        unasked = of(await findings(server.url), "replicas")
        assert unasked is not None
        assert "--ask-replicas" in unasked.otherwise
        found = await findings(server.url, ask_replicas=True)
        wrong = [f for f in found if f.check == "replicas" and f.level is PROBLEM]
        assert len(wrong) == 1, "settings do not replicate"
        assert all(f"127.0.0.1:{each.port}" in wrong[0].at for each in (replica, other))
        type_in_at((replica, other), wrong[0])
        assert of(await findings(server.url, ask_replicas=True), "replicas") is None
        type_in(server, ("CONFIG SET min-replicas-max-lag 120",))
        late = of(await findings(server.url), "replication")
        assert late is not None
        type_in(server, late.mend)
        await until(mended)
        type_in(server, ("CONFIG SET min-replicas-max-lag 0",))
        turned_off = of(await findings(server.url), "replication")
        assert turned_off is not None
        assert turned_off.level is PROBLEM
        type_in(server, turned_off.mend)
        await until(mended)

    async def missed() -> Finding | None:
        found = await unacknowledged()
        return found if found is not None and "NOREPLICAS" in found.means else None

    await until(missed)
    assert server.command("SET", "x", "1").startswith("-NOREPLICAS")
    server.command("CONFIG", "SET", "min-replicas-to-write", "0")
    renamed = of(await findings(server.url), "replication id")
    assert renamed is not None
    assert renamed.level is ADVICE
    type_in(server, renamed.mend)
    found = await findings(server.url)
    assert of(found, "replication id") is None
    left = of(found, "replication")
    assert left is not None
    assert left.level is ADVICE, "who has followed may be a primary now"
    assert "CONFIG RESETSTAT" in left.otherwise
    assert server.command("CONFIG", "RESETSTAT") == "+OK"
    assert of(await findings(server.url), "replication") is None


async def test_a_debug_command_that_is_open(server: EmbeddedServer) -> None:
    if server.binary.kind == "redis" and server.binary.version < (7,):
        return  # always open there, which the finding on files says
    with EmbeddedServer(server.binary, extra=("--enable-debug-command", "yes")) as other:
        finding = of(await findings(other.url), "debug command")
    assert finding is not None
    assert finding.conf == ("enable-debug-command no",)


# -- permissions ----------------------------------------------------------------------------------------------------


def least(server: EmbeddedServer, *less: str) -> str:
    """A user with exactly the rules that the doctor tells, less some; its URL."""
    rules = access.rules(Settings(), access.needed(Settings()))
    given = server.command("ACL", "SETUSER", "app", "reset", "on", f">{SECRET}", "resetchannels", *rules.split(), *less)
    assert given == "+OK"
    return server.url.replace("redis://", f"redis://app:{SECRET}@")


def older_than_7(server: EmbeddedServer) -> bool:
    return server.binary.version < (7,)


async def test_a_cache_lives_with_exactly_the_rules_that_are_told(server: EmbeddedServer) -> None:
    async with Cache.open(Settings(url=least(server))) as cache:
        await cache.set("config", "x", 1, tenant_id="acme", tags=["t"])
        assert await cache.get("config", "x", tenant_id="acme", use_memory=False) == 1
        assert await cache.get_or_load("config", "y", lambda: 2, tenant_id="acme") == 2
        await cache.invalidate_tags(["t"], tenant_id="acme")
        assert await cache.add("job", "1", 1, tenant_id="acme")
        assert cache.ready()
    assert server.command("FLUSHALL") == "+OK"
    found = await findings(least(server), probe_writes=True)
    assert of(found, "permissions") is None
    assert server.command("DBSIZE") == ":0", "the trial was removed"


def test_a_user_of_its_own_is_made_by_the_command_that_is_printed(server: EmbeddedServer, typed: Typed) -> None:
    status, out, _ = typed("doctor", server.url, "--acl", "app", "--namespace", "prod")
    assert status == 0
    assert "~{prod:*}:*" in out
    type_in(server, ("ACL SETUSER app on >old +@all ~other:*", out.replace(">PASSWORD", f">{SECRET}")))
    own = server.command("ACL", "GETUSER", "app")
    assert "other:" not in own and "+@all" not in own, "just these rights"
    assert own.count("\n$64\r") <= 1, "and this password"


@pytest.mark.parametrize("name", ["default", "a b", "a\nX", ""])
def test_no_command_is_printed_for_what_is_no_user_of_its_own(typed: Typed, name: str) -> None:
    status, out, errors = typed("doctor", "redis://localhost:1/0", "--acl", name)
    assert (status, out) == (2, "")
    assert "--acl" in errors


async def test_each_command_that_is_missing_is_told_and_mended(server: EmbeddedServer) -> None:
    """By the server's own word where it has ACL DRYRUN, else by the trial."""
    for command in access.needed(Settings()):
        if command == "PING":
            continue  # without it nobody connects
        url = least(server, f"-{command.lower()}", *(() if older_than_7(server) else ("+acl",)))
        found = await findings(url, probe_writes=older_than_7(server))
        finding = of(found, "permissions")
        assert finding is not None, command
        assert finding.level is PROBLEM
        if not older_than_7(server):
            assert f"{command}:" in finding.says
        type_in(server, finding.mend)
        found = await findings(url, probe_writes=True)
        assert of(found, "permissions") is None, command


@pytest.mark.parametrize("less", [("resetkeys",), ("resetchannels",), ("resetkeys", "~{other:*")])
async def test_keys_and_channels_that_are_missing(server: EmbeddedServer, less: tuple[str, ...]) -> None:
    for probe_writes in (False, True):
        url = least(server, *less, "+acl")
        if older_than_7(server) and not probe_writes:
            continue
        found = await findings(url, probe_writes=probe_writes)
        assert of(found, "operations") is None, "what lacks a right is told as that alone"
        finding = of(found, "permissions")
        assert finding is not None
        assert finding.level is PROBLEM
        type_in(server, finding.mend)
        assert of(await findings(url, probe_writes=True), "permissions") is None


async def test_a_user_who_may_not_ask_is_told_how_to_find_out(server: EmbeddedServer) -> None:
    found = await findings(least(server))
    finding = of(found, "permissions")
    assert finding is not None
    assert finding.level is Severity.UNKNOWN
    assert "--probe-writes" in finding.otherwise


async def test_where_config_is_forbidden_the_rest_is_still_checked(server: EmbeddedServer) -> None:
    """As on managed servers: what INFO tells is taken from there."""
    server.command("ACL", "SETUSER", "managed", "reset", "on", f">{SECRET}", "~*", "&*", "+@all", "-config", "-acl")
    url = server.url.replace("redis://", f"redis://managed:{SECRET}@")
    found = {finding.check: finding for finding in await findings(url)}
    assert found["eviction"].level is OK
    assert found["memory limit"].level is OK
    assert found["replication"].level is OK
    assert found["event buffers"].level is Severity.UNKNOWN
    assert "config" in found["event buffers"].says.lower()
    assert PROBLEM not in bad([*found.values()]).values()


async def test_where_even_info_is_forbidden_it_says_so(server: EmbeddedServer) -> None:
    found = {finding.check: finding for finding in await findings(least(server, "-info"))}
    assert found["version"].level is Severity.UNKNOWN
    assert found["scripts"].level is PROBLEM


# -- refusals that no right would mend -------------------------------------------------------------------------------


async def test_a_refusal_is_told_as_what_it_is(own_server: EmbeddedServer) -> None:
    """And no right is told to be given for it."""
    for code, wrong, right, see in (
        ("NOREPLICAS", ("min-replicas-to-write", "1"), ("min-replicas-to-write", "0"), "replication"),
        ("OOM", ("maxmemory", "1"), ("maxmemory", "500mb"), "memory"),
    ):
        own_server.command("CONFIG", "SET", *wrong)
        found = await findings(own_server.url, probe_writes=True)
        own_server.command("CONFIG", "SET", *right)
        assert not [finding for finding in found if finding.check == "permissions"], code
        refused = of(found, "operations")
        assert refused is not None, code
        assert refused.level is PROBLEM
        assert code in refused.says
        assert see in refused.means
        assert "ACL" not in str([(finding.mend, finding.otherwise) for finding in found])
    with EmbeddedServer(own_server.binary, extra=("--replicaof", "127.0.0.1", str(own_server.port))) as replica:
        await until(lambda: replica.command("SET", "x", "1").startswith("-READONLY"))
        found = await findings(replica.url, probe_writes=True)
    refused, role = of(found, "operations"), of(found, "role")
    assert refused is not None
    assert role is not None
    assert "READONLY" in refused.says
    assert "role" in refused.means


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_url_that_is_told_has_tls_where_the_one_that_is_given_has_it(scheme: str) -> None:
    """Without, the login would go out for all to read."""
    primary = Primary(parse_address(f"{scheme}://localhost/0"))
    server = Server(primary.address, {"cluster_enabled": "1"}, "", {}, "", "default")
    (finding,) = examine._topology(server, primary)
    assert f" {scheme}+cluster://" in finding.otherwise
    assert f" {scheme}+sentinel://" in examine._a_sentinel(primary).otherwise


async def test_a_sentinel_is_told_as_one() -> None:
    async with SentinelGroup(any_binary(), replicas=1, sentinels=1) as group:
        (found,) = await findings(group.sentinels[0].url)
    assert (found.check, found.level) == ("role", PROBLEM)
    assert f"redis+sentinel://127.0.0.1:{group.sentinels[0].port}/SERVICE/0" in found.otherwise


@pytest.mark.parametrize("named", [False, True])
async def test_a_layout_that_the_settings_do_not_name_is_taken_from_the_namespace(
    own_server: EmbeddedServer, *, named: bool
) -> None:
    """As nodes, log and get do. One that they name, and that is another, is a problem."""
    async with Cache(Settings(url=own_server.url, shards=8)):
        pass
    found = of(await findings(own_server.url, **({"shards": 4} if named else {})), "namespace")
    assert found is not None
    assert found.level is (PROBLEM if named else ADVICE)
    assert "CACHEBUS_SHARDS=8" in found.otherwise
    assert of(await findings(own_server.url, shards=8), "namespace") is None


async def test_a_namespace_that_is_named_and_not_there_was_not_looked_at(own_server: EmbeddedServer) -> None:
    """A misspelt one was green for ever."""
    async with Cache(Settings(url=own_server.url, namespace="shop")):
        pass
    for url, space, level in (
        (own_server.url, "shop", None),
        (own_server.url, "shpo", Severity.UNKNOWN),
        (own_server.url.replace("/0", "/3"), "shop", Severity.UNKNOWN),
    ):
        found = of(await findings(url, namespace=space), "namespace")
        assert (found and found.level) == level


async def test_a_slow_link_is_measured_less_often(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = await Asker.open(parse_address(server.url), 5.0)
    try:
        for longest_s, times in ((0.0, timing.LEAST_ROUNDS), (60.0, 40)):
            monkeypatch.setattr(timing, "LONGEST_S", longest_s)
            seen = await timing.timed(asker, Settings(url=server.url), 40)
            assert (len(seen.pings_s), len(seen.scripts_s)) == (times, times)
            assert abs(seen.offset_s) < 1
    finally:
        asker.close()


# -- the namespace ---------------------------------------------------------------------------------------------------


async def test_a_namespace_in_use(server: EmbeddedServer) -> None:
    server.command("FLUSHALL")
    async with Cache.open(server.url) as a, Cache.open(server.url) as b:
        for i in range(5):
            await a.invalidate("config", i, tenant_id="acme")
        await until(lambda: b.stats().shards[0].applied == a.stats().shards[0].applied)

        async def both() -> bool:
            return any(f.check == "nodes" and "2 alive, 0 silent" in f.says for f in await findings(server.url))

        await until(both)

        async def well() -> list[Finding]:  # the busier the machine, the longer it takes
            found = await findings(server.url)
            return [] if bad(found) else found

        found = await until(well)
        (kept,) = [finding for finding in found if finding.check == "log"]
        assert "5" in kept.says
        other = of(await findings(server.url, shards=4), "namespace")
        assert other is not None
        assert other.level is PROBLEM
        assert "CACHEBUS_SHARDS=1" in other.otherwise

        async def deaf() -> Finding | None:  # a node listens again soon: look until one does not
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
            return of(await findings(server.url), "subscriptions")

        assert (await until(deaf)).level is ADVICE
    assert any(f.says.startswith("none is alive") for f in await findings(server.url) if f.check == "nodes")


async def test_every_shard_is_looked_at(own_server: EmbeddedServer) -> None:
    """Not the first one alone."""
    server, shards = own_server, 4
    async with Cache.open(Settings(url=server.url, shards=shards)):
        pass
    assert of(await findings(server.url, shards=shards), "namespace") is None
    server.command("HSET", "{cachebus:3}:meta", "facts", "protocol=9 shards=4 bus=redis")
    other = of(await findings(server.url, shards=shards), "namespace")
    assert other is not None
    assert other.level is PROBLEM
    assert "in shard 3," in other.says
    server.command("DEL", "{cachebus:3}:meta")
    server.command("SET", "{cachebus:3}:meta", "x")
    unread = of(await findings(server.url, shards=shards), "namespace")
    assert unread is not None
    assert unread.level is Severity.UNKNOWN
    assert "shard 3: WRONGTYPE" in unread.says


def test_facts_of_no_shards_end_no_report(own_server: EmbeddedServer, typed: Typed) -> None:
    own_server.command("HSET", "{cachebus:0}:meta", "facts", "protocol=1 shards=0 bus=redis")
    status, out, errors = typed("doctor", own_server.url, "--json")
    assert (status, errors) == (1, "")
    problems = [f for f in json.loads(out)["servers"][0]["findings"] if f["level"] == "problem"]
    assert [f["check"] for f in problems] == ["namespace"]
    assert "shards=0" not in problems[0]["otherwise"].lower()


def test_a_check_that_fails_is_a_finding_and_ends_nothing(
    own_server: EmbeddedServer, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(*_: object, **__: object) -> list[Finding]:
        raise IndexError("out of range")

    async def broken(*_: object, **__: object) -> list[Finding]:
        return crashes()

    monkeypatch.setattr(examine, "CHECKS", (crashes, *examine.CHECKS))
    monkeypatch.setattr(access, "looked_at", broken)
    monkeypatch.setattr(namespace, "other_databases", broken)
    status, out, errors = typed("doctor", own_server.url, "--json")
    assert (status, errors) == (3, "")
    found = json.loads(out)["servers"][0]["findings"]
    failed = {f["check"] for f in found if "IndexError: out of range" in f["says"]}
    assert failed == {"crashes", "databases", "permissions"}
    assert all(f["level"] == "not checked" for f in found if f["check"] in failed)
    assert len(found) > 10


async def test_a_row_of_a_time_to_come_is_no_sign_of_life(own_server: EmbeddedServer, tmp_path: Path) -> None:
    """As of a node that died before the server's clock was set back."""
    url = own_server.url
    async with Cache.open(url) as cache:
        name = cache.stats().node
        await until(lambda: ask(own_server, "HEXISTS", "{cachebus:0}:nodes", name))
        line: bytes = await ask(own_server, "HGET", "{cachebus:0}:nodes", name)
    at = line.index(b"\xa5at_us\xcf") + 7
    later = struct.pack(">Q", struct.unpack(">Q", line[at : at + 8])[0] + 3_600_000_000)
    connection = await Connection.open(parse_address(url), Patience(5, 5, monotonic))
    await connection.call("HSET", "{cachebus:0}:nodes", "dead", line[:at] + later + line[at + 8 :])
    connection.close()
    found = await findings(url)
    silent = of(found, "nodes")
    assert silent is not None
    assert silent.level is ADVICE
    assert silent.says == "none is alive; 1 have not left, and are silent: dead"
    assert of(found, "subscriptions") is None
    told = of(found, "nodes ahead")
    assert told is not None
    assert told.level is ADVICE
    assert "dead, by 3,6" in told.says or "dead, by 3,5" in told.says
    assert told.shell == (f"cachebus nodes forget --url {url} -- dead",)
    shown = await asyncio.to_thread(partial(ran, "nodes", "--url", url, folder=tmp_path))
    assert "  ahead " in shown[1]


async def test_what_was_lost_in_the_namespace(server: EmbeddedServer) -> None:
    server.command("FLUSHALL")
    async with Cache.open(server.url) as cache:
        for i in range(20):
            await cache.invalidate_tags([f"tag-{i}"], tenant_id="acme")
    full = of(await findings(server.url, max_invalidated_scopes=20), "invalidated_scopes")
    assert full is not None
    assert "CACHEBUS_MAX_INVALIDATED_SCOPES=40" in full.otherwise
    server.command("DEL", "{cachebus:0}:log")
    assert of(await findings(server.url), "log") is not None
    assert of(await findings(server.url), "takeover") is None
    for lost in ("marks:" + bucket_of("acme"), "buckets"):
        server.command("DEL", f"{{cachebus:0}}:{lost}")
        assert of(await findings(server.url), "takeover") is not None
        async with Cache.open(server.url) as cache:
            assert of(await findings(server.url), "takeover") is None, "the next operation did it"
            await cache.invalidate_tags(["again"], tenant_id="acme")
    server.command("HSET", "{cachebus:0}:meta", "server", "0" * 40)
    assert of(await findings(server.url), "takeover") is not None


async def test_tenants_with_more_marks_than_are_kept(server: EmbeddedServer) -> None:
    server.command("FLUSHALL")
    async with Cache.open(Settings(url=server.url, max_invalidated_scopes=20)) as cache:
        for i in range(25):
            await cache.invalidate_tags([f"tag-{i}"], tenant_id="acme")
        await cache.invalidate_tags(["tag"], tenant_id="globex")
    found = of(await findings(server.url, max_invalidated_scopes=100), "invalidated_scopes")
    assert found is not None
    assert found.level is ADVICE
    assert "6 were forgotten, in 1 buckets" in found.says


async def test_nodes_of_several_bounds(server: EmbeddedServer) -> None:
    """Nobody's promise breaks, but waits for the nodes last as the largest bound."""
    server.command("FLUSHALL")
    async with Cache.open(server.url):
        assert of(await findings(server.url), "bounds") is None
        assert of(await findings(server.url), "guards") is None
        async with Cache.open(Settings(url=server.url, staleness_bound_s=5.5, guard_max_s=30)):
            found = await findings(server.url)
    bounds, guards = of(found, "bounds"), of(found, "guards")
    assert bounds is not None
    assert guards is not None
    assert bounds.level is guards.level is ADVICE
    assert "2 s, 5.5 s" in bounds.says
    assert "CACHEBUS_STALENESS_BOUND_S" in bounds.otherwise
    assert "30 s, 60 s" in guards.says
    assert "CACHEBUS_GUARD_MAX_S" in guards.otherwise


async def test_one_namespace_in_two_databases(server: EmbeddedServer) -> None:
    """And that it is as harmless as the doctor says: neither hears of the other."""
    server.command("FLUSHALL")
    second = server.url.removesuffix("0") + "1"
    async with Cache.open(server.url) as a, Cache.open(second) as b, Cache.open(second) as c:
        finding = of(await findings(server.url), "databases")
        assert finding is not None
        assert finding.level is ADVICE
        await a.set("config", "x", 1, tenant_id="acme")
        receipt = await b.set("config", "x", 2, tenant_id="acme")
        await until(lambda: c.stats().shards[0].applied >= receipt.seq)
        await b.invalidate("config", "x", tenant_id="acme", wait="nodes")
        assert await a.get("config", "x", tenant_id="acme") == 1
        assert await a.get("config", "x", tenant_id="acme", use_memory=False) == 1
        stats = a.stats()
        assert (stats.events_foreign, stats.flushes.get("epoch", 0)) == (0, 0)
    server.command("FLUSHALL")
    assert of(await findings(second), "databases") is None


# -- the command -----------------------------------------------------------------------------------------------------


def test_exit_status_and_json(own_server: EmbeddedServer, typed: Typed) -> None:
    server = own_server
    server.command("CONFIG", "SET", "maxmemory", "500mb")
    server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    status, out, errors = typed("doctor", server.url)
    assert (status, errors) == (0, "")
    assert "permissions" in out
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    status, out, _ = typed("doctor", server.url, "--json")
    server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    assert status == 1
    told = json.loads(out)
    assert told["status"] == 1
    (problem,) = [f for f in told["servers"][0]["findings"] if f["level"] == "problem"]
    assert problem["mend"] == ["CONFIG SET maxmemory-policy volatile-lru"]
    assert problem["conf"] == ["maxmemory-policy volatile-lru"]
    server.command("CONFIG", "SET", "timeout", "30")
    assert typed("doctor", server.url)[0] == 0, "advice is no problem"
    assert typed("doctor", server.url, "--strict")[0] == 1
    server.command("CONFIG", "SET", "timeout", "0")


def test_no_password_is_ever_shown(own_server: EmbeddedServer, typed: Typed) -> None:
    url = least(own_server)
    for more in ((), ("--json",), ("--probe-writes",)):
        status, out, errors = typed("doctor", url, *more)
        assert SECRET not in out + errors
        assert status == 3, "this user may not see the server's settings"
    status, out, errors = typed("doctor", url.replace(SECRET, "wr0ng-secret"))
    assert status == 2
    assert "wr0ng-secret" not in out + errors
    assert len(errors.splitlines()) == 1
    said = " ".join(out.split())
    assert "WRONGPASS" in said
    assert "It is there, and does not let this user in" in said, "what it means"
    assert "name user and password as the nodes have them; or make the user there" in said, "and what helps"


def test_a_server_that_is_not_there(typed: Typed, tmp_path: Path) -> None:
    status, out, errors = ran("doctor", "redis://127.0.0.1:1/0", folder=tmp_path)  # as a process, for once
    assert status == 2
    assert "127.0.0.1:1" in errors
    assert len(errors.splitlines()) == 1
    assert "problem     reach: " in out
    assert "All of L2 is away: " in out
    status, _, errors = typed("doctor", "memory://x")
    assert status == 2
    assert "memory://" in errors
    for url in ("memory://x", f"http://app:{SECRET}@h", f"redis://app:{SECRET}@127.0.0.1:notaport/0"):
        status, out, errors = typed("doctor", url, "--json")
        told = json.loads(out)
        assert (status, told["status"], told["servers"]) == (2, 2, [])
        assert told["error"]
        assert SECRET not in out + errors


async def test_a_server_that_has_gone_is_an_error(own_server: EmbeddedServer) -> None:
    settings = Settings(url=own_server.url)
    own_server.kill()
    with pytest.raises(L2Unavailable):
        await examined(settings, Primary(parse_address(own_server.url)))


async def test_a_cluster_is_looked_at_primary_by_primary(shared_servers: SharedServers) -> None:
    group = await shared_servers.cluster()
    settings = Settings(url=group.url)
    primaries = (await deployment_of(settings)).primaries
    assert sorted(shard for primary in primaries for shard in primary.shards or ()) == list(range(64))
    assert len(primaries) == 3
    async with nodes(group.url, 1):
        for primary in primaries:
            server, found = await examined(settings, primary, probe_writes=True, rounds=3)
            by_name = {finding.check: finding for finding in found}
            assert server.address == primary.address
            assert primary.watched.failover_s == 1.0
            assert "cluster" not in by_name
            assert by_name["permissions"].level is Severity.OK
            assert by_name["nodes"].level is Severity.OK
            assert by_name["replication"].level is Severity.PROBLEM, "replicas, and no min-replicas-to-write"

            async def is_mended(at: Primary = primary) -> bool:
                """Obeys what it says now: while a replica lags, as on a busy machine, it gives no command."""
                _, again = await examined(settings, at, rounds=3)
                replication = {finding.check: finding for finding in again}["replication"]
                for command in map(shlex.split, replication.mend):
                    await ask(next(s for s in group.servers if s.port == at.address.port), *command)
                return replication.level is not Severity.PROBLEM

            await until(is_mended)
    for server in group.servers:
        await ask(server, "CONFIG", "SET", "min-replicas-to-write", "0")
    _, found = await examined(
        Settings(url=group.servers[0].url), Primary(parse_address(group.servers[0].url)), rounds=3
    )
    assert {finding.check: finding for finding in found}["cluster"].level is Severity.PROBLEM, (
        "named as if it were alone"
    )


async def test_a_primary_that_does_not_let_this_user_in_is_not_taken_for_one_that_is_away(
    shared_servers: SharedServers,
) -> None:
    """A failover would help nobody."""
    group = await shared_servers.cluster()
    first = (await deployment_of(Settings(url=group.url))).primaries[0]
    deployment = Deployment("", [first])
    with pytest.raises(L2Unavailable) as raised:
        await examined(
            Settings(url=group.url), replace(first, address=replace(first.address, username="x", password="y"))
        )
    _, (finding,) = out_of_reach(first, raised.value, deployment)
    assert finding.level is Severity.PROBLEM
    assert "does not let this user in" in finding.means
    assert "FAILOVER" not in finding.otherwise


async def test_behind_sentinels_the_primary_is_looked_at() -> None:
    async with SentinelGroup(any_binary(), min_replicas=1) as group:
        settings = Settings(url=group.url)
        (primary,) = (await deployment_of(settings)).primaries
        assert (primary.address.port, primary.watched.failover_s) == (group.data[0].port, 0.5)
        _, found = await examined(settings, primary, rounds=3)
        by_name = {finding.check: finding for finding in found}
        assert by_name["replication"].level is Severity.OK
        assert by_name["permissions"].level is Severity.OK
