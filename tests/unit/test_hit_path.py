"""The hit is written out where it is used, since a call would make it 7 to 13 % slower: the copies are one text."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cachebus
from cachebus import Cache, TypedCache, get_with_cache_aside
from cachebus.threads.hit import name_of_ids

VERBS: list[Callable[..., Any]] = [Cache.get, Cache.get_or_load, get_with_cache_aside]
BLOCK = re.compile(r"^ *# hit: (name|serve)(?: of a type)?\n(.*?)^ *# hit: end\n", re.MULTILINE | re.DOTALL)


OF_A_TYPE: list[Callable[..., Any]] = [TypedCache.get, TypedCache.get_or_load]
"""Their data type was looked at before."""


def blocks(verb: Callable[..., Any]) -> dict[str, str]:
    """The text between the markers of a verb, by their names."""
    found = BLOCK.findall(inspect.getsource(verb))
    assert [name for name, _ in found] == ["name", "serve"], f"{verb.__qualname__} has lost a marker"
    return {name: textwrap.dedent(text) for name, text in found}


@pytest.mark.parametrize("verb", VERBS[1:])
@pytest.mark.parametrize("block", ["name", "serve"])
def test_a_hit_is_one_text_wherever_it_is_written(verb: Callable[..., Any], block: str) -> None:
    assert blocks(verb)[block] == blocks(VERBS[0])[block]


@pytest.mark.parametrize("verb", OF_A_TYPE)
def test_a_hit_of_a_handle_is_the_same_but_for_its_data_type(verb: Callable[..., Any]) -> None:
    whole, its = blocks(VERBS[0]), blocks(verb)
    assert its["serve"] == whole["serve"]
    name = ast.unparse(ast.parse(whole["name"])).replace(" and type(data_type) is str", "")
    assert ast.unparse(ast.parse(its["name"])) == name.replace(r"\x1f{data_type}\x1f", "{infix}")


def test_so_is_the_name_of_a_hit_from_another_thread() -> None:
    """What is served there is looked at once more, and so is another text."""
    found = BLOCK.findall(inspect.getsource(name_of_ids))
    assert [(name, textwrap.dedent(text)) for name, text in found] == [("name", blocks(VERBS[0])["name"])]


def test_no_other_place_has_the_hit() -> None:
    """Whoever writes it out once more names it here."""
    folder = Path(cachebus.__file__).parent
    texts = [path.read_text() for path in folder.rglob("*.py")]
    assert sum(text.count("# hit: name") for text in texts) == len(VERBS) + len(OF_A_TYPE) + 1
    assert sum(text.count(r"{tenant_id}\x1f{data_type}") for text in texts) == 2 * (len(VERBS) + 1)
    assert sum(text.count("{tenant_id}{infix}") for text in texts) == 2 * len(OF_A_TYPE)
