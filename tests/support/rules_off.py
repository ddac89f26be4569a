"""The library without one of its rules, in processes of their own: they import this at their start and say which.

The model in `tests/model` takes the same rules away over a store in memory; here they are gone from the scripts too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VARIABLE = "RULE_TAKEN_AWAY"
_START = "import tests.support.rules_off as rules_off\nrules_off.take_away()\n"


def without(rule: str, folder: Path) -> dict[str, str]:
    """Variables under which a Python process, and all that it starts, runs without the rule."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_START)
    return {"PYTHONPATH": f"{ROOT}:{folder}", VARIABLE: rule}


def take_away() -> None:
    """Take the rule of the environment away in this process."""
    RULES[os.environ[VARIABLE]]()


def _without_coherence_lease() -> None:
    """Memory is served whether or not the lease has lapsed."""
    from cachebus.coherence import Shard
    from cachebus.groups import INF, Groups

    spread: Callable[..., None] = Groups.spread

    def spread_for_ever(groups: Groups, shard: int, valid_until: float) -> None:
        spread(groups, shard, valid_until)
        for leased, _ in groups.live[shard].values():
            leased.valid_until = INF

    of: Callable[..., Any] = Groups.of

    def group_for_ever(groups: Groups, shard: int, data_type: str, *, leased: bool = True) -> Any:
        found = of(groups, shard, data_type, leased=leased)
        found.valid_until = INF
        return found

    Groups.spread = spread_for_ever  # type: ignore[method-assign]
    Groups.of = group_for_ever  # type: ignore[method-assign]
    Shard.serves = lambda shard, now_s, expires_s, read_until_s: now_s < expires_s  # type: ignore[method-assign]


def _without_reservation() -> None:
    """What was read, loaded or written while its key was invalidated enters memory."""
    from cachebus.coherence import Shard

    Shard.marked = lambda *_: False  # type: ignore[method-assign]


def _without_epoch() -> None:
    """Events, probes and replies to own writes of another epoch are taken for one's own."""
    from cachebus.coherence import Shard
    from cachebus.node import Node

    wrote = Node.wrote
    Node.wrote = lambda node, shard, change, *rest: wrote(  # type: ignore[method-assign]
        node, shard, change._replace(epoch=node.shards[shard].epoch), *rest
    )
    hear, probed, has_heard = Shard.hear, Shard.probed, Shard.has_heard
    Shard.hear = lambda s, epoch, seq: hear(s, s.epoch, seq)  # type: ignore[method-assign]
    Shard.has_heard = lambda s, epoch, seq: has_heard(s, s.epoch, seq)  # type: ignore[method-assign]
    Shard.probed = lambda s, epoch, seq, at_s: probed(s, s.epoch, seq, at_s)  # type: ignore[method-assign]


def _without_record_fence() -> None:
    """Records of another epoch are believed, by L2 and by nodes."""
    from cachebus.fetch import Fetcher

    judged = Fetcher.judged

    def judged_in_any_epoch(fetcher: Fetcher, key: Any, data: bytes, *rest: Any) -> object:
        return judged(fetcher, key, data[:4] + fetcher.node.shards[0].epoch + data[20:], *rest)

    Fetcher.judged = judged_in_any_epoch  # type: ignore[method-assign]
    _rewrite_scripts(" or string.sub(record, 5, 20) ~= epoch", "")


def _without_lease_token() -> None:
    """A load is stored in L2 though its lease is gone."""
    _rewrite_scripts(
        "return is_lease(lease) and not rests(lease) and string.sub(lease, 18) == token", "return true",
        "return string.byte(lease) == 119", "return lease and string.byte(lease) == 119",
    )  # fmt: skip


def _without_catch_up() -> None:
    """A hole in the events counts as none."""
    from cachebus.coherence import Heard, Shard

    hear = Shard.hear

    def hear_over_holes(shard: Shard, epoch: bytes, seq: int) -> Heard:
        heard = hear(shard, epoch, seq)
        if heard is Heard.AHEAD:
            shard.applied = seq
            shard._ahead.clear()
        return heard

    Shard.hear = hear_over_holes  # type: ignore[method-assign]


def _rewrite_scripts(*pairs: str) -> None:
    """Replace lines of the scripts; each must be in some."""
    from cachebus.l2 import redis as store
    from cachebus.resp import Script

    sources = {name: script.source for name, script in store.load_scripts().items()}
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert any(old in source for source in sources.values()), old
        sources = {name: source.replace(old, new) for name, source in sources.items()}
    store.load_scripts = lambda: {name: Script(source) for name, source in sources.items()}


RULES: dict[str, Callable[[], None]] = {
    "coherence lease": _without_coherence_lease,
    "reservation": _without_reservation,
    "epoch": _without_epoch,
    "record fence": _without_record_fence,
    "lease token": _without_lease_token,
    "catch-up": _without_catch_up,
}
