"""The style is a test, and a ratchet: the limits below may be made tighter, never wider."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import quantiles

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cachebus", "producers", "consumers")


@dataclass(frozen=True)
class Limits:
    """The most lines that half, nine tenths and all of something may have."""

    p50: float
    p90: float
    most: int


ROOMS_MAX = 42
ROOMS_A_FLOOR_MAX = 8
FILES = Limits(p50=120, p90=260, most=400)
FUNCTIONS = Limits(p50=7, p90=25, most=60)
SCRIPT_LINE = 128
COMMENT_SHARE = (0.04, 0.15)
"""Lines that explain over lines of code, of all modules together."""
PARAMETERS_MAX = 5
"""What is handed to a function; more of it belongs together, and has a name."""
OF_THE_USER = (
    r"cachebus/(cache|writes|batches|handle|handle_many|helpers|manager|decorator)\.py:",
    r"cachebus/threads/(cache|writes|batches|hit)\.py:",
    r"cachebus/testing/",
    r"cachebus/keys/(key|naming)\.py:(Keyspace|Naming)\.key$",
    r"producers/base\.py:(Producer|Orders)\.",
    r"producers/outbox/sync\.py:SyncProducer\.",
    r"cachebus/cli/",
)
"""Calls whose shape is the user's: the ids of a key, each by its own name; and the options of commands."""
STILL_MORE = {
    "cachebus/tools/demo/figures.py:figures_of": 6,
    "cachebus/tools/demo/traffic.py:Traffic.__init__": 7,
    "cachebus/tools/servers/debezium.py:DebeziumServer.__init__": 8,
    "cachebus/tools/servers/kafka.py:KafkaServer.__init__": 6,
    "cachebus/tools/servers/redis.py:EmbeddedServer.__init__": 7,
    "cachebus/tools/verify/checker/histogram.py:_text": 6,
    "cachebus/tools/verify/checker/loads.py:reloaded_without_l2": 8,
    "cachebus/tools/verify/fleet/answers.py:Answers.__init__": 8,
    "cachebus/tools/verify/fleet/answers.py:Answers.note": 6,
    "cachebus/tools/verify/fleet/guarded_writes.py:GuardedWriter.__init__": 6,
    "cachebus/tools/verify/fleet/loaders.py:Loaders.__init__": 7,
    "cachebus/tools/verify/fleet/reading.py:Readers.__init__": 10,
    "cachebus/tools/verify/fleet/reading.py:Readers._ask": 7,
    "cachebus/tools/verify/fleet/writing.py:Writers.__init__": 14,
    "cachebus/tools/verify/nemesis/faults.py:_row": 6,
    "cachebus/tools/verify/plan.py:make_plan": 10,
    "cachebus/tools/verify/target/group.py:GroupUnderTest.__init__": 6,
}
"""Functions that have more all the same, and how many. None may be added; what is mended is taken off."""
STILL_ONE_NAME = {"Finding"}
"""Class names that stand for several things all the same. None may be added; what is mended is taken off."""
NAMES_OPTIONS = "cachebus/cli/"
"""Types in here that are no classes are the options of one command, named as the user sees them."""
MAY_READ_THE_CLOCK = {"cachebus/base/clock.py"}
FORBIDDEN = ("issue #", "DESIGN.md", "STYLE.md", "SPEC.md", "/work/", "/tmp/s/", "the brief says", "previous session")
"""How a thing came about belongs in no file: a reader has only what is here."""

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Named = FunctionNode | ast.ClassDef
Documented = ast.Module | Named
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Module:
    """A source file, read and parsed."""

    name: str
    text: str
    tree: ast.Module


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the packages that ship."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    return tuple(Module(name, text, ast.parse(text)) for name, text in texts.items())


def functions(tree: ast.Module) -> Iterator[FunctionNode]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, FunctionNode))


def length(function: FunctionNode) -> int:
    """Its lines from `def` to its end, the docstring's not counted: explaining more must not cost."""
    return len(lines(function)) - (len(lines(function.body[0])) if has_docstring(function) else 0)


def over(limits: Limits, lengths: dict[str, int]) -> list[str]:
    """What breaks the limits, told with the longest offenders."""
    if len(lengths) < 2:
        return []
    tenths = quantiles(lengths.values(), n=10, method="inclusive")
    found = [
        f"{where}: {length} lines, at most {limits.most}" for where, length in lengths.items() if length > limits.most
    ]
    for what, is_, limit in (("median", tenths[4], limits.p50), ("90th percentile", tenths[8], limits.p90)):
        if is_ > limit:
            longest = sorted(lengths, key=lengths.__getitem__, reverse=True)[:10]
            found.append(f"{what} {is_:g} lines, at most {limit:g}; the longest: {', '.join(longest)}")
    return found


def public(body: Iterable[ast.stmt], prefix: str) -> Iterator[tuple[str, Named]]:
    """The public functions, classes and methods defined here, by their dotted name."""
    for node in body:
        if not isinstance(node, Named) or node.name.startswith("_") or is_variant(node):
            continue
        name = f"{prefix}.{node.name}"
        yield name, node
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, name)


def is_variant(node: Named) -> bool:
    """Whether it only adds a signature or a setter to a name that is documented elsewhere."""
    return any(
        ast.unparse(decorator).endswith(("overload", ".setter", ".deleter")) for decorator in node.decorator_list
    )


