"""Invalidations that follow Django's models: signals, transactions, and rows of an outbox in the same transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.apps import apps
from django.core.cache import cache
from django.db import connection, transaction
from django.test import TestCase, override_settings

from cachebus import ConfigError, InvalidationFailed, InvalidKey, Settings, Target
from cachebus.consumers.outbox import OutboxRelay
from cachebus.django import blocking_cache, close_caches, invalidate_on, invalidate_on_commit
from cachebus.django.commits import _noted
from cachebus.producers import Outbox
from cachebus.producers.outbox import OutboxTable
from cachebus.threads import BlockingCache
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import QUICK, until
from tests.support.django_shop.project import configured, entry
from tests.support.outbox import running

KEY = ("product", 1)


@pytest.fixture
def shop(redis_url: str) -> Iterator[BlockingCache]:
    """Empty tables, one category with a product, and the cache behind Django's."""
    configured()
    with override_settings(CACHES={"default": entry(redis_url)}):
        for name in ("Book", "Product", "Category", "Label"):
            of(name).objects.all().delete()
        of("Product").objects.create(id=1, name="pen", category=of("Category").objects.create(id=1, name="tools"))
        yield blocking_cache()
        close_caches()


def of(name: str) -> Any:
    """A model."""
    return apps.get_model("django_shop", name)


@pytest.fixture
def followed() -> Iterator[list[Any]]:
    """Mappings that are disconnected in the end."""
    mappings: list[Any] = []
    yield mappings
    for one in mappings:
        one.disconnect()


def names_of(product: Any) -> list[Any]:
    """What is cached of a product."""
    return [("product", product.pk), Target("category", product.category_id), f"page:{product.name}"]


def fill(shop: BlockingCache) -> None:
    """All of it is cached, and something beside."""
    for target in (KEY, ("product", 2), ("category", 1), ("category", 2)):
        shop.set(*target, "old", "django")
    for name in ("pen", "ink", "other"):
        cache.set(f"page:{name}", "old")


def gone(shop: BlockingCache) -> set[str]:
    """What is not cached any more."""
    targets = (KEY, ("product", 2), ("category", 1), ("category", 2))
    found = {f"{data_type} {one}" for data_type, one in targets if shop.get(data_type, one, "django") is None}
    return found | {name for name in ("pen", "ink", "other") if cache.get(f"page:{name}") is None}


# -- what is seen -----------------------------------------------------------------------------------------------------


def test_what_is_saved_and_what_it_was_goes(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({"django_shop.Product": f"{__name__}.names_of"}))
    of("Category").objects.create(id=2, name="paper")
    product = of("Product").objects.get(pk=1)
    fill(shop)
    product.name, product.category_id = "ink", 2
    product.save()
    assert gone(shop) == {"product 1", "category 1", "category 2", "pen", "ink"}


def test_in_a_test_that_never_commits_callbacks_are_captured(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}))
    fill(shop)
    with transaction.atomic():
        with TestCase.captureOnCommitCallbacks(execute=True):
            of("Product").objects.get(pk=1).save()
            assert gone(shop) == set()
        assert gone(shop) == {"product 1", "category 1", "pen"}
        transaction.set_rollback(True)


def test_what_it_was_costs_a_query_that_may_be_done_without(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}, former=False))
    fill(shop)
    product = of("Product").objects.get(pk=1)
    product.name = "ink"
    product.save()
    assert gone(shop) == {"product 1", "category 1", "ink"}


def test_what_is_made_or_deleted_goes(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}))
    fill(shop)
    of("Product").objects.create(id=2, name="ink", category_id=1)
    assert gone(shop) == {"product 2", "category 1", "ink"}
    fill(shop)
    of("Category").objects.all().delete()  # and with it its products
    assert gone(shop) == {"product 1", "product 2", "category 1", "pen", "ink"}


@pytest.mark.parametrize("name", ["Book", "Offer"])
def test_those_that_inherit_go_too(shop: BlockingCache, followed: list[Any], name: str) -> None:
    followed.append(invalidate_on({of("Product"): names_of}))
    fill(shop)
    one = of(name).objects.create(id=2, name="ink", category_id=1)
    assert gone(shop) == {"product 2", "category 1", "ink"}
    fill(shop)
    one.delete()
    assert gone(shop) == {"product 2", "category 1", "ink"}


