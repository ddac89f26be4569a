"""What a node may believe of each shard, and what it keeps under that belief. Nothing here awaits.

In the order in which it is best read:

1. `ports`: what is asked of a store and of a bus; `requests`: what goes with it.
2. `shard`: what may be believed of one shard. `answers`: what it answers. `invalidated`, `doubts`: what it remembers.
3. `groups`: what entries of L1 share. `details`: what few entries carry. `admission`: what is offered to L1.
4. `node`: all of it, for every shard. `setup`: how a node is set up. `blocked`: what it has yet to tell L2.
5. `membership`: which nodes there are; `hearing`: whether they hear each other; `figures`: for those who watch;
   `held`: for those who ask what it holds of one key; `hot`: which keys are read most; `telling`, `applied`: for hooks.
"""
