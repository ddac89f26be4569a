"""The doctor's judgement of what no server on this machine can be made to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from cachebus import Settings
from cachebus.core.ports import About, NodeRow
from cachebus.resp import Address
from cachebus.tools.doctor import (
    after_failover,
    durability,
    hearing,
    links,
    memory,
    namespace,
    replicas,
    replication,
    rows,
    sentinels,
    timing,
)
from cachebus.tools.doctor.access import needed, rules
from cachebus.tools.doctor.facts import Facts, KnownReplica, Replica, Server, ShardFacts, Timing, Watched, size
from cachebus.tools.doctor.finding import Finding, Severity, status_of
from cachebus.tools.doctor.sentinel_views import SentinelView

Check = Callable[[Facts], Iterable[Finding]]
QUICK = Timing([0.0001] * 100, [0.0002] * 100)


def facts(
    info: dict[str, str] | None = None,
    config: dict[str, str] | None = None,
    *,
    seen: Timing = QUICK,
    shards: tuple[ShardFacts, ...] = (),
    **settings: Any,
) -> Facts:
    """Facts of a made-up server."""
    server = Server(Address(), info or {}, "" if info else "INFO is refused", config or {}, "CONFIG is refused", "app")
    return Facts(Settings(**settings), server, seen, shards)


def levels(check: Check, given: Facts) -> list[Severity]:
    return [finding.level for finding in check(given)]


@pytest.mark.parametrize(
    ("check", "given", "level"),
    [
        (memory.version, facts({"redis_version": "6.0.16"}), Severity.PROBLEM),
        (memory.version, facts({"redis_version": "5.0"}), Severity.PROBLEM),
        (memory.version, facts({"redis_version": "6.2.0"}), Severity.OK),
        (memory.version, facts({"redis_version": "10.0.0"}), Severity.OK),
        (memory.version, facts(), Severity.UNKNOWN),
        (memory.eviction, facts(), Severity.UNKNOWN),
        (durability.persistence, facts(), Severity.UNKNOWN),
        (replication.role, facts(), Severity.UNKNOWN),
        (durability.saving, facts({"rdb_last_bgsave_status": "err"}), Severity.ADVICE),
        (durability.saving, facts({"aof_enabled": "1", "aof_last_write_status": "err"}), Severity.PROBLEM),
        (
            replication.cut_off,
            facts({"role": "master", "min_slaves_good_slaves": "2", "connected_slaves": "2"}),
            Severity.UNKNOWN,
        ),
        (replication.cut_off, facts({"role": "master", "connected_slaves": "2"}), Severity.PROBLEM),
        (
            replication.migrating,
            facts({"cluster_enabled": "1"}, {"cluster-allow-replica-migration": "yes"}),
            Severity.ADVICE,
        ),
        (
            replication.new_ids,
            facts({"role": "master", "repl_backlog_active": "1"}, {"repl-backlog-ttl": "3600"}),
            Severity.ADVICE,
        ),
        (replication.new_ids, facts({"role": "master"}, {"repl-backlog-ttl": "3600"}), Severity.OK),
        (links.clients, facts(), Severity.UNKNOWN),
        (links.trimming, facts(config={"stream-node-max-entries": "0", "stream-node-max-bytes": "4096"}), Severity.OK),
        (
            links.trimming,
            facts(config={"stream-node-max-entries": "0", "stream-node-max-bytes": "9999999"}),
            Severity.ADVICE,
        ),
        (timing.latency, facts(), Severity.OK),
        (timing.latency, facts(seen=Timing([0.001] * 99, [0.02] * 99)), Severity.ADVICE),
        (timing.latency, facts(seen=Timing([0.001] * 99, [0.6] * 99)), Severity.PROBLEM),
        (timing.forking, facts({"latest_fork_usec": "700000"}), Severity.ADVICE),
        (timing.clocks, facts(), Severity.OK),
        (timing.clocks, facts(seen=Timing([], [], offset_s=-3.0, offset_error_s=0.1)), Severity.ADVICE),
        (timing.clocks, facts(seen=Timing([], [], drift=0.02, drift_error=0.001)), Severity.ADVICE),
        (timing.clocks, facts(seen=Timing([], [], drift=0.02, drift_error=0.05)), Severity.OK),
        (timing.clocks, facts(seen=Timing([], [], offset_error_s=float("inf"))), Severity.UNKNOWN),
        (namespace.layout, facts(shards=(ShardFacts(0, {}, "NOPERM"),)), Severity.UNKNOWN),
        (namespace.layout, facts(shards=(ShardFacts(0, {"facts": "somebody's"}),)), Severity.PROBLEM),
    ],
)
def test_judgements(check: Check, given: Facts, level: Severity) -> None:
    assert levels(check, given) == [level]


def group(
    count: int,
    writes: str,
    lag: str = "2",
    *,
    known: int = 0,
    failover_s: float | None = 5.0,
    of_replicas: str | None = None,
) -> Facts:
    """A primary with so many replicas."""
    info = {"role": "master", "connected_slaves": str(count)}
    if writes != "0":
        info["min_slaves_good_slaves"] = str(count)
    config = {"min-replicas-to-write": writes, "min-replicas-max-lag": lag}
    others = config | ({} if of_replicas is None else {"min-replicas-to-write": of_replicas})
    server = Server(Address(), info, "", config, "", "app")
    places = [Address(port=7000 + i) for i in range(count)]
    following = [Replica(place, Server(place, {"role": "slave"}, "", others, "", "app")) for place in places]
    watched = Watched("sentinel", "mymaster", failover_s, list(map(KnownReplica, places)))
    gone = [KnownReplica(Address(port=8000 + i), away="s_down") for i in range(known - count)]
    return Facts(Settings(), server, QUICK, (), (), replace(watched, known=[*(watched.known or ()), *gone]), following)


@pytest.mark.parametrize(("replicas", "least"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)])
def test_no_two_sides_of_a_group_may_both_write(replicas: int, least: int) -> None:
    """The primary keeps k of its replicas, one of the others is promoted and has the rest."""
    assert replication.needed(replicas) == least
    for writes in range(1, replicas + 1):
        both = any(kept >= writes and replicas - kept - 1 >= writes for kept in range(replicas))
        assert both == (writes < least)


@pytest.mark.parametrize(("replicas", "writes", "mend"), [(3, "1", "2"), (2, "0", "1"), (5, "2", "3")])
def test_too_few_replicas_to_write_are_named_with_how_many_it_takes(replicas: int, writes: str, mend: str) -> None:
    (finding,) = replication.cut_off(group(replicas, writes, failover_s=5.0))
    assert finding.level is Severity.PROBLEM
    assert finding.mend == (f"CONFIG SET min-replicas-to-write {mend}", "CONFIG SET min-replicas-max-lag 2")
    (finding,) = replication.cut_off(group(replicas, writes, "9", failover_s=5.0))
    assert finding.mend[1] == "CONFIG SET min-replicas-max-lag 3"
    assert levels(replication.cut_off, group(replicas, mend)) == [Severity.OK]


def test_what_is_not_told_is_no_problem() -> None:
    info = {"role": "master", "connected_slaves": "3", "min_slaves_good_slaves": "3"}
    assert levels(replication.cut_off, facts(info)) == [Severity.UNKNOWN]


def test_a_lag_of_nothing_turns_all_of_it_off() -> None:
    given = facts(
        {"role": "master", "connected_slaves": "0"}, {"min-replicas-to-write": "1", "min-replicas-max-lag": "0"}
    )
    (finding,) = replication.cut_off(given)
    assert finding.level is Severity.PROBLEM
    assert "NOREPLICAS" not in finding.means


def test_replicas_that_are_away_count_as_well() -> None:
    (finding,) = replication.cut_off(group(2, "1", known=3))
    assert finding.level is Severity.PROBLEM
    assert finding.mend[0] == "CONFIG SET min-replicas-to-write 2"


def test_what_a_single_replica_means() -> None:
    one, rest = replication.cut_off(group(1, "1"))
    assert (one.level, rest.level) == (Severity.ADVICE, Severity.OK)
    assert "NOREPLICAS" in one.means


def test_each_replica_is_to_be_set_up_as_the_primary() -> None:
    assert levels(replicas.promoted, group(2, "1")) == [Severity.OK]
    (finding,) = replicas.promoted(group(2, "1", of_replicas="0"))
    assert finding.level is Severity.PROBLEM
    assert finding.at == "localhost:7000, localhost:7001"
    assert finding.mend == ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-max-lag 2")


def test_a_machine_that_was_suspended() -> None:
    assert levels(timing.clocks, facts(seen=Timing([], [], suspended_s=60.0))) == [Severity.OK, Severity.ADVICE]


def test_a_node_further_behind_than_the_log_reaches() -> None:
    now_us, bound = 10_000_000, About(2000)
    shard = ShardFacts(
        0,
        {"epoch": "e", "seq": "9000"},
        log_first=8500,
        log_last=9000,
        now_us=now_us,
        subscribers=2,
        nodes={
            "slow": NodeRow(7000, b"e", now_us, bound),
            "gone": NodeRow(1, b"e", 1, bound),
            "good": NodeRow(9000, b"e", now_us, bound),
        },
    )
    (finding,) = rows.nodes(facts(shards=(shard,)))
    assert finding.level is Severity.ADVICE
    assert "2 alive, 1 silent" in finding.says
    assert "slow, by 2,000" in finding.says


def test_nodes_with_other_bounds_are_told() -> None:
    def shard(*bounds: tuple[int, int]) -> ShardFacts:
        return ShardFacts(0, {}, nodes={str(i): NodeRow(0, b"", 0, About(*each)) for i, each in enumerate(bounds)})

    assert not [*rows.bounds(facts(shards=(shard((2000, 60_000), (2000, 60_000)),)))]
    found = [*rows.bounds(facts(shards=(shard((2000, 60_000), (10_000, 90_000)),)))]
    assert [finding.level for finding in found] == [Severity.ADVICE] * 2
    assert "2 s, 10 s" in found[0].says
    assert "60 s, 90 s" in found[1].says


def test_nodes_of_which_some_keep_what_they_load_alone_are_told() -> None:
    def shard(*keeps: bool) -> ShardFacts:
        rows = (NodeRow(0, b"", 0, About(2000, 60_000, keeps_without_l2=one)) for one in keeps)
        return ShardFacts(0, {}, nodes={str(i): row for i, row in enumerate(rows)})

    assert not [*rows.bounds(facts(shards=(shard(False, False),)))]
    (finding,) = rows.bounds(facts(shards=(shard(True, False),)))
    assert finding.level is Severity.ADVICE
    assert "CACHEBUS_KEEP_WITHOUT_L2" in finding.otherwise


def test_nodes_that_hear_by_other_topics_are_told() -> None:
    def shard(*topics: object, silent_s: float = 0.0) -> ShardFacts:
        now_us = 10**12
        at_us = now_us - int(silent_s * 1e6)
        rows = (NodeRow(0, b"", at_us, About(2000, 60_000, (("topic", one),))) for one in topics)
        return ShardFacts(0, {}, nodes={f"n{i}": row for i, row in enumerate(rows)}, now_us=now_us)

    assert not [*hearing.heard_by(facts(shards=(shard("a", "a"), shard("a"))))]
    assert not [*hearing.heard_by(facts(shards=(shard("a"), shard("b", silent_s=5.0))))]
    assert not [*hearing.heard_by(facts(shards=(shard("a", 7, None),)))]
    (finding,) = hearing.heard_by(facts(shards=(shard("a", "b", "b"),)))
    assert finding.level is Severity.ADVICE
    assert finding.says == "events go by 2 topics of Kafka: a: n0; b: n1, n2"
    assert "CACHEBUS_KAFKA_TOPIC" in finding.otherwise


def test_nodes_that_hear_by_other_clusters_or_keys_are_told_by_ids_and_fingerprints() -> None:
    def shard(*more: tuple[tuple[str, str], ...]) -> ShardFacts:
        rows = (NodeRow(0, b"", 10**12, About(2000, 60_000, (("topic", "t"), *one))) for one in more)
        return ShardFacts(0, {}, nodes={f"n{i}": row for i, row in enumerate(rows)}, now_us=10**12)

    def told(*more: tuple[tuple[str, str], ...], **settings: Any) -> list[Finding]:
        return hearing.apart([shard(*more)], Settings(**settings))

    same = (("kafka", "k1"), ("keys", "11111111"))
    assert not told(same, same, (("kafka", "k1"), ("keys", "11111111,22222222")), (("kafka", "k1"),), ())
    (clusters,) = told(same, (("kafka", "k2"), ("keys", "11111111")))
    assert clusters.says.endswith("k1: n0; k2: n1")
    assert "CACHEBUS_KAFKA_BOOTSTRAP_SERVERS" in clusters.otherwise
    (keys,) = told(same, (("kafka", "k1"), ("keys", "22222222")), (("kafka", "k1"), ("keys", "")))
    assert keys.says.endswith("11111111: n0; 22222222: n1; none: n2")
    assert "CACHEBUS_KAFKA_EVENTS_KEY" in keys.otherwise
    over_kafka = {"bus": "kafka", "kafka_bootstrap_servers": "k:1", "kafka_topic": "t"}
    assert not told(same, **over_kafka), "who only looks needs no key"
    (keys,) = told(same, **over_kafka, kafka_events_key="s3cret")
    assert "these settings" in keys.says and "s3cret" not in keys.says
    (keys,) = told(*[same] * 5, (("keys", "22222222"),))
    assert "n0, n1, n2, n3 and 1 more" in keys.says


def test_exit_status() -> None:
    ok, advice, problem, unknown = (Finding("x", level, "") for level in Severity)
    assert status_of([ok, advice], strict=False) == 0
    assert status_of([ok, advice], strict=True) == 1
    assert status_of([ok, advice, unknown], strict=False) == 3, "who could check nothing has found nothing"
    assert status_of([ok, unknown], strict=True) == 3
    assert status_of([problem, unknown], strict=False) == 1
    assert status_of([ok, problem], strict=False) == 1


def test_every_command_that_a_script_calls_is_asked_for() -> None:
    assert {"EVALSHA", "HGETALL", "XADD", "PUBLISH", "SUBSCRIBE", "ZPOPMIN", "INFO"} <= set(needed(Settings()))
    assert rules(Settings(namespace="prod"), ["GET"]) == "+get ~{prod:*}:* &{prod:*}:events:*"


def test_sizes_for_people() -> None:
    assert [size(1), size(1536), size(64 << 20), size(3 << 30)] == ["1 bytes", "1.5 kB", "64.0 MB", "3.0 GB"]


def test_no_command_is_printed_that_would_have_every_write_refused_now() -> None:
    (finding,) = replication.cut_off(group(0, "0", known=3))
    assert finding.level is Severity.PROBLEM
    assert finding.mend == ()
    assert "every write is refused" in finding.means
    assert "localhost:8000" in finding.otherwise
    (finding,) = replication.cut_off(group(1, "0", known=2))
    assert finding.mend[0] == "CONFIG SET min-replicas-to-write 1"


def test_a_sentinel_that_knows_no_others_yet_is_no_reason_for_a_quorum_of_one() -> None:
    place = Address(port=7000)
    said = {"ip": "localhost", "port": "7000", "quorum": "2", "num-other-sentinels": "0"}
    view = SentinelView(Address(port=1), primary=said, quorum="NOQUORUM 1 usable Sentinels")
    watched = Watched("sentinel", "mymaster", 5.0, [KnownReplica(Address(port=7001))])
    silent = SentinelView(Address(port=2), silent="gone")
    knows = SentinelView(Address(port=2), primary={**said, "num-other-sentinels": "2"})
    for others in ([silent, silent], [knows]):
        (finding,) = [f for f in sentinels.failing_over([view, *others], watched, place, 2.0) if f.check == "failover"]
        assert finding.level is Severity.PROBLEM
        assert finding.mend == ()
    finding, few = sentinels.failing_over([view], watched, place, 2.0)
    assert finding.mend == ("SENTINEL SET mymaster quorum 1",)
    assert "only 1 of them" in few.says


@pytest.mark.parametrize(
    ("limit_gb", "used_gb", "check", "mend"),
    [
        (28, 26, "memory", ()),
        (8, 7.5, "memory", ("CONFIG SET maxmemory 16385mb",)),
        (16, 15.5, "memory", ("CONFIG SET maxmemory 24576mb",)),
        (1024, 1, "memory limit", ("CONFIG SET maxmemory 16384mb",)),
        (0, 1, "memory limit", ("CONFIG SET maxmemory 16384mb",)),
        (0, 20, "memory limit", ()),
    ],
)
def test_no_command_gives_a_server_more_memory_than_its_machine_has(
    limit_gb: int, used_gb: float, check: str, mend: tuple[str, ...]
) -> None:
    """Nor less than it uses: all above would be evicted at once."""
    gb = 1 << 30
    info = {"used_memory": str(int(used_gb * gb)), "total_system_memory": str(32 * gb)}
    config = {"maxmemory": str(limit_gb * gb), "maxmemory-policy": "volatile-lru"}
    (finding,) = [each for each in memory.eviction(facts(info, config)) if each.level is not Severity.OK]
    assert (finding.check, finding.mend) == (check, mend)
    assert mend or finding.otherwise


def test_nodes_of_a_namespace_whose_bus_is_kafka_are_not_deaf() -> None:
    """Also where the settings do not name its bus."""
    row = {"a": NodeRow(0, b"e", 10**12, About(2000, 60_000))}
    for bus, deaf in (("redis", True), ("kafka", False)):
        meta = {"epoch": "e", "facts": f"protocol=2 shards=1 bus={bus}"}
        shard = ShardFacts(0, meta, nodes=row, subscribers=0, now_us=10**12)
        assert any(each.check == "subscriptions" for each in rows.nodes(facts(shards=(shard,)))) == deaf


def test_what_is_lost_unseen_touches_promises() -> None:
    """Only what fails loudly touches none."""
    for read_only, promises in (("0", True), ("1", False)):
        info = {"role": "slave", "slave_read_only": read_only, "master_link_status": "up"}
        (finding,) = replication.role(facts(info))
        assert finding.level is Severity.PROBLEM
        assert bool(finding.promises) == promises
    (finding,) = after_failover.following(Server(Address(), {"role": "master"}, "", {}, "", "app"))
    assert finding.promises


def test_a_limit_for_the_memory_of_all_clients_is_told_before_it_bites() -> None:
    """New in Redis 7.0; one in percent is of maxmemory."""
    for limit, mend in (("153600", ("CONFIG SET maxmemory-clients 0",)), ("0", ()), ("5%", ())):
        found = [*links.sizes(facts({}, {"maxmemory-clients": limit}))]
        assert tuple(command for each in found for command in each.mend) == mend
