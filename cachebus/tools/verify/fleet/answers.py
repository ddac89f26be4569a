"""The answers of a node's reads: recorded in the history logs, and checked at once for anomalies."""

from __future__ import annotations

from typing import Any, Final

from cachebus import ConfigError, L2Unavailable, LoadTimeout
from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet import anomalies, data_types
from cachebus.tools.verify.fleet.anomalies import Anomalies
from cachebus.tools.verify.fleet.disturbances import LoopLag
from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, HistoryLog
from cachebus.tools.verify.fleet.items import SourceItem
from cachebus.tools.verify.fleet.loaders import Uncacheable
from cachebus.tools.verify.fleet.source_of_truth import SourceOfTruth

PLAIN: Final = frozenset({"config", "page", "answer", "quick", "remote", "maybe", "claim", "deed", "system"})
"""Types whose values are intact if they are a list, and its first three parts are right."""
CIRCLE: Final = "waits for itself"
"""Part of the error of a load that asks for its own key."""
CUT_SHORT: Final = "though others waited"
"""Part of the error of a load that was cancelled from outside. Nobody here does that, so it is an anomaly."""
CLOSED: Final = "cache was closed"
"""Part of the error of a read that a closing cache ends. No cache is closed while reads go on, so it is an anomaly."""


class Answers:
    """Records answers, and counts them."""

    def __init__(
        self,
        source: SourceOfTruth,
        reads: HistoryLog,
        shown: HistoryLog,
        absent: HistoryLog,
        anomalies: Anomalies,
        clock: Clock,
        *,
        longest_s: float,
        loop_lag: LoopLag,
    ) -> None:
        """`longest_s`: how long a read may last that asks no source. `loop_lag`: how late the event loop was, which
        does not count."""
        self._loop_lag = loop_lag
        self._longest_s, self._absent = longest_s, absent
        self._source, self._reads, self._shown, self._anomalies, self._clock = source, reads, shown, anomalies, clock
        self.answered = self.absent = self.failed = self.given_up = 0

    def check_duration(self, item: SourceItem, verb: int, started_s: float) -> None:
        """A read that asks no source has ended: record an anomaly if it took too long."""
        took_s = self._clock() - started_s
        if took_s > self._longest_s and took_s - self._loop_lag.since(started_s) > self._longest_s:
            self._anomalies.note(anomalies.TOO_SLOW, item, started_s, verb=verb, ab=(int(1000 * took_s), 0))

    def note(
        self, item: SourceItem, verb: int, value: Any, started_s: float, *, loads: bool = False, wider: int = 0
    ) -> int:
        """Record an answer; returns its version, 0 for none. `loads`: the read may load, so None means that the source
        has nothing. `wider`: the number of an item whose value the read may give instead."""
        if value is None:
            return self._none(item, verb, started_s, loads=loads)
        self.answered += 1
        found, version, tenant = data_types.parse(value)
        if found not in (item.number, wider or item.number) or tenant != (item.tenant or ""):
            self._anomalies.note(anomalies.FOREIGN, item, started_s, verb=verb, ab=(found, version))
            return 0
        self._reads.add(found | verb << VERB_SHIFT, version, started_s)
        if item.data_type in data_types.REST_S:
            self._shown.add(found, started_s, self._clock())
        if item.data_type not in PLAIN or type(value) is not list:
            self._check_value(item, verb, value, version, started_s)
        return int(version)

    def _none(self, item: SourceItem, verb: int, started_s: float, *, loads: bool) -> int:
        """Record "not found". It does not tell its version: the newest one in which the item is absent is assumed,
        which is in the library's favour."""
        if not loads:
            self.absent += 1
            return 0
        self.answered += 1
        newest = self._source.versions[item.number]
        version = data_types.last_absent(newest) if data_types.is_absent(item.data_type, data_types.ABSENT_EVERY) else 0
        if version:
            self._reads.add(item.number | verb << VERB_SHIFT, version, started_s)
            self._absent.add(item.number, started_s, self._clock())
        else:
            self._anomalies.note(anomalies.CHANGED, item, started_s, verb=verb)
        return version

    def _check_value(self, item: SourceItem, verb: int, value: Any, version: int, started_s: float) -> None:
        """Record an anomaly if the value is not what was stored, or has what another caller put into it."""
        if item.data_type == "odd":
            whole = type(value) is list and all(type(part) is Uncacheable for part in value[3:])
        else:
            whole = data_types.is_intact(item.data_type, value)
        if not whole:
            mutated = item.data_type in data_types.COPIED and data_types.is_mutated(value)
            kind = anomalies.SHARED if mutated else anomalies.CHANGED
            self._anomalies.note(kind, item, started_s, verb=verb, ab=(0, version))
        if item.data_type in data_types.COPIED:
            data_types.mutate(value)

    def raised(self, item: SourceItem, verb: int, error: BaseException, started_s: float) -> None:
        """A read failed, as it may while L2 or the source is impaired."""
        self.failed += 1
        if isinstance(error, L2Unavailable):
            self._anomalies.note(
                anomalies.UNAVAILABLE, item, started_s, verb=verb, ab=(int(1000 * (self._clock() - started_s)), 0)
            )
        if isinstance(error, LoadTimeout) and CUT_SHORT in str(error):
            self._anomalies.note(anomalies.CANCELLED, item, started_s, verb=verb)
        elif CLOSED in str(error) or (isinstance(error, ConfigError) and CIRCLE not in str(error)):
            self._anomalies.note(anomalies.CLOSED, item, started_s, verb=verb)

    def cancelled(self, item: SourceItem, verb: int, started_s: float) -> None:
        """A read was cancelled, though nobody cancelled its caller."""
        self.failed += 1
        self._anomalies.note(anomalies.CANCELLED, item, started_s, verb=verb)
