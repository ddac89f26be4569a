"""Invalidations that follow Django's models where one row's change is another's, or a row is saved by another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.cache import cache
from django.db.models.functions import Upper
from django.db.models.signals import post_save
from django.test import override_settings

from cachebus.django import close_caches, invalidate_on
from tests.support.django_shop.project import configured, entry

Follow = Callable[[dict[str, Callable[[Any], list[str]]]], None]


@pytest.fixture
def follow(redis_url: str) -> Iterator[Follow]:
    """Has mappings of the shop's models followed until the end; the tables are empty but for two categories."""
    configured()
    mappings: list[Any] = []
    with override_settings(CACHES={"default": entry(redis_url)}):
        for name in ("Order", "Book", "Product", "Category", "Label"):
            of(name).objects.all().delete()
        for i in (1, 2):
            of("Category").objects.create(id=i, name=f"c{i}")
        yield lambda mapping: mappings.append(invalidate_on({f"django_shop.{k}": v for k, v in mapping.items()}))
        for one in mappings:
            one.disconnect()
        close_caches()


def of(name: str) -> Any:
    """A model."""
    return apps.get_model("django_shop", name)


def went(change: Callable[[], object], *names: str) -> set[str]:
    """Which of these are not cached any more after a change."""
    cache.set_many(dict.fromkeys(names, "old"))
    change()
    return set(names) - cache.get_many(names).keys()


def product(name: str = "pen", model: str = "Product") -> Any:
    """One that is new."""
    return of(model).objects.create(name=name, category_id=1)


# -- what is deleted, and what is related to it -----------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [False, True])
def test_keys_that_a_deletion_sets(follow: Follow, at_once: bool) -> None:
    follow({"Order": lambda o: [f"order:{o.pk}", f"of:{o.category_id}", f"fallback:{o.fallback_id}"]})
    pen = product()
    order = of("Order").objects.create(category_id=2, fallback_id=2, product=pen)
    other = of("Order").objects.create(category_id=1, twin=order)

    def delete(row: Any) -> Callable[[], object]:
        return type(row).objects.filter(pk=row.pk).delete if at_once else row.delete

    mine, others = f"order:{order.pk}", f"order:{other.pk}"
    assert went(delete(pen), mine, others) == {mine}
    category = of("Category").objects.get(pk=2)
    names = (mine, others, "of:1", "of:2", "of:None", "fallback:1", "fallback:2")
    assert went(delete(category), *names) == set(names) - {others, "of:1"}, "as it was, and as it is"
    order.refresh_from_db()
    assert (order.category_id, order.fallback_id, order.product_id) == (None, 1, None)
    assert went(delete(order), mine, others) == {mine, others}


def test_partners_of_what_is_deleted(follow: Follow) -> None:
    follow({"Product": lambda p: [f"product:{p.pk}"]})
    pen, ink = product(), product("ink")
    label = of("Label").objects.create(name="new")
    label.products.set([pen])
    names = f"product:{pen.pk}", f"product:{ink.pk}"
    assert went(label.delete, *names) == {names[0]}, "which is of a model that is not mapped"
    follow({"Label": lambda one: [f"label:{one.pk}"]})
    label, other = (of("Label").objects.create(name=name) for name in ("new", "other"))
    book = product("book", "Book")
    for each in (pen, ink, book):
        each.labels.add(label)
        names = f"label:{label.pk}", f"label:{other.pk}"
        assert went(each.delete, *names) == {names[0]}


# -- one row by several models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", ["Product", "Offer", "Book"])
@pytest.mark.parametrize("saved", ["Product", "Offer", "Book"])
def test_a_row_that_another_model_saves(follow: Follow, mapped: str, saved: str) -> None:
    def names_of(one: Any) -> list[str]:
        assert isinstance(one, of(mapped))
        return [f"product:{one.pk}", f"name:{one.name}"]

    book, pen = product("book", "Book"), product()
    follow({mapped: names_of})
    row = of(saved).objects.get(pk=book.pk)
    row.name = "ink"
    names = f"product:{book.pk}", "name:book", "name:ink", f"product:{pen.pk}"
    assert went(row.save, *names) == set(names[:3])
    assert went(lambda: row.labels.add(of("Label").objects.create(name="new")), *names) == {names[0], names[2]}
    assert went(row.delete, *names) == {names[0], names[2]}


def test_two_mappings_of_one_model_are_both_told_what_was(follow: Follow) -> None:
    follow({"Product": lambda p: [f"a:{p.name}"]})
    follow({"Product": lambda p: [f"b:{p.name}"]})
    pen = product()
    pen.name = "ink"
    assert went(pen.save, "a:pen", "a:ink", "b:pen", "b:ink") == {"a:pen", "a:ink", "b:pen", "b:ink"}


# -- what the database computes ---------------------------------------------------------------------------------------


def test_what_an_expression_has_become_goes(follow: Follow) -> None:
    follow({"Product": lambda p: [f"name:{p.name}"]})
    pen = product()
    pen.name = Upper("name")
    assert went(pen.save, "name:pen", "name:PEN") == {"name:pen", "name:PEN"}
    pen.name = Upper("name")  # as it stays behind a save before Django 6.0
    assert went(lambda: post_save.send(of("Product"), instance=pen, using="default"), "name:PEN") == {"name:PEN"}
