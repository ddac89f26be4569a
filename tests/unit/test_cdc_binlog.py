"""What Debezium's connectors for MySQL and MariaDB write: envelopes as recorded, and what is odd about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from cachebus.consumers.cdc.rules.change import OtherText, RowChange, UnusableChange
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.topics.debezium import parse_envelope

RECORDED: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("samples").joinpath("mysql.json").read_text())
FIRST: Final = {"id": 1, "tenant_id": "acme", "customer_id": 10, "note": "a", "mood": "ok"}
LARGEST: Final = 2**64 - 1
RULES = """
tenants = ["acme", "globex"]

[[rule]]
table = "shop.orders"
data_type = "order"
resource_id = "{id}"
tenant_id = "{tenant_id}"
on_truncate = "all"
"""


def recorded(message: Any, *, whole: bool = True) -> tuple[bytes | None, bytes | None]:
    """Its key and value, with their schemas or without."""

    def written(schema: Any, payload: Any) -> bytes | None:
        if payload is None:
            return None
        return json.dumps({"schema": schema, "payload": payload} if whole else payload).encode()

    return written(RECORDED["key_schema"], message["key"]), written(RECORDED["schema"], message["value"])


def changes() -> list[RowChange]:
    """The rows' changes, in their order."""
    found = []
    for message in RECORDED["rows"]:
        key, value = recorded(message)
        found.append(parse_envelope(value, key))
    return [change for change in found if change is not None]


def named(row: Any) -> dict[str, Any]:
    """What of a row can be part of a name."""
    return {name: value for name, value in row.items() if type(value) is not OtherText}


def test_mysqls_rows_are_those_of_its_database() -> None:
    made, changed, gone, moved, deleted, truncated = changes()
    assert {(change.schema, change.table) for change in changes()} == {("shop", "orders")}
    assert [change.op for change in changes()] == ["insert", "update", "delete", "insert", "delete", "truncate"]
    assert made.committed_at_s == 1795908426.0, "of whole seconds"
    assert made.new is not None and named(made.new) == FIRST
    assert {name for name, value in made.new.items() if type(value) is OtherText} == {"raw", "price", "at"}
    assert changed.old is not None and changed.new is not None
    assert (changed.old["tenant_id"], changed.new["tenant_id"]) == ("acme", "globex")
    assert gone.old is not None and moved.new is not None and deleted.old is not None
    assert (gone.old["id"], moved.new["id"], deleted.old["id"]) == (1, LARGEST, LARGEST)
    assert (truncated.old, truncated.new) == (None, None)


def test_old_rows_are_whole_whatever_the_key_is() -> None:
    """The tenant is no part of it, and no rule says replica_identity."""
    router = Router(parse_rules(RULES))
    asked = [router.meaning(change) for change in changes()]
    assert not any(meaning.problems for meaning in asked)
    told: list[Any] = [meaning.commands for meaning in asked]
    names = [{f"{one.tenant_id}:{getattr(one, 'resource_id', '*')}" for one in commands} for commands in told]
    assert names == [
        {"acme:1"},
        {"acme:1", "globex:1"},
        {"globex:1"},
        {f"globex:{LARGEST}"},
        {f"globex:{LARGEST}"},
        {"acme:*", "globex:*"},
    ]


def test_what_is_written_besides_tells_of_no_row() -> None:
    assert [message["topic"] for message in RECORDED["others"]] == [
        "cdc.transaction",
        "cdc.transaction",
        "cdc",
        "__debezium-heartbeat.cdc",
    ]
    for message in [*RECORDED["others"], *RECORDED["rows"][-2:]]:  # and tombstones
        for whole in (True, False):
            key, value = recorded(message, whole=whole)
            assert parse_envelope(value, key) is None


def column(of: dict[str, Any], value: Any) -> Any:
    """A value of a column with that schema, as it is taken."""
    fields = [{"field": "id", "optional": False, **of}, {"field": "behind", "name": "io.debezium.time.Date"}]
    schema = {"fields": [{"field": "after", "fields": fields}]}
    source = {"connector": "mariadb", "db": "shop", "table": "t"}
    payload = {"op": "c", "before": None, "after": {"id": value, "behind": 7}, "source": source}
    change = parse_envelope(json.dumps({"schema": schema, "payload": payload}))
    assert change is not None and change.new is not None
    assert type(change.new["behind"]) is OtherText, "whatever is before it"
    return change.new["id"]


DECIMAL: Final = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal"}


@pytest.mark.parametrize(
    ("of", "value", "taken"),
    [
        ({**DECIMAL, "parameters": {"scale": "0"}}, "AP//////////", LARGEST),
        ({**DECIMAL, "parameters": {"scale": "0"}}, "/w==", -1),
        ({**DECIMAL, "parameters": {"scale": "0"}}, 7, 7),  # decimal.format=NUMERIC
        ({**DECIMAL, "parameters": {"scale": "2"}}, "BOI=", OtherText("BOI=")),
        ({**DECIMAL, "parameters": {"scale": "0"}}, "no base64", OtherText("no base64")),
        ({**DECIMAL, "parameters": {"scale": "0"}}, "é", OtherText("é")),
        ({**DECIMAL, "parameters": {"scale": "0"}}, "", OtherText("")),
        ({**DECIMAL, "parameters": {"scale": "0"}}, "A" * 10**6, OtherText("A" * 10**6)),
        ({**DECIMAL, "parameters": {"scale": 0}}, "AQ==", OtherText("AQ==")),
        ({**DECIMAL, "parameters": []}, "AQ==", OtherText("AQ==")),
        (DECIMAL, "AQ==", OtherText("AQ==")),
        ({"type": "bytes"}, "YWJjZA==", OtherText("YWJjZA==")),
        ({"type": "bytes", "name": []}, "YWJjZA==", OtherText("YWJjZA==")),
        ({"type": ["bytes"]}, "YWJjZA==", "YWJjZA=="),
        ({"type": "string", "name": "io.debezium.data.Enum"}, "ok", "ok"),
        ({"type": "int64"}, -1, -1),
        ({"type": "int64"}, None, None),
    ],
)
def test_values_that_json_writes_as_text(of: dict[str, Any], value: Any, taken: Any) -> None:
    found = column(of, value)
    assert (type(found), found) == (type(taken), taken)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"connector": "mysql", "schema": "shop", "table": "t"}, "names no db and table"),
        ({"connector": "mariadb", "db": "", "table": "t"}, "names no db and table"),
        ({"connector": "mariadb", "db": "shop", "table": None}, "names no db and table"),
        ({"connector": "postgresql", "db": "shop", "table": "t"}, "names no schema and table"),
        ({"connector": ["mysql"], "db": "shop", "table": "t"}, "names no schema and table"),
        ({"db": "shop", "table": "t"}, "names no schema and table"),
    ],
)
def test_a_table_is_named_as_its_connector_does(source: dict[str, Any], says: str) -> None:
    with pytest.raises(UnusableChange, match=says):
        parse_envelope(json.dumps({"op": "c", "after": {"id": 1}, "source": source}))
