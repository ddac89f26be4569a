"""Checks of the nodes of a namespace, by their rows in L2: who is alive, how far, and whether they agree."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from cachebus.core.hearing import Hearing
from cachebus.core.ports import NodeRow
from cachebus.l2.replies import UNREADABLE
from cachebus.settings import Settings
from cachebus.tools.doctor import commands
from cachebus.tools.doctor.facts import Facts, ShardFacts, whole
from cachebus.tools.doctor.finding import G1, Finding, Severity, ok, unknown
from cachebus.tools.doctor.some import SEVERAL, some


class Present:
    """One node, by its row in a shard."""

    __slots__ = (
        "ahead_s",
        "applied",
        "behind",
        "bound_s",
        "damaged",
        "guard_max_s",
        "hearing",
        "keeps_without_l2",
        "name",
        "silent_s",
    )

    def __init__(self, name: str, row: NodeRow, shard: ShardFacts) -> None:
        self.name = name
        self.applied = row.applied if row.epoch.decode() == shard.meta.get("epoch") else 0
        silent_s = (shard.now_us - row.at_us) / 1e6
        self.silent_s = max(0.0, silent_s)
        self.ahead_s = max(0.0, -silent_s)
        self.behind = max(0, (whole(shard.meta.get("seq")) or 0) - self.applied)
        self.bound_s, self.guard_max_s = row.about.bound_ms / 1000, row.about.guard_ms / 1000
        self.keeps_without_l2 = row.about.keeps_without_l2
        self.damaged = row == UNREADABLE
        self.hearing = Hearing.of(row.about.more)

    @property
    def told_in_time(self) -> bool:
        """Whether the row's time is not in the future."""
        return self.ahead_s <= self.bound_s

    @property
    def alive(self) -> bool:
        """Whether the node has written its row within its bound."""
        return self.told_in_time and not self.damaged and self.silent_s <= self.bound_s

    @property
    def perhaps_alive(self) -> bool:
        """Whether the row does not tell that the node is silent: it is alive, or its row can't be judged."""
        return self.alive or self.damaged or not self.told_in_time


def nodes_of(shard: ShardFacts) -> list[Present]:
    """The nodes of a shard, by name."""
    if "nodes" not in shard.made:
        shard.made["nodes"] = [Present(name, row, shard) for name, row in sorted(shard.nodes.items())]
    found: list[Present] = shard.made["nodes"]
    return found


def nodes(facts: Facts) -> Iterator[Finding]:
    """Check which nodes are alive, and how far behind they are."""
    settings = facts.settings
    alive: dict[str, int] = {}
    gone: set[str] = set()
    deaf = 0
    for shard in facts.shards:
        present = 0
        for node in nodes_of(shard):
            if node.alive:
                alive[node.name] = max(alive.get(node.name, 0), node.behind)
                present += 1
            elif not node.damaged:
                gone.add(node.name)
        if "bus=redis" in shard.meta.get("facts", "bus=redis"):
            deaf = max(deaf, present - (present if shard.subscribers is None else shard.subscribers))
    refused = next((shard.nodes_refused for shard in facts.shards if shard.nodes_refused), "")
    if refused:
        yield unknown("nodes", refused, "Which nodes are alive, and whether they agree.", _helps(refused))
        return
    if not all(shard.all_nodes for shard in facts.shards):
        yield _some_read(settings, alive, gone - alive.keys())
        return
    if not alive:
        if not gone:
            yield ok("nodes", "none is alive")
            return
        yield _all_silent(settings, gone)
        return
    worst = max(alive, key=alive.__getitem__)
    said = f"{len(alive)} alive, {len(gone - alive.keys())} silent; furthest behind {worst}, by {alive[worst]:,} events"
    kept = min((s.log_last - s.log_first + 1 for s in facts.shards if s.log_first and s.log_last), default=0)
    if alive[worst] > max(1000, kept):
        yield Finding(
            "nodes",
            Severity.ADVICE,
            said,
            "It is further behind than the log reaches back, so it will drop its memory. Its lease does not reach "
            "further than what it has applied: nothing stale is served.",
            otherwise=f"set CACHEBUS_LOG_MAX_LEN={2 * settings.log_max_len}, or look at that node's event loop",
        )
    else:
        yield ok("nodes", said)
    if deaf > 0:
        yield Finding(
            "subscriptions",
            Severity.ADVICE,
            f"{deaf} nodes that are alive listen to no channel",
            "They hear of invalidations by their probes only: within the bound, but not within milliseconds.",
            (G1,),
            otherwise="look at their logs for the bus being out of reach, and at this user's channel permissions",
        )


