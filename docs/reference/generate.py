"""The pages of the reference, made from the code: a hook of mkdocs, and what `tests/unit/test_docs.py` looks at.

Nothing here is written down twice: a setting's text is its field's description, a figure's the string under it, a
command's its help. A page that lacks something, lacks it in the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, is_typeddict

from pydantic import BaseModel, SecretStr

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the hook runs by its path

GENERATED = "<!-- made from the code by docs/reference/generate.py -->\n\n"


def settings() -> str:
    """Every setting: its variable, default and meaning."""
    from cachebus import Settings

    head = (
        "# Settings\n\n"
        "Give them to `Settings(...)`, or as environment variables: `staleness_bound_s` is "
        "`CACHEBUS_STALENESS_BOUND_S`. An argument counts more than its variable. "
        "Names that end in `_s` are seconds, in `_ms` milliseconds, in `_bytes` bytes.\n\n"
        "A wrong setting raises `ConfigError`, which names the field and its variable, and never shows a secret. "
        "`settings.model_copy(update={'url': url})` gives settings with another URL, looked at in the same way.\n\n"
    )
    return head + _model_table(Settings, "setting")


def policy() -> str:
    """Every field of a policy."""
    from cachebus import DEFAULT_TTL_MAPPING, TTL_STANDARD, Policy

    head = (
        "# Policy\n\n"
        "What may differ between data types: `Settings(policies={'price': Policy(ttl_s=60)})`, or "
        "`cache.register(policies={...})`. All times are in seconds.\n\n"
    )
    lives = "".join(f"| `{name}` | {ttl_s:g} |\n" for name, ttl_s in sorted(DEFAULT_TTL_MAPPING.items()))
    tail = (
        f"\n## TTLs of types without a policy\n\n| data type | seconds |\n|---|---|\n{lives}"
        f"| any other | {TTL_STANDARD:g} |\n"
    )
    return head + _model_table(Policy, "field") + tail


def stats() -> str:
    """Every figure of `cache.stats()`."""
    from cachebus.observe import stats as module

    head = (
        "# Stats\n\n"
        "`cache.stats()` gives a `Stats`: the figures of one cache at one moment, counted since it was opened.\n\n"
    )
    return head + "".join(_figures(Path(module.__file__).read_text()))


def metrics() -> str:
    """Every family that the collectors give to Prometheus."""
    head = (
        "# Prometheus\n\n"
        "Labels are data types, shards, causes and parts, never keys or tenants: there are too many of those.\n\n"
        "## Of a cache\n\n"
        "`CacheCollector(cache.stats)` gives these (extra `metrics`).\n\n"
    )
    columns = "| metric | kind | labels | meaning |\n|---|---|---|---|\n"
    workers = "\n## Of a worker\n\nEach worker gives these on `/metrics` of its `--health-port`.\n\n"
    return head + columns + "".join(_metric_rows()) + workers + columns + "".join(_worker_rows())


def commands() -> str:
    """The help of every command."""
    head = "# Commands\n\n`pip install 'cachebus[cli]'` brings them. What follows is their `--help`.\n\n"
    return head + "".join(f"## {name}\n\n```text\n{text}\n```\n\n" for name, text in command_helps())


def api() -> str:
    """Every public name with its signature and docstring."""
    import cachebus
    import cachebus.celery
    import cachebus.django
    import cachebus.flask
    import cachebus.testing
    from cachebus import producers

    head = (
        "# Public API\n\n"
        "What others may rely on: these names, with these signatures. A test compares them with a list "
        "(`tests/unit/public_api.txt`), so that none changes unseen.\n\n"
    )
    public = cachebus, cachebus.testing, producers, cachebus.django, cachebus.flask, cachebus.celery
    return head + "".join(_module(module) for module in public)


PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings,
    "reference/policy.md": policy,
    "reference/stats.md": stats,
    "reference/metrics.md": metrics,
    "reference/commands.md": commands,
    "reference/api.md": api,
}
"""Each page's path below docs/, and what makes it."""


IN_A_CHECKOUT = ("reference/settings.md", "reference/policy.md")
"""Those that lie in the tree, too, for who reads there: a test sees that they are as the code makes them."""


