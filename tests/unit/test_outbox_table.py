"""The outbox's names and SQL, as far as no database is needed."""

from __future__ import annotations

import pytest

from cachebus import ConfigError
from cachebus.consumers.outbox import RelayOptions
from cachebus.consumers.outbox.database import describe
from cachebus.producers import Outbox
from cachebus.producers.outbox import OutboxTable

BAD_NAMES = [
    "",
    ".",
    "a.",
    ".a",
    "a.b.c",
    "A",
    "1a",
    "a-b",
    "a b",
    'a"b',
    "a;drop table x",
    "a\n",
    "a'b",
    "é",
    "a" * 56,
    "a.b;",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_can_mean_anything_in_sql(name: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME or SCHEMA\.NAME"):
        Outbox(table=name)
    with pytest.raises(ConfigError):
        RelayOptions(table=name)


def test_names_fit_what_postgresql_keeps_of_them() -> None:
    table = OutboxTable.of("s" * 55 + "." + "t" * 55)
    for part in (table.rows, table.dead):
        assert all(len(name) <= 63 for name in part.replace('"', "").split("."))
    assert len(f"{table.name}_notify") <= 63
    assert (OutboxTable.of("orders").rows, OutboxTable.of("app.orders").dead) == ('"orders"', '"app"."orders_dead"')


@pytest.mark.parametrize(
    "options",
    [{"batch": 0}, {"batch": 10_001}, {"poll_interval_s": 0}, {"hold_s": 0}, {"hold_s": 301}, {"hold_s": float("nan")}],
)
def test_options_that_can_not_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        RelayOptions(**options)  # type: ignore[arg-type]


def test_what_a_database_says_is_told_without_the_values_in_its_further_lines() -> None:
    assert describe(ValueError("refused\nDETAIL: Key (id)=(secret) exists")) == "ValueError: refused"
    assert describe(TimeoutError()) == "TimeoutError"
