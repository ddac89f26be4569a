"""What the library says of its arguments, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cachebus.errors import CacheBusError, InvalidKey
from cachebus.keys.key import tenant_remedy

_IDS: Final[Mapping[str, str]] = {
    "data_type": "TYPE",
    "resource_id": "ID",
    "tenant_id": "--tenant",
    "agent_id": "--agent",
    "conversation_id": "--conversation",
    "collection_id": "--collection",
}
_OF_WORKERS: Final[Mapping[str, str]] = {"dead_topic": "--dead-topic", "bootstrap_servers": "--bootstrap-servers"}
_TENANT_REMEDY: Final = "give --tenant, or set CACHEBUS_DEFAULT_TENANT"


def in_options(error: CacheBusError) -> str:
    """Its message in one line. An id that is wrong is called by the option that gave it; a rule's field keeps its name,
    as it stands in the rules."""
    said = " ".join(str(error).split())
    named = {**_IDS, **_OF_WORKERS} if isinstance(error, InvalidKey) else _OF_WORKERS
    said = said.replace(tenant_remedy(), _TENANT_REMEDY)
    return re.sub(rf"\b({'|'.join(named)})\b", lambda found: named[found[1]], said)
