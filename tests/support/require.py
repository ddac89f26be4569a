"""Loud skips: what a test needs and this machine lacks is told with how to get it, and in CI it is a failure."""

from __future__ import annotations

import os

import pytest


def require(condition: object, what: str, how_to_get_it: str, *, can_exist: bool = True) -> None:
    """Go on if `condition` is true; else skip the test, or fail it where `CI=true` is set.

    `what`: what is missing, as in "a redis-server on PATH". `how_to_get_it`: the command that brings it. `can_exist`:
    false where nothing could bring it to this Python or platform; then it is a skip in CI too.
    """
    if condition:
        return
    reason = f"needs {what}; to get it: {how_to_get_it}"
    if can_exist and os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
