"""What a server logs in with at a primary that it follows, and whom it lets in: compared by hashes, and never shown.

`masterauth` is read as soon as a link breaks, and not before: one that was forgotten when passwords changed stands
unseen until the next failover.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cachebus.resp import Address
from cachebus.tools.doctor.asking import Asker, asked, texts

DEFAULT: Final = "default"
_ANY: Final = "any"
"""In place of hashes: whoever names that user is let in."""
_OTHERS: Final = "others"
"""Beside hashes: it may take others, too."""


@dataclass(frozen=True, slots=True)
class Logins:
    """Of one server."""

    asks_password: bool = False
    """Whether it refuses clients without a password."""
    shows_password: bool | None = None
    """Whether `masterauth` is set; None if unknown."""
    user: str = DEFAULT
    """Whom it logs in as at a primary (`masteruser`)."""
    hashed: str = field(default="", repr=False)
    """The hash of `masterauth`."""
    lets_in: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    """Which hashes of passwords it takes, by user; as far as it says, or as the login of the doctor was taken."""

    def let_in_by(self, other: Logins) -> bool | None:
        """Whether the other server lets this one in; None if that is not known."""
        if not other.asks_password:
            return True
        if not self.shows_password:
            return self.shows_password
        taken = other.lets_in.get(self.user, (_OTHERS,))
        if _ANY in taken or sum(hmac.compare_digest(self.hashed, each) for each in taken):
            return True
        return None if _OTHERS in taken else False


NO_LOGINS: Final = Logins()


async def logins_of(asker: Asker, address: Address) -> Logins:
    """What this server tells of it; nothing is tried."""
    auth, unknown = await asker.ask("CONFIG", "GET", "masterauth")
    named, _ = await asker.ask("CONFIG", "GET", "masteruser")
    secret = next(iter(texts(auth).values()), "")
    user = next(iter(texts(named).values()), "") or DEFAULT
    lets_in: dict[str, Sequence[str]] = {}
    if address.password:
        lets_in[address.username or DEFAULT] = (_hash(address.password), _OTHERS)
    rules, refused = await asker.ask("ACL", "GETUSER", user)
    if not refused:
        lets_in[user] = _taken(rules)
    asks = bool(address.password) and await _asks_password(address)
    return Logins(asks, None if unknown else bool(secret), user, _hash(secret), lets_in)


def _taken(rules: Sequence[Any] | None) -> Sequence[str]:
    """The hashes of the passwords that a user has, by ACL GETUSER; none where there is no such user, or it is off."""
    said = dict(zip((rules or ())[::2], (rules or ())[1::2], strict=False))
    flags = said.get(b"flags") or ()
    if b"on" not in flags:
        return ()
    return (_ANY,) if b"nopass" in flags else [each.decode() for each in said.get(b"passwords") or ()]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def _asks_password(address: Address) -> bool:
    ((_, refused),) = await asked(replace(address, username=None, password=None), ("PING",))
    return "NOAUTH" in refused
