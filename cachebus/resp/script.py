"""A Lua script and its SHA1, under which the server remembers it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A script to run by `Connection.script`; `sha` (hexadecimal) is made from `source`."""

    source: str = field(repr=False)
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # The server names scripts by SHA1; nothing secret hangs on it, hence the flag that FIPS builds want.
        sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha)
