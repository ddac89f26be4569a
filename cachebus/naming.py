"""From the ids of a call to its key: the ambient tenant where none is given, and a memory of keys made before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from string import Formatter
from typing import Any

from cachebus import context
from cachebus.errors import ConfigError, InvalidKey, TenantRequired
from cachebus.keys import SYSTEM, Key, Keyspace, Part, tag_name
from cachebus.policy import Rules

KEYS_MAX = 8192
TAGS_MAX = 255


def tenant_of(data_type: str, tenant_id: Part | None) -> Part | None:
    """The argument's tenant, else the ambient one; `system` has none unless it is given."""
    if tenant_id is not None or data_type == SYSTEM:
        return tenant_id
    around = context.current()
    return around.get_tenant_id() if around is not None and around.has_tenant_id() else None


def check_contexts(contexts: str, *ids: Part | None) -> None:
    """The argument `contexts` of an invalidation; `ValueError`, and `InvalidKey` for "all" contexts of one context,
    which is no scope: better refused than done by half."""
    if contexts not in ("exact", "all"):
        raise ValueError('contexts must be "exact" or "all"')
    if contexts == "all" and any(part is not None for part in ids):
        raise InvalidKey('contexts="all" takes no context ids: it means the resource id in every context')


class Template:
    """An id written out of a function's arguments, such as "doc:{doc_id}"; `ConfigError` where it can't be."""

    __slots__ = ("_fields", "_text", "_where", "_whole")

    def __init__(self, text: str, known: Collection[str] | None, where: str) -> None:
        """`known`: the arguments that there are, None for any; `where`: the function's name, for messages."""
        self._text, self._where = text, where
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"{where}: {text!r}: {error}") from None
        self._fields = [field for _, field, _, _ in parsed if field is not None]
        self._whole = [(before, spec, how) for before, _, spec, how in parsed] == [("", "", None)]
        for field in self._fields:
            name = field.replace("[", ".").partition(".")[0]
            if not name or (known is not None and name not in known):
                raise ConfigError(f"{where}: {text!r} has the placeholder {{{field}}}, but there is no such argument")

    def filled_in(self, arguments: Mapping[str, Any]) -> Any:
        """The id for these arguments; of a template that is one argument alone, that argument as it is, so that None is
        no id rather than one called "None". `InvalidKey` where something else than str or int would be written into a
        longer one."""
        for field in self._fields:
            try:
                found, _ = Formatter().get_field(field, (), arguments)
            except (KeyError, AttributeError, IndexError):
                raise InvalidKey(f"{self._where}: nothing for {{{field}}} in {self._text!r}") from None
            if self._whole:
                return found
            if isinstance(found, bool) or not isinstance(found, str | int):
                raise InvalidKey(f"{self._where}: {field} is {found!r:.40}, and {self._text!r} takes str or int")
        return self._text.format_map(arguments)


class Naming:
    """Keys of one cache. `known` has those asked for lately by their L1 name, since what L1 lacks is asked for again
    and need not be validated and encoded again."""

    __slots__ = ("_keyspace", "known")

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self.known: dict[str, Key] = {}

    def key(
        self, data_type: str, resource_id: Part, tenant_id: Part | None, agent_id: Part | None = None,
        conversation_id: Part | None = None, collection_id: Part | None = None,
    ) -> Key:  # fmt: skip
        """The validated key of these ids; `InvalidKey`, `TenantRequired`."""
        tenant = tenant_of(data_type, tenant_id) if tenant_id is None else tenant_id
        key = self._keyspace.key(data_type, resource_id, tenant, agent_id, conversation_id, collection_id)
        if len(self.known) >= KEYS_MAX:
            self.known.clear()
        self.known[key.l1] = key
        return key


def tag_names(key: Key, tags: Sequence[str], rules: Rules) -> list[str]:
    """Mark names of a value's tags: those given, and those of its type; `ValueError`, `InvalidKey`."""
    if isinstance(tags, str):
        raise ValueError("tags must be a sequence of strings")
    if not tags and not rules.tags:
        return []
    if not key.family.tenant:
        raise TenantRequired("tags belong to a tenant: a value without one can't have any")
    own = [template.format(resource_id=key.resource_id, tenant_id=key.family.tenant) for template in rules.tags]
    if len(tags) + len(own) > TAGS_MAX:
        raise ValueError(f"a value takes at most {TAGS_MAX} tags")
    return [tag_name(key.family.tenant, tag) for tag in dict.fromkeys([*tags, *own])]
