"""`cachebus get`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for

DataType = Annotated[str, typer.Argument(metavar="TYPE", help="The data type.")]
ResourceId = Annotated[str, typer.Argument(metavar="ID", help="The resource id.")]
Tenant = Annotated[str | None, typer.Option("--tenant", metavar="ID", help="Needed for all types but system.")]
Agent = Annotated[str | None, typer.Option("--agent", metavar="ID")]
Conversation = Annotated[str | None, typer.Option("--conversation", metavar="ID")]
Collection = Annotated[str | None, typer.Option("--collection", metavar="ID")]
Search = Annotated[bool, typer.Option("--search", help="Look in the wider contexts too.")]

ABSENT = 1


def get(
    data_type: DataType,
    resource_id: ResourceId,
    tenant: Tenant = None,
    agent: Agent = None,
    conversation: Conversation = None,
    collection: Collection = None,
    search: Search = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Show what L2 has for a key, as Python writes it.

    Exit status: 0, 1 if nothing valid is there, 2 if the server could not be reached or the key is none.
    """
    from cachebus.cli.operate.shards import shards_of_namespace

    settings = settings_for(url, namespace)

    async def shown() -> int:
        from cachebus.cache import Cache
        from cachebus.reading.fetch import MISSING

        shards = await shards_of_namespace(settings)
        async with Cache(settings.model_copy(update={"shards": shards, "use_memory_cache": False})) as cache:
            value = await cache.get(
                data_type,
                resource_id,
                tenant,
                agent,
                conversation,
                collection,
                search_hierarchy=search,
                default=MISSING,
            )
        sys.stdout.write("" if value is MISSING else f"{value!r}\n")
        return ABSENT if value is MISSING else 0

    raise typer.Exit(until_signalled(shown()))