def on_files(files: Any, config: Any) -> Any:
    """Put the pages among mkdocs's files, in place of those that a checkout has under these names, so that links lead
    somewhere there too. Nothing is written into the tree."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        if (stand_in := files.get_file_from_path(path)) is not None:
            files.remove(stand_in)
        files.append(File.generated(config, path, content=GENERATED + page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leave out the word by which a test finds a block, as in ```json keys: the renderer takes none."""
    return re.sub(r"^```(\w+) (?!title=).*$", r"```\1", markdown, flags=re.MULTILINE)


# -- settings and policies -------------------------------------------------------------------------------------------


def _model_table(model: type[BaseModel], what: str) -> str:
    rows = [f"| {what} | default | meaning |\n|---|---|---|\n"]
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        limits = _limits(field.metadata)
        text = (field.description or "") + (f" ({limits})" if limits else "")
        rows.append(f"| `{field.alias or name}` | {_shown(default)} | {_cell(text)} |\n")
    return "".join(rows)


def _shown(default: object) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if default is None or default == {} or default == ():
        return ""
    if isinstance(default, tuple):
        return ", ".join(f"`{getattr(each, '__name__', each)}`" for each in default)
    return f"`{default:,}`" if type(default) is int and default >= 100_000 else f"`{default}`"


def _limits(metadata: list[Any]) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = []
    for each in metadata:
        for name, sign in signs.items():
            limit = getattr(each, name, None)
            if limit is not None:
                found.append(f"{sign} {limit:,}" if limit < 1e9 else f"{sign} {limit:g}")
    return ", ".join(dict.fromkeys(found))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# -- figures ---------------------------------------------------------------------------------------------------------


def _figures(source: str) -> Iterator[str]:
    """A table for each class: its fields with the string under each, and its properties with their docstrings."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for node in reversed(classes):
        yield f"## {node.name}\n\n{ast.get_docstring(node)}\n\n| figure | type | meaning |\n|---|---|---|\n"
        for member, after in pairwise([*node.body, ast.Pass()]):
            if isinstance(member, ast.AnnAssign):
                assert isinstance(after, ast.Expr), ast.unparse(member)
                text = str(ast.literal_eval(after.value))
                yield _figure(ast.unparse(member.target), ast.unparse(member.annotation), text)
            elif isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                called = "" if member.decorator_list else f"({', '.join(a.arg for a in member.args.args[1:])})"
                result = ast.unparse(member.returns) if member.returns else ""
                yield _figure(member.name + called, result, ast.get_docstring(member) or "")
        yield "\n"


def _figure(name: str, kind: str, text: str) -> str:
    return f"| `{name}` | `{_cell(kind)}` | {_cell(text)} |\n"


def _metric_rows() -> Iterator[str]:
    from cachebus.observe.prometheus import CacheCollector

    for family in CacheCollector(_one_of_each).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels if label != "le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        yield f"| `{name}` | {family.type} | {shown} | {_cell(family.documentation)} |\n"


KINDS = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram", "gauge": "gauge", "_gauge": "gauge"}


def _worker_rows() -> Iterator[str]:
    """Those that a module of the workers makes, as it makes them: their sources add to what all workers have."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "consumers").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute) and call.args:
                called = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
                kind = KINDS.get(called.removesuffix("MetricFamily"))
                first = call.args[0]
                if kind and isinstance(first, ast.Constant) and str(first.value).startswith("cachebus_"):
                    name = str(first.value) + ("_total" if kind == "counter" else "")
                    found[name] = f"| `{name}` | {kind} | {_labels_of(call)} | {_cell(_text_of(call))} |\n"
    yield from (found[name] for name in sorted(found))


def _text_of(call: ast.Call) -> str:
    return str(ast.literal_eval(call.args[1]))


def _labels_of(call: ast.Call) -> str:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "labels"]
    lists = [each for each in [*call.args[2:3], *named] if isinstance(each, ast.List)]
    if isinstance(call.func, ast.Attribute) and call.func.attr == "_gauge":  # of the one worker
        return "`worker`"
    return ", ".join(f"`{ast.literal_eval(label)}`" for each in lists for label in each.elts)


