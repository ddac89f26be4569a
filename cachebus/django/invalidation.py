"""Invalidations that follow Django's models: what is saved, deleted or related anew is invalidated after the commit.

1. A signal of a mapped model says what is to go, while the transaction is under way: `Invalidation`.
2. It is noted for the commit (`commits.py`), and with an `Outbox` it is written into the same transaction besides.
3. After the commit all that was noted is invalidated, in one step for each tenant.

What no signal tells of is not seen: `update`, `bulk_create`, `bulk_update`, `delete` in raw SQL, other programs.
`invalidate_on_commit` says it by hand; change data capture sees all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from django.apps import apps
from django.core.cache import caches
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import NOT_PROVIDED, Model
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.utils.module_loading import import_string

from cachebus.base.ids import Id
from cachebus.cascade import CascadeTable, Target
from cachebus.django.backend import CacheBackend
from cachebus.django.commits import Noted, note
from cachebus.django.related import (
    family,
    holds_expressions,
    keys_that_deleting_sets,
    many_to_many,
    partners,
    pointing_at,
    related_by,
    rows_of,
    seen_as,
    with_subclasses,
)
from cachebus.errors import ConfigError
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Planner
from cachebus.producers import Outbox, SyncOutboxProducer
from cachebus.threads import BlockingCache

Name = str | Target | tuple[Any, ...]
"""A key of Django's cache; or data type, resource id ("*": all of the type) and, if need be, context ids."""
NamesOf = Callable[[Any], Iterable[Name]]
"""What is cached of an instance."""
TenantOf = Id | Callable[[Any], Id]
Seen = tuple[NamesOf, Any]
"""A function of the mapping, and an instance of the model that it is of."""
_PLANNER: Final = Planner(Keyspace(1), CascadeTable(()))
"""For who looks whether names are right, before a transaction is committed."""


def backend_of(alias: str) -> CacheBackend:
    """The backend of an alias; `ConfigError` for one of another kind."""
    backend = caches[alias]
    if not isinstance(backend, CacheBackend):
        raise ConfigError(f"the alias {alias!r} of CACHES has the backend {type(backend).__name__}, not CacheBackend")
    return backend


def blocking_cache(alias: str = "default") -> BlockingCache:
    """The cache behind an alias of `CACHES`, for all that Django's interface lacks: loaders, tags, tenants, receipts.
    It is the process's, and opens with its first call. `ConfigError` for an alias of another backend."""
    return backend_of(alias).shared.cache


def invalidate_on_commit(
    *names: Name, alias: str = "default", tenant_id: Id | None = None, using: str = DEFAULT_DB_ALIAS
) -> None:
    """Invalidate after the commit of the transaction under way; at once where there is none, not at all after a
    rollback.

    - `names`: keys of Django's cache (str), or tuples of data type, resource id and, if need be, context ids
    - `alias`: of `CACHES`; `using`: of `DATABASES`
    - `tenant_id`: None is the alias's

    Raises `InvalidKey` and `TenantRequired` here. After the commit it raises `InvalidationFailed` to who has committed,
    whose data is then written all the same; with `pending_max` in the alias's OPTIONS it waits for the server instead.
    """
    backend = backend_of(alias)
    tenant = backend.shared.options.tenant_id() if tenant_id is None else tenant_id
    note(Noted(backend.shared, tenant, _targets(backend, names, tenant)), connections[using])


def _targets(backend: CacheBackend, names: Iterable[Name], tenant_id: Id) -> list[Target]:
    """What the names address; `InvalidKey`, and `ConfigError` for what is no name."""
    if isinstance(names, str):
        raise ConfigError(f"what is cached of an instance is a list of names, not {names!r} alone")
    found = []
    for name in names:
        if isinstance(name, str):
            found.append(Target(backend.shared.options.data_type, backend.resource_id(name)))
            continue
        try:
            found.append(Target(*name).in_text())
        except TypeError:
            raise ConfigError(f"a key, or a tuple of data type and resource id is needed, not {name!r}") from None
    if found:
        _PLANNER.targets(found, tenant_id)
    return found


