"""Django's cache backend: Django's own tests of it, and what they do not know of."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.cache import cache, caches
from django.http import HttpResponse
from django.template.response import ContentNotRenderedError, SimpleTemplateResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy

from cachebus import ConfigError, Context, DontCache, Fresh, L2Unavailable, NotModified, NotSerializable, TenantRequired
from cachebus.django import CacheBackend, blocking_cache, close_caches
from cachebus.threads import BlockingCache
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import quick
from tests.support.django_shop.project import configured, entry
from tests.support.django_suite import outcomes

OF_MSGPACK = "values are plain data, or refused with what to do: test_what_can_not_be_carried_is_refused"
CULLING = "nothing is culled at MAX_ENTRIES: Redis evicts by its maxmemory, and L1 has l1_max_entries"
NOT_APPLICABLE = {
    # name: why, in the first column with values as this backend carries them, in the second with pickle
    "Base.test_add_fail_on_pickleerror": (OF_MSGPACK, ""),
    "Base.test_cache_read_for_model_instance": (OF_MSGPACK, ""),
    "Base.test_cache_read_for_model_instance_with_deferred": (OF_MSGPACK, ""),
    "Base.test_cache_write_for_model_instance_with_deferred": (OF_MSGPACK, ""),
    "Base.test_data_types": (OF_MSGPACK, ""),
    "Base.test_set_fail_on_pickleerror": (OF_MSGPACK, ""),
    "Base.test_cull": (CULLING, CULLING),
    "Base.test_cull_delete_when_store_empty": (CULLING, CULLING),
    "Base.test_zero_cull": (CULLING, CULLING),
}
"""Those of Django's tests that this backend does not pass, and why it is not to."""
APPLY_WITH_PICKLE = {name for name, (_, pickled) in NOT_APPLICABLE.items() if not pickled}


@pytest.fixture
def server(redis_url: str) -> Iterator[str]:
    """Django over a real server."""
    configured()
    said = {
        "default": entry(redis_url),
        "elsewhere": entry(redis_url, node_name="elsewhere"),
        "pages": entry(redis_url, DATA_TYPE="pages"),
        "tenants": entry(redis_url, TENANT="cachebus.django.surrounding_tenant"),
        "pickled": entry(redis_url, SERIALIZER=pickle, DATA_TYPE="pickled"),
        "brief": entry(redis_url, more={"TIMEOUT": 0.05, "KEY_PREFIX": "brief"}),
    }
    with override_settings(CACHES=said):
        yield redis_url
        close_caches()


# -- Django's own -----------------------------------------------------------------------------------------------------


def test_djangos_own_tests_pass_but_for_those_that_do_not_apply(redis_url: str) -> None:
    """Those of every backend, of the middleware that caches pages, and of sessions in a cache."""
    found = outcomes(redis_url)
    assert len(found) >= 200
    failed = {name: why for name, why in found.items() if why != "passed"}
    assert failed.keys() == NOT_APPLICABLE.keys(), failed


def test_djangos_own_tests_of_values_pass_with_pickle(redis_url: str) -> None:
    found = outcomes(redis_url, only=sorted(NOT_APPLICABLE), pickled=True)
    failed = {name: why for name, why in found.items() if why != "passed"}
    assert failed.keys() == NOT_APPLICABLE.keys() - APPLY_WITH_PICKLE, failed


# -- values -----------------------------------------------------------------------------------------------------------


class Thing:
    """Of the user's own."""


@pytest.mark.parametrize("value", [object(), Thing, Thing(), len, gettext_lazy("x"), {"deep": [Thing()]}])
def test_what_can_not_be_carried_is_refused(server: str, value: Any) -> None:
    for store in (cache.set, cache.add, lambda key, value: cache.get_or_set(key, lambda: value)):
        with pytest.raises(NotSerializable, match=r"cache plain data: .*model_to_dict.*SERIALIZER"):
            store("k", value)
    assert cache.get("k") is None


def test_models_are_refused_with_what_to_do(server: str) -> None:
    from tests.support.django_shop.models import Category

    for value in (Category(name="x"), Category.objects.all()):
        with pytest.raises(NotSerializable, match=r"of type (Category|QuerySet): cache plain data: .*values\("):
            cache.set("k", value)