def lines(node: ast.stmt) -> range:
    """The numbers of the lines that it takes."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def explained_and_code(module: Module) -> tuple[int, int]:
    """How many lines explain, and how many are code.

    Comments explain, and so do the strings under a constant or a field. A docstring is neither: it says what, not why.
    """
    tokens = list(tokenize.generate_tokens(io.StringIO(module.text).readline))
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    code = {line for token in tokens if token.type not in SILENT for line in range(token.start[0], token.end[0] + 1)}
    strings = [node for node in ast.walk(module.tree) if isinstance(node, ast.Expr) and is_string(node.value)]
    docstrings = [
        node.body[0] for node in ast.walk(module.tree) if isinstance(node, Documented) and has_docstring(node)
    ]
    code.difference_update(line for string in strings for line in lines(string))
    comments.update(line for string in strings if string not in docstrings for line in lines(string))
    return len(comments), len(code)


def is_string(value: ast.expr) -> bool:
    """Whether it is a literal string."""
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def has_docstring(node: Documented) -> bool:
    """Whether its body starts with one."""
    return ast.get_docstring(node, clean=False) is not None


def test_files_are_short() -> None:
    assert not over(FILES, {module.name: module.text.count("\n") for module in modules()})


def test_lines_of_scripts_are_short() -> None:
    """Of Python's the linter sees to it."""
    lines = [
        (f"{path.name}:{number}", line)
        for path in sorted((ROOT / "cachebus").rglob("*.lua"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
    ]
    assert lines
    assert [place for place, line in lines if len(line) > SCRIPT_LINE] == []


def test_functions_are_short() -> None:
    found = ((module.name, function) for module in modules() for function in functions(module.tree))
    assert not over(
        FUNCTIONS, {f"{name}:{function.lineno} {function.name}": length(function) for name, function in found}
    )


def with_names(body: Iterable[ast.AST], prefix: str) -> Iterator[tuple[str, FunctionNode]]:
    """Every function and method, by its dotted name."""
    for node in body:
        inner = f"{prefix}{node.name}" if isinstance(node, Named) else prefix.removesuffix(".")
        if isinstance(node, FunctionNode):
            yield inner, node
        yield from with_names(ast.iter_child_nodes(node), f"{inner}." if inner else "")


def parameters(function: FunctionNode) -> int:
    """How many it has, itself and its class not counted."""
    its = function.args
    named = [one.arg for one in (*its.posonlyargs, *its.args, *its.kwonlyargs)]
    return len(named) - (named[:1] in (["self"], ["cls"])) + (its.vararg is not None) + (its.kwarg is not None)


def test_functions_take_few_parameters() -> None:
    found = {
        f"{module.name}:{name}": parameters(function)
        for module in modules()
        for name, function in with_names(module.tree.body, "")
        if parameters(function) > PARAMETERS_MAX
    }
    assert {name: count for name, count in found.items() if not any(re.match(one, name) for one in OF_THE_USER)} == (
        STILL_MORE
    )


def types(module: Module) -> Iterator[str]:
    """The names of its public classes, nested ones too, and of its own types that are no classes."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for statement in module.tree.body:
        if isinstance(statement, ast.Assign) and not module.name.startswith(NAMES_OPTIONS):
            yield from (one.id for one in statement.targets if isinstance(one, ast.Name) and is_camel_case(one.id))


def is_camel_case(name: str) -> bool:
    """Whether it looks like a type's."""
    return re.fullmatch(r"[A-Z][a-z]\w*", name) is not None


def test_the_name_of_a_class_is_one_things() -> None:
    classes = {node.name for module in modules() for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)}
    counts = Counter(name for module in modules() for name in types(module))
    found = {name for name in classes if counts[name] > 1 and not name.startswith("_")}
    assert found == STILL_ONE_NAME


def test_comments_are_neither_missing_nor_many() -> None:
    counts = [explained_and_code(module) for module in modules()]
    share = sum(explained for explained, _ in counts) / sum(code for _, code in counts)
    assert COMMENT_SHARE[0] <= share <= COMMENT_SHARE[1]


def test_every_public_name_has_a_docstring() -> None:
    named = ((name, node) for module in modules() for name, node in public(module.tree.body, module.name))
    assert not [name for name, node in named if ast.get_docstring(node) is None]
    assert not [module.name for module in modules() if module.text and ast.get_docstring(module.tree) is None]


def test_only_the_clock_module_imports_time() -> None:
    assert {module.name for module in modules() if "time" in imported(module.tree)} <= MAY_READ_THE_CLOCK


def imported(tree: ast.Module) -> set[str]:
    """The modules that are imported anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("pattern", ["*.py", "*.lua", "*.md", "Makefile", "pyproject.toml"])
def test_no_file_tells_how_it_came_about(pattern: str) -> None:
    folders = [ROOT / name for name in (*PACKAGES, "tests", "docs", "compose")]
    paths = [*ROOT.glob(pattern), *(path for folder in folders for path in folder.rglob(pattern))]
    found = [
        f"{path.relative_to(ROOT)}: {words!r}"
        for path in paths
        if path != Path(__file__)
        for words in FORBIDDEN
        if words.lower() in path.read_text().lower()
    ]
    assert not found


def test_no_test_imports_a_test() -> None:
    """What tests share lies in `tests/support`."""
    found = [
        f"{path.relative_to(ROOT)}: {node.module}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and re.match(r"tests\..*\.test_\w+$", node.module or "")
    ]
    assert not found


def test_the_formatter_is_left_alone_by_nobody() -> None:
    found = [module.name for module in modules() if re.search(r"# fmt: (skip|off)", module.text)]
    assert not found


def test_rooms_are_few_and_so_are_those_of_a_floor() -> None:
    rooms = {str(Path(module.name).parent) for module in modules() if not module.name.endswith("__init__.py")}
    assert len(rooms) <= ROOMS_MAX, sorted(rooms)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert max(floor.count("(") for floor in floors) <= ROOMS_A_FLOOR_MAX
