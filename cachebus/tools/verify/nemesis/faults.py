"""All faults by name, the choice of them, and the schedule that a seed makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from cachebus.errors import ConfigError
from cachebus.policy import closest
from cachebus.tools.verify.nemesis.broker_faults import BROKER_FAULTS
from cachebus.tools.verify.nemesis.failover_faults import FAILOVER_FAULTS
from cachebus.tools.verify.nemesis.group_faults import GROUP_FAULTS
from cachebus.tools.verify.nemesis.network_faults import NETWORK_FAULTS
from cachebus.tools.verify.nemesis.node_faults import NODE_FAULTS, SOURCE_FAULTS
from cachebus.tools.verify.nemesis.server_faults import SERVER_FAULTS
from cachebus.tools.verify.target.server import ALONE, KAFKA, REDIS
from cachebus.tools.verify.target.testbed import Fault, Occurrence

_OF_SERVERS: Final = (*SERVER_FAULTS, *GROUP_FAULTS, *FAILOVER_FAULTS, *BROKER_FAULTS)
_ALL: Final = (*NETWORK_FAULTS, *NODE_FAULTS, *SOURCE_FAULTS, *_OF_SERVERS)
FAULTS: Final = {fault.name: fault for fault in _ALL}
GROUPS: Final = ("network", "node", "source", "server", "group", "bus", "broker")
OF_REDIS: Final = (
    "hang-events",
    "deaf",
    "delay-events",
    "drop",
    "double",
    "reorder",
    "garble",
    "garble-head",
    "kill-pubsub",
    "buffer-kill",
)
"""Faults of a subscription. Nodes have none if Kafka carries the events."""
NOT_OF: Final = {
    "sentinel": ("move-slot", "half-moved", "hung-target", "uncovered-slot", "impostor"),
    "cluster": ("sentinels-away", "split", "failover-unseen"),
}
"""Faults of a group that do not exist for one kind of group."""
OF_A_GROUP: Final = ("lost-primary", "half-lost-primary")
"""Faults of the network that need several servers."""
ROWS: Final = {
    "node": ("network", "node", "bus"),
    "source": ("source",),
    "server": ("server", "group"),
    "broker": ("broker",),
}
FIRST_BOUNDS: Final = 0.5
"""A run begins with so many bounds without faults, so that nodes have leases, and ends with LAST_BOUNDS without faults,
so that they can recover."""
LAST_BOUNDS: Final = 1.0
CALM: Final = {"server": (0.3, 2.0), "node": (0.1, 1.0), "source": (0.1, 1.5), "broker": (0.5, 3.0)}
"""The pause between two faults of a row, at least and at most, in bounds."""


def chosen(words: str) -> tuple[Fault, ...]:
    """The faults that are named by "all", "none", or names and groups separated by commas; `ConfigError`."""
    found: dict[str, Fault] = {}
    for word in filter(None, (word.strip() for word in words.split(","))):
        if word in FAULTS:
            found[word] = FAULTS[word]
        elif word == "all" or word in GROUPS:
            found |= {name: fault for name, fault in FAULTS.items() if word in ("all", fault.where)}
        elif word != "none":
            known = ("all", "none", *GROUPS, *FAULTS)
            meant = closest(word, known)
            hint = f", did you mean {meant}?" if meant else "; `cachebus verify --list-faults` shows all"
            raise ConfigError(f"there is no fault {word!r}{hint}")
    return tuple(found.values())


def possible(
    faults: Sequence[Fault], *, own: bool, proxied: bool, kind: str = ALONE, bus: str = REDIS
) -> tuple[Fault, ...]:
    """The faults that this run can inject.

    `own`: the server is the run's own. `proxied`: nodes reach it by proxies. `kind`, `bus`: as of the plan.
    """

    def may(fault: Fault) -> bool:
        if fault.where in ("broker", "bus"):
            return bus == KAFKA
        if bus == KAFKA and fault.name in OF_REDIS:
            return False
        if fault.where == "group":
            return kind != ALONE and fault.name not in NOT_OF[kind]
        if not proxied and (fault.where == "network" or fault.name == "newborn"):
            return False
        if fault.name in (OF_A_GROUP if kind == ALONE else ("newborn",)):
            return False
        return own or not (fault.own or fault.where == "server")

    return tuple(filter(may, faults))


def schedule(
    faults: Sequence[Fault], *, seed: int, nodes: int, seconds: float, bound_s: float
) -> list[list[Occurrence]]:
    """When faults occur, in rows that run at the same time: faults of nodes and their network, of their source, of the
    server, and of the broker. In a row one follows the other."""
    rows = []
    for row, wheres in ROWS.items():
        some = [fault for fault in faults if fault.where in wheres]
        dice = Random(f"{seed}:{row}")
        rows.append(list(_row(some, dice, nodes, seconds, bound_s, CALM[row])) if some else [])
    return rows


def _row(
    faults: list[Fault], dice: Random, nodes: int, seconds: float, bound_s: float, calm: tuple[float, float]
) -> Iterator[Occurrence]:
    at_s, end_s = FIRST_BOUNDS * bound_s, seconds - LAST_BOUNDS * bound_s
    while True:
        dice.shuffle(faults)  # each once before any comes again
        for fault in faults:
            lasts_s = dice.uniform(*fault.lasts) * bound_s
            node = 0 if fault.where in ("server", "group", "broker") else dice.randrange(nodes) + 1
            at_s += dice.uniform(*calm) * bound_s
            if at_s >= end_s:
                return
            lasts_s = min(lasts_s, end_s - at_s)
            yield Occurrence(at_s, fault, node, lasts_s, dice.getrandbits(32))
            at_s += lasts_s
