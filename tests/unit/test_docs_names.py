"""The pages speak of no setting, name, command, option or target that does not exist; the reference lacks none."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import cachebus
import cachebus.celery
import cachebus.django
import cachebus.flask
import cachebus.testing
from cachebus import Cache, Policy, Settings, producers
from cachebus.cli.main import app
from cachebus.observe import stats
from cachebus.observe.prometheus import CacheCollector
from docs.reference.generate import GENERATED, IN_A_CHECKOUT
from tests.support.documents import DOCUMENTS, TESTS, made, name_of
from tests.support.pages import DOCS, PAGES, ROOT, STAND_INS, blocks

CODE = [
    path
    for folder in ("cachebus", "producers", "consumers", "compose", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".lua", ".yml", ".toml", ".properties", ".conf")
]
OTHERS = {
    *("binlog_row_image", "sql_log_bin", "pg_logical_emit_message", "pool_mode", "rds_replication", "temp_file_limit"),
    *("max_slot_wal_keep_size", "pg_replication_slots", "transaction_timeout", "post_fork", "bind_arguments"),
    *("TestCase", "TransactionTestCase", "stream_with_context"),
    *(
        "ExtractNewRecordState",
        "model_fields_set",
        "pg_dump",
        "pg_read_all_stats",
        "TimeZone",
        "close_old_connections",
        "ini_options",
        "disable_existing_loggers",
    ),
}
"""Names of other programs, that pages tell to set, to call or to look at."""
COMMAND = re.compile(r"^(?:\.venv/bin/)?cachebus (.*?)(?:\s+#.*)?$")


@cache
def words() -> frozenset[str]:
    """All words in the code, and the names of its files."""
    return frozenset(word for path in CODE for word in (path.stem, *re.findall(r"\w+", path.read_text())))


def inline(path: Path) -> list[str]:
    """The pieces of code within the text of a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@cache
def known() -> frozenset[str]:
    """What a page may name: words of the code, and what is put together there: variables, metrics, tables; names of
    other programs; and what some page shows."""
    variables = {f"CACHEBUS_{name.upper()}" for name in Settings.model_fields}
    metrics = set(re.findall(r"`(cachebus_\w+)`", made("reference/metrics.md")))
    metrics |= {metric + suffix for metric in metrics for suffix in ("_count", "_bucket")}
    metrics |= {metric.removeprefix("cachebus_").removeprefix("worker_") for metric in metrics}
    shown = {word for path in PAGES for block in blocks(path) for word in re.findall(r"\w+", block.code)}
    return words() | variables | metrics | shown | OTHERS


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_name_exists(path: Path) -> None:
    unknown = {
        name
        for piece in inline(path)
        if ("/" not in piece or piece.endswith(")")) and "tests." not in piece
        for name in re.findall(r"\b_?[A-Za-z]\w*_\w*[A-Za-z0-9]\b(?!\.\.\.)|\b[A-Z][a-z]+[A-Z]\w+", piece)
        if name not in known()
    }
    assert not unknown, f"{name_of(path)} speaks of what the code has not: {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_of_ours_that_is_named_exists(path: Path) -> None:
    """Modules are named as in the house: below cachebus/, or from the top; what `make` builds is not there yet."""
    named = {piece.partition("::")[0] for piece in inline(path)} - {"site/"}
    missing = [
        file
        for file in sorted(named)
        if re.fullmatch(r"(?:[\w*]+/)+[\w*.]*", file)
        and not any(
            any(folder.glob(file.rstrip("/").replace("NAME", "*"))) for folder in (ROOT, ROOT / "cachebus", TESTS)
        )
    ]
    assert not missing, f"{name_of(path)} names what is not there: {', '.join(missing)}"


def command_lines(path: Path) -> Iterator[str]:
    """Each line of a page that starts our command, in a block or in the text."""
    for block in blocks(path):
        if block.language in ("sh", ""):
            for line in block.code.replace("\\\n", " ").splitlines():
                yield from (part.strip() for part in re.split(r"&&|&$", line))
    yield from inline(path)


@cache
def commands() -> Any:
    """The command line as it is."""
    return typer.main.get_command(app)


