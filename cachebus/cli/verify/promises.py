"""What is checked, by its short name."""

from __future__ import annotations

from typing import Final

PROMISES: Final = {
    "G1": "no read that starts D after an invalidation returned gives what it replaced",
    "G2": "the node that wrote sees its write at once",
    "G3": "a read with a token sees that write, on any node",
    "I7": "a session that takes its tokens along never goes back",
    "G5": "a load that began before an invalidation never fills L2 after it",
    "G8": "no read gives another tenant's value, or another item's",
    "I13": "one loader a key at a time over all nodes; without L2 one a key and node and D",
    "I14": "at rest, L1 and L2 have the source's value or none, on every node",
    "recovery": "once the faults are over every node is back at work",
}
"""G4 and G6, which need a caller that waits for the nodes and a guard around a commit, are not exercised yet."""
