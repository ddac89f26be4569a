"""The seam to hiredis: its reader, and the one place where a server's error reply becomes an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import hiredis

from cachebus.base.masking import without_arguments
from cachebus.errors import CacheBusError, L2Unavailable, ProtocolMismatch

NOTHING: Final = object()
"""What the reader gives when no whole reply has arrived yet (a nil reply is None)."""

pack: Final = cast("Callable[[tuple[bytes | str | int, ...]], bytes]", hiredis.pack_command)
"""A command's arguments as RESP, text as UTF-8. Raises TypeError or UnicodeEncodeError for what it cannot carry."""

Reads = Callable[[Any], Any]
"""Makes of a reply what its caller is given. Whatever it raises says that this is no reply to that question."""


class Misshapen(ValueError):
    """A reply of another shape than the question asked for."""


NONSENSE: Final = (hiredis.HiredisError, Misshapen, TypeError)
"""What is raised for bytes that are no RESP (TypeError: a map of RESP3 whose key is a list), or do not answer."""

_OWN: Final = "CACHEBUS "
_LONGEST_CHARS: Final = 300


class NotAsked(L2Unavailable):
    """A call that was refused here and never sent: it says nothing about the server or its connection."""


class Refused(L2Unavailable):
    """What a server answers that has not done what it was asked: it says a code, and why."""

    @property
    def code(self) -> str:
        """The first word of what it says, as WRONGTYPE or READONLY."""
        return str(self).partition(" ")[0]


def code_of(error: object) -> str:
    """The code of a server's refusal; "" for what is none."""
    return error.code if isinstance(error, Refused) else ""


def mapped(text: str) -> CacheBusError:
    """The error for a server's error reply, whose text it keeps (cut to 300 characters, control characters as `?`), but
    for the arguments of a command that the server does not know: those are keys, values, or a password.

    A script of ours that answers `CACHEBUS why` refuses this node: `ProtocolMismatch(why)`. Everything else, be it
    LOADING, READONLY, NOREPLICAS, OOM or plain ERR, is `Refused`: the store did not do it, whatever its reason,
    and Redis 6.2 hides the codes of errors inside scripts in an ERR, so the code could not be relied on.
    """
    text = without_arguments(text)
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "?" for char in text)
    if text.startswith(_OWN):
        return ProtocolMismatch(_of_facts(text[len(_OWN) :])[:_LONGEST_CHARS])
    return Refused(text[:_LONGEST_CHARS])


def _of_facts(text: str) -> str:
    """What a script says of the namespace and of this process, with what helps."""
    there, both, here = text.partition(" | ")
    if not both:
        return text
    known, own = (dict(fact.partition("=")[::2] for fact in facts.split()) for facts in (there, here))
    helps = [f"set {_FACTS[name]}={known[name]}" for name in _FACTS if name in known and known[name] != own.get(name)]
    if known.get("protocol") != own.get("protocol"):
        helps = ["use the release of cachebus that all others use"]
    says = f"the namespace is laid out as {there!r}, this process is set to {here!r}"
    return f"{says}: {' and '.join(helps)}{', or ' * bool(helps)}set CACHEBUS_NAMESPACE to another name{_TAKEN_BACK}"


_TAKEN_BACK: Final = "; `cachebus doctor` says how a layout is taken back"
_FACTS: Final = {"shards": "CACHEBUS_SHARDS", "bus": "CACHEBUS_BUS"}
_NO_PRIMARY: Final = ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS")
"""In refusals of a server that may have been deposed: they may lie in the text of another, as that of a script."""


def is_no_primarys(error: L2Unavailable) -> bool:
    """Whether it is what a server says that is no primary, or perhaps not any more."""
    return any(word in str(error) for word in _NO_PRIMARY)


def is_replicas(error: L2Unavailable) -> bool:
    """Whether it is what a replica says."""
    return any(word in str(error) for word in ("READONLY", "MASTERDOWN"))


def leads_elsewhere(error: L2Unavailable) -> bool:
    """Whether a server of a Cluster refused for not having the key's slot, or not the whole of it: it did nothing."""
    return code_of(error) in ("MOVED", "ASK", "TRYAGAIN")


def is_of_another_type(error: L2Unavailable) -> bool:
    """Whether a server refused a plain get for what lies under the key: others wrote a list there, as it were."""
    return code_of(error) == "WRONGTYPE"


def knows_no_script(error: object) -> bool:
    """Whether a server refused to run a script by its digest, since it has not got it."""
    return code_of(error) == "NOSCRIPT"


def host_port_in(error: L2Unavailable) -> tuple[str, int]:
    """Host ("" for the server's own) and port that a MOVED or ASK names. `L2Unavailable`, which leads nowhere itself,
    where it names none: a Cluster says port 0 of a node that is known to it, and not where it is."""
    host, _, port = str(error).rpartition(" ")[2].rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise L2Unavailable(f"sent on, and not told where to: {error}")
    return host.strip("[]").removeprefix("?"), int(port)  # "?": a name was to be told, and none is announced


def again(error: CacheBusError) -> CacheBusError:
    """An equal error for the next caller: one raised in several tasks would gather all their tracebacks."""
    return type(error)(*error.args)


def value_of(reply: Any) -> bytes | None:
    """A string, or that there is none."""
    if reply is not None and reply.__class__ is not bytes:
        raise Misshapen("not a string")
    return reply


def read_by(reads: Reads, reply: Any) -> Any:
    """A reply as its question reads it, or `Misshapen`: a reply may be anything, and so is what reading it raises."""
    try:
        return reads(reply)
    except Exception as error:
        raise Misshapen(str(error)) from error


def new_reader() -> hiredis.Reader:
    """A reader that gives bytes, errors of ours inside the replies, and `NOTHING` when it needs more."""
    return hiredis.Reader(replyError=mapped, notEnoughData=NOTHING)