def test_each_caller_may_change_what_it_is_given(server: str) -> None:
    cache.set("k", {"a": [1]})
    cache.get("k")["a"].append(2)
    assert cache.get("k") == {"a": [1]}
    assert cache.get_or_set("k", None) == {"a": [1]}


def test_none_is_a_value(server: str) -> None:
    cache.set("k", None)
    assert cache.get("k", "default") is None
    assert cache.get_or_set("other", lambda: None) is None
    assert cache.get("other", "default") is None


def test_safe_text_stays_safe(server: str) -> None:
    cache.set_many({"safe": mark_safe("<b>"), "plain": "<b>"})
    assert [type(cache.get(k)) for k in ("safe", "plain")] == [SafeString, str]
    bold, when = mark_safe("<b>"), date(2026, 5, 9)
    cache.set("inside", {(1, when): [1, (bold, "<b>")], "plain": {"a": ["<b>"]}, when: {"b": bold}, 5: {"x"}})
    again = cache.get("inside")
    assert again == {(1, when): [1, ["<b>", "<b>"]], "plain": {"a": ["<b>"]}, when: {"b": "<b>"}, 5: {"x"}}
    assert [type(text) for text in again[1, when][1]] == [SafeString, str]
    assert [type(text) for text in (again["plain"]["a"][0], again[when]["b"])] == [str, SafeString]
    for value in ({bold: 1}, [{bold}], {"a": frozenset([("x", bold)])}, {(1, bold): 2}):
        with pytest.raises(NotSerializable, match="a dict's key, or in a set"):
            cache.set("k", value)


def test_a_response_comes_back_whole(server: str) -> None:
    response = HttpResponse("héllo", status=201, reason="Made", content_type="text/plain; charset=latin-1")
    response["X-One"] = "1"
    response.set_cookie("a", "b;c", max_age=5, httponly=True, samesite="Lax")
    cache.set("k", response)
    again = cache.get("k")
    assert (again.content, again.status_code, again.reason_phrase) == ("héllo".encode("latin-1"), 201, "Made")
    assert list(again.items()) == list(response.items())
    assert again.cookies.output() == response.cookies.output()
    with pytest.raises(ContentNotRenderedError):
        cache.set("k", SimpleTemplateResponse("none.html"))


def test_what_another_serializer_has_made_counts_as_absent(server: str) -> None:
    caches["pickled"].set("k", (1, 2))
    assert caches["pickled"].get("k") == (1, 2)
    raw = blocking_cache("pickled").get("pickled", ":1:k", "django")
    blocking_cache().set("django", ":1:k", raw, "django")
    assert cache.get("k", "absent") == "absent"
    assert cache.get_many(["k"]) == {}
    assert cache.get_or_set("k", "anew") == "anew"
    assert cache.get("k") == "anew"


def test_a_bypass_of_the_cache_below_is_one_of_the_backend(server: str) -> None:
    cache.set("k", "old")
    with blocking_cache().bypassed():
        assert cache.get("k") is None
        assert cache.get_many(["k"]) == {}
        assert "k" not in cache
        assert blocking_cache().get("django", ":1:k", "django") is None
    assert cache.get("k") == "old"


# -- keys, aliases, tenants -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::django.core.cache.CacheKeyWarning")  # of what memcached would refuse
def test_a_key_may_hold_anything_and_no_two_meet(server: str) -> None:
    odd = ["", " ", "*", "\x00", "\x1f", "a\x1fb", "é" * 400, "x" * 4000, "\ud800", "sha256:" + "0" * 64]
    backend = caches["default"]
    backend.key_func = lambda key, prefix, version: key
    for i, key in enumerate(odd):
        backend.set(key, i)
    assert [backend.get(key) for key in odd] == list(range(len(odd)))
    assert backend.get_many(odd) == {key: i for i, key in enumerate(odd)}
    assert backend.get(backend.resource_id("\x00")) is None, "a hash is no other key's"
    backend.delete_many(odd)
    assert backend.get_many(odd) == {}


