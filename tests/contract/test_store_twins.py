"""The scripts and their twin in memory: the same operations give the same replies, whatever they are.

Epochs are names and clocks differ, so both are compared by what they stand for. CACHEBUS_SEED=N plays one seed again.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from cachebus.core.ports import (
    About,
    Caller,
    Change,
    FillLeaseOutcome,
    FillLeaseReply,
    Largest,
    NodeRow,
    NodesReply,
    ProbeReply,
    ReadReply,
)
from cachebus.core.requests import FallbackKind, FillLeaseRequest, FillRequest, GuardRequest, WriteRequest
from cachebus.keys.key import ALL_OF_SHARD, Key
from cachebus.wire import event as events
from cachebus.wire import record as records
from cachebus.wire.record import Record
from tests.contract.clients import BUCKET, NEIGHBOUR, body, key, leaves_out, raised, tag
from tests.contract.conftest import program
from tests.contract.rig import MemoryRig, RedisRig, StoreRig
from tests.support.history import seed_to_try
from tests.support.servers import KINDS, Kind, SharedServers

STEPS = 400
MAX_INVALIDATED_SCOPES = 8
GUARD_MS = 200_000
AGES_MS = {"none": 0, "past": -3_600_000, "future": 3_600_000}
NEAR_MS = 5_000
KEYS = [
    key("a"),
    key("b:%*"),
    key("a", agent_id="x", collection_id="z"),
    key("a", data_type="other", conversation_id="y"),
    key("a", tenant=NEIGHBOUR),
    key("a", data_type="third", tenant=NEIGHBOUR),
]
TAGS = [tag("p"), tag("q"), tag("r" * 300)]
NAMES = [*(n for n in dict.fromkeys(name for k in KEYS for name in k.scopes) if n != ALL_OF_SHARD), *TAGS]
LOSSES = [
    "flush",
    "lose_meta",
    "lose_marks",
    "lose_bucket",
    "lose_buckets",
    "lose_guards",
    "lose_nodes",
    "another_server",
    "forget",
]
REQUESTS: dict[str, Any] = {
    "fill_lease": FillLeaseRequest,
    "fill": FillRequest,
    "guard": GuardRequest,
    "write": WriteRequest,
}
TOKENS = ["t", "t2", "u"]
NODES = ["", "ann", "bob"]


class Step(NamedTuple):
    """One operation, told without epochs and times."""

    verb: str
    args: dict[str, Any]


class Author:
    """Makes up steps, from the replies so far: most of them make sense, some do not."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.epochs = 1
        self.seq = 1
        self.stored: dict[Key, bytes] = {}
        """The version that was last put there."""
        self.grants: list[tuple[Key, str, int, int]] = []

    def heard(self, step: Step, reply: Any, epoch: int) -> None:
        """Take in what the memory store answered."""
        self.epochs = max(self.epochs, epoch + 1)
        self.seq = getattr(reply, "seq", self.seq)
        if isinstance(reply, FillLeaseReply) and reply.outcome is FillLeaseOutcome.GRANTED:
            self.grants.append((step.args["key"], step.args["token"], epoch, reply.seq))
        if step.verb in ("fill", "write") and reply.done:
            self.stored[step.args["key"]] = step.args["record"]["version"]

    def step(self) -> Step:
        """The next one."""
        verbs = {
            self.probe: 6,
            self.read: 10,
            self.get: 4,
            self.fill_lease: 20,
            self.fill: 20,
            self.hold: 5,
            self.invalidate: 9,
            self.write: 10,
            self.counter: 5,
            self.log: 3,
            self.forget: 2,
            self.plant: 4,
            self.lose: 1,
            self.nodes: 3,
            self.guard: 4,
            self.everything: 0.3,
        }
        (verb,) = self.dice.choices(list(verbs), list(verbs.values()))
        return verb()

    # -- ingredients --------------------------------------------------------------------------------------------

    def near(self, seq: int) -> int:
        return max(0, seq + self.dice.choice([0] * 8 + [-1, 1]))

    def caller(self) -> dict[str, Any]:
        """Mostly one that stands in the present epoch; now and then one that has applied more than there is."""
        epoch = self.epochs - 1 if self.dice.random() < 0.9 else self.dice.randrange(-1, self.epochs)
        ahead = self.dice.random() < 0.01
        applied = self.seq + 3 if ahead else max(0, self.seq - self.dice.randrange(4))
        return {
            "node": self.dice.choice(NODES),
            "applied": applied,
            "epoch": epoch,
            "bound_ms": self.dice.choice([0, 0, 0, 2_000, 5_000]),
            "guard_ms": self.dice.choice([0] * 9 + [GUARD_MS]),
            "alone": self.dice.random() < 0.1,
        }

    def record(self, epoch: int, seq: int) -> dict[str, Any]:
        return {
            "flags": self.dice.choice([0, records.FLAG_NOT_FOUND]),
            "payload": self.dice.randbytes(self.dice.randrange(9)),
            "tags": self.dice.sample(TAGS, self.dice.choice([0, 0, 1, 2])),
            "version": self.dice.randbytes(4),
            "age": self.dice.choice([*AGES_MS, "none", "future"]),
            "epoch": epoch,
            "seq": seq,
        }

    def some(self, of: list[Any], most: int = 2) -> list[Any]:
        return self.dice.choices(of, k=self.dice.choice([0, 1, 1, most]))

    # -- verbs --------------------------------------------------------------------------------------------------

    def probe(self) -> Step:
        return Step("probe", {"caller": self.caller(), "with_invalidated": self.dice.random() < 0.7})

    def nodes(self) -> Step:
        return Step("nodes", {"caller": self.caller()})

    def forget(self) -> Step:
        return Step(
            "forget", {"caller": self.caller(), "node": self.dice.choice(NODES), "lives": self.dice.random() < 0.5}
        )

    def read(self) -> Step:
        return Step("read", {"caller": self.caller(), "keys": self.some(KEYS, 4)})

    def get(self) -> Step:
        return Step("get", {"key": self.dice.choice(KEYS)})

    def fill_lease(self) -> Step:
        return Step(
            "fill_lease",
            {
                "key": self.dice.choice(KEYS),
                "caller": self.caller(),
                "token": self.dice.choice(TOKENS),
                "px_ms": self.dice.choice([40_000, 80_000]),
                "refresh": self.dice.random() < 0.5,
                "tags": self.some(TAGS, 1),
                "fallback": self.dice.choice(list(FallbackKind)),
            },
        )

    def fill(self) -> Step:
        if self.grants and self.dice.random() < 0.9:
            what, token, epoch, seq = self.grants[-1] if self.dice.random() < 0.8 else self.dice.choice(self.grants)
        else:
            what, token, epoch, seq = self.dice.choice(KEYS), self.dice.choice(TOKENS), self.epochs - 1, self.seq
        return Step(
            "fill",
            {
                "key": what,
                "caller": self.caller(),
                "token": token,
                "record": self.record(epoch, self.near(seq)),
                "px_ms": self.dice.choice([0, 100_000]),
                "over": self.dice.choice([b"", b"", self.stored.get(what, bytes(8))]),
            },
        )

    def hold(self) -> Step:
        what, token = self.grants[-1][:2] if self.grants else (KEYS[0], "t")
        if self.dice.random() < 0.3:
            token = self.dice.choice(TOKENS)
        return Step("hold", {"key": what, "token": token, "how": self.dice.choice(["extend", "release", "cool_down"])})

    def invalidate(self) -> Step:
        return Step("invalidate", {"caller": self.caller(), "keys": self.some(KEYS), "scopes": self.some(NAMES, 3)})

    def everything(self) -> Step:
        return Step("invalidate", {"caller": self.caller(), "keys": [], "scopes": [ALL_OF_SHARD]})

    def write(self) -> Step:
        what = self.dice.choice(KEYS)
        return Step(
            "write",
            {
                "key": what,
                "caller": self.caller(),
                "record": self.record(-1, 0),
                "px_ms": self.dice.choice([0, 100_000]),
                "others": self.some(KEYS, 2),
                "scopes": self.some(NAMES, 2),
                "if_absent": self.dice.random() < 0.4,
                "over": self.dice.choice([b"", b"", self.stored.get(what, bytes(4))]),
            },
        )

    def guard(self) -> Step:
        return Step(
            "guard",
            {
                "caller": self.caller(),
                "keys": self.some(KEYS),
                "scopes": self.some(NAMES, 3),
                "token": self.dice.choice("gh") * 16,
                "px_ms": self.dice.choice([0, 0, 40_000, 80_000]),
            },
        )

    def counter(self) -> Step:
        return Step(
            "counter",
            {
                "key": self.dice.choice(KEYS),
                "caller": self.caller(),
                "amount": self.dice.choice([0, 1, 5, -3, 2**53 + 1, 2**62, -(2**62)]),
                "request": self.dice.choice(["", "", "q1", "q2"]),
                "expires_ms": self.dice.choice([0, 100_000]),
            },
        )

    def log(self) -> Step:
        return Step(
            "log", {"after": max(0, self.seq - self.dice.randrange(12)), "count": self.dice.choice([1, 3, 100])}
        )

    def plant(self) -> Step:
        """What lies in a record's place may be anything: here, a record cut off, or of any epoch and seq."""
        record = self.record(self.dice.randrange(-1, self.epochs), self.near(self.seq))
        return Step(
            "plant", {"key": self.dice.choice(KEYS), "record": record, "cut": self.dice.choice([0, 0, 1, 9, 60])}
        )

    def lose(self) -> Step:
        return Step("lose", {"what": self.dice.choice(LOSSES)})


