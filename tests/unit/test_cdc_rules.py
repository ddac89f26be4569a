"""Rules of change data capture: what they make of changes, and what is said of wrong ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cachebus import ConfigError, InvalidKey
from cachebus.cascade import CascadeTable
from cachebus.consumers.cdc.rules import router
from cachebus.consumers.cdc.rules.change import OtherText, RowChange, UnusableChange, parse_change
from cachebus.consumers.cdc.rules.check import checked, describe
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import load_rules, parse_rules
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Planner
from cachebus.producers.command import InvalidateAllTenants, encode, parse
from tests.support.changes import RULES

RULE = """
[[rule]]
table = "shop.orders"
data_type = "order"
resource_id = "{id}"
tenant_id = "{tenant_id}"
on_truncate = "ignore"
"""
ROW = {"id": 1, "tenant_id": "acme", "customer_id": 5}


def asked(change: RowChange, rules: str = RULES) -> list[str]:
    commands, problems = meant(change, rules)
    assert not problems
    return commands


def meant(change: RowChange, rules: str = RULES) -> tuple[list[str], list[str]]:
    """What a change invalidates, and what of it can't be used."""
    found = Router(parse_rules(rules)).meaning(change)
    return [describe(command) for command in found.commands], list(found.problems)  # type: ignore[arg-type]