def test_clear_takes_an_aliass_own_type_and_nothing_else(server: str) -> None:
    with BlockingCache.open(quick(server)) as other:
        other.set("product", "p1", 1, "acme", wait="nodes")
        cache.set("k", 1)
        caches["pages"].set("k", 2)
        cache.clear()
        assert (cache.get("k"), caches["pages"].get("k")) == (None, 2)
        assert other.get("product", "p1", "acme") == 1


def test_tenants_are_apart(server: str) -> None:
    tenants = caches["tenants"]
    for tenant in ("acme", "zeta"):
        with Context(tenant_id=tenant):
            assert tenants.get("k") is None
            tenants.set("k", tenant)
    with Context(tenant_id="acme"):
        assert tenants.get("k") == "acme"
        assert tenants.delete("k")
    with Context(tenant_id="zeta"):
        assert tenants.get_many(["k"]) == {"k": "zeta"}
        assert tenants.get_or_set("k", "other") == "zeta"
    assert cache.get("k") is None, "nor is it the default tenant's"
    for call in (tenants.get, tenants.delete, tenants.incr, tenants.touch):
        with pytest.raises(TenantRequired):
            call("k")


def test_what_is_wrong_with_an_entry_is_told_early() -> None:
    url = "memory://django"
    for given, words in (
        ({"l2_timout_s": 1}, "l2_timout_s"),
        ({"TENNANT": "x"}, "TENNANT: there is no such option, did you mean TENANT"),
        ({"TENANT": "no.such.function"}, "TENANT: No module named"),
        ({"TENANT": ""}, "TENANT is empty"),
        ({"DATA_TYPE": "a\x00"}, "DATA_TYPE has a control character"),
        ({"POLICY": {"model": dict}}, "POLICY model: how values are encoded"),
        ({"POLICY": {"ttl": 5}}, "policy ttl: there is no such field, did you mean ttl_s"),
        ({"POLICY": 5}, "a dict of a Policy's fields is needed, not int"),
        ({"SERIALIZER": object()}, "something with dumps and loads is needed"),
    ):
        with pytest.raises(ConfigError, match=words):
            CacheBackend(url, {"OPTIONS": given})
    with pytest.raises(ConfigError, match="LOCATION must be one URL, not list"):
        CacheBackend([url], {})  # type: ignore[arg-type]
    CacheBackend(url, {"OPTIONS": {"POLICY": {"max_value_bytes": 5}}})
    with pytest.raises(ConfigError, match="share the type 'django', and have another POLICY each"):
        CacheBackend(url, {"OPTIONS": {"POLICY": {"max_value_bytes": 6}}})
    with pytest.raises(TenantRequired, match="gave None"):
        CacheBackend(url, {"OPTIONS": {"DATA_TYPE": "t", "TENANT": lambda: None}}).get("k")
    close_caches()


# -- coherence --------------------------------------------------------------------------------------------------------


def test_what_one_process_replaces_is_replaced_in_all(server: str) -> None:
    """Another alias with other settings is another node."""
    elsewhere = caches["elsewhere"]
    for store, then in (
        (lambda: elsewhere.set("k", 2), 2),
        (lambda: elsewhere.incr("k"), 3),
        (lambda: elsewhere.delete("k"), None),
    ):
        cache.set("k", 1) if then == 2 else None
        assert cache.get("k") == elsewhere.get("k")
        store()
        _confirmed("elsewhere")
        assert cache.get("k") == then


def _confirmed(alias: str) -> None:
    """Until all nodes have applied what was written by this alias."""
    blocking_cache(alias).invalidate("nothing", "x", "django", wait="nodes")


def test_get_or_set_loads_once_over_threads_and_nodes_and_on_the_callers_thread(server: str) -> None:
    calls: list[int] = []
    together = threading.Barrier(6)

    def default() -> int:
        calls.append(threading.get_ident())
        return len(calls)

    def ask(i: int) -> tuple[int, int]:
        together.wait()
        return threading.get_ident(), caches["elsewhere" if i % 2 else "default"].get_or_set("k", default)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    assert {value for _, value in answers} == {1}
    assert len(calls) == 1
    assert calls[0] in {thread for thread, _ in answers}, "whose connections of the database it may use"


