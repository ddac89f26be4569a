"""For how long a provider that gives nothing is told of."""

from __future__ import annotations

import pytest

from cachebus.base.providers import LATELY_S, provided, trouble_of
from tests.support.credentials import Rotating


@pytest.mark.parametrize("lasts", [False, True])
def test_it_is_told_for_as_long_as_somebody_asks_or_until_who_said_so_takes_it_back(
    monkeypatch: pytest.MonkeyPatch, lasts: bool
) -> None:
    now_s = 0.0
    monkeypatch.setattr("cachebus.base.providers.monotonic", lambda: now_s)
    provider = Rotating("s3cret")
    asked = provided(provider, "get_credentials_async", str, blocking="get_credentials")
    asked.failed("hangs", lasts=lasts)
    now_s = LATELY_S
    assert trouble_of(provider) == f"for {LATELY_S:.0f} s: the provider Rotating hangs"
    now_s += 1.0
    assert bool(trouble_of(provider)) == lasts
    asked.gave()
    assert trouble_of(provider) == ""
