"""Names of things: keys in L1 and L2, scopes, tags, and the shard they lie in.

A key is made of a tenant, a data type, a resource id and up to three context ids. In L1 its name is the raw parts
joined by control characters, always exactly five of them, which no part may contain: so no two inputs share a name,
and the hit path joins what is exactly str or int without validating it (an invalid part can only miss). Here, on the
miss, parts are validated and percent-encoded for L2.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha1
from zlib import crc32

from cachebus.base.ids import check_part
from cachebus.errors import InvalidKey, TenantRequired

KEY_MAX_BYTES = 1024
GIVEN, ABSENT = "\x1f", "\x1e"
"""Before a context id that is given, and in place of one that is not: an empty id is therefore never an absent one."""
NO_CONTEXT = ABSENT * 3
SYSTEM = "system"
"""The one data type that may go without a tenant."""
TAG = "G"
"""With this letter the scope of a tag begins."""
ALL_OF_SHARD = "N"
"""The scope that holds everything in a shard."""
ALL_TENANTS = "**"
"""The bucket for scopes that hold more than one tenant."""

_NONE: tuple[str | None, str | None, str | None] = (None, None, None)
_plain = re.compile(r"[!-$&-)+-9;-~]{1,512}").fullmatch  # printable ASCII that needs no encoding and no further look
_fields = re.compile(f"[{GIVEN}{ABSENT}][^{GIVEN}{ABSENT}]*").findall
_CODES = str.maketrans({"%": "%25", ":": "%3A", "*": "%2A"})


def encoded(part: str) -> str:
    """The part as it stands in an L2 key: `%`, `:` and `*` percent-encoded."""
    return part if _plain(part) else part.translate(_CODES)


def type_scope(data_type: object) -> str:
    """The scope that holds a data type of all tenants in a shard; `InvalidKey`."""
    return f"Y{GIVEN}{check_part('data_type', data_type)}"


def tag_scope(tenant: str, tag: str) -> str:
    """The scope of a tag."""
    return f"G{GIVEN}{tenant}{GIVEN}{check_part('tag', tag)}"


def tag_of(scope: str) -> str:
    """The tag whose scope this is."""
    return scope.split(GIVEN, 2)[2]


def shard_of(tenant: str, shards: int) -> int:
    """In which of so many shards all of a tenant lies."""
    return crc32(tenant.encode()) % shards


@lru_cache(maxsize=4096)
def bucket_of(tenant: str) -> str:
    """Which of 256 buckets a tenant's scopes and tags lie in: two hexadecimal digits."""
    return sha1(tenant.encode(), usedforsecurity=False).hexdigest()[:2]


def bucket_of_scope(name: str) -> str:
    """The bucket of a scope or tag."""
    if name[:1] in "NY":
        return ALL_TENANTS
    return bucket_of(name.split(GIVEN, 2)[1])


_SCOPE_PARTS = {
    shape: parts
    for parts, shapes in {1: "N", 2: "T Y", 3: "D G TA TV TC", 4: "I DA DV DC"}.items()
    for shape in shapes.split()
}
"""By its shape: of how many parts a scope's or tag's name is made."""


def is_scope(name: str) -> bool:
    """Whether it is a name of a scope or tag of this format."""
    parts = name.split(GIVEN)
    return _SCOPE_PARTS.get(parts[0]) == len(parts)


def scopes_of(l1: str) -> tuple[str, tuple[str, ...]]:
    """The bucket of the key with this L1 name, and the scopes that it lies in: what `Key.scopes` says, from the name
    alone."""
    parts = parts_of(l1)
    return bucket_of(parts[0]), _scopes(*parts)


def parts_of(l1: str) -> tuple[str, str, str, tuple[str | None, ...]]:
    """Tenant, data type, resource id and contexts, as they stand in an L1 name; `ValueError` where it is none."""
    tenant, data_type, rest = l1.split(GIVEN, 2)
    end = min(i for i in (rest.find(GIVEN), rest.find(ABSENT)) if i >= 0)
    contexts = tuple(field[1:] if field[0] == GIVEN else None for field in _fields(rest[end:]))
    return tenant, data_type, rest[:end], contexts


