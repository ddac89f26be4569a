"""The shared store: on Redis, and in memory.

In the order in which it is best read:

1. `names`: what lies where. `layout`: what a store is told of its namespace.
2. `redis`: each operation. `arguments`: what goes to its script; `replies`: what comes back; `scripts/`: what happens.
3. `running`: a script is run, in another epoch too; `redirect`: where a Cluster has moved it; `owed`: what was held up.
4. `memory_store`, the twin in memory: `memory` is a shard, over `memory_history`, `memory_invalidated` and
   `memory_fill_lease`.
5. `inspection`: what there is of one key, for who explains it.
"""