def test_relations_go_from_both_ends(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}))
    product, label = of("Product").objects.get(pk=1), of("Label").objects.create(name="new")
    tells = {"product 1", "category 1", "pen"}
    for change in (
        lambda: product.labels.add(label),
        lambda: product.labels.remove(label),
        lambda: label.products.add(product),
        label.products.clear,
        lambda: label.products.set([product]),
        product.labels.clear,
        lambda: label.products.set([product]),
        lambda: label.products.remove(product),
    ):
        fill(shop)
        change()
        assert gone(shop) == tells


def test_what_no_signal_tells_of_is_said_by_hand(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}))
    fill(shop)
    with transaction.atomic():
        of("Product").objects.filter(pk=1).update(name="ink")
        assert gone(shop) == set()
        invalidate_on_commit(KEY, "page:ink", ("category", "*"))
        assert gone(shop) == set()
    assert gone(shop) == {"product 1", "ink", "category 1", "category 2"}


def test_a_disconnected_mapping_sees_nothing(shop: BlockingCache) -> None:
    invalidate_on({of("Product"): names_of}).disconnect()
    fill(shop)
    of("Product").objects.get(pk=1).save()
    assert gone(shop) == set()


def test_a_tenant_of_the_instances(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): lambda p: [("product", p.pk)]}, tenant=lambda p: p.shop))
    product = of("Product").objects.get(pk=1)
    for tenant in ("acme", "zeta", "other"):
        shop.set(*KEY, "old", tenant)
    product.shop = "zeta"
    product.save()
    assert [shop.get(*KEY, tenant) for tenant in ("acme", "zeta", "other")] == [None, None, "old"]


# -- transactions -----------------------------------------------------------------------------------------------------


class Undone(Exception):
    """Ends a block."""


def undone(*steps: Callable[[], object]) -> None:
    """Do this in a block that is rolled back."""
    with suppress(Undone), transaction.atomic():
        for step in steps:
            step()
        raise Undone


def test_nothing_goes_before_the_commit_nor_after_a_rollback(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}))
    product = of("Product").objects.get(pk=1)
    fill(shop)
    undone(product.save)
    assert gone(shop) == set()
    with transaction.atomic():
        product.save()
        assert gone(shop) == set()
    assert gone(shop) == {"product 1", "category 1", "pen"}


def test_savepoints_that_are_rolled_back_tell_nothing(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}))
    product = of("Product").objects.get(pk=1)
    fill(shop)
    with transaction.atomic():
        undone(lambda: of("Product").objects.create(id=2, name="ink", category_id=1))
        product.save(update_fields=["shop"])
    assert gone(shop) == {"product 1", "category 1", "pen"}
    assert not _noted.get(connection._connections[connection._alias])


def test_a_load_that_the_transaction_overtakes_is_kept_nowhere(shop: BlockingCache, followed: list[Any]) -> None:
    """It has read what was before the commit, and ends after it."""
    followed.append(invalidate_on({of("Product"): names_of}))

    def load() -> str:
        name = str(of("Product").objects.get(pk=1).name)
        with transaction.atomic():
            product = of("Product").objects.get(pk=1)
            product.name = "ink"
            product.save()
        return name

    assert cache.get_or_set("page:pen", load) == "pen"
    assert cache.get("page:pen") is None


def test_many_saves_are_one_invalidation(shop: BlockingCache, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}))
    shop.probe()
    before = shop.stats().invalidations
    with transaction.atomic():
        for i in range(40):
            of("Product").objects.create(name=f"n{i}", category_id=1)
    assert shop.stats().invalidations == before + 1


def test_what_fails_after_the_commit_is_raised_and_the_rest_is_done(
    own_server: EmbeddedServer, shop: BlockingCache, followed: list[Any]
) -> None:
    said = {"default": entry(own_server.url), "patient": entry(own_server.url, pending_max=10, node_name="patient")}
    with override_settings(CACHES=said):
        followed.append(invalidate_on({of("Product"): names_of}))
        product = of("Product").objects.get(pk=1)
        fill(blocking_cache())
        blocking_cache("patient").set("product", 9, "old", "django")
        own_server.pause()
        product.name = "ink"
        with pytest.raises(InvalidationFailed):
            product.save()
        assert of("Product").objects.get(pk=1).name == "ink", "it is committed all the same"
        with transaction.atomic():
            invalidate_on_commit(("product", 9), alias="patient")
        own_server.resume()
        assert blocking_cache("patient").drain(30)
        assert blocking_cache("patient").get("product", 9, "django") is None
        close_caches()


