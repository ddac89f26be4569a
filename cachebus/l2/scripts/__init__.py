"""The Lua scripts. The first line of each names the parts that are put in front of it, in their order."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from cachebus.resp import Script

_FIRST = "-- after: "


def script_names() -> list[str]:
    """The scripts that can be run."""
    found = (file.name for file in files(__name__).iterdir())
    return sorted(name.removesuffix(".lua") for name in found if name.endswith(".lua") and not name.startswith("_"))


def load_scripts() -> dict[str, Script]:
    """The scripts by name, each with its parts in front."""
    return {name: Script(whole_source(name)) for name in script_names()}


@cache
def whole_source(name: str) -> str:
    """A script with the parts that its first line names, byte for byte."""
    own = (files(__name__) / f"{name}.lua").read_text()
    parts = own.partition("\n")[0].removeprefix(_FIRST).split()
    return "".join((files(__name__) / f"_{part}.lua").read_text() for part in parts) + own
