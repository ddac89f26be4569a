"""How long `import cachebus` takes, in fresh processes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from statistics import median
from typing import Final

from tests.bench.children import run_python
from tests.bench.rows import Row, at_most
from tests.bench.run import Bench

MODULES: Final = ("cachebus", "redis", "cashews")
GOAL_MS: Final = 120


async def rows(bench: Bench) -> list[Row]:
    """One row, beside what others take."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        # Compiled files even where the machine wants none: what is installed has them, too.
        environment = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for turn in range(bench.scale.imports):
            for module in MODULES:
                took_s = await import_s(module, environment)
                if took_s is not None:
                    times.setdefault(module, []).append(took_s)
            bench.progress.step(f"round {turn + 1} of {bench.scale.imports}")
    # The first one compiles; where it is the only one, nobody looks at the figure.
    times = {module: of[1:] or of for module, of in times.items()}
    middle_ms = {module: median(of) * 1e3 for module, of in times.items()}
    ours = middle_ms.pop("cachebus")
    return [Row("import", "import cachebus", ours, "ms", at_most(GOAL_MS), middle_ms)]


async def import_s(module: str, environment: Mapping[str, str]) -> float | None:
    """Seconds that the import takes in a process that has done nothing else; None where there is no such module."""
    code = f"""
import time
started = time.perf_counter()
try:
    import {module}
except ImportError:
    print("none")
else:
    print(time.perf_counter() - started)
"""
    said = (await run_python("-c", code, environment=dict(environment))).strip()
    return None if said == "none" else float(said)