def _all_silent(settings: Settings, gone: Collection[str]) -> Finding:
    return Finding(
        "nodes",
        Severity.ADVICE,
        f"none is alive; {len(gone):,} have not left, and are silent: {min(gone)}"
        + (f" and {len(gone) - 1:,} others" if len(gone) > 1 else ""),
        "They have ended without closing, hang, or can't reach this server or write to it: then their reads go to "
        "the source. Or they have settings for which this namespace is not laid out any more: then all their calls "
        "raise (ProtocolMismatch).",
        otherwise="look at their health and logs; for one that is gone for good (the first here):"
        + commands.note_on_url(settings),
        shell=commands.forgetting(settings, min(gone)),
    )


def _some_read(settings: Settings, alive: Collection[str], silent: Collection[str]) -> Finding:
    return Finding(
        "nodes",
        Severity.ADVICE,
        f"there are more rows than were read; of these {len(alive):,} are alive, and {len(silent):,} silent",
        "Who else is alive is not known. A node that ends without closing leaves its row: something here is started "
        "again and again, and killed.",
        otherwise="look for what that is; of those that are gone, the first:" + commands.note_on_url(settings),
        shell=commands.forgetting(settings, min(silent)) if silent else (),
    )


def _helps(refused: str) -> str:
    if "WRONGTYPE" in refused:
        return "something else writes under the name of the rows; the first node's next probe makes room for them"
    return "allow HSCAN to who asks"


def damaged(facts: Facts) -> Iterator[Finding]:
    """Check for rows that can't be read. A living node rewrites its own row."""
    names = sorted({node.name for shard in facts.shards for node in nodes_of(shard) if node.damaged})
    if names:
        yield Finding(
            "node rows",
            Severity.ADVICE,
            f"{len(names)} can't be read: {some(names)}",
            "They are damaged, or something else writes there. Each counts as a node that has applied nothing: calls "
            'with wait="nodes" wait for it for the whole bound.',
            otherwise="a node that lives writes its row anew within seconds; else (the first here):"
            + commands.note_on_url(facts.settings),
            shell=commands.forgetting(facts.settings, names[0]),
        )


def ahead(facts: Facts) -> Iterator[Finding]:
    """Check for rows with a time that the server's clock has not reached. A living node rewrites its own row."""
    later = {node.name: node.ahead_s for shard in facts.shards for node in nodes_of(shard) if not node.told_in_time}
    if later:
        names = sorted(later)
        yield Finding(
            "nodes ahead",
            Severity.ADVICE,
            f"{len(names)} lines are of a time to come: {some(names)}, by {max(later.values()):,.0f} s",
            "The server's clock was set back, or another server with a slower one has taken over. Whether these nodes "
            "live their lines do not tell until then, and each wait for the nodes lasts the whole bound.",
            otherwise="if they do not live (the first here):" + commands.note_on_url(facts.settings),
            shell=commands.forgetting(facts.settings, names[0]),
        )


def bounds(facts: Facts) -> Iterator[Finding]:
    """Check that all nodes have the same staleness bound and longest guard, and agree on what they keep without L2."""
    there = [node for shard in facts.shards for node in nodes_of(shard)]
    for what, variable, values in (
        ("staleness bound", "CACHEBUS_STALENESS_BOUND_S", {node.bound_s for node in there}),
        ("longest guard", "CACHEBUS_GUARD_MAX_S", {node.guard_max_s for node in there}),
    ):
        if len(values) > 1:
            several = some([f"{value:g} s" for value in sorted(values)], SEVERAL)
            yield Finding(
                what.split()[-1] + "s",
                Severity.ADVICE,
                f"the nodes' {what} differs: {several}",
                "Each keeps its own promise. Waits for the nodes last as the largest that was ever there, and so long "
                "records are short-lived after a takeover.",
                otherwise=f"set the same {variable} for every node",
            )
    if len({node.keeps_without_l2 for node in there}) > 1:
        yield Finding(
            "keep_without_l2",
            Severity.ADVICE,
            "some nodes keep what they load without L2, and some do not",
            "Waits for the nodes go by those that do: for a minute after lines were lost each lasts the whole bound.",
            otherwise="set the same CACHEBUS_KEEP_WITHOUT_L2 for every node",
        )
