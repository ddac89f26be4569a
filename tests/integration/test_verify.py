"""`cachebus verify`, as a process and as a function: it judges a real fleet, says what broke, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cachebus import ConfigError, testing
from cachebus.cli.main import run
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.verify.nemesis.faults import FAULTS, chosen
from cachebus.tools.verify.plan import make_plan
from cachebus.tools.verify.run import Run
from tests.support.command import all_gone, cachebus, ran
from tests.support.rules_off import RULES, without
from tests.support.servers import any_binary

SMALL = ("--nodes", "2", "--rate", "400", "--bound-s", "0.5")
LONG = (*SMALL, "--seconds", "50")
SHOWS = {
    "coherence lease": "hang",
    "reservation": "delay-replies",
    # What is between makes time pass: only a node that is far ahead of the new history misses much of it.
    "epoch": "newborn,slow,double,reorder",
    "record fence": "del-meta,del-marks",
    "lease token": "slow",
    "catch-up": "drop",
    "age of fallbacks": "hang,stuck",
    "leaving": "slow",
    "shield": "slow",
    "a loader's own cancellation": "none",
    "giving leases back": "source",
    "cooling down": "sour",
    "storing what was lost": "del-records",
    "copies": "none",
    "decoding": "none",
    "an end of absence": "sour",
    "circles": "none",
    "adding over absence": "none",
    "guards": "none",
    # More than takeovers: each is the end of all that was kept before it.
    "guards that were lost": "lose-guard,xtrim,script-flush,del-log,del-nodes",
    "waiting for every node": "hang,hang-events",
    "the largest bound": "hang",
    "the header's check": "garble-head",
    "flags of contexts": "none",
    "low watermarks": "none",
    "counting marks": "del-marks,kill",
    "waiting for most replicas": "split",
    "each primary apart": "failover",
}
"""The faults under which the loss of a rule shows."""
USUAL = ("--nodes", "3", "--rate", "400", "--write-rate", "40")
LOADS = {
    # Who loads most often hides from the others that their own source is away.
    "an end of absence": ("--nodes", "2", "--rate", "1500", "--write-rate", "20"),
    "waiting for most replicas": (*USUAL, "--kind", "sentinel"),
    "each primary apart": (*USUAL, "--kind", "cluster"),
}
SECONDS = (9, 30, 60, 60)
"""How long it is looked for, run by run: most is there at once, and one long run finds more than several short ones."""


def test_every_promise_is_kept_under_faults(tmp_path: Path) -> None:
    any_binary()
    folder = tmp_path / "temporary"
    folder.mkdir()
    svg, figures = tmp_path / "ages.svg", tmp_path / "figures.json"
    status, out, errors = ran(
        "verify", *SMALL, "--seconds", "6", "--seed", "11", "--picture", str(svg), "--json", str(figures), folder=folder
    )
    assert (status, errors) == (0, ""), out
    assert "server: " in out
    assert "seed: 11" in out
    assert "KEPT: " in out
    assert "consistent within D" in out
    assert "\x1b" not in out
    told = json.loads(figures.read_text())
    assert told["ok"] is True
    assert told["seed"] == 11
    assert told["broken"] == []
    assert told["judged"] > 1_000
    assert told["writes"] > 30
    assert told["tokens"] > 10
    assert told["looked"] > 500
    assert sum(told["faults"].values()) >= 3
    assert set(told["faults"]) <= set(FAULTS)
    assert (told["stale_beyond"], told["foreign"]) == (0, 0)
    assert sum(told["ages"]) == told["stale"]
    texts = [element.text or "" for element in ET.fromstring(svg.read_text()).iter()]
    assert any("seed 11" in text for text in texts)


def test_every_promise_is_kept_over_kafka(kafka: KafkaServer, tmp_path: Path) -> None:
    """With a broker of its own: the fixture only tells whether one can be had."""
    _kept_over_kafka(tmp_path, "5", "bus,broker-pause,drop")


def test_every_promise_is_kept_over_a_slow_way_to_kafka(kafka: KafkaServer, tmp_path: Path) -> None:
    _kept_over_kafka(tmp_path, "6", "bus-slow-up,bus-slow-down,broker-slow")


def _kept_over_kafka(tmp_path: Path, seed: str, faults: str) -> None:
    any_binary()
    folder, figures = tmp_path / "temporary", tmp_path / "figures.json"
    folder.mkdir()
    status, out, errors = ran(
        "verify",
        "--bus",
        "kafka",
        *SMALL,
        "--seconds",
        "6",
        "--seed",
        seed,
        "--faults",
        faults,
        "--json",
        str(figures),
        folder=folder,
    )
    assert (status, errors) == (0, ""), out
    told = json.loads(figures.read_text())
    assert told["broken"] == []
    assert told["judged"] > 500
    assert sum(told["faults"].values()) >= 3
    assert all(name.startswith(("bus-", "broker-")) for name in told["faults"])


@pytest.mark.parametrize("rules", [list(SHOWS)[start : start + 2] for start in range(0, len(SHOWS), 2)], ids=" + ".join)
def test_without_a_rule_it_finds_what_breaks(rules: list[str], tmp_path: Path, subtests: pytest.Subtests) -> None:
    """Two rules at a time: what the runs do most is to wait."""
    any_binary()
    assert set(SHOWS) == set(RULES)
    with ThreadPoolExecutor(len(rules)) as pool:
        runs = {rule: pool.submit(found_without, rule, tmp_path / str(number)) for number, rule in enumerate(rules)}
        for rule, run in runs.items():
            with subtests.test(rule):
                run.result()


def found_without(rule: str, folder: Path) -> None:
    """Chance decides when the loss shows, so it is looked for until it does, or until it should have long ago."""
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    env = without(rule, folder / "site")
    for seed, seconds in enumerate(SECONDS, 1):
        status, out, errors = ran(
            "verify",
            *LOADS.get(rule, USUAL),
            "--bound-s",
            "0.5",
            "--seconds",
            str(seconds),
            "--faults",
            SHOWS[rule],
            "--seed",
            str(seed),
            folder=temporary,
            env=env,
        )
        if status == 1:
            assert "BROKEN: " in out, out + errors
            assert f"--seed {seed}" in out
            assert "KEPT" not in out
            return
        assert status == 0, out
    raise AssertionError(f"nothing showed in {sum(SECONDS)} s")


def test_a_server_of_the_users_is_left_as_it_was(tmp_path: Path) -> None:
    with EmbeddedServer(any_binary(), password="hunter2") as server:
        server.command("SET", "cachebus-verify", "mine")
        status, out, errors = ran("verify", *SMALL, "--seconds", "3", "--url", server.url, folder=tmp_path)
        assert (status, errors) == (0, ""), out
        assert out.index("This is your server") < out.index("namespace cachebus-verify-")
        assert "Left out, as they need a server of verify's own: " in out
        assert "flushall" in out
        assert "hunter2" not in out
        assert server.command("DBSIZE") == ":1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all(tmp_path: Path, number: signal.Signals) -> None:
    any_binary()
    with cachebus("verify", *LONG, folder=tmp_path) as command:
        command.read_until("of 50 s")
        children = command.children()
        assert len(children) >= 3
        assert command.signal(number) == (128 + number, f"cachebus: stopped by {number.name}\n")
        assert all_gone(children)
        assert command.left() == []


def test_killed_it_takes_all_its_processes_along_even_stopped_ones(tmp_path: Path) -> None:
    any_binary()
    with cachebus("verify", *LONG, "--faults", "none", folder=tmp_path) as command:
        command.read_until("5 of 50 s")
        children = command.children()
        os.kill(nodes_among(children)[0], signal.SIGSTOP)
        command.signal(signal.SIGKILL)
        assert all_gone(children)


def test_a_node_that_dies_by_itself_is_told(tmp_path: Path) -> None:
    any_binary()
    with cachebus("verify", *LONG, "--faults", "none", folder=tmp_path) as command:
        command.read_until("5 of 50 s")
        os.kill(nodes_among(command.children())[0], signal.SIGKILL)
        out, errors = command.process.communicate()
        assert (command.process.returncode, errors) == (1, "")
        assert "BROKEN: node" in out
        assert "ended with status -9" in out
        assert command.left() == []


def nodes_among(pids: list[int]) -> list[int]:
    """Those of the processes that are nodes."""
    return [pid for pid in pids if b"cachebus.tools.verify.fleet.node" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_it_is_a_function_too() -> None:
    any_binary()
    verdict = await testing.verify(seconds=2.5, seed=3, faults="drop,stop", nodes=2, bound_s=0.5, rate=300)
    verdict.raise_for_broken()
    assert verdict.ok
    assert (verdict.seed, verdict.nodes, verdict.bound_s) == (3, 2, 0.5)
    assert set(verdict.faults) <= {"drop", "stop"}
    assert verdict.judged > 200
    assert verdict.within(0.5) == verdict.within_bound == 1.0


async def test_every_promise_is_kept_with_encrypted_values() -> None:
    any_binary()
    faults = chosen("network,node")
    plan = make_plan(url=None, seconds=5, seed=5, faults=faults, nodes=3, bound_s=0.5, rate=300, write_rate=20)
    verdict = await Run(replace(plan, encryption=True)).verdict()
    verdict.raise_for_broken()
    assert verdict.judged > 300
    assert verdict.l1_hits < verdict.reads
    assert verdict.loads < verdict.reads / 2, "what others have stored is read"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nodes": 1}, "nodes must be at least 2"),
        ({"seconds": 0.1}, "seconds must be at least 1"),
        ({"bound_s": 61}, "at most 60"),
        ({"rate": -1}, "rate must be"),
        ({"faults": "nonsense"}, "there is no fault"),
        ({"url": "memory://"}, "several processes"),
    ],
)
async def test_wrong_arguments_are_told(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await testing.verify(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--faults", "flushal"), "did you mean flushall?"),
        (("--json", "/no/such/folder/file"), "there is no folder /no/such/folder"),
        (("--url", "memory://"), "several processes"),
        (("--kind", "clutser"), "standalone, sentinel or cluster"),
        (("--kind", "cluster", "--url", "redis://127.0.0.1:1/0"), "either a URL or a kind"),
        (("--url", "redis://:hunter2@127.0.0.1:1/0"), "127.0.0.1:1"),
    ],
)
def test_what_it_declines_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("sys.argv", ["cachebus", "verify", "--seconds", "1", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cachebus: ")
    assert words in line
    assert "hunter2" not in line


def test_it_lists_all_faults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cachebus", "verify", "--list-faults"])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {fault.name} " in out and fault.what in out for fault in FAULTS.values())
