"""The promises that are checked, by their short names."""

from __future__ import annotations

from typing import Final

PROMISES: Final = {
    "G1": "no read that starts D after an invalidation returned gives what it replaced",
    "G2": "the node that wrote sees its write at once",
    "G3": "a read with a token sees that write, on any node",
    "I7": "a session that takes its tokens along never goes back",
    "G4": "a write that waited for the nodes is seen by all of them",
    "G5": "a load that began before an invalidation never fills L2 after it",
    "G6": "behind the time of a guard nothing is left of what was replaced, though its writer went away",
    "G8": "no read gives another tenant's value, or another item's, or another namespace's",
    "I13": "one loader a key at a time over all nodes; without L2 one a key and node and D",
    "I14": "at rest, L1 and L2 have the source's value or none, on every node",
    "equal": "a value comes back as it was, in each part, and with copy=True it is its caller's own",
    "life": "nothing is served beyond its time to live and its fail-safe, and nothing absent beyond its own",
    "rest": "a source that has just failed is left alone by who has something to serve, and one that answered as well",
    "own fate": "no read is cancelled, or called closed, by what befell another",
    "circle": "a load that waits for itself is told so",
    "lease": "at rest nobody holds a fill lease",
    "add": "what is absent can be added",
    "counter": "an increment with a request id counts at most once",
    "time": "a read that asks no source waits for L2 no longer than 1.25 time-outs, whatever becomes of the servers",
    "up": "nothing is refused while nothing is wrong with the primary that it lies on, whatever befalls others",
    "lag": "while nothing is wrong an invalidation is heard of in less than half of D",
    "flush": "while nothing is wrong no node drops all it holds",
    "left": "once all is over a node has no more tasks and sockets than at its start",
    "recovery": "once the faults are over every node is back at work",
}
