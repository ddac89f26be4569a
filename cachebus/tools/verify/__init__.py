"""`cachebus verify`: a fleet under load and faults, and the check of every read against the history of all writes.

1. `plan` and `run`: what a run consists of, and its course.
2. `fleet`: the node processes, their load, and the history logs that they write.
3. `target`: the servers under test, and what can be done to them.
4. `nemesis`: the faults, and when they are injected.
5. `checker`: the verdict, from the history logs and the injected faults.
"""
