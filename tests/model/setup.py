"""The set-ups of the model: which keys and scope there are, and how often each thing may happen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cachebus.keys.key import ALL_OF_SHARD, Key, Keyspace, everywhere, tag_scope
from tests.model.frozen import BOUND

BUDGETS = ("invs", "failovers", "wipes", "evictions", "trims", "own", "outages", "lapses", "garbles")
_CONTEXTS = {"A": "agent_id", "V": "conversation_id", "C": "collection_id"}


@dataclass(frozen=True)
class Setup:
    """A small world: key 0, key 1, one scope around both, and budgets for what may happen."""

    name: str
    kinds: str = "ks"
    """What writers elsewhere do: k = invalidate key 0, s = invalidate the scope, w = set key 0, x = invalidate another
    scope, in which neither key lies (it only pushes out older marks)."""
    own_kinds: str = ""
    """What the node's own callers do: k, s and w."""
    shape: str = "D"
    """The scope's shape; G is a tag, N everything in the shard."""
    max_invalidated_scopes: int = 100
    late: bool = True
    """Whether the replies to probes and log reads may come late."""
    rollback: bool = True
    """Whether a failover may lose what was written from some invalidation on."""
    repeats: bool = False
    """Whether events that the node has applied may come again."""
    old: bool = False
    """Whether events may still come of an epoch that the node has left."""
    tokens: bool = True
    """Whether to check session tokens (G3)."""
    second: bool = False
    """Whether there is a loader on another node."""
    loads: tuple[int, ...] = (0,)
    """Which keys are read from L2 and loaded; both are in L1 at the start."""
    fills: bool = True
    """Whether the node loads; if not, it knows of tags only from records."""
    told: bool = False
    """Whether it is the loader that tells the tag, and nobody knows of it before."""
    empty: bool = False
    """Whether neither level holds anything at the start."""
    lease_hits: bool = False
    """Whether a lease may meet a record that has come just before."""
    strong: bool = False
    """Whether writers elsewhere wait for the nodes (G4), one at a time."""
    waiter_bound: float = BOUND
    """Their own staleness bound, in ticks."""
    waiter_is_node: bool = False
    """Whether they are nodes, whose rows are there."""
    heals: bool = False
    """Whether to check in every state that probes alone bring the node back to a live lease."""
    invs: int = 1
    failovers: int = 0
    wipes: int = 0
    evictions: int = 0
    trims: int = 0
    own: int = 0
    outages: int = 0
    lapses: int = 0
    garbles: int = 0
    """How often an event may arrive as another one's."""

    def budgets(self) -> tuple[int, ...]:
        """How often each of `BUDGETS` may still happen."""
        return tuple(getattr(self, name) for name in BUDGETS)

    @cached_property
    def keys(self) -> tuple[Key, Key]:
        """Key 0 and key 1: both lie in the scope."""
        space = Keyspace(1)
        if len(self.shape) == 2:
            context = {_CONTEXTS[self.shape[1]]: "c"}
            return space.key("d", "0", "t", **context), space.key("d", "1", "t", **context)
        if self.shape == "I":
            return space.key("d", "0", "t"), space.key("d", "0", "t", agent_id="a")
        return space.key("d", "0", "t"), space.key("e" if self.shape in "TN" else "d", "1", "t")

    @cached_property
    def scope(self) -> str:
        """The name of the scope's mark."""
        space = Keyspace(1)
        if self.shape == "G":
            return tag_scope("t", "tag")
        if self.shape == "I":
            return everywhere(self.keys[0])
        if self.shape in "NY":
            return ALL_OF_SHARD if self.shape == "N" else "Y\x1fd"
        context = {_CONTEXTS[c]: "c" for c in self.shape[1:]}
        return space.scope("t", "d" if self.shape[0] == "D" else None, **context)[1]

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The marks of the tags that every record carries."""
        return (self.scope,) if self.shape == "G" else ()

    def target(self, kind: str) -> tuple[tuple[Key, ...], tuple[str, ...]]:
        """The keys and names that an invalidation of this kind replaces."""
        if kind == "s":
            return (), (self.scope,)
        return ((), ("T\x1fother",)) if kind == "x" else ((self.keys[0],), ())


SETUPS = {
    setup.name: setup
    for setup in (
        Setup("SMALL", failovers=1, late=False, old=True, lease_hits=True),
        Setup("LATE", failovers=1, kinds="s", rollback=False, old=True, tokens=False),
        Setup("TRIM", invs=2, trims=1, late=False, tokens=False),
        Setup("LOG", invs=2, trims=1, kinds="k", old=True, tokens=False, loads=()),
        Setup("TWO", invs=2, failovers=1, late=False, tokens=False),
        Setup("BACK", failovers=2, late=False, tokens=False),
        Setup("LOST", kinds="s", evictions=1, wipes=1, late=False, tokens=False),
        Setup("OWN", own=1, own_kinds="ksw", kinds="k", late=False, tokens=False),
        Setup("OWN-FAILOVER", invs=0, own=1, own_kinds="kw", failovers=1, late=False),
        Setup("OUTAGE", outages=2, late=False),
        Setup("OWN-OUTAGE", invs=0, own=1, own_kinds="ksw", outages=1, late=False),
        Setup("FLOOR", invs=2, trims=1, max_invalidated_scopes=1, kinds="sx", late=False, tokens=False),
        Setup("SECOND", second=True, lapses=1, late=False, empty=True),
        Setup("BOTH", loads=(0, 1), late=False, empty=True),
        Setup("TAG", invs=2, kinds="s", shape="G", late=False),
        Setup("TAG-TOLD", invs=2, kinds="s", shape="G", told=True, late=False),
        Setup("TAG-READ", failovers=1, kinds="s", shape="G", late=False, fills=False, lease_hits=True),
        Setup("STRONG", invs=2, kinds="s", strong=True, late=False, tokens=False),
        Setup("STRONG-LATE", strong=True, tokens=False, kinds="k", loads=()),
        Setup("STRONG-LOST", kinds="s", strong=True, evictions=1, wipes=1, late=False, tokens=False, loads=()),
        Setup("STRONG-FAILOVER", kinds="k", strong=True, failovers=1, late=False, tokens=False, loads=()),
        Setup("STRONG-ALONE", invs=2, kinds="k", strong=True, outages=1, late=False, tokens=False),
        Setup(
            "STRONG-LOST-ALONE",
            kinds="k",
            strong=True,
            outages=1,
            evictions=1,
            waiter_is_node=True,
            late=False,
            tokens=False,
        ),
        Setup("STRONG-BOUND", kinds="k", strong=True, waiter_bound=1.0, late=False, tokens=False, loads=()),
        Setup("GARBLED", invs=3, kinds="ks", garbles=1, late=False, tokens=False, loads=()),
        Setup("CONTEXTS", invs=2, kinds="s", shape="I", empty=True, loads=(1,), late=False),
        Setup("CONTEXTS-OWN", invs=0, own=1, own_kinds="s", shape="I", empty=True, loads=(1,), outages=1, late=False),
        Setup("HEAL", invs=2, failovers=1, kinds="k", late=False, old=True, tokens=False, loads=(), heals=True),
        Setup("HEAL-LOG", invs=2, trims=1, late=False, tokens=False, loads=(), heals=True),
        *(
            Setup(f"SHAPE-{shape}", invs=2, kinds="s", shape=shape, late=False, tokens=False)
            for shape in ("T", "I", "N", "Y", "TA", "TV", "TC", "DA", "DV", "DC")
        ),
    )
}
"""What is explored to the end with all rules: some tens of thousands of states each."""

CROSS = Setup("CROSS", invs=2, kinds="sx", failovers=1, rollback=False, late=False, empty=True)
"""Two scopes in a new epoch, of which the node hears the second event only. Never explored to its end."""
WALK = Setup(
    "WALK",
    kinds="kswx",
    own_kinds="ksw",
    max_invalidated_scopes=2,
    repeats=True,
    old=True,
    second=True,
    loads=(0, 1),
    lease_hits=True,
    invs=8,
    failovers=3,
    wipes=1,
    evictions=2,
    trims=3,
    own=5,
    outages=4,
    lapses=3,
)
"""Far too large to be explored: for walks at random."""

EVERY = {**SETUPS, "CROSS": CROSS, "WALK": WALK}
"""Every set-up by its name."""
