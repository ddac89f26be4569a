"""What an entry of `CACHES` says: the settings of its cache, and what of Django is mapped to what of cachebus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from django.utils.module_loading import import_string

from cachebus.base.ids import Id, check_part
from cachebus.context import current
from cachebus.django.values import Serializer
from cachebus.errors import ConfigError, InvalidKey, TenantRequired
from cachebus.policy import Policy, Rules, unknown
from cachebus.settings import Settings

TenantSource = Callable[[], Id | None]
DATA_TYPE = "django"
"""The type of all values, and the tenant that they belong to, where nothing else is said."""
OWN = ("DATA_TYPE", "POLICY", "SERIALIZER", "TENANT")
OF_DJANGO = ("MAX_ENTRIES", "CULL_FREQUENCY")
"""Known to every backend. This one has limits of its own: `l1_max_entries`, and Redis' `maxmemory`."""
FIXED = ("codec", "copy", "copy_values", "lossy", "model")
"""Fields of a policy that say how a value is encoded: here it is bytes always."""


def surrounding_tenant() -> Id:
    """The tenant of the surrounding `cachebus.Context`: `OPTIONS={"TENANT": "cachebus.django.surrounding_tenant"}`.
    Raises `TenantRequired` where there is none."""
    found = current()
    if found is None or found.tenant_id is None:
        raise TenantRequired("Django's cache is used outside of a Context, and its TENANT is the surrounding one")
    return found.tenant_id


class AliasOptions(NamedTuple):
    """An entry of `CACHES`, understood."""

    settings: Settings
    data_type: str
    policy: Policy
    serializer: Serializer | None
    tenant: TenantSource

    def tenant_id(self) -> Id:
        """Whose values are meant by the call that is under way; `TenantRequired`."""
        tenant = self.tenant()
        if tenant is None:
            raise TenantRequired("the TENANT of Django's cache gave None")
        return tenant


def understood(location: object, options: Mapping[str, Any]) -> AliasOptions:
    """What `LOCATION` and `OPTIONS` say: in small letters the fields of `Settings`, in capitals what is Django's side
    of it. `ConfigError` names what is wrong, or unknown."""
    if not isinstance(location, str):
        raise ConfigError(
            f"LOCATION must be one URL, not {type(location).__name__}: a Cluster's names any of its nodes"
        )
    for name in options:
        if not isinstance(name, str) or (name.isupper() and name not in (*OWN, *OF_DJANGO)):
            raise ConfigError(f"OPTIONS {name}: {unknown('option', str(name), (*OWN, *OF_DJANGO))}")
    fields = {name: value for name, value in options.items() if not name.isupper()}
    if location:
        fields["url"] = location
    fields.setdefault("default_tenant", DATA_TYPE)
    settings = Settings(**cast("Any", fields))
    data_type = _data_type(options.get("DATA_TYPE", DATA_TYPE))
    policy = _policy(data_type, options.get("POLICY", {}))
    tenant = options.get("TENANT", settings.default_tenant)
    return AliasOptions(settings, data_type, policy, _serializer(options.get("SERIALIZER")), _tenant(tenant))


def _data_type(name: object) -> str:
    try:
        return check_part("DATA_TYPE", name)
    except InvalidKey as error:
        raise ConfigError(f"OPTIONS {error}") from None


def _policy(data_type: str, given: Any) -> Policy:
    fields = given.model_dump(by_alias=True, exclude_unset=True) if isinstance(given, Policy) else given
    if not isinstance(fields, Mapping):
        raise ConfigError(f"OPTIONS POLICY: a dict of a Policy's fields is needed, not {type(given).__name__}")
    for name in FIXED:
        if name in fields:
            raise ConfigError(f"OPTIONS POLICY {name}: how values are encoded is this backend's; see SERIALIZER")
    # A function that Django's callers give is called once, as they know it: its errors are theirs to repeat.
    policy = Policy(**{"retries": 0, **fields, "codec": "raw"})
    Rules(data_type, policy)
    return policy


def _serializer(given: object) -> Serializer | None:
    found = import_string(given) if isinstance(given, str) and "." in given else given
    if isinstance(found, type):
        found = found()
    if found is not None and not all(callable(getattr(found, name, None)) for name in ("dumps", "loads")):
        raise ConfigError(f"OPTIONS SERIALIZER: something with dumps and loads is needed, not {given!r}")
    return cast("Serializer | None", found)


def _tenant(given: Any) -> TenantSource:
    """A function as it is, one by its dotted name, or a tenant's id as what gives it."""
    if isinstance(given, str) and "." in given:
        try:
            given = import_string(given)
        except ImportError as error:
            raise ConfigError(f"OPTIONS TENANT: {error}; a tenant whose id has a dot goes by a function") from None
    if callable(given):
        return cast("TenantSource", given)
    try:
        check_part("TENANT", given)
    except InvalidKey as error:
        raise ConfigError(f"OPTIONS {error}") from None
    return lambda: cast("Id", given)