def _scopes(tenant: str, data_type: str, resource_id: str, contexts: Sequence[str | None]) -> tuple[str, ...]:
    scopes = (
        ALL_OF_SHARD,
        f"Y{GIVEN}{data_type}",
        f"T{GIVEN}{tenant}",
        f"D{GIVEN}{tenant}{GIVEN}{data_type}",
        f"I{GIVEN}{tenant}{GIVEN}{data_type}{GIVEN}{resource_id}",
    )
    narrow = [(shape, c) for shape, c in zip("AVC", contexts, strict=True) if c is not None]
    if not narrow:
        return scopes
    return (
        *scopes,
        *(f"T{shape}{GIVEN}{tenant}{GIVEN}{c}" for shape, c in narrow),
        *(f"D{shape}{GIVEN}{tenant}{GIVEN}{data_type}{GIVEN}{c}" for shape, c in narrow),
    )


class Family:
    """What all keys of one tenant and data type share; made once, so that a miss validates only its resource id."""

    __slots__ = ("bucket", "data_type", "prefix", "shard", "stem", "tenant")

    def __init__(self, tenant: str, data_type: str, shards: int) -> None:
        self.tenant = tenant
        self.data_type = data_type
        self.shard = shard_of(tenant, shards)
        self.bucket = bucket_of(tenant)
        self.prefix = f"{encoded(tenant)}:{encoded(data_type)}:"
        self.stem = f"{tenant}{GIVEN}{data_type}{GIVEN}"


class Key:
    """One validated key. `l1` is its name in L1 and in events, `l2` its L2 name less the shard's prefix, `crc` the
    CRC-32 of that, to which its records are bound."""

    __slots__ = ("contexts", "crc", "family", "l1", "l2", "resource_id", "shard")

    def __init__(
        self,
        family: Family,
        resource_id: str,
        contexts: tuple[str | None, str | None, str | None],
        *,
        plain: bool = False,
    ) -> None:
        """`plain`: the resource id is known to need no encoding."""
        self.family = family
        self.shard = family.shard
        self.resource_id = resource_id
        self.contexts = contexts
        if contexts is _NONE:
            self.l1 = f"{family.stem}{resource_id}{NO_CONTEXT}"
            self.l2 = family.prefix + (resource_id if plain or _plain(resource_id) else resource_id.translate(_CODES))
        else:
            tail = "".join(ABSENT if c is None else GIVEN + c for c in contexts)
            middle = "".join(f"{n}:{encoded(c)}:" for n, c in zip(_L2_NAMES, contexts, strict=True) if c is not None)
            self.l1 = f"{family.stem}{resource_id}{tail}"
            self.l2 = f"{family.prefix}{middle}{encoded(resource_id)}"
        name = self.l2.encode()
        self.crc = crc32(name)
        if len(name) > KEY_MAX_BYTES:
            raise InvalidKey(f"resource_id makes the key too long: at most {KEY_MAX_BYTES} bytes once encoded")

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes that the key lies in (at most eleven), widest first: two of all tenants, then the tenant's own."""
        return _scopes(self.family.tenant, self.family.data_type, self.resource_id, self.contexts)

    @property
    def everywhere(self) -> str:
        """The scope that holds the resource id in every context, where the key has a context; else ""."""
        return "" if self.contexts is _NONE else everywhere(self)

    def levels(self) -> list[Key]:
        """The keys of a hierarchical search, most specific first: drop collection, then conversation, then agent."""
        found, contexts = [self], self.contexts
        for i in (2, 1, 0):
            if contexts[i] is not None:
                a, v, c = (None if j == i else context for j, context in enumerate(contexts))
                contexts = _NONE if (a, v, c) == _NONE else (a, v, c)
                found.append(Key(self.family, self.resource_id, contexts))
        return found

    def __repr__(self) -> str:
        return f"Key({self.l2})"


_L2_NAMES = ("agent", "conv", "coll")
_CONTEXT_NAMES = ("agent_id", "conversation_id", "collection_id")


