"""Checks whether this user may do all that a node does: by asking the server (ACL DRYRUN, from 7.0), or by a trial.

The trial runs in a namespace of its own, whose keys match the same pattern. It is removed afterwards.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

from cachebus.assembly.backends import endpoints_of, redis_store
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.bus.redis import subscribed
from cachebus.core.ports import Caller, FillLeaseOutcome
from cachebus.core.requests import FillLeaseRequest, FillRequest, GuardRequest, WriteRequest
from cachebus.errors import CacheBusError, ConfigError, L2Unavailable
from cachebus.keys.key import Keyspace, tag_scope
from cachebus.l2.names import ShardNames
from cachebus.l2.redis import RedisStore
from cachebus.l2.scripts import load_scripts
from cachebus.resp import CLUSTER, SENTINEL, Subscriber, slot_of
from cachebus.settings import Settings
from cachebus.tools.doctor import refusals
from cachebus.tools.doctor.asking import ASK_TIMEOUT_S, Asker
from cachebus.tools.doctor.cluster import own_slots
from cachebus.tools.doctor.facts import Server
from cachebus.tools.doctor.finding import G1, Finding, Severity, ok, unknown
from cachebus.tools.doctor.primaries import route_to
from cachebus.wire import event as events
from cachebus.wire.record import Record

OUTSIDE: Final = ("PING", "GET", "MGET", "EVAL", "EVALSHA", "XRANGE", "SUBSCRIBE", "PUBLISH")
IN_A_CLUSTER: Final = ("ASKING", "CLUSTER", "COMMAND", "SPUBLISH", "SSUBSCRIBE")
"""Commands that a node sends besides its scripts, first to every server, then to a Cluster only. A script may publish
by a command that an argument names."""
HEARD_WITHIN_S: Final = 2.0
GUARD: Final = "doctor-guard-one"
_USER_NAME = re.compile(r"[A-Za-z0-9_.@:\-]{1,128}").fullmatch
_of_keys = re.compile(r"\bkeys?\b").search
_called = re.compile(r"redis\.p?call\('(\w+)'").findall
_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "HDEL": ("f",),
    "HGET": ("f",),
    "HINCRBY": ("f", "1"),
    "HMGET": ("f",),
    "HSCAN": ("0",),
    "HSET": ("f", "1"),
    "HSETNX": ("f", "1"),
    "PEXPIRE": ("1",),
    "SET": ("1",),
    "SETRANGE": ("0", "1"),
    "XADD": ("*", "e", "1"),
    "XRANGE": ("-", "+"),
    "XTRIM": ("MAXLEN", "1"),
    "ZADD": ("1", "m"),
    "ZMSCORE": ("m",),
    "ZRANGE": ("0", "-1"),
}
_WITHOUT_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "PING": (),
    "TIME": (),
    "INFO": ("replication",),
    "ROLE": (),
    "ASKING": (),
    "CLUSTER": ("SLOTS",),
    "COMMAND": (),
}
TRIES_MAX: Final = 100_000
HIDDEN: Final = "is not allowed, or has no effect"
NOT_HEARD: Final = f"was published and did not arrive in {HEARD_WITHIN_S:g} s"
_OF_RIGHTS: Final = (
    "NOPERM",
    "NOAUTH",
    "no permission",
    "ACL failure",
    "can't run this command",
    "can't access at least",
    "can't publish to",
    HIDDEN,
    NOT_HEARD,
)
"""Parts of refusals for a lacking right. ACL DRYRUN, and scripts before Redis 7.0, give no error code."""
_CHANNELS: Final = ("PUBLISH", "SPUBLISH", "SUBSCRIBE", "SSUBSCRIBE")


def needed(settings: Settings) -> list[str]:
    """Every command that a node with these settings sends, or that our scripts call, in capitals, sorted."""
    called = {name for script in load_scripts().values() for name in _called(script.source)}
    unused = set() if settings.bus == "redis" else set(_CHANNELS)  # Kafka carries the events
    if endpoints_of(settings).kind == CLUSTER:
        return sorted({*OUTSIDE, *called, *IN_A_CLUSTER} - unused)
    behind = {"ROLE"} if endpoints_of(settings).kind == SENTINEL else set()
    return sorted({*OUTSIDE, *called, *behind} - {"SPUBLISH"} - unused)


def rules(settings: Settings, commands: Iterable[str], *, keys: bool = True, channels: bool = True) -> str:
    """The ACL rules that give a user these commands, and the keys and channels of the namespace.

    A server refuses a pattern for a user who has all keys or channels already. So only what is lacking is named.
    """
    found = [f"+{command.lower()}" for command in commands]
    found += ["+select"] if endpoints_of(settings).template.db else []
    found += [f"~{{{settings.namespace}:*}}:*"] if keys else []
    found += [f"&{{{settings.namespace}:*}}:events:*"] if channels and settings.bus == "redis" else []
    return " ".join(found)


def user_of_its_own(settings: Settings, name: str) -> str:
    """The command that makes a user with only the rights that cachebus needs: one that is there loses all others, and
    its passwords. `ConfigError` for what is no name, or everybody's."""
    if not _USER_NAME(name):
        raise ConfigError(f"--acl {name!r} is no name of a user: letters, digits, and any of . _ - @ :")
    if name == "default":
        raise ConfigError("--acl default would take its rights from whoever names no user: take a name of its own")
    return f"ACL SETUSER {name} reset on >PASSWORD resetchannels {rules(settings, needed(settings))}"


