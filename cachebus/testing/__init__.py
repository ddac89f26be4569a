"""For your own tests: a cache in memory, several over one store, a clock that you advance, faults with a seed.

```python
async with Fleet(nodes=2) as fleet:
    a, b = fleet.caches
    await a.set("config", "x", 1, tenant_id="acme")
    fleet.away = True          # the store is out of reach
    fleet.faults = Faults(seed=7, drop=0.2, double=0.1, swap=0.1)
```
The rules of coherence are the real ones; only Redis is played by memory.

`override_settings` puts the process-wide cache of a service into memory, `record_invalidations` tells what was
invalidated. To pytest the plugin `cachebus.testing.plugin` gives both as fixtures. `verify` puts the promises to the
test on the real thing: processes, a server, faults of every kind, every read judged.
"""

from cachebus.manager import override_settings
from cachebus.testing.fleet import FakeClock, Faults, Fleet
from cachebus.testing.recording import Invalidations, record_invalidations
from cachebus.testing.verification import verify
from cachebus.tools.verify.checker.verdict import Finding, Verdict

__all__ = [
    "FakeClock",
    "Faults",
    "Finding",
    "Fleet",
    "Invalidations",
    "Verdict",
    "override_settings",
    "record_invalidations",
    "verify",
]
