"""What the library's operations cost a server of each kind: CPU, and time in the scripts, beside plain commands.

A server has one thread for all of its clients, so this is what bounds a fleet. The client's own time does not count.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

from cachebus import Cache, Settings
from cachebus.assembly.backends import redis_store, route_of
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.cascade import CascadeTable
from cachebus.core.ports import Caller, FillLeaseOutcome, Store
from cachebus.core.requests import FillLeaseRequest, FillRequest, WriteRequest
from cachebus.keys.key import Key, Keyspace
from cachebus.keys.plan import Plan, Planner
from cachebus.policy import PolicyTable
from cachebus.resp import Connection, Subscriber, parse_address
from cachebus.tools.servers.redis import EmbeddedServer, find_servers
from cachebus.wire.packing import keep_ms, pack
from cachebus.wire.record import Record
from tests.bench.other_node import LEFT_ALONE_S
from tests.bench.reads import VALUE
from tests.bench.rows import Row
from tests.bench.run import Bench
from tests.bench.server_info import SCRIPTED, Cost, Work, compared, cost, work
from tests.support.servers import KINDS

TENANT: Final = "acme"
SHARD: Final = 0
NODES: Final = 3
IDS: Final = 100
SCOPES: Final = 100
"""Beside the marks of `IDS` ids in all contexts."""
UNDER_WAY: Final = 64
TIMEOUT_S: Final = 10.0
LEASE_MS: Final = 10_000
ALONE_PART: Final = 4
"""One at a time takes so much longer that a round has so many fewer."""

Do = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that is asked of the server, by its number; the commands that do it; and what it is beside."""

    name: str
    what: str
    do: Do
    commands: frozenset[str] = SCRIPTED
    alone: bool = False
    after: Callable[[int], Awaitable[None]] | None = None
    """Makes room for the next round, once this one has been looked at; told how many there were."""

    async def run(self, calls: int) -> None:
        """Do it so often: one after the other, or always some under way."""
        numbers = iter(range(calls))

        async def one_after_the_other() -> None:
            for number in numbers:
                await self.do(number)

        await asyncio.gather(*[one_after_the_other() for _ in range(1 if self.alone else UNDER_WAY)])


async def rows(bench: Bench) -> list[Row]:
    """A row for each operation and kind of server; those that this machine lacks are told."""
    found: list[Row] = []
    for kind in KINDS:
        binary = next((binary for binary in find_servers() if binary.origin == kind.origin), None)
        if binary is None:
            print(f"  no server of the kind {kind.name}; to get it: {kind.how_to_get_it}", file=sys.stderr)
            continue
        bench.progress.step(binary.name)
        with EmbeddedServer(binary) as server:
            found += await _of_server(bench, kind.name, server)
    return found


async def _of_server(bench: Bench, kind: str, server: EmbeddedServer) -> list[Row]:
    async with _fleet(server.url, bench.scale.log_entries) as fleet:
        operations = await fleet.operations()
        costs: dict[str, list[Cost]] = {operation.name: [] for operation in operations}
        for turn in range(-1, bench.scale.io_rounds):
            for operation in operations[:: 1 if turn % 2 else -1]:
                spent = await fleet.measured(operation, bench.scale.operations)
                if turn >= 0:  # the one before has warmed up all
                    costs[operation.name].append(spent)
            await fleet.show_lines()
            bench.progress.step(f"{server.name}, round {turn + 1} of {bench.scale.io_rounds}")
    return [
        compared(
            f"server.{operation.name}.{kind}",
            f"server CPU, {server.name}: {operation.what}",
            costs[operation.name],
            {plain: costs[name] for plain, name in _beside(operation)},
        )
        for operation in operations
    ]


def _beside(operation: Operation) -> list[tuple[str, str]]:
    """The plain commands that an operation is beside, in the same way, with the names of their own operations."""
    way = "_alone" if operation.alone else ""
    return [("SET", f"set{way}"), ("PUBLISH", f"publish{way}")]