def wrong_with(line: str) -> str:
    """What in a command line does not exist; "" for a right one."""
    command = commands()
    known: dict[str, Any] = {}
    words = iter(shlex.split(line))
    given = 0
    for word in words:
        known |= {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
        if word.startswith("-"):
            name, has_value, _ = word.partition("=")
            if name not in known and name not in ("--help", "-h"):
                return word
            if not has_value and name in known and not known[name].is_flag:
                next(words, None)
        elif hasattr(command, "commands"):
            if word.isupper():  # stands for one of several
                return ""
            if word not in command.commands:
                return word
            command = command.commands[word]
        else:
            given += 1
            places = [param.nargs for param in command.params if param.param_type_name == "argument"]
            if given > sum(places) and -1 not in places:
                return word
    return ""


def texts(path: Path) -> Iterator[str]:
    """The texts of a module, with X for what is put into them."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    for node in joined:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def told_by(text: str) -> Iterator[str]:
    """The commands in a text of the code: in backticks, in brackets, or all of it."""
    for quoted, bracketed in re.findall(r"`cachebus ([a-z][^`]*)`|\(cachebus ([a-z][^()]*)\)", text):
        yield quoted or bracketed
    if text.startswith("cachebus ") and text.split()[1] in commands().commands:
        yield text.removeprefix("cachebus ")


def test_every_command_that_the_code_tells_exists() -> None:
    wrong = {
        f"{path.name}: `cachebus {line}`: there is no {wrong_with(line)}"
        for path in CODE
        if path.suffix == ".py"
        for text in texts(path)
        for line in told_by(text)
        if wrong_with(line)
    }
    assert not wrong
    assert wrong_with("worker cdc kafka") == "kafka"
    assert not wrong_with("worker cdc --source kafka")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_exists(path: Path) -> None:
    for line in command_lines(path):
        found = COMMAND.match(line.split("   ")[0])
        if found:
            assert not wrong_with(found[1]), f"{line!r}: there is no {wrong_with(found[1])}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_target_of_make_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+)(?: [a-z]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {"wheel"}
    for piece in [*inline(path), *(line for b in blocks(path, "sh") for line in b.code.splitlines())]:
        if piece.startswith("make "):
            named = [word for word in shlex.split(piece, comments=True)[1:] if "=" not in word]
            assert set(named) <= targets, piece


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_block_is_what_it_says(path: Path) -> None:
    for block in blocks(path):
        if block.language == "python":
            compile(block.code, f"{name_of(path)}:{block.line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "yaml":
            assert list(yaml.safe_load_all(block.code))
        elif block.language == "json" and path.name != "protocol.md":
            assert [json.loads(line) for line in block.code.splitlines()]
        else:
            assert block.language in {"", "sh", "text", "sql", "properties", "ini", "json", "hex"}, block.language


# -- the reference lacks nothing -------------------------------------------------------------------------------------


def rows(page: str) -> list[list[str]]:
    """The cells of a page's tables, their code without its marks."""
    lines = [line for line in made(page).splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize(("page", "model"), [("reference/settings.md", Settings), ("reference/policy.md", Policy)])
def test_every_field_is_told_with_its_meaning(page: str, model: Any) -> None:
    told = {name: meaning for name, _, meaning in (row for row in rows(page) if len(row) == 3)}
    assert set(told) == {field.alias or name for name, field in model.model_fields.items()}
    assert not [name for name, meaning in told.items() if not meaning]


def test_every_figure_is_told() -> None:
    told = {row[0] for row in rows("reference/stats.md")}
    for kind in (stats.Stats, stats.TypeStats, stats.ShardStats, stats.LatencyStats):
        assert {field.name for field in dataclasses.fields(kind)} <= told


async def test_every_metric_of_a_cache_is_told() -> None:
    told = {row[0] for row in rows("reference/metrics.md")}
    async with Cache.open("memory://") as cache:
        await cache.get("config", "x", tenant_id="acme")
        families = list(CacheCollector(cache.stats).collect())
    assert {f"{f.name}_total" if f.type == "counter" else f.name for f in families} <= told


def test_every_metric_of_workers_is_told() -> None:
    told = {row[0].removesuffix("_total") for row in rows("reference/metrics.md")}
    folder = ROOT / "consumers"
    made = {name for path in folder.rglob("*.py") for name in re.findall(r'"(cachebus_worker_\w+)"', path.read_text())}
    assert {name.removesuffix("_total") for name in made} <= told


def test_every_command_is_told() -> None:
    def names(command: Any, prefix: str) -> Iterator[str]:
        yield prefix
        for name, sub in getattr(command, "commands", {}).items():
            yield from names(sub, f"{prefix} {name}")

    told = re.findall(r"^## (.*)$", made("reference/commands.md"), re.MULTILINE)
    assert told == list(names(commands(), "cachebus"))


def test_every_public_name_is_told() -> None:
    told = re.findall(r"^### (.*)$", made("reference/api.md"), re.MULTILINE)
    modules = (cachebus, cachebus.testing, producers, cachebus.django, cachebus.flask, cachebus.celery)
    assert told == [f"{module.__name__}.{name}" for module in modules for name in sorted(module.__all__)]


def test_a_generated_page_lies_in_the_tree_as_the_code_makes_it_or_not_at_all() -> None:
    """What stands in for the others says where to look, and repeats nothing."""
    for path in STAND_INS:
        page, text = path.relative_to(DOCS).as_posix(), path.read_text()
        if page in IN_A_CHECKOUT:
            assert text == GENERATED + made(page), f"{page}: write it anew by python -m docs.reference.generate"
        else:
            assert text.count("\n") < 8 and "make docs" in text, page
