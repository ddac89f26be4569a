"""The path of a read, in the order in which a read that misses goes through it.

1. `request`: what is asked for, and what is found. Frozen data.
2. `read`: reads that ask no source. `fetch`: what L2 has. `judge`: whether it may be believed.
3. `get_or_load`: reads that may. They join a `flight`, or begin one (`freshness`: how long its value holds; `wishes`:
   what its callers ask of the record).
4. `miss`: what a flight does. It asks L2 (`look_up`), then for the `fill_lease`; while another node holds that, it
   waits (`waiting`).
5. `load`: the source is asked, by `source` (`promises`: what it says that it gives), and told what is still there
   (`previous`); or once for several flights, which come to it together: `joint`, and for calls of one tick
   `coalescing` (`landing`: its callers go on together). `fill`: what it gave is kept where it may be.
6. Beside the way: `background` refreshes, and not again at once (`pauses`); `cooldown` remembers failed sources,
   `refusals` tells what L2 refuses, `unreadable` what can't be read here, `reentrance` finds loads that wait for
   themselves, `parts` is what all loads share. `looked`: what is known of a value. `bypass`: reads that pass the cache
   by.
"""
