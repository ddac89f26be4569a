"""The worker around any source of invalidations. It takes items, applies them, sets aside what can't be applied, and
acknowledges the rest; and it checks what the source needs.

1. `source`: what a source must offer. `dead`: what becomes of items that can't be applied.
2. `source_worker`: the loop. `chunk`: what goes to L2 together. `apply`: how it gets there.
3. `dead_letter_writer`: sets items aside, by `work_time` where it can't. `in_a_row`: tells where that becomes of all.
4. `watcher` and `assumptions`: check the source. `retry`: waits for a part.
5. `worker`: the life of the process. `preflight`: checks without starting.
"""
