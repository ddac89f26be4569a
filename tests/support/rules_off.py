"""The library without one of its rules, in processes of their own: they import this at their start and say which.

The model in `tests/model` takes the same rules away over a store in memory; here they are gone from the scripts too.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

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
    from cachebus.core.answers import INF
    from cachebus.core.groups import Groups
    from cachebus.core.shard import Shard

    spread: Callable[..., None] = Groups.spread

    def spread_for_ever(groups: Groups, shard: int, valid_until_s: float) -> None:
        spread(groups, shard, valid_until_s)
        for fenced, _ in groups.live[shard].values():
            fenced.valid_until_s = INF

    of: Callable[..., Any] = Groups.of

    def group_for_ever(groups: Groups, shard: int, data_type: str, *, fenced: bool = True) -> Any:
        found = of(groups, shard, data_type, fenced=fenced)
        found.valid_until_s = INF
        return found

    Groups.spread = spread_for_ever  # type: ignore[method-assign]
    Groups.of = group_for_ever  # type: ignore[method-assign]
    Shard.serves = lambda shard, now_s, expires_s, read_until_s: now_s < expires_s  # type: ignore[method-assign]


def _without_reservation() -> None:
    """What was read, loaded or written while its key was invalidated enters memory."""
    from cachebus.core.shard import Shard

    Shard.overtaken = lambda *_: False  # type: ignore[method-assign]


def _without_epoch() -> None:
    """Events, probes and replies to own writes of another epoch are taken for one's own."""
    from cachebus.core.node import Node
    from cachebus.core.shard import Shard

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
    from cachebus.reading.judge import Judge

    judged = Judge.judged

    def judged_in_any_epoch(judge: Judge, key: Any, data: bytes, *rest: Any) -> object:
        return judged(judge, key, data[:4] + judge.node.shards[0].epoch + data[20:], *rest)

    Judge.judged = judged_in_any_epoch  # type: ignore[method-assign]
    _rewrite_scripts(" or string.sub(record, 5, 20) ~= epoch", "")


def _without_lease_token() -> None:
    """A load is stored in L2 though its lease is gone."""
    _rewrite_scripts(
        "return is_fill_lease(lease) and not rests(lease) and string.sub(lease, 18) == token",
        "return true",
        "return string.byte(lease) == 119",
        "return lease and string.byte(lease) == 119",
    )


def _without_catch_up() -> None:
    """A gap in the events counts as none."""
    from cachebus.core.answers import Heard
    from cachebus.core.shard import Shard

    hear = Shard.hear

    def hear_over_gaps(shard: Shard, epoch: bytes, seq: int) -> Heard:
        heard = hear(shard, epoch, seq)
        if heard is Heard.AHEAD:
            shard.applied = seq
            shard._ahead.clear()
        return heard

    Shard.hear = hear_over_gaps  # type: ignore[method-assign]


# -- of the read path ------------------------------------------------------------------------


def _without_age_of_fallbacks() -> None:
    """What stands in for a source does so however old it is."""
    from cachebus.core.details import details
    from cachebus.core.node import Node
    from cachebus.reading.freshness import Fallback

    def fallback(node: Node, key: Any, now_s: float) -> Any:
        entry = node.trusted(key)
        extra = None if entry is None else details(entry)
        return entry if extra is not None and not extra.not_found and now_s < extra.fallback_until_s else None

    Fallback.usable = lambda *_: True  # type: ignore[method-assign]
    Node.fallback = fallback  # type: ignore[method-assign]


def _without_leaving() -> None:
    """A load that is being cancelled, since nobody waits for it, is joined."""
    from cachebus.reading.flight import Flight

    Flight.over = property(lambda flight: flight._task.done())  # type: ignore[assignment,method-assign]


def _without_shield() -> None:
    """One caller's cancellation ends the load that others wait for."""
    from cachebus.reading import flight

    class Bare:
        def __getattr__(self, name: str) -> Any:
            return (lambda task: task) if name == "shield" else getattr(asyncio, name)

    flight.asyncio = Bare()  # type: ignore[assignment]


def _without_a_loaders_own_cancellation() -> None:
    """A loader that cancels itself passes for the end of the load."""
    from cachebus.reading import source

    source._cancelled_itself = lambda task: False


