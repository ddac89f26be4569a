"""What the cache still has of a key while its source is asked. A source that is told may answer "not modified".

What has been invalidated is neither offered nor given. Who knows best says so, before and after:

1. *Under a fill lease*: what L2 had when it granted that, judged by L2 in the same step. The fill carries the old tags
   and the fill lease's seq. So L2 refuses it if the key, a scope or a tag was invalidated since, by a guard too.
2. *Without L2*: what L1 could serve as a fallback. Afterwards it must still be one.

Where that fails the source is asked again, and told of nothing (`SourceLoad`). Its "not modified" is right for the
value; but who has invalidated a record is not to be given that record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cachebus.core.answers import NEVER
from cachebus.core.details import created_s, details
from cachebus.core.node import Node
from cachebus.decided import Fresh, NotModified, Previous
from cachebus.errors import ConfigError
from cachebus.keys.key import Key, tag_of, tag_scope
from cachebus.policy import Rules
from cachebus.reading.fetch import Fetcher
from cachebus.reading.fill_lease import DatedReply
from cachebus.reading.freshness import Freshness, fallback_in_l1
from cachebus.reading.judge import MISSING
from cachebus.reading.request import Loaded, Request
from cachebus.wire.terms import Terms, terms_of


class Offered(NamedTuple):
    """What is offered to a source, and what is to be known of it if it lives on."""

    previous: Previous[Any]
    tags: Sequence[str]
    """Their scopes."""
    terms: Terms
    fresh: Freshness


def offered_by_l2(fetcher: Fetcher, request: Request, dated: DatedReply) -> Offered | None:
    """The record that came with the fill lease, where it is what the source has said."""
    key, data, node = request.key, dated.reply.record, fetcher.node
    record = None if data is None else fetcher.judge.decoded(key, data, looked_up=True)
    if record is None or not record.may_be_fallback or node.may_predate_lost_guards(key.shard, record):
        return None
    if fetcher.superseded.covers(key.l1, record.created_ms):
        return None
    value = fetcher.judge.decode_and_admit(key, record, None)
    if value is MISSING:
        return None
    age_s, terms = node.server_now_s(key.shard) - record.created_ms / 1000, terms_of(record.more)
    fresh = Freshness(node.shards[key.shard], key, record.tags, dated.as_of.at_s)
    return Offered(_previous(value, terms, age_s, record.tags), record.tags, terms, fresh)


def offered_by_l1(node: Node, request: Request) -> Offered | None:
    """The fallback in L1."""
    fallback, entry = fallback_in_l1(node, request), node.l1.entries.get(request.key.l1)
    extra = None if entry is None else details(entry)
    if fallback is None or entry is None or extra is None:
        return None
    began_s = created_s(entry)
    age_s = 0.0 if began_s == NEVER else node.clock() - began_s
    previous = _previous(fallback.found.handed_out.value, extra.terms, age_s, extra.tags)
    return Offered(previous, extra.tags, extra.terms, fallback.fresh)


def _previous(value: object, terms: Terms, age_s: float, tags: Sequence[str]) -> Previous[Any]:
    return Previous(value, terms.version, max(0.0, age_s), tuple(map(tag_of, tags)))


def settled(loaded: Loaded, offered: Offered | None, request: Request) -> Loaded:
    """What a source gave, with what it has decided worked out; `ConfigError` for what does not fit."""
    decided = loaded.decided
    if isinstance(decided, NotModified):
        if offered is None:
            raise ConfigError("the loader gave NotModified(), and had no `previous`: it must load the value then")
        late = offered.terms.split(offered.tags)[1]
        return loaded._replace(value=offered.previous.value, terms=offered.terms, late_tags=late)
    if not isinstance(decided, Fresh):
        return loaded
    terms = Terms(decided.version, decided.ttl_s, _soft_ttl_s(decided, request.rules), decided.l1_ttl_s)
    return loaded._replace(terms=terms, late_tags=_late_tags(decided, request.key))


def _soft_ttl_s(fresh: Fresh[Any], rules: Rules) -> float | None:
    if fresh.soft_ttl_s is not None and fresh.ttl_s is None and fresh.soft_ttl_s >= rules.ttl_s:
        raise ConfigError(f"Fresh: soft_ttl_s must be below ttl_s, which is {rules.ttl_s:g} s for {rules.data_type!r}")
    return fresh.soft_ttl_s


def _late_tags(fresh: Fresh[Any], key: Key) -> Sequence[str]:
    tenant = key.family.tenant
    if fresh.tags and not tenant:
        raise ConfigError("Fresh: tags belong to a tenant, and a value without one can't have any")
    return [tag_scope(tenant, tag) for tag in fresh.tags]