def invalidate_on(
    mapping: Mapping[type[Model] | str, NamesOf | str],
    *,
    alias: str = "default",
    tenant: TenantOf | None = None,
    outbox: Outbox | None = None,
    former: bool = True,
) -> Invalidation:
    """Have what is cached of models invalidated whenever an instance is saved, deleted, or related to others anew:
    `invalidate_on({Product: lambda p: [("product", p.pk), f"page:{p.slug}"]})`. Call it in `AppConfig.ready`.

    - `mapping`: by model, or its "app.Model", a function, or its dotted name, that gives what is cached of an instance:
      keys of Django's cache (str), or tuples of data type, resource id and, if need be, context ids. It holds for a row
      that is saved by the model's children, parents, or proxies of any of these
    - `alias`: of `CACHES`, whose cache is meant
    - `tenant`: whose data it is, an id or a function of the instance; None is the alias's `TENANT`
    - `outbox`: writes it into the transaction too, so that it is sure to happen: a relay must run, and each write be in
      `atomic()` (`ConfigError`)
    - `former`: whether what was cached of the row as it was goes too, for names that change; it costs a query a save

    It happens after the commit, as by `invalidate_on_commit`; see there what it raises. A process that is killed
    between the commit and that loses it, but not with an `outbox`. Returns what can be disconnected. Raises
    `ConfigError` for a model or a function that there is none of.
    """
    models = {_model(model): _function(names_of) for model, names_of in mapping.items()}
    invalidation = Invalidation(models, alias, tenant, outbox, former)
    invalidation.connect()
    return invalidation


def _function(names_of: NamesOf | str) -> NamesOf:
    if isinstance(names_of, str):
        try:
            names_of = import_string(names_of)
        except ImportError as error:
            raise ConfigError(f"invalidate_on: {error}") from None
    if not callable(names_of):
        raise ConfigError(f"invalidate_on: a function that gives names is needed, or its dotted name, not {names_of!r}")
    return names_of


def _model(model: type[Model] | str) -> type[Model]:
    if isinstance(model, str):
        try:
            found: type[Model] = apps.get_model(model)
        except (LookupError, ValueError) as error:
            raise ConfigError(f"invalidate_on: {error}") from None
        return found
    if not isinstance(model, type) or not issubclass(model, Model):
        raise ConfigError(f"invalidate_on: a model or its 'app.Model' is needed, not {model!r}")
    return model


