"""From the ids of a call to its key: the ambient tenant where none is given, and a memory of keys made before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from string import Formatter
from typing import Any

from cachebus import context
from cachebus.base.ids import Id, check_part, text_of
from cachebus.base.lifetimes import TAGS_MAX
from cachebus.base.templates import Template
from cachebus.cascade import WHOLE_SCOPE
from cachebus.errors import ConfigError, InvalidKey, TenantRequired
from cachebus.keys.key import SYSTEM, Key, Keyspace, tag_scope
from cachebus.policy import Rules

KEYS_MAX = 8192


def tenant_of(data_type: object, tenant_id: Id | None, default: str | None) -> str | None:
    """The argument's tenant, else the ambient one, else the default, as text; `system` has none unless it is given.
    `InvalidKey`."""
    if tenant_id is None and (data_type is None or text_of("data_type", data_type) != SYSTEM):
        around = context.current()
        tenant_id = None if around is None else around.tenant_id
        if tenant_id is None:
            return default
    return None if tenant_id is None else check_part("tenant_id", tenant_id)


def check_contexts(contexts: str, *ids: Id | None) -> None:
    """The argument `contexts` of an invalidation; `ValueError`, and `InvalidKey` for "all" contexts of one context,
    which is no scope: better refused than done by half."""
    if contexts not in ("exact", "all"):
        raise ValueError('contexts must be "exact" or "all"')
    if contexts == "all" and any(part is not None for part in ids):
        raise InvalidKey('contexts="all" takes no context ids: it means the resource id in every context')


class ArgumentTemplate:
    """An id written out of a function's arguments, such as "doc:{doc_id}"; `ConfigError` where it can't be."""

    __slots__ = ("_alone", "_template", "_where")

    def __init__(self, text: str, known: Collection[str] | None, where: str) -> None:
        """`known`: the arguments that there are, None for any; `where`: the function's name, for messages."""
        self._where = where
        try:
            self._template = Template(text)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        fields = self._template.fields
        self._alone = text == f"{{{fields[0]}}}" if fields else False
        for field in fields:
            name = field.replace("[", ".").partition(".")[0]
            if not name or (known is not None and name not in known):
                raise ConfigError(f"{where}: {text!r} has the placeholder {{{field}}}, but there is no such argument")

    @property
    def is_alone(self) -> bool:
        """Whether it is one argument and nothing else, which is then taken as it is."""
        return self._alone

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments that it is written out of."""
        return [field.replace("[", ".").partition(".")[0] for field in self._template.fields]

    def check(self, part: str) -> None:
        """`ConfigError` for what is no such id, nor a tag, whatever the arguments are."""
        filled = self._template.fill(dict.fromkeys(self._template.fields, "x"))
        try:
            check_part(part, filled)
        except InvalidKey as error:
            raise ConfigError(f"{self._where}: {error}") from None
        if part == "resource_id" and filled == WHOLE_SCOPE:
            raise ConfigError(f'{self._where}: resource_id "{WHOLE_SCOPE}" names all of a data type')

    def filled_in(self, arguments: Mapping[str, Any]) -> Any:
        """The id for these arguments; of a template that is one argument alone, that argument as it is, so that None is
        no id rather than one called "None". `InvalidKey` where what is no id would be written into a longer one."""
        values = {field: self._argument(field, arguments) for field in self._template.fields}
        if self._alone:
            return values[self._template.fields[0]]
        try:
            return self._template.fill(values)
        except InvalidKey as error:
            raise InvalidKey(f"{self._where}: {error}, in {self._template.text!r}") from None

    def _argument(self, field: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return Formatter().get_field(field, (), arguments)[0]
        except (KeyError, AttributeError, IndexError):
            raise InvalidKey(f"{self._where}: nothing for {{{field}}} in {self._template.text!r}") from None


class Naming:
    """Keys of one cache. `known` has those asked for lately by their L1 name, since what L1 lacks is asked for again
    and need not be validated and encoded again."""

    __slots__ = ("_default_tenant", "_keyspace", "known")

    def __init__(self, keyspace: Keyspace, default_tenant: str | None = None) -> None:
        self._keyspace, self._default_tenant = keyspace, default_tenant
        self.known: dict[str, Key] = {}

    def key(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        name: str = "",
    ) -> Key:
        """The validated key of these ids; `InvalidKey`, `TenantRequired`.

        `name`: its L1 name, where the caller has joined it of what is exactly str or int; "" where an id is anything
        else. Only such a name may be looked up: one that is made by an id's own `__format__` may be another tenant's.
        """
        key = self.known.get(name)
        if key is not None:
            return key
        key = self.named(data_type, resource_id, tenant_id, agent_id, conversation_id, collection_id)
        if key.resource_id == WHOLE_SCOPE:
            raise InvalidKey(
                f'resource_id "{WHOLE_SCOPE}" names all of a data type, which can only be invalidated: a value has an '
                "id of its own"
            )
        if len(self.known) >= KEYS_MAX:
            self.known.clear()
        self.known[key.l1] = key
        return key

    def named(self, data_type: str, resource_id: Id, tenant_id: Id | None, *contexts: Id | None) -> Key:
        """As `key`, for what is no value: a counter, or an invalidation's target, where "*" names the whole scope."""
        tenant = self.tenant_of(data_type, None) if tenant_id is None else tenant_id
        return self._keyspace.key(data_type, resource_id, tenant, *contexts)

    def tenant_of(self, data_type: object, tenant_id: Id | None) -> str | None:
        """The tenant of a call, as text; None for `system`, and where there is none. `InvalidKey`."""
        return tenant_of(data_type, tenant_id, self._default_tenant)


def tag_scopes(key: Key, tags: Sequence[str], rules: Rules) -> list[str]:
    """The scopes of a value's tags: those given, and those of its type; `ValueError`, `InvalidKey`."""
    if isinstance(tags, str | bytes):
        raise ValueError("tags must be a sequence of strings")
    if not tags and not rules.tags:
        return []
    tenant = key.family.tenant
    if not tenant:
        raise TenantRequired("tags belong to a tenant: a value without one can't have any")
    own = [template.fill({"resource_id": key.resource_id, "tenant_id": tenant}) for template in rules.tags]
    if len(tags) + len(own) > TAGS_MAX:
        raise ValueError(f"a value takes at most {TAGS_MAX} tags")
    return list(dict.fromkeys(tag_scope(tenant, tag) for tag in (*tags, *own)))