def test_a_load_that_an_invalidation_overtakes_is_kept_nowhere(server: str) -> None:
    """What a hand-made get, compute, add would keep."""

    def default() -> str:
        caches["elsewhere"].delete("k")
        return "old"

    assert cache.get_or_set("k", default) == "old"
    assert cache.get("k") is None
    assert cache.get_or_set("k", lambda: "new") == "new"


def test_what_get_or_set_is_told_not_to_keep(server: str) -> None:
    assert cache.get_or_set("k", lambda: 1, timeout=0) == 1
    assert cache.get("k") is None
    with pytest.raises(ZeroDivisionError):
        cache.get_or_set("k", lambda: 1 // 0)
    assert cache.get("k") is None


def test_get_or_set_obeys_what_its_function_decides(server: str) -> None:
    assert cache.get_or_set("k", lambda: Fresh({"a": 1}, ttl_s=5), timeout=60) == {"a": 1}
    left_s = blocking_cache().look("django", ":1:k", "django").ttl_left_s
    assert left_s is not None
    assert left_s <= 5
    assert cache.get("k") == {"a": 1}
    assert cache.get_or_set("brief", lambda: DontCache(3)) == 3
    assert cache.get("brief") is None
    assert cache.get_or_set("none", lambda: Fresh(None)) is None
    assert cache.get("none", "absent") is None
    assert cache.get_or_set("k0", lambda: Fresh(3), timeout=0) == 3
    blocking_cache().set("django", ":1:odd", b"?", "django")
    assert cache.get_or_set("odd", lambda: Fresh("anew")) == "anew"
    assert cache.get("odd") == "anew"
    with pytest.raises(ConfigError, match="no `previous`"):
        cache.get_or_set("m", NotModified)


@pytest.mark.parametrize("alias", ["default", "pickled"])
@pytest.mark.parametrize("given", [Fresh(3), DontCache(3), NotModified()], ids=lambda it: type(it).__name__)
def test_what_only_a_loader_may_give_is_no_value(server: str, given: Any, alias: str) -> None:
    for store in (caches[alias].set, caches[alias].add, lambda k, v: caches[alias].set_many({k: v})):
        with pytest.raises(NotSerializable, match="get_or_set alone"):
            store("k", given)
    assert caches[alias].get("k") is None


def test_an_outage_is_no_miss(own_server: EmbeddedServer) -> None:
    configured()
    said = {"default": entry(own_server.url), "lenient": entry(own_server.url, on_outage="miss", node_name="lenient")}
    with override_settings(CACHES=said):
        for alias in said:
            caches[alias].set("k", 1)
        own_server.stop()
        for call in (lambda: cache.get("other"), lambda: cache.set("k", 2), lambda: cache.incr("k")):
            with pytest.raises(L2Unavailable):
                call()
        assert caches["lenient"].get("other", "absent") == "absent"
        assert cache.get_or_set("other", lambda: "loaded") == "loaded"
        close_caches()


# -- requests ---------------------------------------------------------------------------------------------------------


def test_pages_are_cached_whole_and_the_end_of_a_request_closes_nothing(server: str) -> None:
    client = Client()
    first = client.get("/page")
    again = client.get("/page")
    assert first.json() == again.json()
    assert again["X-Shop"] == "acme"
    assert blocking_cache()._there is not None
    cache.clear()
    assert client.get("/page").json() != first.json()


async def test_async_views_share_what_sync_ones_have(server: str) -> None:
    client = AsyncClient()
    value = (await client.get("/async/p1")).json()
    assert (await client.get("/async/p1")).json() == value
    assert (await sync_to_async(Client().get)("/price/p1")).json() == value
    assert await cache.aget("price:p1") == value["value"]
    assert await cache.aincr("price:p1") == value["value"] + 1
    assert await cache.aget_many(["price:p1"]) == {"price:p1": value["value"] + 1}
    assert await cache.adelete("price:p1")
    assert await asyncio.gather(*(cache.aget_or_set("price:p2", lambda: 5) for _ in range(5))) == [5] * 5


def test_a_backend_of_another_kind_has_no_cache_of_ours() -> None:
    configured()
    with (
        override_settings(CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}),
        pytest.raises(ConfigError, match="has the backend LocMemCache, not CacheBackend"),
    ):
        blocking_cache()