# -- with an outbox ---------------------------------------------------------------------------------------------------


@pytest.fixture
def outbox(redis_url: str) -> Outbox:
    """One whose table is there, and empty."""
    configured()
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS cachebus_outbox")
        for statement in OutboxTable.of("cachebus_outbox").sqlite_statements():
            cursor.execute(statement)
    return Outbox(Settings(url=redis_url, **QUICK))


def rows() -> int:
    """How many there are."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM cachebus_outbox")
        return int(cursor.fetchone()[0])


def test_rows_are_there_if_and_only_if_the_transaction_commits(
    shop: BlockingCache, outbox: Outbox, followed: list[Any]
) -> None:
    followed.append(invalidate_on({of("Product"): names_of}, outbox=outbox))
    product = of("Product").objects.get(pk=1)
    fill(shop)
    seen: list[int] = []
    undone(product.save, lambda: seen.append(rows()))
    assert seen == [3]
    assert (rows(), gone(shop)) == (0, set())
    with transaction.atomic():
        product.save()
    assert (rows(), gone(shop)) == (3, {"product 1", "category 1", "pen"}), "by the row later, and at once by itself"


def test_without_a_transaction_nothing_is_written(shop: BlockingCache, outbox: Outbox, followed: list[Any]) -> None:
    followed.append(invalidate_on({of("Product"): names_of}, outbox=outbox))
    product = of("Product").objects.get(pk=1)
    product.name = "ink"
    with pytest.raises(ConfigError, match=r"Product goes with an outbox: save it in transaction.atomic\(\)"):
        product.save()
    assert of("Product").objects.get(pk=1).name == "pen"


async def test_a_process_that_is_killed_after_the_commit_loses_nothing(
    own_server: EmbeddedServer, shop: BlockingCache, outbox: Outbox, followed: list[Any]
) -> None:
    """As good as killed: what it would say after the commit is not said. A relay says it."""
    followed.append(invalidate_on({of("Product"): names_of}, outbox=outbox))

    def saved() -> None:
        fill(shop)
        with transaction.atomic():
            of("Product").objects.get(pk=1).save()
            connection.run_on_commit.clear()
        assert gone(shop) == set()
        connection.close()

    await asyncio.to_thread(saved)
    path = connection.settings_dict["NAME"]
    async with running(OutboxRelay(f"sqlite:///{path}", shop.settings)):
        told = {"product 1", "category 1", "pen"}
        await until(lambda: asyncio.to_thread(lambda: gone(shop) == told))


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_told_before_the_commit(shop: BlockingCache, followed: list[Any]) -> None:
    product = of("Product")
    for mapping in (
        {"django_shop.Nothing": names_of},
        {"nothing": names_of},
        {str: names_of},
        {product: "nope.names_of"},
        {product: "names_of"},
        {product: ["product"]},
    ):
        with pytest.raises(ConfigError, match="invalidate_on: "):
            invalidate_on(mapping)  # type: ignore[arg-type]
    for names, error, words in (
        (lambda p: "page", ConfigError, "a list of names"),
        (lambda p: [5], ConfigError, "a key, or a tuple"),
        (lambda p: [("product",)], ConfigError, "a key, or a tuple"),
        (lambda p: [("product", "a\x00")], InvalidKey, "control character"),
    ):
        mapping = invalidate_on({of("Product"): names})
        try:
            with pytest.raises(error, match=words), transaction.atomic():
                of("Product").objects.create(id=3, name="x", category_id=1)
        finally:
            mapping.disconnect()
    assert not of("Product").objects.filter(pk=3).exists()


def test_the_settings_may_say_it(shop: BlockingCache) -> None:
    from cachebus.django import apps as ours
    from cachebus.django.apps import CacheBusConfig

    said = {"django_shop.Product": f"{names_of.__module__}.names_of"}
    followed: list[Any] = []
    with override_settings(CACHEBUS_INVALIDATE_ON=said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "invalidate_on", lambda mapping: followed.append(invalidate_on(mapping)))
        CacheBusConfig("cachebus.django", ours).ready()
    try:
        fill(shop)
        of("Product").objects.get(pk=1).save()
        assert gone(shop) == {"product 1", "category 1", "pen"}
    finally:
        followed[0].disconnect()
