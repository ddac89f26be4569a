"""What the doctor finds at a URL, and its commands typed as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from cachebus import Settings
from cachebus.tools.doctor.examine import examined
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.redis import EmbeddedServer


async def findings(
    url: str, *, probe_writes: bool = False, ask_replicas: bool = False, **settings: Any
) -> list[Finding]:
    """What the doctor finds there."""
    made = Settings(url=url, **settings)
    _, found = await examined(
        made, (await deployment_of(made)).primaries[0], probe_writes=probe_writes, ask_replicas=ask_replicas, rounds=3
    )
    return found


def of(found: list[Finding], check: str) -> Finding | None:
    """The finding of a check that is not ok; at most one."""
    bad = [finding for finding in found if finding.check == check and finding.level is not Severity.OK]
    assert len(bad) <= 1
    return bad[0] if bad else None


def bad(found: list[Finding]) -> dict[str, Severity]:
    """What is neither ok nor told of this machine rather than of the server: how busy it is, and its clock."""
    ours = ("latency", "clock", "suspends", "fork")
    return {
        finding.check: finding.level
        for finding in found
        if finding.level is not Severity.OK and finding.check not in ours
    }


def type_in(server: EmbeddedServer, commands: tuple[str, ...]) -> None:
    """Type the commands as they stand, as redis-cli would take them."""
    assert commands
    for command in commands:
        assert server.command(*shlex.split(command)) in ("+OK", ":1"), command


def type_in_at(servers: Sequence[EmbeddedServer], finding: Finding) -> None:
    """Type a finding's commands at each of the servers for which it has them."""
    there = [server for server in servers if f":{server.port}" in finding.at]
    assert there
    for server in there:
        type_in(server, finding.mend)
