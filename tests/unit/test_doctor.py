"""The doctor's judgement of what no server on this machine can be made to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from cachebus import Settings
from cachebus.cli.doctor import durability, links, memory, namespace, timing
from cachebus.cli.doctor.access import needed, rules
from cachebus.cli.doctor.facts import Facts, Server, ShardFacts, Timing, size
from cachebus.cli.doctor.finding import Finding, Level, status_of
from cachebus.ports import About, NodeLine
from cachebus.resp import Address

Check = Callable[[Facts], Iterable[Finding]]
QUICK = Timing([0.0001] * 100, [0.0002] * 100)


def facts(
    info: dict[str, str] | None = None, config: dict[str, str] | None = None, *, seen: Timing = QUICK,
    shards: tuple[ShardFacts, ...] = (), **settings: Any,
) -> Facts:  # fmt: skip
    """Facts of a made-up server."""
    server = Server(Address(), info or {}, "" if info else "INFO is refused", config or {}, "CONFIG is refused", "app")
    return Facts(Settings(**settings), server, seen, shards)


def levels(check: Check, given: Facts) -> list[Level]:
    return [finding.level for finding in check(given)]


@pytest.mark.parametrize(
    ("check", "given", "level"),
    [
        (memory.version, facts({"redis_version": "6.0.16"}), Level.PROBLEM),
        (memory.version, facts({"redis_version": "5.0"}), Level.PROBLEM),
        (memory.version, facts({"redis_version": "6.2.0"}), Level.OK),
        (memory.version, facts({"redis_version": "10.0.0"}), Level.OK),
        (memory.version, facts(), Level.UNKNOWN),
        (memory.eviction, facts(), Level.UNKNOWN),
        (durability.persistence, facts(), Level.UNKNOWN),
        (durability.replication, facts(), Level.UNKNOWN),
        (durability.saving, facts({"rdb_last_bgsave_status": "err"}), Level.ADVICE),
        (durability.saving, facts({"aof_enabled": "1", "aof_last_write_status": "err"}), Level.PROBLEM),
        (durability.replication, facts({"role": "master", "min_slaves_good_slaves": "1", "connected_slaves": "1"}),
         Level.UNKNOWN),
        (durability.replication, facts({"role": "master", "connected_slaves": "2"}), Level.PROBLEM),
        (links.clients, facts(), Level.UNKNOWN),
        (links.trimming, facts(config={"stream-node-max-entries": "0", "stream-node-max-bytes": "4096"}), Level.OK),
        (links.trimming, facts(config={"stream-node-max-entries": "0", "stream-node-max-bytes": "9999999"}),
         Level.ADVICE),
        (timing.latency, facts(), Level.OK),
        (timing.latency, facts(seen=Timing([0.001] * 99, [0.02] * 99)), Level.ADVICE),
        (timing.latency, facts(seen=Timing([0.001] * 99, [0.6] * 99)), Level.PROBLEM),
        (timing.forking, facts({"latest_fork_usec": "700000"}), Level.ADVICE),
        (timing.clocks, facts(), Level.OK),
        (timing.clocks, facts(seen=Timing([], [], offset_s=-3.0, offset_error_s=0.1)), Level.ADVICE),
        (timing.clocks, facts(seen=Timing([], [], drift=0.02, drift_error=0.001)), Level.ADVICE),
        (timing.clocks, facts(seen=Timing([], [], drift=0.02, drift_error=0.05)), Level.OK),
        (timing.clocks, facts(seen=Timing([], [], offset_error_s=float("inf"))), Level.UNKNOWN),
        (namespace.layout, facts(shards=(ShardFacts(0, {}, "NOPERM"),)), Level.UNKNOWN),
        (namespace.layout, facts(shards=(ShardFacts(0, {"facts": "somebody's"}),)), Level.PROBLEM),
    ],
)  # fmt: skip
def test_judgements(check: Check, given: Facts, level: Level) -> None:
    assert levels(check, given) == [level]


def test_a_machine_that_was_suspended() -> None:
    assert levels(timing.clocks, facts(seen=Timing([], [], suspended_s=60.0))) == [Level.OK, Level.ADVICE]


def test_a_node_further_behind_than_the_log_reaches() -> None:
    now_us, bound = 10_000_000, About(2000)
    shard = ShardFacts(
        0, {"epoch": "e", "seq": "9000"}, log_first=8500, log_last=9000, now_us=now_us, subscribers=2,
        nodes={
            "slow": NodeLine(7000, b"e", now_us, bound), "gone": NodeLine(1, b"e", 1, bound),
            "good": NodeLine(9000, b"e", now_us, bound),
        },
    )  # fmt: skip
    (finding,) = namespace.nodes(facts(shards=(shard,)))
    assert finding.level is Level.ADVICE
    assert "2 alive, 1 silent" in finding.says
    assert "slow, by 2,000" in finding.says


def test_nodes_with_other_bounds_are_told() -> None:
    def shard(*bounds: tuple[int, int]) -> ShardFacts:
        return ShardFacts(0, {}, nodes={str(i): NodeLine(0, b"", 0, About(*each)) for i, each in enumerate(bounds)})

    assert not [*namespace.bounds(facts(shards=(shard((2000, 60_000), (2000, 60_000)),)))]
    found = [*namespace.bounds(facts(shards=(shard((2000, 60_000), (10_000, 90_000)),)))]
    assert [finding.level for finding in found] == [Level.ADVICE] * 2
    assert "2 s, 10 s" in found[0].says
    assert "60 s, 90 s" in found[1].says


def test_nodes_of_which_some_keep_what_they_load_alone_are_told() -> None:
    def shard(*keeps: bool) -> ShardFacts:
        lines = (NodeLine(0, b"", 0, About(2000, 60_000, keeps_alone=one)) for one in keeps)
        return ShardFacts(0, {}, nodes={str(i): line for i, line in enumerate(lines)})

    assert not [*namespace.bounds(facts(shards=(shard(False, False),)))]
    (finding,) = namespace.bounds(facts(shards=(shard(True, False),)))
    assert finding.level is Level.ADVICE
    assert "CACHEBUS_KEEP_ALONE" in finding.otherwise


def test_exit_status() -> None:
    ok, advice, problem, unknown = (Finding("x", level, "") for level in Level)
    assert status_of([ok, advice, unknown], strict=False) == 0
    assert status_of([ok, advice], strict=True) == 1
    assert status_of([ok, unknown], strict=True) == 0
    assert status_of([ok, problem], strict=False) == 1


def test_every_command_that_a_script_calls_is_asked_for() -> None:
    assert {"EVALSHA", "HGETALL", "XADD", "PUBLISH", "SUBSCRIBE", "ZPOPMIN", "INFO"} <= set(needed(Settings()))
    assert rules(Settings(namespace="prod"), ["GET"]) == "+get ~{prod:*}:* &{prod:*}:events:*"


def test_sizes_for_people() -> None:
    assert [size(1), size(1536), size(64 << 20), size(3 << 30)] == ["1 bytes", "1.5 kB", "64.0 MB", "3.0 GB"]
