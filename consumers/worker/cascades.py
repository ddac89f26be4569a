"""Cascades declared in a file: workers do not run the services' code that declares them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cachebus.cascade import Cascade, CascadeTable
from cachebus.errors import ConfigError


class CascadeRule(BaseModel):
    """One `[[cascade]]` of a file: `data_type = "document"`, `to = [["embedding", "doc:{resource_id}"]]`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    data_type: str = Field(min_length=1)
    to: tuple[tuple[str, str], ...] = Field(min_length=1)

    def cascade(self) -> Cascade:
        """What it declares; `ConfigError`."""
        return Cascade(self.data_type, self.to)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    cascade: tuple[CascadeRule, ...] = ()


def load_cascades(path: Path) -> list[Cascade]:
    """The cascades that a TOML file declares; `ConfigError` names the file and what is wrong where."""
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        cascades = [rule.cascade() for rule in _File.model_validate(found).cascade]
        CascadeTable(cascades)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors(include_url=False)
        )
        raise ConfigError(f"{path}: {problems}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return cascades


def digest(cascades: Iterable[Cascade]) -> str:
    """What tells these cascades from others, however they are declared; "" for none."""
    edges = {(one.data_type, data_type, template.text) for one in cascades for data_type, template in one.to}
    return blake2b(repr(sorted(edges)).encode(), digest_size=8).hexdigest() if edges else ""


def reached(cascades: Iterable[Cascade]) -> list[str]:
    """The types of all that is invalidated by cascades."""
    return sorted({data_type for one in cascades for data_type, _ in one.to})
