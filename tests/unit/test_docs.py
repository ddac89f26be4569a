"""The documentation names only what there is: tests, faults, files, headings."""

from __future__ import annotations

import ast
import re
import tomllib
from codeop import CommandCompiler
from collections import Counter
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import yaml

from cachebus import errors
from cachebus.tools.verify.checker.promises import PROMISES
from docs.reference.generate import PAGES as GENERATED
from tests.support.documents import AT_THE_TOP, DOCUMENTS, TESTS, made, name_of
from tests.support.pages import DOCS, PAGES, ROOT, STAND_INS, blocks

README_BYTES_MAX = 8_000
NOT_YET = "not yet attacked"
DEBTS_MAX = 0
"""Rows of the table that may still say so: a ratchet."""
FAULTS = """
drop a message; delay a message; double a message; reorder messages; cut connection; half-open socket;
deaf subscriber whose commands work; output-buffer kill; reconnect in the middle of a fill; log trimmed past a node;
FLUSHALL; eviction of meta; eviction of marks; eviction of fill leases; eviction of records; eviction of nodes;
restart without persistence; restart with persistence; restart with an older RDB; DEBUG RELOAD;
Sentinel failover that loses a suffix; fail-back;
handover to a replica that dies at once, and back to the deposed primary;
another server at a lost primary's address: of no Cluster, or empty;
a primary frozen with its network, that wakes beside the promoted one;
nodes that hear nothing of a failover, from some Sentinels or all; a new replica that joins while its primary dies;
a name or virtual IP that is moved, while old connections stay;
promotion of a replica; slot migration; SCRIPT FLUSH; -BUSY;
READONLY; NOREPLICAS; OOM; a command that times out after it ran; SIGSTOP of a node; SIGSTOP of Redis;
SIGKILL at every step; loader slower than its fill lease; cancellation at every await; event-loop stall; wall-clock
step; corrupted records; corrupted replies to commands; corrupted events;
SIGKILL of an outbox relay; SIGSTOP of an outbox relay; outbox rows that commit out of order;
SIGKILL of a worker of commands on Kafka; partitions of commands that move while workers are busy;
messages on Kafka that are no commands, or wrongly signed; the broker of commands away, or hanging;
outbox rows that are no commands; the outbox's database killed, or hanging;
many outbox rows for a primary that is away; an outbox's table dropped, swapped or changed under its relay;
an outbox's table made anew while its rows are in hand; L2 away while rows are in hand;
SIGKILL of a worker of change data capture;
a commit that the log tells of before others see it;
a transaction that is open while its table comes into the publication, or back;
a slot that others have made, and one that is removed beneath its worker;
rules of change data capture rolled back in the middle;
a slot that is lost; rows and envelopes that no rule can use;
a captured database killed, or L2 away; Kafka broker restart; Kafka broker that hangs;
Kafka broker that refuses messages; one of several Kafka brokers lost, or hanging; Kafka retention loss;
Kafka messages doubled and swapped; a publisher killed between L2 and Kafka; garbage on the Kafka topic;
a slow link to a Kafka broker; a slow uplink to Kafka, of one node or of all; a quota of a Kafka broker that is used up;
compressed messages on Kafka that inflate to gigabytes;
Kafka partitions added; events on Kafka that are unsigned, forged, or sent again elsewhere;
two stores on one Kafka topic
"""
ROOMS_WITH_AN_ORDER = (
    "cachebus/core",
    "cachebus/l2",
    "cachebus/reading",
    "cachebus/resp",
    "cachebus/bus/kafka",
    "consumers/cdc/slot",
    "consumers/outbox",
)
"""Of many files each: a reader is told where to begin."""
named = re.compile(r"`(?:tests/)?((?:\w+/)+test_\w+\.py)(?:::(\w+))?`").findall


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of the tests in a file below tests/."""
    tree = ast.parse((TESTS / path).read_text())
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def rows() -> list[tuple[str, str, str]]:
    """Fault, promises and tests of each row of the table."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    table = text[text.index("| fault | promises | tests |") :].splitlines()[2:]
    found = []
    for line in table:
        if not line.startswith("|"):
            break
        fault, promises, tests = (cell.strip() for cell in line.strip("|").split(" | "))
        found.append((fault, promises, tests.rstrip("| ")))
    return found