def _without_giving_leases_back() -> None:
    """The lease of a load that ends without a fill is held, and extended for ever."""
    from cachebus.reading import fill_lease
    from cachebus.reading.fill_lease import FillLease

    fill_lease.GIVE_UP_S = float("inf")  # type: ignore[misc]
    FillLease.release = lambda *_: None  # type: ignore[method-assign]
    FillLease.cool_down = lambda *_: None  # type: ignore[method-assign]


def _without_cooldowns() -> None:
    """A source that has failed is asked again by whoever comes."""
    from cachebus.reading.cooldown import Cooldown, Cooldowns
    from cachebus.reading.fill_lease import FillLease

    Cooldowns.of = lambda *_: Cooldown.NONE  # type: ignore[method-assign]
    FillLease.cool_down = lambda lease, _: lease.release()  # type: ignore[method-assign]


def _without_storing_what_was_lost() -> None:
    """A refresh replaces the version that it began over, and nothing else."""
    from cachebus.reading.fill import Fill

    under_fill_lease = Fill.under_fill_lease
    Fill.under_fill_lease = lambda fill, found, answer, over=b"": under_fill_lease(  # type: ignore[method-assign]
        fill, found, answer, over or b"\0" * 24
    )


def _without_copies() -> None:
    """Callers of one load share its value, whatever the policy says."""
    from cachebus.reading.request import Found

    Found.handed_out = property(lambda found: found)  # type: ignore[assignment,method-assign]


def _without_decoding() -> None:
    """Who loads a value is given what its loader gave."""
    from cachebus.reading import fill
    from cachebus.wire import packing

    def packed(value: object, *rest: Any, **more: Any) -> Any:
        return packing.pack(value, *rest, **more)[0], value

    fill.pack = packed


def _without_an_end_of_absence() -> None:
    """That there was nothing stands in for a source that fails."""
    from cachebus.core.details import details
    from cachebus.core.node import Node
    from cachebus.reading import freshness
    from cachebus.wire.record import Record

    def fallback(node: Node, key: Any, now_s: float) -> Any:
        entry = node.trusted(key)
        extra = None if entry is None else details(entry)
        if entry is None or extra is None or now_s >= extra.fallback_until_s:
            return None
        return entry if node.shards[key.shard].serves(now_s, float("inf"), entry.read_until_s) else None

    def as_value(entry: Any) -> Any:
        extra = details(entry)
        if extra is None or not extra.not_found:
            return extra
        found = copy.copy(extra)
        found.not_found = False
        return found

    Record.may_be_fallback = property(lambda _: True)  # type: ignore[assignment,method-assign]
    Node.fallback = fallback  # type: ignore[method-assign]
    freshness.details = as_value


def _without_circles() -> None:
    """A loader that asks for its own key waits for itself."""
    from cachebus.reading import get_or_load

    get_or_load.check = lambda *_: None


def _without_adding_over_absence() -> None:
    """That there was nothing is in the way of `add`."""
    _rewrite_scripts(" and not says_nothing(now)", "")


# -- of guards, and of waiting for the nodes ------------------------------------------------------------------------


def _without_guards() -> None:
    """Guards guard nothing."""
    _rewrite_scripts("if guarded_until <= now_us then return nil end", "if true then return nil end")


def _without_guards_that_were_lost() -> None:
    """After a takeover nobody reckons with guards that it has lost."""
    from cachebus.core.node import Node

    Node.may_predate_lost_guards = lambda *_: False  # type: ignore[method-assign]
    _rewrite_scripts("if most == 0 or now_us", "if true or now_us")


def _without_waiting_for_every_node() -> None:
    """Who waits for the nodes waits for the first answer."""
    from cachebus.writing import confirm

    judged = confirm.judged
    confirm.judged = lambda *arguments: (judged(*arguments)[0], True)


def _without_the_largest_bound() -> None:
    """Who waits for the nodes reckons with its own bound alone."""
    from cachebus.writing import confirm

    confirm.first_bound_s = lambda own_s, *_: own_s
    confirm.largest_bound_s = lambda _, own_s: own_s


# -- of the second protocol ------------------------------------------------------------------------


