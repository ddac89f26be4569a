"""Checks of TLS: until when the certificates hold that servers and brokers show, and those in the settings' files.

A certificate is read as far as its dates alone, and whoever shows it: one that has ended is verified by nobody.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

from cachebus.assembly.backends import endpoints_of
from cachebus.bus.kafka.connection import addresses_of
from cachebus.resp import Address
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import ASK_TIMEOUT_S
from cachebus.tools.doctor.finding import Finding, Severity, ok, unknown
from cachebus.tools.doctor.some import SEVERAL, some

CHECK: Final = "certificates"
SOON: Final = timedelta(days=30)
FEW: Final = 10
"""More certificates than these in a file are a system's, and somebody else's to renew."""
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17


async def findings_of(settings: Settings, servers: Iterable[Address]) -> list[Finding]:
    """What is to be said of certificates; nothing where there is no TLS. `servers`: all that are known, of any kind."""
    servers = list(servers)
    places = {str(each): (each.host, each.port) for each in servers if each.ssl is not None}
    if settings.bus == "kafka" and settings.kafka_ssl:
        brokers = addresses_of(settings.kafka_bootstrap_servers or "")
        places |= {f"{each.host}:{each.port}": (each.host, each.port) for each in brokers}
    files = files_of(settings)
    shown = await asyncio.gather(*(_shown(host, port, files) for host, port in places.values()))
    ends = {f"of {place}": end for place, end in zip(places, shown, strict=True) if end is not None}
    unseen = [place for place, end in zip(places, shown, strict=True) if end is None]
    now = datetime.now(UTC)
    of_files, outlived = _of_files(files, now)
    found = [*judged(ends | of_files, now), *_unverified(settings, [each.ssl for each in servers])]
    if outlived:
        found.append(
            Finding(
                CHECK,
                Severity.ADVICE,
                f"of the authorities {some(outlived, joined='; ')}",
                "Others in the same file hold, and what these have signed is let in.",
                otherwise="it may be taken out, once nobody shows a certificate that it has signed",
            )
        )
    if unseen:
        found.append(unknown(CHECK, f"no certificate was shown by {some(unseen, SEVERAL)}", "Until when they hold."))
    return found


def _unverified(settings: Settings, contexts: Iterable[ssl.SSLContext | None]) -> Iterator[Finding]:
    """Check that whoever is spoken to is verified, and not merely encrypted to."""
    used = [each for each in contexts if each is not None]
    lax = (
        ["ssl_cert_reqs=none: any certificate will do"]
        if any(each.verify_mode is ssl.CERT_NONE for each in used)
        else []
    )
    if not lax and any(not each.check_hostname for each in used):
        lax.append("ssl_check_hostname=false: a certificate for any host will do")
    if settings.bus == "kafka" and settings.kafka_ssl and not settings.kafka_ssl_check_hostname:
        lax.append("CACHEBUS_KAFKA_SSL_CHECK_HOSTNAME=0: of brokers too")
    if lax:
        yield Finding(
            CHECK,
            Severity.ADVICE,
            f"whom these settings speak to is not verified ({'; '.join(lax)})",
            "Whoever gets in between reads the password and all values, and may answer in the server's place: what is "
            "promised holds for servers that are what they say.",
            otherwise="take that out, and name the authorities (ssl_ca_certs)",
        )


def judged(ends: Mapping[str, datetime], now: datetime) -> Iterator[Finding]:
    """The findings about certificates that end then, by whose they are."""
    over = sorted((end, whose) for whose, end in ends.items() if end <= now)
    soon = sorted((end, whose) for whose, end in ends.items() if now < end <= now + SOON)
    helps = "renew it, and have whoever shows it read it: a server by CONFIG SET tls-cert-file, a node does by itself"
    if over:
        yield Finding(
            CHECK,
            Severity.PROBLEM,
            some([f"the certificate {whose} ended on {_day(end)}" for end, whose in over], joined="; "),
            "Whoever verifies it refuses it: no new connection comes about, and those that are there go on until they "
            "break. Then L2, or the bus, is lost.",
            otherwise=helps,
        )
    if soon:
        days = [f"the certificate {whose} ends on {_day(end)}, in {(end - now).days} days" for end, whose in soon]
        means = "From then on whoever verifies it refuses it: L2, or the bus, is lost to all who connect anew."
        yield Finding(CHECK, Severity.ADVICE, some(days, joined="; "), means, otherwise=helps)
    if ends and not over and not soon:
        first = min(ends, key=ends.__getitem__)
        yield ok(
            CHECK, f"{len(ends)} hold for {SOON.days} days and more; the first to end, {first}, on {_day(ends[first])}"
        )


def _day(end: datetime) -> str:
    return f"{end:%Y-%m-%d %H:%M} UTC"


def files_of(settings: Settings) -> dict[str, str]:
    """The files of certificates that the settings name, by what they are; the key's file too."""
    options = dict(parse_qsl(settings.url.get_secret_value().partition("?")[2]))
    of_redis = {name: options.get(f"ssl_{name}") for name in ("certfile", "keyfile", "ca_certs")}
    of_redis["ca_certs"] = settings.ssl_ca_certs or of_redis["ca_certs"]
    of_kafka = {f"kafka_{name}": getattr(settings, f"kafka_ssl_{name}") for name in ("certfile", "keyfile", "ca_certs")}
    return {name: file for name, file in (of_redis | of_kafka).items() if file}


