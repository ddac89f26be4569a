"""Sources that rest."""

from __future__ import annotations

from cachebus import Policy

SHORT = Policy(ttl_s=0.1, fail_safe_s=1000, retries=0)