def _without_the_headers_check() -> None:
    """An event with a changed header is believed."""
    from cachebus.wire import event

    decode = event.decode

    def believed(data: bytes) -> Any:
        if len(data) <= event.HEADER_BYTES + 4:
            return decode(data)
        check = event._check(data[: event._CHECK_AT] + data[event.HEADER_BYTES : event._HEADER.size])
        return decode(data[: event._CHECK_AT] + check + data[event.HEADER_BYTES :])

    for module in ("cachebus.wire.event", "cachebus.listening.receive"):
        vars(importlib.import_module(module)).update({"decode": believed})


def _without_flags_of_contexts() -> None:
    """An id in all contexts has no mark, whatever lies in one."""
    _rewrite_scripts("if flags and string.sub(flags, flag, flag) == '0' then", "if false then")


def _without_low_watermarks() -> None:
    """What becomes of marks that had to go is no matter. They go sooner than usual, while what they hide still lies
    there."""
    from cachebus.core.shard import Shard
    from cachebus.tools.verify.fleet import setup

    setup.MARKS_MAX = setup.FEW_MARKS

    Shard.below = lambda *_: False  # type: ignore[method-assign]
    _rewrite_scripts("if granted < low then return true end", "")


def _without_counting_marks() -> None:
    """That marks were lost is not noticed. None is forgotten for lack of room: else the low watermark, which is kept
    elsewhere, hides what most of them would."""
    from cachebus.tools.verify.fleet import setup

    setup.MARKS_MAX = setup.FEW_MARKS = 100_000
    _rewrite_scripts("return count > 0 and redis.pcall('ZCARD', prefix .. 'marks:' .. bucket) ~= count", "return false")


def _rewrite_scripts(*pairs: str) -> None:
    """Replace lines of the scripts; each must be in some."""
    from cachebus.l2 import running as store
    from cachebus.resp import Script

    sources = {name: script.source for name, script in store.load_scripts().items()}
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert any(old in source for source in sources.values()), old
        sources = {name: source.replace(old, new) for name, source in sources.items()}
    store.load_scripts = lambda: {name: Script(source) for name, source in sources.items()}


def _without_most_of_the_replicas() -> None:
    """A primary waits for one replica fewer than it takes, and the scripts, which would see that, for none."""
    from cachebus.tools.doctor.counting import needed
    from cachebus.tools.verify.target import group

    group.needed = lambda replicas: needed(replicas) - 1  # type: ignore[attr-defined]
    _rewrite_scripts("if heard < ", "if false and heard < ")


def _without_each_primary_apart() -> None:
    """Nothing is asked of any primary while another one is out of reach."""
    from cachebus.errors import L2Unavailable
    from cachebus.l2.redirect import Follower

    run: Callable[..., Any] = Follower.run
    begun: WeakSet[Follower] = WeakSet()

    async def run_of_all(follower: Follower, *args: Any, **more: Any) -> Any:
        if follower._links.connected:
            begun.add(follower)
        elif follower in begun:
            raise L2Unavailable("one of them is lost")
        return await run(follower, *args, **more)

    Follower.run = run_of_all  # type: ignore[method-assign]


RULES: dict[str, Callable[[], None]] = {
    "coherence lease": _without_coherence_lease,
    "reservation": _without_reservation,
    "epoch": _without_epoch,
    "record fence": _without_record_fence,
    "lease token": _without_lease_token,
    "catch-up": _without_catch_up,
    "age of fallbacks": _without_age_of_fallbacks,
    "leaving": _without_leaving,
    "shield": _without_shield,
    "a loader's own cancellation": _without_a_loaders_own_cancellation,
    "giving leases back": _without_giving_leases_back,
    "cooling down": _without_cooldowns,
    "storing what was lost": _without_storing_what_was_lost,
    "copies": _without_copies,
    "decoding": _without_decoding,
    "an end of absence": _without_an_end_of_absence,
    "circles": _without_circles,
    "adding over absence": _without_adding_over_absence,
    "guards": _without_guards,
    "guards that were lost": _without_guards_that_were_lost,
    "waiting for every node": _without_waiting_for_every_node,
    "the largest bound": _without_the_largest_bound,
    "the header's check": _without_the_headers_check,
    "flags of contexts": _without_flags_of_contexts,
    "low watermarks": _without_low_watermarks,
    "counting marks": _without_counting_marks,
    "each primary apart": _without_each_primary_apart,
    "waiting for most replicas": _without_most_of_the_replicas,
}
