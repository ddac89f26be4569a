"""`make bench`: ours beside others, part by part."""

from __future__ import annotations

import asyncio
import sys

from tests.bench import l1_bench, resp_bench

QUICK_REQUESTS, QUICK_ROUNDS, ROUNDS = 50_000, 2, 7


def main() -> None:
    """The connection to Redis, then L1; `--quick` measures less."""
    quick = "--quick" in sys.argv[1:]
    asyncio.run(resp_bench.main(QUICK_ROUNDS if quick else ROUNDS))
    l1_bench.main(QUICK_REQUESTS if quick else sys.maxsize)


if __name__ == "__main__":
    main()
