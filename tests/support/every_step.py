"""Stopping a program at each of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from cachebus import Settings
from tests.support.caches import parts
from tests.support.operations import LEASE_MS, POLICIES, Stage
from tests.support.steps import Steps

D_S = 1.0


SETTINGS = Settings(
    url="memory://",
    staleness_bound_s=D_S,
    probe_interval_s=0.5,
    gap_grace_s=0.02,
    lease_ms=LEASE_MS,
    policies=POLICIES,
    close_timeout_s=1.0,
)


@contextmanager
def numbered(stage: Stage, steps: Steps) -> Iterator[None]:
    """The calls of node a are numbered, also those of what it opens anew."""
    module: Any = import_module("cachebus.assembly.lifecycle")
    build = module.build

    def built(*args: Any, **kwargs: Any) -> Any:
        made = build(*args, **kwargs)
        steps.on(made)
        return made

    stage.steps = steps
    steps.on(parts(stage.a))
    module.build = built
    try:
        yield
    finally:
        module.build = build