def orders(op: str, new: dict[str, object] | None = None, old: dict[str, object] | None = None) -> RowChange:
    return RowChange(op, "shop", "orders", new, old)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = ", r"Invalid value \(at "),
        ("", "1: rule: is missing"),
        ("rule = []", "1: rule: Tuple should have at least 1 item"),
        ("rules = 1\n" + RULE, "1: rules: is no field of it"),
        (RULE.replace("table", "tabel"), "2: rule 1: table: is missing\n3: rule 1: tabel: is no field of it"),
        (RULE.replace("shop.orders", "orders"), r"3: rule 1: table: needs schema and table, as in \"shop.orders\""),
        (RULE.replace('"order"', '""'), "4: rule 1: data_type: String should have at least 1 character"),
        (RULE.replace("{id}", "{id:3}"), "5: rule 1: resource_id: '{id:3}': the placeholder {id} takes neither format"),
        (RULE.replace("{id}", "{}"), "5: rule 1: resource_id: '{}': a placeholder has a name between its braces"),
        (RULE.replace("{id}", "{id}{n}"), "5: rule 1: resource_id: '{id}{n}': nothing parts {id} and {n}"),
        (RULE.replace("{id}", "{id"), "5: rule 1: resource_id: '{id': .*; a brace itself is written twice"),
        (RULE.replace("{id}", ""), "5: rule 1: resource_id: a template is empty"),
        (RULE.replace('"{id}"', "7"), "5: rule 1: resource_id: Input should be a valid string"),
        (RULE.replace("{id}", "*"), r'5: rule 1: resource_id: is "\*": write a whole scope as scopes'),
        (RULE.replace('tenant_id = "{tenant_id}"', ""), "2: rule 1: tenant_id: is missing: only the data type"),
        (RULE.replace('"ignore"', "3"), '7: rule 1: on_truncate: takes "all", "ignore", or a list of tenants'),
        (RULE.replace('"ignore"', '["a"]\noperations = ["insert"]'), "7: rule 1: on_truncate: is given, but"),
        (f"tenants = {[str(n) for n in range(1001)]}\n" + RULE, "1: tenants: are more than 1000: leave them out"),
        (RULE + 'operations = ["insert", "upsert"]', "8: rule 1: operations 2: Input should be 'insert', 'update'"),
        (
            'tenants = ["acme", "' + 600 * "x" + '"]\n' + RULE,
            "1: tenants 2: tenant_id is too long|1: tenants: .*tenant_id",
        ),
        (RULE + "operations = []", "8: rule 1: operations: Tuple should have at least 1 item"),
        (RULE + 'when = "title"', "8: rule 1: when: Input should be a valid tuple"),
        (RULE + 'replica_identity = "half"', "8: rule 1: replica_identity: Input should be 'full'"),
        (RULE + 'every_context = true\nagent_id = "{a}"', "8: rule 1: every_context: is for a rule without"),
        (RULE + 'tags = ["{t!r}"]', r"8: rule 1: tags 1: '{t!r}': the placeholder {t} takes neither format"),
        (RULE + 'related = [{ data_type = "x" }]', "8: rule 1: related 1: resource_id: is missing"),
        (
            RULE + 'scopes = [\n  { data_type = "x" },\n  { data_type = "y", agent_id = "1", collection_id = "2" },\n]',
            "8: rule 1: scopes 2: a scope takes at most one of agent_id",
        ),
        (RULE.replace('"order"', '"or\\u0001der"'), "2: rule 1: data_type has a control character"),
        (
            RULE + '[[cascade]]\ndata_type = "order"\nto = [["list", "{nobody}"]]',
            "8: cascade 1: cascade of 'order': .* unknown placeholder {nobody}",
        ),
        (
            RULE + '[[cascade]]\ndata_type = "a"\nto = [["b", "x"]]\n[[cascade]]\ndata_type = "b"\nto = [["a", "x"]]',
            "11: cascade 2: cascades form a cycle",
        ),
        (RULE + '[[cascade]]\ndata_type = "order"', "8: cascade 1: to: is missing"),
        (
            RULE + '[[cascade]]\ndata_type = "order"\nto = [["list", "{agent_id}"]]',
            "2: rule 1: the cascade of 'order' needs agent_id",
        ),
        (RULE + RULE.replace("table", "tbl"), "9: rule 2: table: is missing\n10: rule 2: tbl: is no field of it"),
        ('x = """\n[[rule]]\n"""\n' + RULE.replace("{id}", "{"), "1: x: is no field of it|8: rule 1: resource_id"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_field(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_rules(text)


def test_a_files_name_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    with pytest.raises(ConfigError, match=r"rules\.toml: .*No such file"):
        load_rules(path)
    path.write_text(RULE.replace("{id}", "{"))
    with pytest.raises(ConfigError, match=r"rules\.toml:5: rule 1: resource_id"):
        load_rules(path)


def test_a_row_is_its_resource_what_is_related_and_its_scopes() -> None:
    assert asked(orders("insert", ROW)) == [
        "'1' of 'order' of tenant 'acme', and '5' of 'customer'",
        "all of 'order_list' of tenant 'acme'",
    ]
    assert asked(orders("insert", {**ROW, "customer_id": None}))[0] == "'1' of 'order' of tenant 'acme'"
    assert asked(RowChange("insert", "shop", "elsewhere", ROW)) == []


def test_a_changed_key_is_the_old_one_and_the_new_one() -> None:
    found = asked(orders("update", {**ROW, "id": 2, "tenant_id": "globex"}, ROW))
    assert [one for one in found if "'order'" in one] == [
        "'2' of 'order' of tenant 'globex', and '5' of 'customer'",
        "'1' of 'order' of tenant 'acme', and '5' of 'customer'",
    ]
    known_by_key = asked(orders("update", {**ROW, "id": 2}, {"id": 1}))
    assert "'1' of 'order' of tenant 'acme', and '5' of 'customer'" in known_by_key
    assert len(asked(orders("update", ROW, ROW))) == 2


NOTE = {"code": "n", "tenant_id": "acme", "folder": 7, "title": "t", "text": "x", "seen": 0}


def test_an_update_counts_if_it_changes_what_the_rule_names_or_may_have() -> None:
    def notes(new: dict[str, object], old: dict[str, object] | None) -> list[str]:
        return asked(RowChange("update", "shop", "notes", new, old))

    assert notes({**NOTE, "seen": 1}, NOTE) == []
    assert len(notes({**NOTE, "title": "u"}, NOTE)) == 2
    assert len(notes({**NOTE, "folder": 8}, NOTE)) == 3, "what its name is made of counts as well"
    assert notes({**NOTE, "seen": 1}, None), "the old row is not known"
    without_text = {name: value for name, value in NOTE.items() if name != "text"}
    assert notes({**without_text, "seen": 1}, NOTE) == [], "a large value that is not told has not changed"


def test_context_ids_tags_and_tables_by_pattern() -> None:
    assert asked(RowChange("insert", "shop", "notes", NOTE)) == [
        "'n' of 'note' of tenant 'acme' collection '7'",
        "the tags 'note:n' of tenant 'acme'",
    ]
    no_folder = {**NOTE, "folder": None}
    assert asked(RowChange("insert", "shop", "notes", no_folder))[0] == "'n' of 'note' of tenant 'acme'"
    assert asked(RowChange("insert", "any", "settings", {"name": "theme"})) == ["'theme' of 'system'"]
    everywhere = RULE + "every_context = true"
    assert asked(orders("insert", ROW), everywhere) == ["'1' of 'order' of tenant 'acme' in every context"]


def test_a_truncate_is_the_scopes_of_all_types_that_its_rule_and_cascades_name() -> None:
    truncate = orders("truncate")
    types = ["order", "embedding", "order_list", "customer"]
    assert asked(truncate) == [f"all of {one!r} of tenant {t!r}" for t in ("acme", "globex") for one in types]
    assert asked(RowChange("truncate", "shop", "notes")) == ["everything of tenant 'acme'"], "of any type may be tagged"
    assert asked(truncate, RULE) == []
    fixed = RULE.replace("{tenant_id}", "acme").replace('on_truncate = "ignore"', 'tags = ["orders"]')
    assert asked(truncate, fixed) == ["all of 'order' of tenant 'acme'", "the tags 'orders' of tenant 'acme'"]
    assert asked(RowChange("truncate", "any", "settings")) == [], "it is not among the operations"


def test_everything_that_rules_may_name() -> None:
    rules = parse_rules(RULES.replace('tenants = ["acme", "globex"]', 'tenants = ["acme"]'))
    assert [describe(one) for one in Router(rules).missed(rules.rule)] == [
        *(f"all of {one!r} of tenant 'acme'" for one in ("order", "embedding", "order_list", "customer")),
        "everything of tenant 'acme'",
        "all of 'system'",
    ]
    assert [describe(one) for one in Router(rules).missed([rules.rule[-1]])] == ["all of 'system'"]


def test_where_rules_name_no_tenants_they_may_name_anything_of_all_of_them() -> None:
    rules = parse_rules(RULES.replace('tenants = ["acme", "globex"]', ""))
    made = Router(rules, shards=3).missed(rules.rule)
    assert [describe(one) for one in made if not isinstance(one, InvalidateAllTenants) or one.shard == 2] == [
        *(f"all of {one!r} of all tenants" for one in ("order", "embedding", "order_list", "customer")),
        "everything of all tenants",
        "all of 'system'",
    ]
    assert sorted(one.shard for one in made if isinstance(one, InvalidateAllTenants)) == sorted(5 * [0, 1, 2])
    planner = Planner(Keyspace(3), CascadeTable())
    for one in made:
        plan = parse(encode(one)).plan(planner)
        assert plan.scopes and (not isinstance(one, InvalidateAllTenants) or plan.shard == one.shard)
    with pytest.raises(InvalidKey, match="none is 3"):
        InvalidateAllTenants(shard=3).plan(planner)


def test_a_truncate_touches_all_tenants_unless_the_rule_says_whose() -> None:
    truncate = RowChange("truncate", "shop", "orders")
    assert asked(truncate, RULE.replace('on_truncate = "ignore"', "")) == ["all of 'order' of all tenants"]
    assert asked(truncate, RULE.replace('"ignore"', '["a"]')) == ["all of 'order' of tenant 'a'"]
    tagged = RULE.replace('on_truncate = "ignore"', 'tags = ["orders"]')
    assert asked(truncate, tagged) == ["everything of all tenants"], "of any type and tenant may be tagged"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (orders("insert", {**ROW, "id": 1.5}), "the column 'id' holds neither text nor a whole number"),
        (orders("insert", {**ROW, "id": True}), "the column 'id' holds neither text nor a whole number"),
        (orders("insert", {**ROW, "id": OtherText("2026")}), "the column 'id' holds neither text nor a whole number"),
        (orders("insert", {"id": 1}), "tenant_id: the column 'tenant_id' is not known: .*REPLICA IDENTITY FULL"),
        (orders("delete", None, {"id": 1}), "the old row: tenant_id: the column 'tenant_id' is not known"),
        (orders("delete"), "has neither the new row nor the old one"),
    ],
)
def test_a_row_that_lacks_what_a_rule_needs_is_told(change: RowChange, says: str) -> None:
    commands, problems = meant(change, RULE)
    assert not commands
    (problem,) = problems
    assert re.search(says, problem)
    assert "rule of 'shop.orders' for 'order'" in problem
    assert "acme" not in problem


USERS = """
[[rule]]
table = "shop.users"
data_type = "user"
resource_id = "{id}"
tenant_id = "{tenant_id}"
replica_identity = "full"
on_truncate = "ignore"
tags = ["mail:{email}", "fixed"]
scopes = [{ data_type = "users" }]
related = [{ data_type = "team", resource_id = "{team}" }]

[[rule]]
table = "shop.users"
data_type = "by_email"
resource_id = "{email}"
tenant_id = "{tenant_id}"
replica_identity = "full"
on_truncate = "ignore"
"""


def user(**changed: object) -> dict[str, object]:
    """A row."""
    return {"id": 1, "tenant_id": "acme", "email": "a@x", "team": 3, **changed}


def of(tenant: str, *said: str) -> set[str]:
    """What is said, of a tenant."""
    return {f"{one} of tenant {tenant!r}" if "{}" not in one else one.format(f" of tenant {tenant!r}") for one in said}


ALL = (
    "'1' of 'user'{}, and '3' of 'team'",
    "all of 'users'",
    "the tags 'mail:a@x'",
    "the tags 'fixed'",
    "'a@x' of 'by_email'",
)


@pytest.mark.parametrize(
    ("old", "new", "asks"),
    [
        (user(tenant_id=None), user(), of("acme", *ALL)),
        (user(), user(tenant_id=None), of("acme", *ALL)),
        (user(), user(tenant_id="globex"), of("acme", *ALL) | of("globex", *ALL)),
        (user(), user(email=None), of("acme", *ALL)),
        (user(email=None), user(), of("acme", *ALL)),
        (
            user(email=None),
            user(email=None, team=None),
            of("acme", "'1' of 'user'{}, and '3' of 'team'", "'1' of 'user'", "all of 'users'", "the tags 'fixed'"),
        ),
        (user(id=None), user(id=None), of("acme", "'3' of 'team'", *ALL[1:])),
    ],
    ids=["joins", "leaves", "moves", "to null", "from null", "stays null", "no key"],
)
def test_what_is_null_names_nothing_and_takes_nothing_from_the_rest(
    old: dict[str, object], new: dict[str, object], asks: set[str]
) -> None:
    commands, problems = meant(RowChange("update", "shop", "users", new, old), USERS)
    assert set(commands) == asks
    assert not problems


@pytest.mark.parametrize("op", ["insert", "delete"])
def test_a_row_of_no_tenant_is_nobodys_and_no_mistake(op: str) -> None:
    row = user(tenant_id=None)
    change = RowChange(op, "shop", "users", None if op == "delete" else row, row if op == "delete" else None)
    assert meant(change, USERS) == ([], [])


def test_every_half_and_every_rule_that_can_be_named_is_and_one_letter_says_what_can_not() -> None:
    commands, problems = meant(RowChange("update", "shop", "users", user(email=1.5, id=2), user()), USERS)
    assert "'2' of 'user' of tenant 'acme', and '3' of 'team'" in commands
    assert "'1' of 'user' of tenant 'acme', and '3' of 'team'" in commands
    assert "'a@x' of 'by_email' of tenant 'acme'" in commands
    what = "the column 'email' holds neither text nor a whole number"
    assert problems == [
        f"the rule of 'shop.users' for 'user': the new row: the tag 'mail:{{email}}': {what}",
        f"the rule of 'shop.users' for 'by_email': the new row: resource_id: {what}",
    ]


def test_what_a_source_may_have_made_up_counts_only_where_a_rule_says_that_it_has_not() -> None:
    old = RowChange("delete", "shop", "orders", None, ROW, sure=frozenset({"id"}))
    assert asked(old)[0] == "'1' of 'order' of tenant 'acme', and '5' of 'customer'"
    assert "'tenant_id' is not known" in meant(old, RULE)[1][0]


def test_a_letter_tells_of_a_value_that_is_too_long_for_any_name_its_length_alone() -> None:
    long, longer = "\x01" * 30_000_000, "a" * 10_000
    change = RowChange(
        "update", "public", "orders", {"id": 1, "body": long, "other": longer}, {"id": 1, "body": longer}
    )
    payload = change.payload()
    assert len(payload) < 1000
    back = parse_change(payload)
    assert back.new == {
        "id": 1,
        "body": {"text": "(30000000 characters are left out)"},
        "other": {"text": "(10000 characters are left out)"},
    }
    assert back.old == {"id": 1}
    assert back.touched(frozenset({"body"}))


def test_a_change_is_read_as_it_was_written() -> None:
    change = RowChange("update", "shop", "orders", ROW, {"id": 2}, "0/1", 12.5)
    assert parse_change(change.payload()) == change
    told_apart = RowChange("insert", "s", "t", {"at": OtherText("2026")})
    assert parse_change(told_apart.payload()).new == {"at": {"text": "2026"}}
    for bad in (b"{", b"[]", b'{"op": "merge", "schema": "s", "table": "t"}', b'{"op": "insert", "x": 1}', b"\xff"):
        with pytest.raises(UnusableChange, match="no row change"):
            parse_change(bad)


def test_check_shows_what_a_sample_invalidates(tmp_path: Path) -> None:
    rules, sample = tmp_path / "rules.toml", tmp_path / "sample.json"
    rules.write_text(RULES)
    assert checked(rules) == f"{rules}: 3 rules, 1 cascades, 2 tenants\n"
    sample.write_bytes(orders("insert", ROW).payload())
    assert checked(rules, sample).splitlines()[1:] == [
        f"{sample}: a plain row change: insert of shop.orders",
        "  invalidates '1' of 'order' of tenant 'acme', and '5' of 'customer'",
        "    and by a cascade 'order:1' of 'embedding'",
        "  invalidates all of 'order_list' of tenant 'acme'",
    ]
    sample.write_bytes(orders("insert", {"id": 1}).payload())
    with pytest.raises(ConfigError, match=r"it would be a dead letter: .*'tenant_id' is not known"):
        checked(rules, sample)
    sample.write_text('{"op": "c", "after": {"name": "x"}, "source": {"schema": "a", "table": "settings"}}')
    assert "a Debezium envelope: insert of a.settings\n  invalidates 'x' of 'system'" in checked(rules, sample)
    sample.write_text('{"op": "c", "after": {"name": "x"}, "source": {"schema": "a", "table": "b"}}')
    assert "invalidates nothing: no rule is for this table" in checked(rules, sample)
    sample.write_text('{"op": "t", "source": {"schema": "a", "table": "settings"}}')
    assert "invalidates nothing: its rules leave it out" in checked(rules, sample)
    sample.write_text('{"payload": null, "schema": null}')
    assert "tells of no row: ignored" in checked(rules, sample)
    sample.write_text("?")
    with pytest.raises(ConfigError, match=r"sample\.json: no row change: Invalid JSON"):
        checked(rules, sample)


CASCADES = """
[[rule]]
table = "shop.orders"
data_type = "order"
resource_id = "{{id}}"
tenant_id = "{{tenant_id}}"

[[cascade]]
data_type = "order"
to = [["line", "{}"]]

[[cascade]]
data_type = "line"
to = [["embedding", "{}"]]

[[cascade]]
data_type = "unnamed"
to = [["embedding", "{}"]]
"""


@pytest.mark.parametrize(("changed", "is_another"), [(0, True), (1, True), (2, False)])
def test_with_other_cascades_a_rule_says_another_thing(changed: int, is_another: bool) -> None:
    """At any distance; those of what it does not reach are not its own."""
    texts = ["order:{resource_id}"] * 3
    first = Router(parse_rules(CASCADES.format(*texts)))
    texts[changed] = "ord:{resource_id}"
    second = Router(parse_rules(CASCADES.format(*texts)))
    assert (first.said_of("shop", "orders") != second.said_of("shop", "orders")) is is_another
    assert (first.said != second.said) is is_another


def test_of_more_tables_than_it_remembers_the_oldest_are_forgotten_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router, "TABLES_REMEMBERED", 2)
    asked = Router(parse_rules(CASCADES.format("a", "b", "c")))
    first, second, third = (asked.table("shop", name) for name in ("orders", "lines", "others"))
    assert asked.table("shop", "others") is third
    assert asked.table("shop", "lines") is second
    assert asked.table("shop", "orders") is not first
