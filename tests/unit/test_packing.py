"""Records as the rules of a type make them: how long they live, and for how long they are kept."""

from __future__ import annotations

from cachebus import Policy
from cachebus.policy import Rules
from cachebus.wire.packing import Given, keep_ms, pack
from cachebus.wire.record import FLAG_NOT_FOUND


def test_jitter_shortens_the_soft_expiry_alike() -> None:
    """Else it would come behind the end, and the value be refreshed by nobody."""
    rules = Rules("doc", Policy(ttl_s=100, soft_ttl_s=90, ttl_jitter=0.5))
    for _ in range(100):
        record, _ = pack(1, rules, 1.0)
        assert record.created_ms < record.soft_ms < record.expires_ms


def test_not_found_lives_no_longer_than_the_caller_says_and_is_kept_for_no_failure() -> None:
    rules = Rules("doc", Policy(negative_ttl_s=60, fail_safe_s=1000))
    for ttl_s, lives_ms in ((None, 60_000), (0.2, 200), (100.0, 60_000)):
        record, _ = pack(None, rules, 1.0, Given(ttl_s, flags=FLAG_NOT_FOUND))
        assert record.expires_ms - record.created_ms == lives_ms == keep_ms(record, rules)
