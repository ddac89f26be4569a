"""The verbs of `BlockingCache` that write: each is the verb of `Cache`, waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachebus.base.choices import ContextMatch, Wait
from cachebus.base.ids import Id
from cachebus.cache import Cache
from cachebus.cascade import Target
from cachebus.receipt import Receipt
from cachebus.threads.guard import BlockingWriteGuard
from cachebus.threads.life import BlockingLife
from cachebus.writing.guard import WriteGuard


class BlockingWrites(BlockingLife):
    """What every `BlockingCache` has to write with."""

    def set(
        self,
        data_type: str,
        resource_id: Id,
        value: Any,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        ttl: float | None = None,
        *,
        tags: Sequence[str] = (),
        wait: Wait | None = None,
    ) -> Receipt:
        """As `Cache.set`."""
        return self._ask(
            lambda cache: cache.set(
                data_type,
                resource_id,
                value,
                tenant_id,
                agent_id,
                conversation_id,
                collection_id,
                ttl,
                tags=tags,
                wait=wait,
            )
        )

    def add(
        self,
        data_type: str,
        resource_id: Id,
        value: Any,
        ttl: float | None = None,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        tags: Sequence[str] = (),
    ) -> bool:
        """As `Cache.add`."""
        return self._ask(
            lambda cache: cache.add(
                data_type, resource_id, value, ttl, tenant_id, agent_id, conversation_id, collection_id, tags=tags
            )
        )

    def invalidate(
        self,
        data_type: str,
        resource_id: Id,
        tenant_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        contexts: ContextMatch = "exact",
        wait: Wait | None = None,
        reason: str | None = None,
    ) -> Receipt:
        """As `Cache.invalidate`."""
        return self._ask(
            lambda cache: cache.invalidate(
                data_type,
                resource_id,
                tenant_id,
                agent_id,
                conversation_id,
                collection_id,
                contexts=contexts,
                wait=wait,
                reason=reason,
            ),
            self._sending,
        )

    delete = invalidate
    """Remove a value: `invalidate` by its other name."""

    def invalidate_targets(
        self,
        targets: Sequence[Target | tuple[Any, ...]],
        tenant_id: Id | None = None,
        *,
        contexts: ContextMatch = "exact",
        wait: Wait | None = None,
        reason: str | None = None,
    ) -> Receipt:
        """As `Cache.invalidate_targets`."""
        return self._ask(
            lambda cache: cache.invalidate_targets(targets, tenant_id, contexts=contexts, wait=wait, reason=reason),
            self._sending,
        )

    def invalidate_scope(
        self,
        tenant_id: Id | None = None,
        data_type: str | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        wait: Wait | None = None,
        reason: str | None = None,
    ) -> Receipt:
        """As `Cache.invalidate_scope`."""
        return self._ask(
            lambda cache: cache.invalidate_scope(
                tenant_id, data_type, agent_id, conversation_id, collection_id, wait=wait, reason=reason
            ),
            self._sending,
        )

    def invalidate_tags(
        self, tags: Sequence[str], tenant_id: Id | None = None, *, wait: Wait | None = None, reason: str | None = None
    ) -> Receipt:
        """As `Cache.invalidate_tags`."""
        return self._ask(lambda cache: cache.invalidate_tags(tags, tenant_id, wait=wait, reason=reason), self._sending)

    def invalidate_type(self, data_type: str, *, wait: Wait | None = None, reason: str | None = None) -> Receipt:
        """As `Cache.invalidate_type`."""
        return self._ask(lambda cache: cache.invalidate_type(data_type, wait=wait, reason=reason), self._sending)

    def clear(self, *, wait: Wait | None = None, reason: str | None = None) -> Receipt:
        """As `Cache.clear`."""
        return self._ask(lambda cache: cache.clear(wait=wait, reason=reason), self._sending)

    def write_guard(
        self,
        targets: Sequence[Sequence[Any]] = (),
        tenant_id: Id | None = None,
        *,
        scopes: Sequence[str | Mapping[str, Any]] = (),
        tags: Sequence[str] = (),
        contexts: ContextMatch = "exact",
        timeout_s: float | None = None,
        db_timeout_s: float | None = None,
        wait: Wait | None = None,
        reason: str | None = None,
    ) -> BlockingWriteGuard:
        """As `Cache.write_guard`, to be entered by `with`."""

        async def made(cache: Cache) -> WriteGuard:
            return cache.write_guard(
                targets,
                tenant_id,
                scopes=scopes,
                tags=tags,
                contexts=contexts,
                timeout_s=timeout_s,
                db_timeout_s=db_timeout_s,
                wait=wait,
                reason=reason,
            )

        return BlockingWriteGuard(self._ask(made), self._sending)

    def increment(
        self,
        counter_type: str,
        tenant_id: Id | None = None,
        value: int = 1,
        resource_id: Id | None = None,
        agent_id: Id | None = None,
        conversation_id: Id | None = None,
        collection_id: Id | None = None,
        *,
        expires_in_s: float | None = None,
        request_id: Id | None = None,
    ) -> int:
        """As `Cache.increment`."""
        return self._ask(
            lambda cache: cache.increment(
                counter_type,
                tenant_id,
                value,
                resource_id,
                agent_id,
                conversation_id,
                collection_id,
                expires_in_s=expires_in_s,
                request_id=request_id,
            )
        )
