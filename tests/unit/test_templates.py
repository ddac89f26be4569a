"""Templates: no two fillings of one share an id, in all four places that have them."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus import Cascade, ConfigError, InvalidKey, Policy
from cachebus.base.templates import Template
from cachebus.cascade import CascadeTable, Target
from cachebus.consumers.cdc.rules.change import OtherText, UnusableChange
from cachebus.consumers.cdc.rules.template import RowTemplate
from cachebus.keys.key import Keyspace
from cachebus.keys.naming import ArgumentTemplate, tag_scopes
from cachebus.policy import Rules
from tests.support.ids import ARE_NONE, STAND_FOR

# Few letters, those of the literals and of escapes among them, so that fillings which could collide are found.
tricky = st.text(st.sampled_from(":/%x 235AaFé-_{}"), max_size=6)
literals = st.text(st.sampled_from(":/%x 25Aé-_"), max_size=3)


def cuts(whole: str, one: str, other: str) -> list[tuple[str, str, str]]:
    """Every way to read a text as three values with these two texts between them."""
    return [
        (whole[:i], whole[i + len(one) : j], whole[j + len(other) :])
        for i in range(len(whole))
        for j in range(i + len(one), len(whole))
        if whole.startswith(one, i) and whole.startswith(other, j)
    ]


@given(literals, literals, literals, literals, st.data())
def test_no_two_fillings_share_an_id(before: str, one: str, other: str, after: str, data: st.DataObject) -> None:
    """Values that have in them what stands between values, so that a text of them can be read in several ways."""
    try:
        template = Template(f"{before}{{a}}{one}{{b}}{other}{{c}}{after}")
    except ConfigError:
        assert not all(set(gap) - set("%0123456789ABCDEF") for gap in (one, other)), "refused only where nothing parts"
        return
    values = st.lists(st.sampled_from([one, other, before, after, ":", "%", "%3A", "25", "a"]), max_size=3).map("".join)
    these = data.draw(st.tuples(values, values, values))
    fillings = {*cuts(one.join(these[:2]) + other + these[2], one, other), data.draw(st.tuples(values, values, values))}
    made = {template.fill(dict(zip("abc", filling, strict=True))) for filling in fillings}
    assert len(made) == len(fillings)


@given(tricky, tricky)
def test_values_can_be_read_back(one: str, other: str) -> None:
    first, second = Template("{a}:{b}").fill({"a": one, "b": other}).split(":")
    assert (unquote(first, errors="strict"), unquote(second, errors="strict")) == (one, other)


def test_how_it_is_written() -> None:
    """Part of what readers may rely on: whoever writes such an id by hand."""
    assert Template("{a}:{b}").fill({"a": "1:2", "b": "3"}) == "1%3A2:3"
    assert Template("{a}:{b}").fill({"a": "1", "b": "2:3"}) == "1:2%3A3"
    assert Template("{a}:{b}").fill({"a": "50%", "b": "a/b*c"}) == "50%25:a/b*c"
    assert Template("page:{a}/{b}").fill({"a": "page:1", "b": "a/b"}) == "page:page:1/a%2Fb", "only what parts them"
    assert Template("{a}x{b}").fill({"a": "axe", "b": 7}) == "a%78ex7"
    assert Template("{a}→{b}").fill({"a": "→", "b": "é"}) == "%E2%86%92→é"
    assert Template("{{{a}:{b}}}").fill({"a": 1, "b": 2}) == "{1:2}"
    assert Template("{a}{{{b}").fill({"a": "{", "b": 2}) == "%7B{2"
    assert Template("doc:{a}").fill({"a": "1:2%"}) == "doc:1:2%", "one alone can't be mistaken: as an f-string has it"
    assert Template("{a}:{a}").fill({"a": ":"}) == "%3A:%3A"
    assert Template("constant{{}}").fill({}) == "constant{}"
    assert repr(Template("{a}:{b}")) == "Template('{a}:{b}')"
    assert Template("{a}:{b}").fields == ("a", "b")


@pytest.mark.parametrize(("one", "text"), STAND_FOR, ids=[type(one).__name__ for one, _ in STAND_FOR])
def test_values_are_what_they_are(one: Any, text: str) -> None:
    assert Template("{a}").fill({"a": one}) == text
    assert Template("{a}:{b}").fill({"a": one, "b": one}) == f"{text}:{text}"


NOT_EVEN_TEXT = [*(one for one in ARE_NONE if not issubclass(type(one), str)), None]


@pytest.mark.parametrize("one", NOT_EVEN_TEXT, ids=lambda one: type(one).__name__)
def test_what_is_no_id_is_not_filled_in(one: Any) -> None:
    for text in ("{a}", "x{a}", "{a}:{b}"):
        with pytest.raises(InvalidKey, match=r"^a "):
            Template(text).fill({"a": one, "b": 1})
    with pytest.raises(InvalidKey, match=r"nothing for {b}"):
        Template("{a}:{b}").fill({"a": 1})


BAD = {
    "": "empty",
    "{": "a brace itself is written twice",
    "a}": "Single '}'",
    "{}": "a placeholder has a name",
    "{a:>3}": "placeholder {a} takes neither format nor conversion",
    "{a!r}:{b}": "placeholder {a} takes neither format nor conversion",
    "{a:{b}}": "neither format",
    "{a}{b}": r"nothing parts {a} and {b}: \"1\" and \"23\" would be the same id as \"12\" and \"3\"",
    "x:{a}{b}": "nothing parts {a} and {b}",
    "{a}:{b}{c}": "nothing parts {b} and {c}",
    "{a}%{b}": "nothing parts {a} and {b}",
    "{a}20{b}": "nothing parts {a} and {b}",
    "{a}A%F0{b}": "nothing parts {a} and {b}",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_template_is_refused_where_it_is_declared(text: str) -> None:
    with pytest.raises(ConfigError, match=BAD[text]):
        Template(text)
    with pytest.raises(ConfigError, match=r"^f: .*" + BAD[text]):
        ArgumentTemplate(text, None, "f")
    with pytest.raises(ConfigError, match=r"^cascade of 'doc': .*" + BAD[text]):
        Cascade("doc", [("page", text)])
    with pytest.raises(ConfigError, match=r"^policy tags: .*" + BAD[text]):
        Policy(tags=(text,))
    with pytest.raises(ValueError, match=BAD[text]):
        RowTemplate(text)


@pytest.mark.parametrize("text", [None, 7, b"{a}"])
def test_a_template_is_text(text: Any) -> None:
    with pytest.raises(ConfigError, match="a template is text, not"):
        Template(text)


# -- the four places ---------------------------------------------------------------------------------------

ONE, OTHER = ("1:2", "3"), ("1", "2:3")
WRITTEN = ["1%3A2:3", "1:2%3A3"]


def test_a_decorated_functions_arguments() -> None:
    template = ArgumentTemplate("{a}:{b.name[0]}", ["a", "b"], "f")

    class Named:
        def __init__(self, name: str) -> None:
            self.name = [name]

    assert [template.filled_in({"a": a, "b": Named(b)}) for a, b in (ONE, OTHER)] == WRITTEN
    alone = ArgumentTemplate("{a}", ["a"], "f")
    for as_it_is in (None, 7, "x", ONE):
        assert alone.filled_in({"a": as_it_is}) is as_it_is
    with pytest.raises(InvalidKey, match=r"^f: a must be str, int or UUID, not NoneType, in 'doc:{a}'"):
        ArgumentTemplate("doc:{a}", ["a"], "f").filled_in({"a": None})
    with pytest.raises(InvalidKey, match=r"nothing for {a\.b}"):
        ArgumentTemplate("doc:{a.b}", ["a"], "f").filled_in({"a": 7})
    assert ArgumentTemplate("doc:{a}", ["a"], "f").filled_in({"a": "1:2"}) == "doc:1:2"


def test_a_cascades_targets() -> None:
    table = CascadeTable([Cascade("doc", [("page", "{resource_id}:{agent_id}"), ("chunk", "doc:{resource_id}")])])
    for (a, b), written in zip((ONE, OTHER), WRITTEN, strict=True):
        assert [t.resource_id for t in table.expand([Target("doc", a, b)], "acme")[1:]] == [written, f"doc:{a}"]


def test_a_policys_tags() -> None:
    rules = Rules("doc", Policy(tags=("{tenant_id}:{resource_id}", "doc:{resource_id}")))
    for (a, b), written in zip((ONE, OTHER), WRITTEN, strict=True):
        assert tag_scopes(Keyspace(1).key("doc", b, a), (), rules) == [f"G\x1f{a}\x1f{written}", f"G\x1f{a}\x1fdoc:{b}"]


def test_a_rows_columns() -> None:
    assert [RowTemplate("{a}:{b}").fill({"a": a, "b": b}) for a, b in (ONE, OTHER)] == WRITTEN
    assert RowTemplate("{a}:{b}").fill({"a": None, "b": 1}) is None
    assert RowTemplate("order:{a}").fill({"a": "1:2"}) == "order:1:2"
    assert RowTemplate("{a}").fill({"a": 7}) == "7"
    for wrong in (1.5, True, OtherText("2026"), b"x"):
        with pytest.raises(UnusableChange, match="neither text nor a whole number"):
            RowTemplate("{a}:{b}").fill({"a": wrong, "b": 1})
