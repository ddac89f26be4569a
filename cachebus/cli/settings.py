"""Settings of a command: the environment's, with what was said on the command line in front."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cachebus.settings import Settings

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="As the caches' own; by default CACHEBUS_URL, as all other settings from CACHEBUS_*.",
        show_default=False,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", metavar="NAME", help="Whose keys; by default CACHEBUS_NAMESPACE.", show_default=False),
]


def settings_for(url: str | None, namespace: str | None, **more: Any) -> Settings:
    """The settings from the environment, with these in front; `ConfigError`."""
    given = {"url": url, "namespace": namespace, **more}
    return Settings(**{name: value for name, value in given.items() if value is not None})
