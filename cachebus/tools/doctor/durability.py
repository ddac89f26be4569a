"""Checks of persistence: what outlives the server's process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cachebus.tools.doctor.facts import Facts
from cachebus.tools.doctor.finding import G1, G7, Finding, Severity, config_set, ok, unknown

RESTART: Final = (
    "A restart, also with an older file, is noticed by the next operation of anybody: a new epoch begins, and "
    "everything older is void. Counters are as old as the file. One thing only a caller notices that has applied more: "
    "an older file loaded into the running server (DEBUG RELOAD NOSAVE)."
)


def persistence(facts: Facts) -> Iterator[Finding]:
    """Check what a restart brings back."""
    info, config = facts.server.info, facts.server.config
    if "appendonly" not in config and "aof_enabled" not in info:
        yield unknown("persistence", facts.server.info_refused or facts.server.config_refused, RESTART)
        return
    append = config.get("appendonly", "yes" if info.get("aof_enabled") == "1" else "no") == "yes"
    save = config.get("save")
    files = [name for name, on in (("AOF", append), ("RDB", save)) if on]
    if save is None:
        files.append("RDB, if it is set (CONFIG is refused)")
    yield ok("persistence", ", ".join(files) if files else "none: a restart begins empty", RESTART)
    if append and config.get("appendfsync") == "always":
        commands, conf = config_set(appendfsync="everysec")
        yield Finding(
            "appendfsync",
            Severity.ADVICE,
            "appendfsync is always",
            "Every probe and every write waits for the disk, "
            "and no promise gains by it: a suffix that a crash lost is noticed.",
            mend=commands,
            conf=conf,
        )


def saving(facts: Facts) -> Iterator[Finding]:
    """Check whether a failing disk makes the server refuse writes."""
    info, config = facts.server.info, facts.server.config
    failed = info.get("rdb_last_bgsave_status") == "err"
    stops = config.get("stop-writes-on-bgsave-error")
    if info.get("aof_enabled") == "1" and info.get("aof_last_write_status") == "err":
        commands, conf = config_set(appendonly="no")
        yield Finding(
            "saving",
            Severity.PROBLEM,
            "the append-only file cannot be written",
            "Every write is refused: L2 counts as lost.",
            mend=commands,
            conf=conf,
            otherwise="or give its disk room",
        )
    elif stops is None:
        if failed:
            yield Finding(
                "saving",
                Severity.ADVICE,
                "the last snapshot failed",
                "If stop-writes-on-bgsave-error is set (CONFIG is refused), every write is refused.",
                otherwise="give the server's disk room, or ask your provider to set stop-writes-on-bgsave-error to no",
            )
    elif stops == "yes" and (config.get("save") or failed):
        commands, conf = config_set(stop_writes_on_bgsave_error="no")
        refused = failed and bool(config.get("save"))
        yield Finding(
            "saving",
            Severity.PROBLEM if refused else Severity.ADVICE,
            "the last snapshot failed, and stop-writes-on-bgsave-error is yes"
            if failed
            else "stop-writes-on-bgsave-error is yes",
            "Every write is refused: L2 counts as lost."
            if refused
            else "A full disk would make the server refuse every write, for the sake of a file that a cache can do "
            "without.",
            mend=commands,
            conf=conf,
        )
    else:
        yield ok("saving", "a failing disk does not stop writes")


def debugging(facts: Facts) -> Iterator[Finding]:
    """Check whether an older file can be loaded into the running server."""
    enabled = facts.server.config.get("enable-debug-command")
    if enabled in (None, "no"):
        return  # before 7.0 there is no such setting: the ACL check looks at the user then
    yield Finding(
        "debug command",
        Severity.ADVICE,
        f"enable-debug-command is {enabled}",
        "DEBUG RELOAD NOSAVE of an older file leaves the server's replication id as it was: only a caller that has "
        "applied more than the file holds notices. A namespace with no such node would serve the older state.",
        (G1, G7),
        conf=("enable-debug-command no",),
        otherwise="it is read at the server's start only",
    )
