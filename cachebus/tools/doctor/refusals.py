"""What refusals mean that no right would help against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cachebus.tools.doctor.finding import Finding, Severity

MEANINGS: Final[Mapping[str, str]] = {
    "NOREPLICAS": "too few replicas keep up; see the check named replication",
    "OOM": "its memory is full; see the checks named eviction and memory",
    "READONLY": "it is a replica; see the check named role",
    "MASTERDOWN": "it is a replica that does not follow; see the check named role",
    "CLUSTERDOWN": "not every slot of the Cluster has a server; see the checks named scripts and slots",
    "MISCONF": "it can't write its file; see the check named saving",
    "LOADING": "it reads its file, and answers when it has",
    "BUSY": "a script holds it: SCRIPT KILL ends one that has written nothing, SHUTDOWN NOSAVE any, with all data",
    "MOVED": "another server has the slot by now; run it again",
    "TRYAGAIN": "the slot is being moved; run it again",
    "not found": "it does not know the command: it was renamed or taken away, or this is no server for data",
    "unknown command": "it does not know the command: it was renamed or taken away, or this is no server for data",
}
"""Meanings by a part of the text: before Redis 7.0, a script's error hides the code of the error in it."""


NO_ENTRY: Final = ("WRONGPASS", "NOAUTH", "NOPERM", "without any password configured")
"""In refusals of a server that is there, and does not let this user in."""


@dataclass(frozen=True, slots=True)
class NoTrust:
    """Why the two ends of a TLS connection do not take each other, and what helps."""

    means: str
    helps: str


_OUR_SIDE: Final = NoTrust(
    "it is there, and its certificate is not taken: its authority is unknown here, it names another host, or it has "
    "ended",
    "name its authorities (ssl_ca_certs, in the URL or as CACHEBUS_SSL_CA_CERTS), and the host as its certificate does",
)
_ITS_SIDE: Final = NoTrust(
    "it is there, and does not take this client: it wants a certificate that an authority of its own has signed",
    "name certificate and key in the URL: ssl_certfile and ssl_keyfile",
)
_TLS: Final = (
    (("CERTIFICATE_VERIFY_FAILED", "certificate verify failed"), _OUR_SIDE),
    (("CERTIFICATE_REQUIRED", "certificate required", "ALERT_UNKNOWN_CA", "alert unknown ca"), _ITS_SIDE),
    (("ALERT_BAD_CERTIFICATE", "alert bad certificate", "HANDSHAKE_FAILURE"), _ITS_SIDE),
)


def no_trust(refused: str) -> NoTrust | None:
    """What certificates have to do with a refusal; None for nothing."""
    return next((what for signs, what in _TLS if any(sign in refused for sign in signs)), None)


def meaning_of(refused: str) -> str:
    """What a refusal means; "" where that is not known."""
    return next((meaning for sign, meaning in MEANINGS.items() if sign in refused), "")


def finding_of(refused: Sequence[str], how: str) -> Finding:
    """The finding for operations that are refused though the user has the rights."""
    why = meaning_of(refused[0])
    more = "" if len(refused) == 1 else f" (and {len(refused) - 1} more)"
    return Finding(
        "operations",
        Severity.PROBLEM,
        f"what a node does is refused, found {how}: {refused[0]}{more}",
        "No permission is lacking" + (f": {why}." if why else "; the server says why."),
        otherwise="" if why else "look at the server's own log",
    )
