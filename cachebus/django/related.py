"""How rows of Django's models hang together: one row by several models, and rows of others that change with it.

- A model that is mapped sees the rows that are saved by its children, its proxies, and its parents.
- Deleting a row takes away its rows of many-to-many relations, which changes those at their other ends, and sets
  foreign keys to it (`SET_NULL`, `SET_DEFAULT`, `SET(...)`). Django sends no signal of either but the row's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import CASCADE, DO_NOTHING, PROTECT, RESTRICT, Model

_SETS_NOTHING = (CASCADE, PROTECT, RESTRICT, DO_NOTHING)
"""What `on_delete` may be that changes no column."""


def with_subclasses(model: type[Model]) -> Iterator[type[Model]]:
    """The model, and those that inherit from it, whose signals are their own."""
    if not model._meta.abstract:
        yield model
    for one in model.__subclasses__():
        yield from with_subclasses(one)


def family(model: type[Model]) -> set[type[Model]]:
    """The models by which a row of this one may be saved: itself, its children, its parents, and proxies of them."""
    found: set[type[Model]] = set()
    for one in with_subclasses(model):
        found.update(with_subclasses(one._meta.concrete_model))
        for parent in one._meta.get_parent_list():
            same = parent._meta.concrete_model
            found.update(each for each in with_subclasses(same) if each._meta.concrete_model is same)
    return found


def seen_as(instance: Model, mapped: type[Model], using: str) -> list[Model]:
    """A row as the instances of a mapped model that it is, and by which what is cached is named: none or one, but for
    an abstract model. A row that was saved by a parent is read anew."""
    if isinstance(instance, mapped):
        return [instance]
    model = type(instance)
    if mapped._meta.proxy and issubclass(model, mapped._meta.concrete_model):
        proxied: Model = object.__new__(mapped)
        proxied.__dict__.update(instance.__dict__)
        return [proxied]
    found: list[Model] = []
    for child in _children(mapped, model._meta.concrete_model):
        same_row = {model._meta.concrete_model._meta.pk.name: instance.pk}
        found.extend(child._base_manager.using(using).filter(**same_row))
    return found


def _children(mapped: type[Model], parent: type[Model]) -> Iterator[type[Model]]:
    """The mapped model where it has a table of its own beside the parent's; of an abstract one, what inherits."""
    if mapped._meta.abstract:
        for one in mapped.__subclasses__():
            yield from _children(one, parent)
    elif parent in mapped._meta.get_parent_list() and mapped._meta.concrete_model is not parent:
        yield mapped


def many_to_many(model: type[Model]) -> Iterator[Any]:
    """Its many-to-many fields, from both ends."""
    yield from model._meta.many_to_many
    for relation in model._meta.related_objects:
        if relation.many_to_many:
            yield relation.field


def keys_that_deleting_sets(model: type[Model]) -> Iterator[Any]:
    """The model's foreign keys that become something else when what they refer to is deleted."""
    for field in model._meta.concrete_fields:
        on_delete = getattr(field.remote_field, "on_delete", None)
        if on_delete is not None and on_delete not in _SETS_NOTHING:
            yield field


def partners(instance: Model, using: str, fields: Iterable[Any]) -> Iterator[tuple[type[Model], set[Any]]]:
    """What an instance is related to by these many-to-many fields: models, and primary keys."""
    concrete = type(instance)._meta.concrete_model
    for field in fields:
        own, other = field.m2m_field_name(), field.m2m_reverse_field_name()
        for model, partner, near, far in (
            (field.model, field.related_model, own, other),
            (field.related_model, field.model, other, own),
        ):
            if issubclass(concrete, model._meta.concrete_model):
                key = {near: getattr(instance, model._meta.concrete_model._meta.pk.attname)}
                rows = field.remote_field.through._base_manager.using(using).filter(**key)
                yield partner, set(rows.values_list(far, flat=True))


def pointing_at(instance: Model, using: str, fields: Iterable[Any]) -> Iterator[tuple[type[Model], set[Any]]]:
    """What refers to an instance by these foreign keys: models, and primary keys."""
    concrete = type(instance)._meta.concrete_model
    for field in fields:
        if issubclass(concrete, field.related_model._meta.concrete_model):
            key = {field.attname: getattr(instance, field.target_field.attname)}
            rows = field.model._base_manager.using(using).filter(**key)
            yield field.model, set(rows.values_list("pk", flat=True))


def related_by(through: Any, instance: Any, model: Any, using: str, reverse: bool) -> list[Any]:
    """What an instance is related to by this table, as `m2m_changed` tells of it: primary keys."""
    fields = (field for owner in (type(instance), model) for field in owner._meta.many_to_many)
    field = next(field for field in fields if field.remote_field.through is through)
    own, others = field.m2m_field_name(), field.m2m_reverse_field_name()
    if reverse:
        own, others = others, own
    rows = through._base_manager.using(using).filter(**{own: instance})
    return list(rows.values_list(others, flat=True))


def rows_of(found: Iterable[tuple[type[Model], Iterable[Any]]], using: str) -> Iterator[Model]:
    """The rows with these primary keys, as they are now."""
    for model, pks in found:
        if pks:
            yield from model._base_manager.using(using).filter(pk__in=pks)


def holds_expressions(instance: Model) -> bool:
    """Whether a column's value is what the database computes: before Django 6.0 a save leaves it so."""
    values = vars(instance)
    return any(hasattr(values.get(field.attname), "resolve_expression") for field in instance._meta.concrete_fields)
