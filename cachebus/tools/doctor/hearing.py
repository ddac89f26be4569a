"""Checks that all nodes of a namespace hear each other, where events go over Kafka: one topic, one cluster, one key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from cachebus.bus.kafka.envelope import hearing_of
from cachebus.core.hearing import KAFKA, KEYS, TOPIC, Hearing
from cachebus.settings import Settings
from cachebus.tools.doctor.facts import Facts, ShardFacts
from cachebus.tools.doctor.finding import G1, Finding, Severity
from cachebus.tools.doctor.rows import nodes_of
from cachebus.tools.doctor.some import some

OURS: Final = "these settings"
EVERYWHERE: Final = "for every node, producer and worker of the namespace"
MEANS: Final = (
    "Nodes of one hear of the others' invalidations by their probes only: within the bound, not within milliseconds."
)
UNSIGNED: Final = "none"


def heard_by(facts: Facts) -> Iterator[Finding]:
    """Check that all nodes that live, and these settings, hear each other."""
    yield from apart(facts.shards, facts.settings)


def apart(shards: Iterable[ShardFacts], settings: Settings) -> list[Finding]:
    """What keeps events from some of the nodes that live, or of these settings."""
    there = {node.name: node.hearing for shard in shards for node in nodes_of(shard) if node.alive and node.hearing}
    if there and settings.bus == "kafka":
        ours = hearing_of(settings)
        # Who only looks need not have the key.
        there[OURS] = ours if settings.kafka_events_key else ours._replace(keys=None)
    return _between(there)


def _between(there: Mapping[str, Hearing]) -> list[Finding]:
    distinct = set(there.values())
    barriers = {one.barrier(other) for one in distinct for other in distinct}
    found = []
    if TOPIC in barriers:
        by_topic = _by({name: one.topic for name, one in there.items()})
        found.append(_topics(by_topic))
    if KAFKA in barriers:
        by_cluster = _by({name: one.kafka for name, one in there.items() if one.kafka})
        found.append(_clusters(by_cluster))
    if KEYS in barriers:
        by_keys = _by({name: one.keys or UNSIGNED for name, one in there.items() if one.keys is not None})
        found.append(_keys(by_keys))
    return found


def _by(what: Mapping[str, str]) -> dict[str, set[str]]:
    named: dict[str, set[str]] = {}
    for name, value in what.items():
        named.setdefault(value, set()).add(name)
    return named


def _listed(named: Mapping[str, set[str]]) -> str:
    return some([f"{what}: {some(sorted(names))}" for what, names in sorted(named.items())], joined="; ")


def _topics(named: Mapping[str, set[str]]) -> Finding:
    says = f"events go by {len(named)} topics of Kafka: {_listed(named)}"
    otherwise = f"set the same CACHEBUS_KAFKA_TOPIC {EVERYWHERE}"
    return Finding("topics", Severity.ADVICE, says, MEANS, (G1,), otherwise=otherwise)


def _clusters(named: Mapping[str, set[str]]) -> Finding:
    says = f"events go by {len(named)} Kafka clusters, here by their ids: {_listed(named)}"
    otherwise = f"let CACHEBUS_KAFKA_BOOTSTRAP_SERVERS name brokers of the same one {EVERYWHERE}"
    return Finding("kafka clusters", Severity.ADVICE, says, MEANS, (G1,), otherwise=otherwise)


def _keys(named: Mapping[str, set[str]]) -> Finding:
    return Finding(
        "keys of events",
        Severity.ADVICE,
        f"not all accept what others sign events with, here by fingerprints of their keys: {_listed(named)}",
        "What is signed with a key that a node does not have, or not signed where it has one, that node passes over "
        "(events_unsigned), and hears of by its probes only: within the bound, but not within milliseconds.",
        (G1,),
        otherwise=f"set the same CACHEBUS_KAFKA_EVENTS_KEY {EVERYWHERE}; to change it: old,new everywhere, then "
        "new,old, then new",
    )
