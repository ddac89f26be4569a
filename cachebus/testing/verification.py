"""`verify`: the promises put to the test, with processes, a server, faults of every kind, and every read judged."""

from __future__ import annotations

from cachebus.tools.verify.checker.verdict import Verdict


async def verify(
    url: str | None = None,
    *,
    seconds: float = 20.0,
    seed: int | None = None,
    faults: str = "all",
    nodes: int = 4,
    bound_s: float = 1.0,
    rate: float = 1_000.0,
    write_rate: float | None = None,
) -> Verdict:
    """Run several node processes against a server under faults, and judge every read; what `cachebus verify` does.

    `url`: a server of yours, of which only a namespace of its own is touched, and emptied in the end; None: one that is
    started for it, to which faults are done, too. `seed`: of the faults and of what is read and written; None: a new
    one, which the verdict tells. `faults`: "all", "none", or names and groups with commas between, as in `cachebus
    verify --list-faults`. `rate`: reads a second and node, 0 is as fast as it goes; `write_rate`: writes a second and
    node, None is 20, or 2 on a server of yours. Takes `seconds` and some seconds more.

    `ConfigError` for what is set up wrong, `L2Unavailable` for a server that is not there, and `NodeCrashed` (of
    `cachebus.tools.harness.supervisor`) for a node process that ended by itself.
    """
    # Only here: what else is for tests must not cost what starts processes and judges them.
    from cachebus.tools.verify.nemesis.faults import chosen
    from cachebus.tools.verify.plan import make_plan
    from cachebus.tools.verify.run import Run

    plan = make_plan(
        url=url,
        seconds=seconds,
        seed=seed,
        faults=chosen(faults),
        nodes=nodes,
        bound_s=bound_s,
        rate=rate,
        write_rate=write_rate,
    )
    return await Run(plan).verdict()
