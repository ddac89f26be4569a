"""The verdict on a run: its figures, and every promise that broke."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from cachebus.tools.verify.checker.promises import PROMISES

EDGES_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper edges of the histogram of ages. One more bucket holds what is older."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise that broke once."""

    promise: str
    """Such as "G1"."""
    told: str
    """One line: what was read, and what it should have been."""
    story: tuple[str, ...] = ()
    """The explanation, a line for each event: the write, the read, what each node had applied, and the faults."""

    def __str__(self) -> str:
        return f"{self.promise} ({PROMISES[self.promise]}): {self.told}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a run. Counts over all nodes; times in seconds."""

    seed: int
    server: str
    """Kind and version, such as "valkey-8.1.8"."""
    nodes: int
    seconds: float
    bound_s: float
    """D."""
    reads: int = 0
    """Reads that were begun."""
    judged: int = 0
    """Answers that were checked against the history. Other reads gave nothing (absent), or raised."""
    failed: int = 0
    """Reads that raised, as they may while L2 is out of reach, or the source."""
    tokens: int = 0
    """Judged reads that carried a token."""
    writes: int = 0
    """Writes and invalidations that returned."""
    repeated: int = 0
    """How often a write was repeated because it had raised."""
    loads: int = 0
    l1_hits: int = 0
    loads_twice: int = 0
    """Loads that began while another of the same item was under way, each explained by a lease that had ended."""
    unsure: int = 0
    """Reads of a value whose `set` raised, and may have arrived later. They can't be judged."""
    looked: int = 0
    """Items that were looked at when all was at rest, in L1 and L2 of every node."""
    ways: Mapping[str, int] = field(default_factory=dict)
    """How often rare cases happened: fallbacks, loads behind guards, callers that gave up, ..."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often each fault was injected."""
    ages: tuple[int, ...] = (0,) * (len(EDGES_S) + 1)
    """Stale reads by age: `ages[i]` were at most `EDGES_S[i]` seconds old, the last bucket any more."""
    stale_beyond: int = 0
    """Stale reads older than D."""
    foreign: int = 0
    """Reads that gave another tenant's, or another item's, value."""
    worst_age_s: float = 0.0
    broken: tuple[Finding, ...] = ()
    """At most a few for each promise; `counts` has all."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often each promise broke."""

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken

    @property
    def stale(self) -> int:
        """Reads that gave what an invalidation, already returned when they began, had replaced; of any age."""
        return sum(self.ages)

    def within(self, age_s: float) -> float:
        """The share (0-1) of the judged reads that were fresh, or stale by no more than this (an edge of the ages)."""
        return 1.0 - sum(self.ages[bisect_left(EDGES_S, age_s) + 1 :]) / max(1, self.judged)

    @property
    def within_bound(self) -> float:
        """The share (0-1) of the judged reads that were fresh, or stale by no more than D."""
        return 1.0 - self.stale_beyond / max(1, self.judged)

    def raise_for_broken(self) -> None:
        """`AssertionError` with what broke, and the seed, if anything did: for use at the end of a test."""
        if self.broken:
            lines = [line for finding in self.broken for line in (str(finding), *finding.story)]
            raise AssertionError("\n".join([f"{len(self.broken)} promises broke; seed {self.seed}", *lines]))

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        told = asdict(self)
        told |= {
            "ok": self.ok,
            "stale": self.stale,
            "age_edges_s": list(EDGES_S),
            "within_bound": self.within_bound,
            "broken": [{"promise": f.promise, "told": f.told, "story": list(f.story)} for f in self.broken],
        }
        return told


def bucket_of(age_s: float) -> int:
    """The bucket of an age in the histogram."""
    return bisect_left(EDGES_S, age_s)


def nines(share: float, reads: int) -> str:
    """A share for people: "99.97%", or "100% of 12,000" where nothing is lacking."""
    if share >= 1.0:
        return f"100% of {reads:,}"
    digits = 2
    while digits < 9 and round(share * 100, digits) >= 100:
        digits += 1
    return f"{share * 100:.{digits}f}%"
