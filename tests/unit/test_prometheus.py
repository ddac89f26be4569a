"""The figures as Prometheus scrapes them."""

from __future__ import annotations

import re
import subprocess
import sys

import prometheus_client
import pytest

from cachebus.errors import ConfigError
from cachebus.observe.prometheus import CacheCollector
from cachebus.testing import Fleet

NAMES = """
cachebus_applied_seq cachebus_bus_connected cachebus_bus_lag_seconds cachebus_bus_positions_lost_total
cachebus_bus_publish_failures_total cachebus_bus_reconnects_total
cachebus_catch_ups_total cachebus_entries_refused_total cachebus_events_applied_total cachebus_events_corrupt_total
cachebus_events_flushed_total cachebus_events_foreign_total cachebus_events_repeated_total
cachebus_events_unsigned_total cachebus_lost_to_watermarks_total cachebus_messages_unknown_total
cachebus_watermarks_raised_total
cachebus_fills_rejected_total cachebus_fills_total
cachebus_flights cachebus_flushes_total cachebus_gap_events cachebus_guarded_loads_total cachebus_guards_left_total
cachebus_guards_lost_total cachebus_loose_replicas cachebus_nodes_elsewhere
cachebus_guards_total cachebus_gaps_total cachebus_hook_events_dropped_total cachebus_hook_failures_total
cachebus_invalidations_failed_total cachebus_invalidations_repeated_total
cachebus_invalidations_total cachebus_l1_bytes cachebus_l1_entries cachebus_l1_evictions_total cachebus_l2_connected
cachebus_l2_errors_total cachebus_l2_seconds cachebus_lease_lapses_total cachebus_lease_left_seconds
cachebus_load_errors_total cachebus_load_seconds cachebus_loads_total cachebus_not_found_total cachebus_pending
cachebus_not_modified_total
cachebus_pending_delivered_total cachebus_pending_lost_total cachebus_records_corrupt_total cachebus_refreshes_total
cachebus_requests_total cachebus_resend_dropped_total cachebus_serialization_errors_total cachebus_fallbacks_total
cachebus_records_not_decrypted_total cachebus_records_of_other_versions_total
cachebus_shards_refused cachebus_warmed_total cachebus_warming
"""


async def scraped(fleet: Fleet) -> str:
    """What a scrape of the fleet's first node gives."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(CacheCollector(fleet.caches[0].stats))
    return prometheus_client.generate_latest(registry).decode()


def value(text: str, sample: str) -> float:
    """The value of one sample, by its name and labels as they are written."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found, f"no {sample} in\n{text}"
    return float(found[1])


async def test_what_is_counted_can_be_scraped() -> None:
    async with Fleet(2) as fleet:
        a, b = fleet.caches
        for _ in range(3):
            await a.get_or_load("config", "x", lambda: 1, tenant_id="secret-tenant")
        await b.set("config", "y", 1, tenant_id="secret-tenant")
        await fleet.settle()
        await a.get("config", "y", tenant_id="secret-tenant")
        await a.get("other", "z", tenant_id="secret-tenant")
        await a.invalidate("config", "x", tenant_id="secret-tenant")
        text = await scraped(fleet)
        assert value(text, 'cachebus_requests_total{data_type="config",outcome="l1"}') == 2
        assert value(text, 'cachebus_requests_total{data_type="config",outcome="l2"}') == 1
        assert value(text, 'cachebus_requests_total{data_type="config",outcome="miss"}') == 1
        assert value(text, 'cachebus_requests_total{data_type="other",outcome="miss"}') == 1
        assert value(text, 'cachebus_loads_total{data_type="config"}') == 1
        assert value(text, "cachebus_load_seconds_count") == 1
        assert value(text, 'cachebus_load_seconds_bucket{le="+Inf"}') == 1
        assert value(text, "cachebus_fills_total") == 1
        assert value(text, "cachebus_invalidations_total") == 1
        assert value(text, "cachebus_events_applied_total") == 2
        assert value(text, 'cachebus_flushes_total{cause="start"}') == 1
        assert value(text, "cachebus_l1_entries") == 1
        assert value(text, "cachebus_l2_connected") == 1
        assert value(text, "cachebus_bus_connected") == 1
        assert value(text, 'cachebus_gap_events{shard="0"}') == 0
        assert 0 < value(text, 'cachebus_lease_left_seconds{shard="0"}') <= 2
        assert value(text, 'cachebus_applied_seq{shard="0"}') == a.stats().shards[0].applied
        # Neither keys nor tenants are labels: there are too many of them, and they are nobody's business.
        assert "secret" not in text