def slug(heading: str) -> str:
    """A heading's anchor, as renderers make it."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def text_of(path: Path) -> str:
    """A page as it is, or as it is made from the code."""
    page = path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else ""
    return made(page) if page in GENERATED else path.read_text()


@cache
def anchors(path: Path) -> frozenset[str]:
    """Those of a document."""
    return frozenset(slug(heading) for heading in re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_test_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    for file, test in named(text):
        assert (TESTS / file).is_file(), file
        assert not test or test in names_in(file), f"{file}::{test}"
    assert "`::" not in text, "a test is named without its file, which is not looked up"


def test_each_page_that_is_made_from_the_code_has_a_stand_in_in_a_checkout() -> None:
    assert {path.relative_to(DOCS).as_posix() for path in STAND_INS} == set(GENERATED)


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "tests/README.md", *STAND_INS], ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{target} leads nowhere in a checkout"
        assert there.is_relative_to(DOCS) or path not in PAGES, f"{target} is no part of the site"
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("path", [path for path in PAGES if "python -m asyncio" in path.read_text()], ids=name_of)
def test_what_is_typed_at_the_prompt_can_be_pasted_there(path: Path) -> None:
    """Before Python 3.13 a prompt takes what follows a block for a part of it, unless an empty line ends that."""
    for block in blocks(path, "python"):
        compiler, lines = CommandCompiler(), list[str]()
        compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        for line in [*block.code.splitlines(), ""]:
            lines.append(line)
            try:
                if compiler("\n".join(lines), symbol="single") is not None:
                    lines.clear()
            except SyntaxError as error:
                raise AssertionError(f"line {block.line} and below, at {line!r}: {error}") from None
        assert not lines


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES_MAX


def test_the_site_has_each_page_once() -> None:
    def leaves(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        return [leaf for child in children for leaf in leaves(child)]

    there = sorted([path.relative_to(DOCS).as_posix() for path in PAGES] + list(GENERATED))
    assert sorted(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == there


def test_the_floors_are_those_that_the_linter_holds() -> None:
    (picture,) = re.findall(r"```text floors\n(.*?)```", (DOCS / "architecture.md").read_text(), re.DOTALL)
    drawn = [sorted(re.split(r" \| ", re.split(r" {2,}", line)[0])) for line in picture.splitlines()]
    (contract,) = [
        each
        for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if each["type"] == "layers"
    ]
    assert drawn == [sorted(re.findall(r"\w+", layer)) for layer in contract["layers"]]


def test_what_is_not_promised_and_what_always_holds_is_numbered_through() -> None:
    text = (DOCS / "guarantees.md").read_text()
    limits = re.findall(r"^- \*\*N(\d+)\. (.*?)(?=^- \*\*N|^##)", text, re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in limits] == list(range(1, len(limits) + 1))
    for number, told in limits:
        (shown,) = re.findall(r"\*Shown by:\* (.*)", told)
        assert named(shown), f"N{number}"
    invariants = re.findall(r"^\| I(\d+) \| .* \| (.*) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in invariants] == list(range(1, len(invariants) + 1))
    assert {name for name in PROMISES if re.fullmatch(r"I\d+", name)} <= {f"I{number}" for number, _ in invariants}


def test_every_fault_has_its_row() -> None:
    told = [fault for fault, _, _ in rows()]
    assert len(set(told)) == len(told)
    assert set(told) == {" ".join(fault.split()) for fault in FAULTS.split(";")}


def test_every_row_names_a_test_and_a_promise_or_is_a_debt() -> None:
    debts = 0
    for fault, promises, tests in rows():
        assert re.fullmatch(r"G[1-9]( G[1-9])*", promises), fault
        assert named(tests) or NOT_YET in tests, fault
        debts += NOT_YET in tests
    print(f"{debts} faults are not yet attacked, or not wholly")
    assert debts <= DEBTS_MAX


def test_every_promise_is_told_with_the_tests_that_attack_it() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    for number in range(1, 10):
        (part,) = re.findall(rf"^### G{number} [^\n]*\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
        assert named(part) or "this version" in part.lower(), f"G{number}"


def test_every_page_is_linked_from_the_readme_but_for_the_sites_first() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in [*PAGES, *AT_THE_TOP[1:]]:
        if path != DOCS / "index.md":
            assert re.search(rf"\]\({re.escape(name_of(path))}[#)]", readme), name_of(path)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_table_tells_of_each_thing_in_one_place(path: Path) -> None:
    for is_table, lines in groupby(path.read_text().splitlines(), key=lambda line: line.startswith("|")):
        names = [line.split("|")[1].strip() for line in lines] if is_table else []
        assert not [name for name, count in Counter(names).items() if count > 1 and name not in ("", "…")]


def test_every_figure_is_explained() -> None:
    tree = ast.parse((ROOT / "cachebus" / "observe" / "stats.py").read_text())
    for part in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, after in pairwise([*part.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{part.name}.{ast.unparse(field.target)}"
                assert isinstance(after.value, ast.Constant)


def test_errors_speak_of_no_promise_by_its_number() -> None:
    """Whoever meets one may never have seen the list."""
    for name, error in vars(errors).items():
        if isinstance(error, type):
            assert not re.search(r"\bG[1-9]\b", error.__doc__ or ""), name


def test_the_workflow_runs_what_is_there_on_every_python() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    test = yaml.safe_load(text)["jobs"]["test"]
    (versions,) = re.findall(r"^VERSIONS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(test["strategy"]["matrix"]["python"]) == sorted(versions.split())
    left_out = re.findall(r"--deselect tests/(\S+?)::(\w+)", text)
    assert len(left_out) == 3
    for file, name in left_out:
        assert name in names_in(file)


def test_the_hooks_run_what_make_check_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipe = re.findall(
        r"^\t\$\(BIN\)/(\S+)", (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0], re.MULTILINE
    )
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repo["hooks"]} == set(recipe)


def rooms_of_tests() -> dict[str, list[str]]:
    """By row of the table in tests/README.md: the files that it names, a pattern for each it matches."""
    rows = re.findall(r"^\| (.+) \| (`\w+/test_.+) \|$", (ROOT / "tests/README.md").read_text(), re.MULTILINE)
    found: dict[str, list[str]] = {}
    for room, patterns in rows:
        folder = ""
        for pattern in re.findall(r"`([^`]+)`", patterns):
            folder, name = pattern.split("/") if "/" in pattern else (folder, pattern)
            paths = sorted((ROOT / "tests" / folder).glob(name))
            assert paths, f"{folder}/{name}: there is no such test"
            found.setdefault(room, []).extend(path.relative_to(ROOT / "tests").as_posix() for path in paths)
    return found


def test_each_file_of_tests_is_in_one_row_of_their_page() -> None:
    there = sorted(path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py"))
    assert sorted(path for paths in rooms_of_tests().values() for path in paths) == there


@pytest.mark.parametrize("room", ROOMS_WITH_AN_ORDER)
def test_a_room_says_in_which_order_to_read_each_of_its_files(room: str) -> None:
    named = re.findall(r"`(\w+)", (ROOT / room / "__init__.py").read_text().split('"""')[1])
    files = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
    assert files <= set(named), f"not said when to read: {sorted(files - set(named))}"