class Side:
    """One of the two stores, and its own names for epochs."""

    def __init__(self, rig: StoreRig) -> None:
        self.rig = rig
        self.epochs: list[bytes] = []
        self.names = [b""]

    async def begin(self) -> None:
        await self.rig.begin()
        self.store = await self.rig.store()
        reply = await self.store.probe(0, Caller("", 0, b""), with_invalidated=False)
        self.epochs.append(reply.epoch)
        self.now_ms = reply.server_us // 1000

    def number(self, epoch: bytes) -> int:
        """Which epoch of this store that is, by their order."""
        if epoch not in self.epochs:
            self.epochs.append(epoch)
        return self.epochs.index(epoch)

    def epoch(self, number: int) -> bytes:
        return b"" if number < 0 else self.epochs[number]

    def record(self, told: dict[str, Any]) -> Record:
        age_ms = AGES_MS[told["age"]]
        return Record(
            told["flags"],
            0,
            told["payload"],
            created_ms=0,
            expires_ms=age_ms and self.now_ms + age_ms,
            tags=told["tags"],
            epoch=self.epoch(told["epoch"]).ljust(16, b"-"),
            seq=told["seq"],
            version=told["version"],
        )

    # -- doing --------------------------------------------------------------------------------------------------

    async def do(self, step: Step) -> Any:
        """The store's own reply."""
        args = dict(step.args)
        if step.verb in ("lose", "plant", "hold"):
            return await getattr(self, step.verb)(**args)
        if "caller" in args:
            told = args["caller"]
            args["caller"] = Caller(
                told["node"],
                told["applied"],
                self.epoch(told["epoch"]),
                About(told["bound_ms"], told["guard_ms"], keeps_without_l2=told["alone"]),
                Largest(told["bound_ms"], told["guard_ms"], told["alone"]),
            )
        if "record" in args:
            args["record"] = self.record(args["record"])
        if step.verb in ("invalidate", "guard"):
            args["body"] = body(args["keys"], args["scopes"])
        elif step.verb == "write":
            args["body"] = body([args["key"], *args["others"]], args["scopes"])
        if step.verb not in ("get", "fill_lease", "fill", "write", "counter"):
            args["shard"] = 0
        if (request := REQUESTS.get(step.verb)) is not None:
            args["request"] = request(**{name: args.pop(name) for name in request._fields if name in args})
        return await getattr(self.store, step.verb)(**args)

    async def lose(self, what: str) -> None:
        if what == "lose_bucket":
            await self.rig.lose_marks(BUCKET)
        elif what != "forget":
            await getattr(self.rig, what)()
        elif isinstance(self.rig, RedisRig):
            await self.rig.redis.call("SCRIPT", "FLUSH")

    async def plant(self, key: Key, record: dict[str, Any], cut: int) -> None:
        data = self.record(record).encode(key.l2)
        await self.rig.plant(key, data[: len(data) - cut])

    async def hold(self, key: Key, token: str, how: str) -> None:
        if how == "release":
            self.store.release(key, token)
        else:
            getattr(self.store, how)(key, token, 120_000)
        for _ in range(2):  # two round trips: it may have had to send the script
            await self.store.log(0, 10**9, 1)

    # -- comparing ----------------------------------------------------------------------------------------------

    def told(self, reply: Any) -> Any:
        """A reply without what may differ."""
        match reply:
            case FillLeaseReply():
                left = round(reply.wait_ms / (2 * NEAR_MS))
                return self.number(reply.epoch), reply.seq, reply.outcome, self.data(reply.record), left
            case Change():
                header = reply.event_header
                told = header and (self.number(header[4:20]), raised(reply), leaves_out(reply))
                early = self.age(reply.expires_ms)
                return self.number(reply.epoch), reply.seq, reply.done, told, early, reply.bound_ms
            case ProbeReply():
                largest = reply.bound_ms, reply.guard_ms, reply.keeps_without_l2
                return self.number(reply.epoch), reply.seq, reply.invalidated, self.name(reply.nodes_name), largest
            case NodesReply():
                rows = {node: self.row(row) for node, row in reply.rows.items()}
                return self.number(reply.epoch), self.name(reply.name), reply.bound_ms, reply.keeps_without_l2, rows
            case ReadReply():
                return self.number(reply.epoch), reply.seq, [self.data(data) for data in reply.records]
            case list():
                return [(entry.seq, self.message(entry.message)) for entry in reply]
            case bytes():
                return self.data(reply)
        return reply

    def name(self, name: bytes) -> int:
        """Which set of rows of this store that is, by their order."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def row(self, row: NodeRow) -> Any:
        return row.applied, self.number(row.epoch) if row.epoch else None, row.about

    def age(self, expires_ms: int) -> str:
        """An expiry by name."""
        left_ms = expires_ms - self.now_ms
        if not expires_ms or left_ms < 0:
            return "past" if expires_ms else "none"
        return "cut short" if left_ms < 2 * GUARD_MS else "future"

    def data(self, data: bytes | None) -> Any:
        """A record, its epoch by number and its expiry by name."""
        if data is None:
            return None
        try:
            record = records.parse(data)
        except records.CorruptRecord:
            return len(data)
        epoch = self.number(record.epoch) if record.epoch in self.epochs else None
        age = self.age(record.expires_ms)
        return record.flags, record.payload, list(record.tags), record.version, age, epoch, record.seq

    def message(self, message: bytes) -> Any:
        if message.startswith(events.WAKE):
            return message
        return self.event(events.decode(message))

    def event(self, event: events.Event) -> Any:
        invalidated = *event.low, event.left_out
        return self.number(event.epoch), event.seq, invalidated, event.keys, event.scopes


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def sides(request: pytest.FixtureRequest, shared_servers: SharedServers) -> AsyncIterator[list[Side]]:
    """The twin, and a server of each kind."""
    kind: Kind = request.param
    url = shared_servers.get(program(kind)).url
    sides = [Side(MemoryRig(MAX_INVALIDATED_SCOPES, 100_000)), Side(RedisRig(url, MAX_INVALIDATED_SCOPES, 100_000))]
    for side in sides:
        await side.begin()
    yield sides
    for side in sides:
        await side.rig.end()


@pytest.mark.parametrize("seed", [1, 2, 3, None])
async def test_twins_answer_alike(sides: list[Side], seed: int | None) -> None:
    """With some seeds that are always played, and one that never was."""
    seed = seed or seed_to_try()
    author = Author(seed)
    history: list[Step] = []
    for _ in range(STEPS):
        step = author.step()
        history.append(step)
        replies = [await side.do(step) for side in sides]
        told = [side.told(reply) for side, reply in zip(sides, replies, strict=True)]
        assert told[0] == told[1], tale(seed, history)
        author.heard(step, replies[0], len(sides[0].epochs) - 1)
        if len(history) % 20 == 0:
            rows = [{n: side.row(row) for n, row in (await side.rig.rows()).items()} for side in sides]
            assert rows[0] == rows[1], tale(seed, history)
    await sides[1].rig.heard(len(sides[0].rig.messages))
    heard = [[side.message(message) for message in side.rig.messages] for side in sides]
    assert heard[0] == heard[1], tale(seed, history)


def tale(seed: int, history: list[Step]) -> str:
    """What led to it."""
    return "\n".join([f"CACHEBUS_SEED={seed}, after {len(history)} steps:", *map(str, history[-12:])])