class Keyspace:
    """Makes keys and scope names for a namespace cut into `shards` shards."""

    def __init__(self, shards: int, remembered: int = 4096) -> None:
        self.shards = shards
        self._families: dict[tuple[str | None, str], Family] = {}
        self._remembered = remembered

    def family(self, tenant_id: object, data_type: object) -> Family:
        """The family of a tenant (None only for `system`) and data type; `TenantRequired` or `InvalidKey`."""
        if (tenant_id is None or type(tenant_id) is str) and type(data_type) is str:
            found = self._families.get((tenant_id, data_type))
            if found is not None:
                return found
        checked = check_part("data_type", data_type)
        if tenant_id is None:
            if checked != SYSTEM:
                raise TenantRequired(f"tenant_id is needed for data type {checked!r}: {tenant_remedy()}")
            tenant = ""
        else:
            tenant = check_part("tenant_id", tenant_id)
        family = Family(tenant, checked, self.shards)
        if len(self._families) >= self._remembered:
            self._families.clear()
        self._families[(None if tenant_id is None else tenant, checked)] = family
        return family

    def key(
        self,
        data_type: object,
        resource_id: object,
        tenant_id: object,
        agent_id: object = None,
        conversation_id: object = None,
        collection_id: object = None,
    ) -> Key:
        """The key of these parts; `InvalidKey` names the part that is wrong."""
        family = self.family(tenant_id, data_type)
        if type(resource_id) is not str or not _plain(resource_id):
            resource_id = check_part("resource_id", resource_id)
        if agent_id is None and conversation_id is None and collection_id is None:
            return Key(family, resource_id, _NONE)
        agent, conversation, collection = (
            None if part is None else check_part(name, part)
            for name, part in zip(_CONTEXT_NAMES, (agent_id, conversation_id, collection_id), strict=True)
        )
        return Key(family, resource_id, (agent, conversation, collection))

    def keys(self, data_type: str, ids: Iterable[tuple[str, str | None]]) -> list[Key]:
        """The keys of these resource ids, each with its tenant id, in no context; `InvalidKey` where one is wrong."""
        found: list[Key] = []
        for part, tenant_id in ids:
            plain = type(part) is str and _plain(part) is not None
            text = part if plain else check_part("resource_id", part)
            found.append(Key(self.family(tenant_id, data_type), text, _NONE, plain=plain))
        return found

    def named(self, l1: str) -> Key:
        """The key that has this L1 name; the name must be one that a key of this keyspace has given."""
        tenant, data_type, resource_id, (agent, conversation, collection) = parts_of(l1)
        contexts = agent, conversation, collection
        return Key(self.family(tenant or None, data_type), resource_id, _NONE if contexts == _NONE else contexts)

    def parsed(self, l1: str) -> Key:
        """The key that has this L1 name, whoever says it; `InvalidKey` for what is the name of none."""
        try:
            tenant, data_type, resource_id, contexts = parts_of(l1)
            agent, conversation, collection = contexts
        except ValueError:
            raise InvalidKey("it is no name of a key in L1") from None
        key = self.key(data_type, resource_id, tenant or None, agent, conversation, collection)
        if key.l1 != l1:
            raise InvalidKey("it is no name of a key in L1")
        return key

    def scope(
        self,
        tenant_id: object,
        data_type: object = None,
        agent_id: object = None,
        conversation_id: object = None,
        collection_id: object = None,
    ) -> tuple[int, str]:
        """Shard and name of a scope: a tenant or a tenant's type, each with at most one context id."""
        given = [
            (shape, check_part(name, part))
            for shape, name, part in zip("AVC", _CONTEXT_NAMES, (agent_id, conversation_id, collection_id), strict=True)
            if part is not None
        ]
        if len(given) > 1:
            raise InvalidKey("a scope takes at most one of agent_id, conversation_id, collection_id")
        if tenant_id is None and data_type is None:
            raise TenantRequired(f"tenant_id is needed for a scope of all data types: {tenant_remedy()}")
        family = self.family(tenant_id, SYSTEM if data_type is None else data_type)
        parts = [family.tenant] if data_type is None else [family.tenant, family.data_type]
        shape = ("T" if data_type is None else "D") + "".join(s for s, _ in given)
        return family.shard, GIVEN.join([shape, *parts, *(part for _, part in given)])

    def tags(self, tenant_id: object, tags: Iterable[str]) -> tuple[int, list[str]]:
        """Shard and scopes of a tenant's tags."""
        if tenant_id is None:
            raise TenantRequired(f"tags belong to a tenant: {tenant_remedy()}")
        family = self.family(tenant_id, SYSTEM)
        return family.shard, [tag_scope(family.tenant, tag) for tag in tags]


def everywhere(key: Key) -> str:
    """Name of the scope that holds the key's resource id in every context."""
    return f"I{GIVEN}{key.family.stem}{key.resource_id}"


def guard_name(key: Key) -> str:
    """The name under which a guard stands on the key itself; scopes and tags are guarded under their own
    names, of which none begins like this."""
    return f"K\x1f{key.l1}"


def tenant_remedy() -> str:
    """What to do where a tenant is missing."""
    context = "run inside a Context"
    if "fastapi" in sys.modules:
        context += " (one that a dependency of FastAPI enters is seen only where that is async: others run in a thread)"
    return f"give tenant_id, {context}, or set default_tenant in the settings"
