"""What INFO tells of a server's work so far, and what an operation has cost by two such looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Final, NamedTuple

from tests.bench.rows import Row, number

SCRIPTED: Final = frozenset({"eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro"})
"""The commands that run a script; what the script itself calls is counted by itself, too, and within these."""
MAIN_THREAD: Final = ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
PROCESS: Final = ("used_cpu_user", "used_cpu_sys")
"""Redis 6.2 tells no more than that."""


class Work(NamedTuple):
    """CPU that was spent so far, and by command how often it was called and how long all its calls took; µs."""

    cpu_us: float
    commands: Mapping[str, tuple[int, float]]


class Cost(NamedTuple):
    """Of one operation, in µs: the server's CPU, sockets and all; and the time that passes within its commands, which
    on a busy machine is more than their CPU."""

    cpu_us: float
    inside_us: float


def work(cpu: bytes, commandstats: bytes) -> Work:
    """From what `INFO cpu` and `INFO commandstats` have answered."""
    told = _fields(cpu)
    names = MAIN_THREAD if MAIN_THREAD[0] in told else PROCESS
    commands: dict[str, tuple[int, float]] = {}
    for name, text in _fields(commandstats).items():
        figures = dict(figure.split("=") for figure in text.split(","))
        commands[name.removeprefix("cmdstat_").lower()] = int(figures["calls"]), float(figures["usec"])
    return Work(sum(float(told[name]) for name in names) * 1e6, commands)


def _fields(info: bytes) -> dict[str, str]:
    lines = info.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if line and not line.startswith("#"))


def cost(before: Work, after: Work, operations: int, commands: frozenset[str]) -> Cost:
    """What each of so many operations has cost, whose work is done by these commands. `ValueError` where the server
    has counted fewer calls of them: it was not they that did it."""
    calls, inside_us = 0, 0.0
    for name in commands:
        calls += after.commands.get(name, (0, 0.0))[0] - before.commands.get(name, (0, 0.0))[0]
        inside_us += after.commands.get(name, (0, 0.0))[1] - before.commands.get(name, (0, 0.0))[1]
    if calls < operations:
        raise ValueError(f"{operations} operations, and only {calls} calls of {', '.join(sorted(commands))}")
    return Cost((after.cpu_us - before.cpu_us) / operations, inside_us / operations)


def compared(name: str, what: str, costs: Sequence[Cost], beside: Mapping[str, Sequence[Cost]]) -> Row:
    """The medians of all rounds, beside those of plain commands in the same rounds; the ratio is to the first of them,
    round by round, and `±` half of what the middle half of all rounds spans."""
    first, others = next(iter(beside.items()))
    ratio = median(own.cpu_us / its.cpu_us for own, its in zip(costs, others, strict=True))
    cpu_us = median(own.cpu_us for own in costs)
    low, _, high = quantiles((own.cpu_us for own in costs), n=4)
    inside_us = median(own.inside_us for own in costs)
    return Row(
        name,
        what,
        cpu_us,
        "us",
        None,
        {peer: median(its.cpu_us for its in of) for peer, of in beside.items()},
        f"{number(ratio)} x {first}, {number(inside_us)} us in the command, ±{(high - low) / 2 / cpu_us:.0%}",
    )
