"""A column of a fixed width: PostgreSQL fills it up with spaces, and ignores them wherever it compares. So names have
none."""

from __future__ import annotations

import pytest

from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.preflight import preflight
from tests.support.caches import until
from tests.support.cdc_surroundings import worker
from tests.support.changes import Heard, running, tell

RULES = """
[[rule]]
table = "public.o"
data_type = "o"
resource_id = "{code}"
tenant_id = "{tenant_id}"
replica_identity = "full"

[[rule]]
table = "public.p"
data_type = "p"
resource_id = "{code}:{n}"
tenant_id = "acme"
tags = ["{code}"]
when = ["code"]
replica_identity = "full"
"""
TYPES = "CREATE DOMAIN padded AS char(6); CREATE DOMAIN twice_padded AS padded"


@pytest.mark.parametrize("type_", ["char(6)", "padded", "twice_padded"])
async def test_the_spaces_of_a_fixed_width_are_no_part_of_a_name(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, type_: str
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    tables = [
        f"CREATE TABLE {name} (code {type_}, tenant_id {type_}, n int); ALTER TABLE {name} REPLICA IDENTITY FULL"
        for name in ("o", "p")
    ]
    await tell(database, [TYPES, *tables])
    one = worker(database, redis_url, parse_rules(RULES))
    heard = Heard(one)
    async with running(one):
        await tell(
            database,
            [
                "INSERT INTO o VALUES (' a b', 'acme', 1)",
                "UPDATE o SET code = 'c'",
                "DELETE FROM o",
                "INSERT INTO p VALUES ('d', 'acme', 1)",
                "INSERT INTO o VALUES ('end', 'acme', 1)",
            ],
        )
        await until(lambda: heard.has("o", "end"))
        names = sorted(name.removeprefix("K ") for name in heard.asked if name.startswith("K "))
        assert names == ["acme:o: a b", "acme:o:c", "acme:o:end", "acme:p:d%3A1"]
        assert [name for name in heard.asked if name.endswith(" ") or "%20" in name] == [], "nor of a tag"
        assert one.meters.count("dead") == 0


async def test_what_a_domain_over_a_domain_is_in_the_end_counts(database: str, redis_url: str) -> None:
    """A number that may be told as 1 or 1.0 names nothing: it was taken for a type that nobody knows."""
    await tell(database, ["CREATE DOMAIN amount AS numeric", "CREATE DOMAIN price AS amount"])
    await tell(database, ["CREATE TABLE o (id price PRIMARY KEY, tenant_id text)"])
    checked = {one.what: str(one.findings) for one in await preflight(worker(database, redis_url))}
    assert "is neither text nor a whole number" in checked["tables"]