class Invalidation:
    """A mapping that follows its models' signals, until it is disconnected. Made by `invalidate_on`."""

    def __init__(
        self,
        mapping: Mapping[type[Model], NamesOf],
        alias: str,
        tenant: TenantOf | None,
        outbox: Outbox | None,
        former: bool,
    ) -> None:
        self._mapping = mapping
        self._alias = alias
        self._tenant = tenant
        self._outbox = outbox
        self._former = former
        self._models = {one for model in mapping for one in family(model)}
        self._relations = {field for model in self._models for field in many_to_many(model)}
        self._keys = {field for model in self._models for field in keys_that_deleting_sets(model)}
        self._own = f"_cachebus_{id(self)}"  # what an instance carries from one signal to the next

    def connect(self) -> None:
        """Follow the signals."""
        for signal, receiver, sender in self._followed():
            signal.connect(receiver, sender=sender, weak=False, dispatch_uid=(id(self), receiver.__name__))

    def disconnect(self) -> None:
        """Follow them no more."""
        for signal, receiver, sender in self._followed():
            signal.disconnect(receiver, sender=sender, dispatch_uid=(id(self), receiver.__name__))

    def _followed(self) -> Iterator[tuple[Any, Any, Any]]:
        for model in self._models:
            yield pre_save, self._before_save, model
            yield post_save, self._saved, model
        for model in self._models | set(self._others()):
            yield pre_delete, self._before_delete, model
            yield post_delete, self._deleted, model
        for through in {field.remote_field.through for field in self._relations}:
            yield m2m_changed, self._related, through

    def _others(self) -> Iterator[type[Model]]:
        """Those with whose rows something of mapped ones goes."""
        ends = [end for field in self._relations for end in (field.model, field.related_model)]
        for model in (*ends, *(field.related_model for field in self._keys)):
            yield from with_subclasses(model._meta.concrete_model)

    # -- signals ------------------------------------------------------------------------------------------------------

    def _before_save(self, sender: Any, instance: Any, using: str, **_: Any) -> None:
        instance.__dict__.pop(self._own, None)
        if self._outbox is not None and not connections[using].in_atomic_block:
            raise ConfigError(f"{sender.__name__} goes with an outbox: save it in transaction.atomic()")
        if not self._former or instance.pk is None:
            return
        if instance._state.adding and sender._meta.pk.default is not NOT_PROVIDED:
            return  # as Django takes it for a new row
        row = sender._base_manager.using(using).filter(pk=instance.pk).first()
        if row is not None:
            instance.__dict__[self._own] = list(self._seen(row, using))

    def _saved(self, sender: Any, instance: Any, using: str, **_: Any) -> None:
        former = instance.__dict__.pop(self._own, ())
        if holds_expressions(instance):
            instance = sender._base_manager.using(using).filter(pk=instance.pk).first() or instance
        self._note([*self._seen(instance, using), *former], using)

    def _before_delete(self, instance: Any, using: str, **_: Any) -> None:
        pointing = list(pointing_at(instance, using, self._keys))
        related = [one for one in partners(instance, using, self._relations) if one[0] in self._models]
        self._note(self._all_seen(rows_of((*pointing, *related), using), using), using)
        instance.__dict__[self._own] = pointing

    def _deleted(self, instance: Any, using: str, **_: Any) -> None:
        pointing = rows_of(instance.__dict__.pop(self._own, ()), using)  # with what their keys were set to
        self._note(self._all_seen((instance, *pointing), using), using)

    def _related(self, sender: Any, instance: Any, action: str, using: str, **more: Any) -> None:
        model, pks, reverse = more["model"], more["pk_set"], more["reverse"]
        if action == "pre_clear":
            pks = related_by(sender, instance, model, using, reverse)  # afterwards nobody knows them
        elif not action.startswith("post_"):
            return
        others = rows_of([(model, pks or ())], using) if model in self._models else ()
        self._note(self._all_seen((instance, *others), using), using)

    # -- what is to go ------------------------------------------------------------------------------------------------

    def _seen(self, instance: Any, using: str) -> Iterator[Seen]:
        if type(instance) in self._models:
            for mapped, names_of in self._mapping.items():
                for one in seen_as(instance, mapped, using):
                    yield names_of, one

    def _all_seen(self, instances: Iterable[Any], using: str) -> Iterator[Seen]:
        for instance in instances:
            yield from self._seen(instance, using)

    def _note(self, seen: Iterable[Seen], using: str) -> None:
        backend, by_tenant = backend_of(self._alias), dict[Id, list[Target]]()
        for names_of, instance in seen:
            tenant = self._tenant_of(instance, backend)
            by_tenant.setdefault(tenant, []).extend(_targets(backend, names_of(instance), tenant))
        for tenant, targets in by_tenant.items():
            if targets:
                if self._outbox is not None:
                    _write(self._outbox, targets, tenant, connections[using])
                noted = Noted(backend.shared, tenant, targets, is_certain=self._outbox is not None)
                note(noted, connections[using])

    def _tenant_of(self, instance: Any, backend: CacheBackend) -> Id:
        if self._tenant is None:
            return backend.shared.options.tenant_id()
        return self._tenant(instance) if callable(self._tenant) else self._tenant


def _write(outbox: Outbox, targets: list[Target], tenant_id: Id, connection: Any) -> None:
    """Write it into the transaction that is under way on the connection."""
    with SyncOutboxProducer(connection, outbox, paramstyle="format").together() as several:
        for target in dict.fromkeys(targets):
            contexts = target.agent_id, target.conversation_id, target.collection_id
            several.invalidate(target.data_type, target.resource_id, tenant_id, *contexts)
