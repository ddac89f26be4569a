"""The path of an event, and the heartbeat that makes up for those that did not arrive.

1. `receive` decides about a message at once: apply it, or pass it over, and wake whoever has to look further.
2. `attention` is that waking. It is made first, and given to all who notice that something is missing.
3. `tend` gives each shard its turns: `probe` asks L2 where the shard stands, `catch_up` brings what is missing.
4. `attach` does the same once, at the start; `heartbeat` keeps the loops going.
5. `outages` and `fleet` say what is wrong; `lapsing` notices leases that run out, and `hook_delivery` tells hooks.
6. `inquiries` takes in questions about keys, and answers to them; `answering` says what this node holds.
7. `explain` asks L2 and the nodes why a read gives what it gives. `worth` judges the record, `touching` finds what
   touched it, `holders` tells what each node may serve, `verdict` says all that in one sentence; `explanation` is what
   comes of it. Nothing there changes anything.
8. `warm_up` takes over what is hot on another node; `heat` asks and answers what that is.
"""
