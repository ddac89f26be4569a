"""What the nodes of a Cluster answer when they are asked for the slot map, and what is believed of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from cachebus.errors import L2Unavailable
from cachebus.resp.address import Address

Where = TypeVar("Where")
Said = list[Where | None]
"""By shard: where a node says that its primary is; None where it does not know."""


class NodeIds(NamedTuple):
    """The nodes that a node names, by their ids: the primaries, which are named while they are away, too, and all."""

    primaries: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()

    def with_others(self, others: NodeIds) -> NodeIds:
        """These and the others."""
        return NodeIds(self.primaries | others.primaries, self.nodes | others.nodes)

    def are_of(self, known: NodeIds) -> bool:
        """Whether who names these is of the Cluster that is known. One id alone proves nothing where there are several
        primaries: a node keeps its own when it leaves for another Cluster."""
        least = 1 if len(known.primaries) < 2 else 2
        return len(self.nodes & known.nodes) >= least


class _Cluster(Generic[Where]):
    """The nodes that have named each other, and what they say."""

    def __init__(self) -> None:
        self.nodes: list[Address] = []
        self.ids = NodeIds()
        self.said: list[Said[Where]] = []

    @property
    def size(self) -> int:
        """How many nodes know any place. One that has lost its memory, or is in no Cluster yet, has no say."""
        return sum(any(said) for said in self.said)

    def is_of(self, ids: NodeIds) -> bool:
        """Whether these are nodes of it. What only looks like a Cluster may name none."""
        return not self.ids.nodes.isdisjoint(ids.nodes) or self.ids.nodes == ids.nodes

    def take(self, other: _Cluster[Where]) -> None:
        """Have two that a node knows of be one."""
        self.nodes += other.nodes
        self.ids = self.ids.with_others(other.ids)
        self.said += other.said


class ClusterAnswers(Generic[Where]):
    """The answers of one refresh, by Cluster: at an address that was named for a node of ours another one's may stand
    by now. `undecided`: of how many addresses it is not known yet which Cluster they were meant for; most decide."""

    def __init__(self, undecided: int) -> None:
        self._undecided = undecided
        self._clusters: list[_Cluster[Where]] = []

    def __bool__(self) -> bool:
        return bool(self._clusters)

    def add(self, node: Address, said: Said[Where], ids: NodeIds) -> None:
        """A node has answered, and names these."""
        one = _Cluster[Where]()
        one.nodes, one.ids, one.said = [node], ids, [said]
        others = []
        for cluster in self._clusters:
            if cluster.is_of(ids):
                cluster.take(one)
                one = cluster
            else:
                others.append(cluster)
        self._clusters = sorted([*others, one], key=lambda cluster: -cluster.size)

    @property
    def are_enough(self) -> bool:
        """Whether two nodes of one Cluster say the same of each shard, and no other Cluster can have as many."""
        if not self._clusters:
            return False
        most = self._clusters[0]
        return 2 * most.size > self._undecided and _agreed(most.said)

    @property
    def have_all(self) -> bool:
        """Whether one has named the place of every shard."""
        return any(None not in said for cluster in self._clusters for said in cluster.said)

    @property
    def nodes(self) -> list[Address]:
        """All that have answered."""
        return [node for cluster in self._clusters for node in cluster.nodes]

    @property
    def strangers(self) -> list[Address]:
        """The nodes of other Clusters than the one that has most."""
        return [node for cluster in self._clusters[1:] if cluster.size for node in cluster.nodes]

    def believed(self) -> tuple[Said[Where], NodeIds]:
        """What the nodes of the Cluster say that has most of them, and its ids; `L2Unavailable` where another one has
        as many, or would have with those that are silent: another service may take that one then, and neither would
        hear of what the other one writes."""
        most, *others = self._clusters
        silent = max(0, self._undecided - len(self.nodes))
        if others and 0 < others[0].size >= most.size - silent:
            here, there = (", ".join(map(str, cluster.nodes)) for cluster in (most, others[0]))
            raise L2Unavailable(f"the nodes that are named are of two Clusters: {here}; {there}")
        return _most(most.said), most.ids


def _agreed(said: Sequence[Said[Where]]) -> bool:
    """Whether for each shard two nodes say the same."""
    if len(said) < 2:
        return False
    if said[-2] == said[-1] and None not in said[-1]:
        return True
    return all(_twice(named) for named in zip(*said, strict=True))


def _twice(named: tuple[Where | None, ...]) -> bool:
    there = [each for each in named if each is not None]
    return len(set(there)) < len(there)


def _most(said: Sequence[Said[Where]]) -> Said[Where]:
    """What most nodes say of each shard, the first of them in a tie; nobody only where no node names any."""
    if len(said) == 1 or all(each == said[0] for each in said):
        return said[0]
    votes = (Counter(filter(None, named)).most_common(1) for named in zip(*said, strict=True))
    return [vote[0][0] if vote else None for vote in votes]
