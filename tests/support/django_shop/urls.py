"""The views of the project: sync and async, each with what it was answered from."""

from __future__ import annotations

from itertools import count
from typing import Any

from django.core.cache import cache
from django.http import JsonResponse
from django.urls import path
from django.views.decorators.cache import cache_page

rendered = count(1)


@cache_page(30)
def page(request: Any) -> JsonResponse:
    """A page that is cached whole."""
    response = JsonResponse({"rendered": next(rendered)})
    response["X-Shop"] = "acme"
    return response


def price(request: Any, product: str) -> JsonResponse:
    """What is cached of a product."""
    return JsonResponse({"value": cache.get_or_set(f"price:{product}", lambda: next(rendered))})


async def async_price(request: Any, product: str) -> JsonResponse:
    """The same, awaited."""
    return JsonResponse({"value": await cache.aget_or_set(f"price:{product}", lambda: next(rendered))})


urlpatterns = [path("page", page), path("price/<product>", price), path("async/<product>", async_price)]