class _Fleet:
    """A namespace as it is in use: some nodes' rows, marks, a log at its length, and a node that hears all events."""

    def __init__(self, store: Store, plain: Connection, log_entries: int) -> None:
        self._store, self._plain, self._log_entries = store, plain, log_entries
        self._keyspace = Keyspace(1)
        self._planner = Planner(self._keyspace, CascadeTable())
        self._rules = PolicyTable().rules("agent_config")
        self._callers = [Caller(f"node-{number}", 0, b"") for number in range(NODES)]
        self._server_s = 0.0
        self._tokens = count()

    # -- how it comes to be what it is -------------------------------------------------------------------------

    async def show_lines(self) -> None:
        """Every node says how far it is, as its heartbeat does."""
        for place, caller in enumerate(self._callers):
            reply = await self._store.probe(SHARD, caller, with_invalidated=False)
            self._callers[place] = caller._replace(applied=reply.seq, epoch=reply.epoch)
            self._server_s = reply.server_us / 1e6

    async def operations(self) -> list[Operation]:
        """Fill the namespace, and give what is measured in it."""
        await self.show_lines()
        for number in range(SCOPES):
            shard, name = self._keyspace.scope(TENANT, f"type-{number}", None, None, None)
            await self._store.invalidate(shard, self._callers[0], [], [name], b"")
        every = self._invalidate("agent_config", all_contexts=True)
        await Operation("", "", every).run(max(IDS, self._log_entries - SCOPES))
        write, read = self._write("agent_config"), self._write("profile")
        await Operation("", "", read).run(IDS)
        value = self._record().encode(self._key("document", 0).l2)
        event = (await self._store.log(SHARD, self._callers[0].applied - 1, 1))[0].message
        probe, one = self._probe, self._invalidate("agent_config")
        to_set, to_publish = self._command("SET", "plain:", value), self._command("PUBLISH", "plain", event)
        return [
            Operation("set", f"SET of {len(value)} bytes", to_set, frozenset({"set"})),
            Operation("publish", f"PUBLISH of {len(event)} bytes to one", to_publish, frozenset({"publish"})),
            Operation("probe", "probe", probe),
            Operation("invalidate", "invalidate a key", one),
            Operation("invalidate_all", "invalidate an id in all contexts", every),
            Operation("write", "set", write),
            Operation("fill", "lease and fill", self._fill, after=self._unfill),
            Operation("read", "read of a key", self._read),
            Operation("counter", "counter with a request id", self._count),
            Operation("set_alone", "SET, one at a time", to_set, frozenset({"set"}), alone=True),
            Operation("publish_alone", "PUBLISH, one at a time", to_publish, frozenset({"publish"}), alone=True),
            Operation("probe_alone", "probe, one at a time", probe, alone=True),
            Operation("invalidate_alone", "invalidate a key, one at a time", one, alone=True),
        ]

    # -- what it has cost --------------------------------------------------------------------------------------

    async def measured(self, operation: Operation, calls: int) -> Cost:
        """What it costs now."""
        calls = calls // ALONE_PART if operation.alone else calls
        before = await self._work()
        await operation.run(calls)
        after = await self._work(ended=True)
        if operation.after is not None:
            await operation.after(calls)
        return cost(before, after, calls, operation.commands)

    async def _work(self, *, ended: bool = False) -> Work:
        # The CPU nearest to what is measured: what INFO itself takes shall not count.
        sections = ("cpu", "commandstats") if ended else ("commandstats", "cpu")
        told = {section: await self._plain.call("INFO", section) for section in sections}
        return work(told["cpu"], told["commandstats"])

    # -- the operations, as the library calls them ---------------------------------------------------------------

    def _key(self, data_type: str, number: int) -> Key:
        return self._keyspace.key(data_type, f"agent-{number}", TENANT, None, None, None)

    def _plans(self, data_type: str, *, all_contexts: bool = False) -> list[Plan]:
        keys = [self._key(data_type, number) for number in range(IDS)]
        return [self._planner.one(key, all_contexts=all_contexts) for key in keys]

    def _record(self) -> Record:
        return pack(VALUE, self._rules, self._server_s)[0]

    def _moved(self, epoch: bytes, seq: int) -> None:
        """The node that asks has heard of it by the next time."""
        caller = self._callers[0]
        self._callers[0] = caller._replace(applied=max(caller.applied, seq), epoch=epoch)

    async def _probe(self, number: int) -> None:
        await self._store.probe(SHARD, self._callers[0], with_invalidated=False)

    def _invalidate(self, data_type: str, *, all_contexts: bool = False) -> Do:
        plans = self._plans(data_type, all_contexts=all_contexts)

        async def do(number: int) -> None:
            plan, caller = plans[number % IDS], self._callers[0]
            change = await self._store.invalidate(SHARD, caller, plan.keys, plan.scopes, plan.body(caller.node))
            self._moved(change.epoch, change.seq)

        return do

    def _write(self, data_type: str) -> Do:
        plans = self._plans(data_type)

        async def do(number: int) -> None:
            plan, caller, record = plans[number % IDS], self._callers[0], self._record()
            kept_ms, body = keep_ms(record, self._rules), plan.body(caller.node)
            writing = WriteRequest(record, kept_ms, body, plan.keys[1:], plan.scopes)
            change = await self._store.write(plan.keys[0], caller, writing)
            assert change.done
            self._moved(change.epoch, change.seq)

        return do

    async def _fill(self, number: int) -> None:
        key, token = self._key("document", number), f"{self._callers[0].node}-{next(self._tokens):x}"
        lease = await self._store.fill_lease(key, self._callers[0], FillLeaseRequest(token, LEASE_MS))
        assert lease.outcome is FillLeaseOutcome.GRANTED
        record = self._record()
        record.epoch, record.seq = lease.epoch, lease.seq
        change = await self._store.fill(key, self._callers[0], FillRequest(token, record, keep_ms(record, self._rules)))
        assert change.done

    async def _unfill(self, calls: int) -> None:
        keys = [self._key("document", number) for number in range(calls)]
        for at in range(0, calls, IDS):
            change = await self._store.invalidate(SHARD, self._callers[0], keys[at : at + IDS], [], b"")
            self._moved(change.epoch, change.seq)

    async def _read(self, number: int) -> None:
        reply = await self._store.read(SHARD, self._callers[0], [self._key("profile", number % IDS)])
        assert reply.records[0] is not None

    async def _count(self, number: int) -> None:
        key, request = self._key("calls", number % IDS), f"request-{next(self._tokens):x}"
        await self._store.counter(key, self._callers[0], 1, request, 0)

    def _command(self, command: str, where: str, what: bytes) -> Do:
        keyed = where.endswith(":")

        async def do(number: int) -> None:
            await self._plain.call(command, f"{where}{number % IDS}" if keyed else where, what)

        return do


@asynccontextmanager
async def _fleet(url: str, log_entries: int) -> AsyncIterator[_Fleet]:
    """With a node that hears every event, and somebody who hears what is plainly published."""
    settings = Settings(
        url=url,
        namespace="server",
        log_max_len=log_entries,
        staleness_bound_s=LEFT_ALONE_S,
        probe_interval_s=LEFT_ALONE_S / 2,
    )
    patience = Patience(TIMEOUT_S, TIMEOUT_S, monotonic)
    store = redis_store(settings, route_of(settings, monotonic), monotonic)
    async with Cache.open(settings):
        await store.connect()
        plain = await Connection.open(parse_address(url), patience)
        ears = await Subscriber.open(parse_address(url), patience, on_push=lambda channel, message: None)
        try:
            await ears.subscribe("plain")
            yield _Fleet(store, plain, log_entries)
        finally:
            ears.close()
            plain.close()
            await store.close()