def ends_in(file: str) -> list[datetime]:
    """When the certificates in a file end, the first first; nothing where there is none, or very many."""
    try:
        found = _PEM.findall(Path(file).read_text(errors="replace"))
        ends = [end_of(ssl.PEM_cert_to_DER_cert(pem)) for pem in found[: FEW + 1]]
    except (OSError, ValueError):
        return []  # whoever connects with it is told
    return sorted(ends) if len(ends) <= FEW else []


def _of_files(files: Mapping[str, str], now: datetime) -> tuple[dict[str, datetime], list[str]]:
    """When each file is of no use any more, and which hold authorities that have ended beside others.

    Of a file of authorities one is enough: while they change it has the old and the new one. A node shows all that is
    in the other files.
    """
    ends: dict[str, datetime] = {}
    outlived: list[str] = []
    for kind, file in files.items():
        all_ = ends_in(file)
        if all_:
            of_authorities = kind.endswith("ca_certs")
            ends[f"in {file}"] = all_[-1] if of_authorities else all_[0]
            if of_authorities and all_[0] <= now < all_[-1]:
                outlived.append(f"in {file} one ended on {_day(all_[0])}")
    return ends, outlived


async def _shown(host: str, port: int, files: Mapping[str, str]) -> datetime | None:
    """When the certificate ends that is shown there; None where none is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    kind = "kafka_" if "kafka_certfile" in files and "certfile" not in files else ""
    try:
        if f"{kind}certfile" in files:
            context.load_cert_chain(files[f"{kind}certfile"], files.get(f"{kind}keyfile"), password=lambda: "")
        async with asyncio.timeout(ASK_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return None if shown is None else end_of(shown)
    except (OSError, ValueError, TimeoutError):
        return None


def end_of(der: bytes) -> datetime:
    """When a certificate ends (X.509: `notAfter`); `ValueError` for what is none."""
    try:
        at = _inside(der, _inside(der, 0))  # the certificate, then what is signed of it
        if der[at] == _VERSION:
            at = _behind(der, at)
        for _ in ("serial number", "algorithm", "issuer"):
            at = _behind(der, at)
        at = _behind(der, _inside(der, at))  # its dates: the first is that from which on it holds
        text = der[_inside(der, at) : _behind(der, at)].decode("ascii")
        form = "%y%m%d%H%M%SZ" if der[at] == _UTC_TIME else "%Y%m%d%H%M%SZ"
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("not a certificate") from error


def _span(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element there begins, and where it ends (X.690, definite lengths)."""
    size, begin = der[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size, begin = int.from_bytes(der[begin : begin + count], "big"), begin + count
    return begin, begin + size


def _inside(der: bytes, at: int) -> int:
    return _span(der, at)[0]


def _behind(der: bytes, at: int) -> int:
    return _span(der, at)[1]


def all_of(settings: Settings, primaries: Iterable[Address], replicas: Iterable[Address]) -> list[Address]:
    """Every server that is known: those of the URL, the primaries, and their replicas."""
    endpoints = endpoints_of(settings)
    named = [each for each in endpoints.addresses if each.host]
    return list(dict.fromkeys([*named, *primaries, *replicas]))