async def test_the_names_are_as_documented() -> None:
    async with Fleet(1, shards=2) as fleet:
        await fleet.caches[0].get_or_load("config", "x", lambda: 1, tenant_id="acme")
        text = await scraped(fleet)
    samples = re.findall(r"^(cachebus_\w+?)(?:_bucket|_count|_sum)?[{ ]", text, re.MULTILINE)
    assert sorted(set(samples)) == sorted(NAMES.split())
    helped = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    assert sorted(helped) == sorted(NAMES.split())
    assert all(len(words) > 10 for words in helped.values())


async def test_buckets_are_cumulative() -> None:
    async with Fleet(1) as fleet:
        for i in range(20):
            await fleet.caches[0].get_or_load("config", i, lambda: 1, tenant_id="acme")
        text = await scraped(fleet)
    found = re.findall(r"^cachebus_load_seconds_bucket\{[^}]*\} (\S+)$", text, re.MULTILINE)
    counts = [float(count) for count in found]
    assert counts == sorted(counts)
    assert counts[-1] == 20


async def test_it_may_be_registered_before_the_cache_is_open() -> None:
    fleet = Fleet(1)
    registry = prometheus_client.CollectorRegistry()
    registry.register(CacheCollector(fleet.caches[0].stats))
    async with fleet:
        assert b"cachebus_l1_entries 0.0" in prometheus_client.generate_latest(registry)


def test_the_library_does_without() -> None:
    code = "import cachebus, sys; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


async def test_two_caches_of_a_process_are_told_apart_by_a_name() -> None:
    async with Fleet(2) as fleet:
        registry = prometheus_client.CollectorRegistry()
        registry.register(CacheCollector(fleet.caches[0].stats, name="orders"))
        registry.register(CacheCollector(fleet.caches[1].stats, name="users"))
        await fleet.caches[0].get("config", "x", tenant_id="acme")
        text = prometheus_client.generate_latest(registry).decode()
        outcome = 'data_type="config",outcome="miss"'
        samples = [
            line for line in text.splitlines() if line.startswith("cachebus_requests_total{") and outcome in line
        ]
        assert len(samples) == 1
        assert 'cache="orders"' in samples[0]
        assert len(re.findall(r'^cachebus_l1_entries\{cache="(?:orders|users)"\} ', text, re.MULTILINE)) == 2
        assert 'cachebus_load_seconds_bucket{cache="users"' in text


async def test_two_of_the_same_name_are_refused() -> None:
    async with Fleet(2) as fleet:
        for name in ("", "orders"):
            registry = prometheus_client.CollectorRegistry()
            registry.register(CacheCollector(fleet.caches[0].stats, name=name))
            with pytest.raises(ValueError, match=f"a CacheCollector named '{name}'; give each its own"):
                registry.register(CacheCollector(fleet.caches[1].stats, name=name))


@pytest.mark.parametrize(
    "label", ["shard", "le", "cache", "data_type", "outcome", "cause", "a-b", "__name__", "", "1a"]
)
def test_a_label_that_would_hide_another_or_is_none_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="labels"):
        CacheCollector(lambda: None, labels={label: "eu-1"})  # type: ignore[arg-type, return-value]
