"""A name with several addresses: whether all of them are one server's."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from cachebus.resp import Address
from cachebus.resp.names import addresses_of
from cachebus.tools.doctor.asking import asked
from cachebus.tools.doctor.finding import ON_FAILOVER, Finding, Severity, unknown
from cachebus.tools.doctor.some import some

TWO_SERVERS: Final = (
    "They are as many caches, which hear nothing of each other: what is invalidated at one is served at the other for "
    "as long as it lives, and a node may have its values at one and its events from the other. All of them look "
    "healthy."
)
ONE_NAME: Final = (
    "let the name lead to one server alone; for several ones there are redis+sentinel:// and redis+cluster://"
)


async def findings_of(address: Address) -> list[Finding]:
    """Ask each address of the server's name who answers there."""
    if address.path is not None or _is_address(address.host):
        return []
    try:
        places = await addresses_of(address.host)
    except (OSError, UnicodeError):
        return []  # whoever connects says so
    if len(places) < 2:
        return []
    if address.ssl is not None:
        why = f"{address.host} has {len(places)} addresses, and certificates are for names"
        return [unknown("name", why, otherwise=f"if these are not one server's, {ONE_NAME}")]
    ids = await asyncio.gather(*(_id_of(replace(address, host=place)) for place in places))
    found = {place: one for place, one in zip(places, ids, strict=True) if one}
    if len(set(found.values())) < 2:
        return []
    says = f"{address.host} leads to {len(set(found.values()))} servers: {some(list(found))}"
    return [Finding("name", Severity.PROBLEM, says, TWO_SERVERS, ON_FAILOVER, otherwise=ONE_NAME)]


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


async def _id_of(place: Address) -> str:
    """What a server calls itself since it was started; "" where it does not say."""
    [(told, refused)] = await asked(place, ("INFO", "server"))
    said = None if refused else re.search(rb"^run_id:(\w+)", told, re.MULTILINE)
    return said[1].decode() if said else ""
