"""What a node's reads gave, written down for the judge; what may never be is noted as an oddity at once."""

from __future__ import annotations

from typing import Any, Final

from cachebus import ConfigError, L2Unavailable, LoadTimeout
from cachebus.base.clock import Clock
from cachebus.tools.verify.fleet import anomalies, data_types
from cachebus.tools.verify.fleet.anomalies import Anomalies
from cachebus.tools.verify.fleet.disturbances import LoopLag
from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, HistoryLog
from cachebus.tools.verify.fleet.items import Item
from cachebus.tools.verify.fleet.loaders import Uncacheable
from cachebus.tools.verify.fleet.source_of_truth import SourceOfTruth

PLAIN: Final = frozenset({"config", "page", "answer", "quick", "remote", "maybe", "claim", "deed", "system"})
"""Types whose values are whole when they are a list and its three parts are right."""
CIRCLE: Final = "waits for itself"
"""In the message to a load that asks for its own key."""
CUT_SHORT: Final = "though others waited"
"""In that of a load that was cancelled from outside, which here nobody does."""
CLOSED: Final = "cache was closed"
"""In that of what was cut short by closing: nothing is closed while reads go on."""


class Answers:
    """The logs of reads."""

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
        """`longest_s`: for how long a read may last that asks no source, what `loop_lag` tells apart."""
        self._loop_lag = loop_lag
        self._longest_s, self._absent = longest_s, absent
        self._source, self._reads, self._shown, self._anomalies, self._clock = source, reads, shown, anomalies, clock
        self.answered = self.absent = self.failed = self.given_up = 0

    def took(self, item: Item, verb: int, started_s: float) -> None:
        """A read is over that asks no source."""
        took_s = self._clock() - started_s
        if took_s > self._longest_s and took_s - self._loop_lag.since(started_s) > self._longest_s:
            self._anomalies.note(anomalies.TOO_SLOW, item, started_s, verb=verb, a=int(1000 * took_s))

    def note(self, item: Item, verb: int, value: Any, started_s: float, *, loads: bool = False, wider: int = 0) -> int:
        """Write an answer down; gives its version, 0 for none. `loads`: nothing means that the source has nothing.
        `wider`: the item that it may be of instead."""
        if value is None:
            return self._none(item, verb, started_s, loads=loads)
        self.answered += 1
        found, version, tenant = data_types.parse(value)
        if found not in (item.number, wider or item.number) or tenant != (item.tenant or ""):
            self._anomalies.note(anomalies.FOREIGN, item, started_s, verb=verb, a=found, b=version)
            return 0
        self._reads.add(found | verb << VERB_SHIFT, version, started_s)
        if item.data_type in data_types.REST_S:
            self._shown.add(found, started_s, self._clock())
        if item.data_type not in PLAIN or type(value) is not list:
            self._look_into(item, verb, value, version, started_s)
        return int(version)

    def _none(self, item: Item, verb: int, started_s: float, *, loads: bool) -> int:
        """Of "not found" it can't be told which version it is of: the newest that fits is the one in its favour."""
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

    def _look_into(self, item: Item, verb: int, value: Any, version: int, started_s: float) -> None:
        if item.data_type == "odd":
            whole = type(value) is list and all(type(part) is Uncacheable for part in value[3:])
        else:
            whole = data_types.is_intact(item.data_type, value)
        if not whole:
            spoilt = item.data_type in data_types.COPIED and data_types.is_mutated(value)
            kind = anomalies.SHARED if spoilt else anomalies.CHANGED
            self._anomalies.note(kind, item, started_s, verb=verb, b=version)
        if item.data_type in data_types.COPIED:
            data_types.mutate(value)

    def raised(self, item: Item, verb: int, error: BaseException, started_s: float) -> None:
        """A read that failed: as it may for what befell L2 or its source."""
        self.failed += 1
        if isinstance(error, L2Unavailable):
            self._anomalies.note(
                anomalies.UNAVAILABLE, item, started_s, verb=verb, a=int(1000 * (self._clock() - started_s))
            )
        if isinstance(error, LoadTimeout) and CUT_SHORT in str(error):
            self._anomalies.note(anomalies.CANCELLED, item, started_s, verb=verb)
        elif CLOSED in str(error) or (isinstance(error, ConfigError) and CIRCLE not in str(error)):
            self._anomalies.note(anomalies.CLOSED, item, started_s, verb=verb)

    def cancelled(self, item: Item, verb: int, started_s: float) -> None:
        """A read that was cancelled, though its caller was not."""
        self.failed += 1
        self._anomalies.note(anomalies.CANCELLED, item, started_s, verb=verb)