@dataclass(slots=True)
class Access:
    """What the check of the rights has found."""

    how: str = ""
    refusals: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Commands that this user lacks ("" where it is not known which). Then: whether it lacks the keys, or channels."""
    keys: bool = False
    channels: bool = False
    others: list[str] = field(default_factory=list)
    """Refusals for another reason than a lacking right."""
    why_not: str = ""
    """Why the rights could not be checked."""

    def refused(self, what: str, why: str, command: str | None = None) -> None:
        """Take in a refusal; `command` is what was asked for, None for a step of many."""
        if not any(sign in why for sign in _OF_RIGHTS):
            self.others.append(f"{what}: {why}")
            return
        self.refusals.append(f"{what}: {why}")
        if "channel" in why:
            self.channels = True
        elif _of_keys(why):
            self.keys = True
        else:
            self.commands.append(command or "")


async def looked_at(asker: Asker, server: Server, settings: Settings, *, probe_writes: bool) -> Access:
    """Ask the server what this user may; with `probe_writes`, do it all in a namespace that is removed again."""
    if probe_writes:
        space = await _space_at(asker, settings)
        return (
            Access(why_not="no name was found of which the slot is this server's")
            if not space
            else (await _tried(asker, settings, space))
        )
    _, refused = await asker.ask("ACL", "DRYRUN", server.user, "PING")
    if not refused:
        return await _dry_run(asker, server, settings)
    old = bool(server.version) and server.version < (7,)
    if old and await _may_everything(asker, server):
        return Access("by ACL GETUSER")
    seen = await _read_only(asker, settings)
    if not (seen.refusals or seen.others):
        seen.why_not = "ACL DRYRUN is new in Redis 7.0" if old else f"ACL DRYRUN is refused ({refused})"
    return seen


async def _dry_run(asker: Asker, server: Server, settings: Settings) -> Access:
    names = ShardNames(settings.namespace, 0)
    seen = Access("by ACL DRYRUN")
    own = (
        names.log,
        names.nodes,
        names.guards,
        names.marks("00"),
        f"{names.record_prefix}x",
        f"{names.fill_lease_prefix}x",
        f"{names.counter_prefix}x",
    )
    for question in (*(_example(command, names) for command in needed(settings)), *(("UNLINK", key) for key in own)):
        answer, refused = await asker.ask("ACL", "DRYRUN", server.user, *question)
        if refused or answer != b"OK":
            seen.refused(question[0], refused or answer.decode(errors="replace"), question[0])
    return seen


async def _may_everything(asker: Asker, server: Server) -> bool:
    """Whether the user has no limits at all, as the flags of 6.2 say."""
    reply, refused = await asker.ask("ACL", "GETUSER", server.user)
    flags = set() if refused else {flag for part in reply if isinstance(part, list) for flag in part}
    return {b"allcommands", b"allkeys", b"allchannels"} <= flags


def _example(command: str, names: ShardNames) -> tuple[str, ...]:
    """A call of the command that stands for all of ours."""
    if command in _CHANNELS:
        return (command, names.channel, "m") if command.endswith("PUBLISH") else (command, names.channel)
    if command.startswith("EVAL"):
        return command, "return 1", "1", names.meta
    if command in _WITHOUT_KEYS:
        return command, *_WITHOUT_KEYS[command]
    return command, names.meta, *_ARGUMENTS.get(command, ())


async def _read_only(asker: Asker, settings: Settings) -> Access:
    """What can be tried without changing anything."""
    names, seen = ShardNames(settings.namespace, 0), Access("by reading")
    record = f"{names.record_prefix}x"
    script, sweep = ("EVAL", "return 1", "1", names.meta), ("HSCAN", names.guards, "0")
    for question in (("GET", record), ("MGET", record), ("XRANGE", names.log, "+", "-"), sweep, script):
        _, refused = await asker.ask(*question)
        if refused.startswith("NOPERM"):
            seen.refused(question[0], refused, question[0])
    return seen


async def _space_at(asker: Asker, settings: Settings) -> str:
    """A namespace for the trial, of which this very server has the slot; "" for none."""
    spaces = (f"{settings.namespace}:doctor-{secrets.token_hex(4)}" for _ in range(TRIES_MAX))
    if endpoints_of(settings).kind != CLUSTER:
        return next(spaces)
    lines, _ = await asker.ask("CLUSTER", "NODES")
    own = own_slots((lines or b"").decode(errors="replace"))
    return next((space for space in spaces if any(slot_of(ShardNames(space, 0).meta) in each for each in own)), "")


async def _tried(asker: Asker, settings: Settings, space: str) -> Access:
    # Two marks at most, so that three names make the script forget one, and so few bytes of the log that each event has
    # it look for the first that stays: either takes a command of its own. (Sweeping guards takes more than may stand.)
    # Less than settings may say, so they are not checked.
    few = {"namespace": space, "shards": 1, "max_invalidated_scopes": 2, "log_max_bytes": 1_024}
    trial = BaseModel.model_copy(settings, update=few)
    seen = await _read_only(asker, trial)
    seen.how = "by a trial in a namespace of its own, removed again"
    heard, subscriber = asyncio.Event(), None
    route = await route_to(trial)
    names = ShardNames(trial.namespace, 0, endpoints_of(trial).template.db)
    store, address = redis_store(trial, route, monotonic), next(filter(None, route.known))
    sweeper = await Asker.open(address, ASK_TIMEOUT_S)
    try:
        if settings.bus == "redis":
            subscriber = await Subscriber.open(
                address,
                Patience(ASK_TIMEOUT_S, ASK_TIMEOUT_S, monotonic),
                on_push=lambda _channel, _message: heard.set(),
            )
            await _step(seen, "SUBSCRIBE", subscribed(subscriber, names.channel, sharded=route.clustered))
        await store.connect()
        await _step(seen, "a node's operations", _life(store))
        if subscriber is not None and not (seen.refusals or seen.others):
            await _step(seen, "an event", asyncio.wait_for(heard.wait(), HEARD_WITHIN_S))
    finally:
        if subscriber is not None:
            subscriber.close()
        await store.close()
        key = Keyspace(1).key("doctor", "1", "doctor")
        for left in (*names.own, names.record(key), names.fill_lease(key), f"{names.counter_prefix}{key.l2}"):
            await sweeper.ask("UNLINK", left)
        sweeper.close()
    return seen


async def _step(seen: Access, what: str, step: Awaitable[object]) -> None:
    try:
        await step
    except TimeoutError:
        seen.refused(what, NOT_HEARD)
    except CacheBusError as error:
        seen.refused(what, str(error))


async def _life(store: RedisStore) -> None:
    """Every operation once, each with the answer that it must have: a refusal inside a script may hide in another."""
    key, caller = Keyspace(1).key("doctor", "1", "doctor"), Caller("doctor", 0, b"")
    scopes = (*key.scopes[2:4], tag_scope("doctor", "1"))
    body = events.encode_body([events.WritePart([key.l1], list(scopes), "doctor")])
    place = await store.probe(0, caller, with_invalidated=False)
    await store.invalidate(0, caller, [key], scopes, body)
    again = await store.probe(0, caller, with_invalidated=True)
    _must(again.epoch == place.epoch, "reading meta or marks (HMGET, ZCARD): every operation begins a new epoch")
    _must(len(await store.log(0, place.seq, 9)) == 1, "writing or reading the log (XADD, XRANGE)")
    leased = await store.fill_lease(key, caller, FillLeaseRequest("doctor-1", 5000))
    _must(leased.outcome is FillLeaseOutcome.GRANTED, "taking a lease (SET)")
    record = Record(0, 0, b"", created_ms=place.server_us // 1000, epoch=leased.epoch, seq=leased.seq)
    _must((await store.fill(key, caller, FillRequest("doctor-1", record, 5000))).done, "reading a lease (GET)")
    _must(await store.get(key) is not None, "reading a record (GET)")
    _must((await store.read(0, caller, [key])).records[0] is not None, "judging a record (GET, ZMSCORE)")
    await store.write(key, caller, WriteRequest(record, 5000, body))
    await store.fill_lease(key, caller, FillLeaseRequest("doctor-2", 5000, refresh=True))
    await store.fill_lease(key, caller, FillLeaseRequest("doctor-4", 5000, refresh=True))  # one that waits
    store.extend(key, "doctor-2", 5000)
    store.cool_down(key, "doctor-2", 5000)
    await store.fill_lease(key, caller, FillLeaseRequest("doctor-2", 5000, refresh=True))
    store.release(key, "doctor-2")
    await store.guard(0, caller, GuardRequest([key], scopes[:1], GUARD, 5000), body)
    guarded = await store.fill_lease(key, caller, FillLeaseRequest("doctor-3", 5000))
    _must(guarded.outcome is FillLeaseOutcome.GUARDED, "keeping a write guard (HSET, HMGET, HSCAN)")
    await store.guard(0, caller, GuardRequest([key], scopes[:1], GUARD, 0), body)
    _must(await store.counter(key, caller, 1, "", 5000) == 1, "counting (HINCRBY)")
    await store.nodes(0, caller)
    await store.forget(0, caller, "doctor", lives=True)


def _must(true: bool, what: str) -> None:
    if not true:
        raise L2Unavailable(f"{what} {HIDDEN}")


def permissions(seen: Access, server: Server, settings: Settings) -> Iterator[Finding]:
    """What the look at permissions found."""
    if seen.others:
        yield refusals.finding_of(seen.others, seen.how)
    if seen.why_not:
        yield unknown(
            "permissions",
            f"{seen.why_not}, and nothing is written without leave",
            f"User {server.user} may read here; whether it may write was not tried.",
            "run it with --probe-writes: it writes in a namespace of its own, and removes that",
        )
    elif seen.refusals:
        more = "" if len(seen.refusals) == 1 else f" (and {len(seen.refusals) - 1} more)"
        commands = needed(settings) if "" in seen.commands else seen.commands
        lacking = rules(settings, dict.fromkeys(commands), keys=seen.keys, channels=seen.channels)
        yield Finding(
            "permissions",
            Severity.PROBLEM,
            f"user {server.user} lacks a permission, found {seen.how}: {seen.refusals[0]}{more}",
            "Operations that need it fail, or find nothing; without the channel a node is deaf, and hears of "
            "invalidations by its probes only.",
            (G1,),
            (f"ACL SETUSER {server.user} {lacking}",),
            otherwise="to be typed by a user who may; then ACL SAVE, or CONFIG REWRITE where there is no aclfile. All "
            "that a user of its own needs is told by --acl NAME",
        )
    elif not seen.others:
        yield ok("permissions", f"user {server.user} may do all that a node does, found {seen.how}")