def _one_of_each() -> Any:
    """Figures of a cache that has one data type, one shard and one flush: so that each family shows its labels."""
    from cachebus import Stats
    from cachebus.observe.stats import LatencyStats, ShardStats, TypeStats

    latency = LatencyStats(0, 0.0, (float("inf"),), (0,))
    shard_values: dict[str, Any] = {f.name: "" if f.name == "epoch" else 0 for f in fields(ShardStats)}
    shard = ShardStats(**shard_values)
    given: dict[str, Any] = {"types": {"config": TypeStats()}, "shards": (shard,), "flushes": {"start": 0}}
    rest: dict[str, Any] = {f.name: latency if "LatencyStats" in str(f.type) else 0 for f in fields(Stats)}
    return Stats(**{**rest, **given})


# -- commands --------------------------------------------------------------------------------------------------------


def command_helps() -> Iterator[tuple[str, str]]:
    """Each command's whole name and help."""
    import typer

    from cachebus.cli.main import app

    yield from _helps(typer.main.get_command(app), "cachebus", None)


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    settings = {**command.context_settings, "terminal_width": 100}
    context = command.context_class(command, info_name=name.rsplit(maxsplit=1)[-1], parent=parent, **settings)
    text = re.sub(r"[ \t]+$", "", command.get_help(context), flags=re.MULTILINE)
    yield name, text
    for each, sub in getattr(command, "commands", {}).items():
        yield from _helps(sub, f"{name} {each}", context)


# -- the public API --------------------------------------------------------------------------------------------------


def _module(module: Any) -> str:
    parts = [f"## {module.__name__}\n\n"]
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        parts.append(f"### {module.__name__}.{name}\n\n")
        if inspect.isclass(thing):
            parts.append(_class(thing))
        elif inspect.isroutine(thing):
            parts.append(_function(name, thing))
        else:
            parts.append(f"```text\n{thing!r}\n```\n\n")
    return "".join(parts)


def _class(cls: type) -> str:
    parts = [_doc(cls)]
    if issubclass(cls, BaseModel | Exception):  # fields have pages of their own, errors have none
        return parts[0]
    if is_typeddict(cls):
        shapes = inspect.get_annotations(cls).items()
        return parts[0] + "".join(f"- `{name}`: `{shape.__forward_arg__}`\n" for name, shape in shapes) + "\n"
    ours = [c for c in reversed(cls.__mro__) if c.__module__.startswith("cachebus.")]
    members = {name: member for base in ours for name, member in vars(base).items() if not name.startswith("_")}
    for name, member in sorted(members.items()):
        found = inspect.unwrap(getattr(member, "__func__", member))
        if isinstance(member, property):
            parts.append(f"**`{name}`**\n\n{_doc(member)}")
        elif inspect.isfunction(found):
            parts.append(_function(name, found))
    return "".join(parts)


def _function(name: str, function: Any) -> str:
    asynchronous = "async " if inspect.iscoroutinefunction(function) else ""
    return f"**`{name}`**\n\n```text\n{_wrapped(asynchronous + name + _signature(function))}\n```\n\n{_doc(function)}"


class _Written(str):
    """An annotation that is shown as it is written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(function: Any) -> str:
    found = inspect.signature(function)
    given = [
        p if p.annotation is p.empty else p.replace(annotation=_Written(p.annotation))
        for p in found.parameters.values()
        if p.name not in ("self", "cls")
    ]
    result = found.return_annotation
    text = str(found.replace(parameters=given, return_annotation=result if result is found.empty else _Written(result)))
    return re.sub(r"<object object at \w+>", "...", text)  # a default that is nothing but itself


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def _doc(thing: Any) -> str:
    text = inspect.getdoc(thing) or ""
    return f"{text}\n\n" if text else ""


if __name__ == "__main__":  # writes them anew: python -m docs.reference.generate
    for name in IN_A_CHECKOUT:
        (ROOT / "docs" / name).write_text(GENERATED + PAGES[name]())
