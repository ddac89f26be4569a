"""`cachebus invalidate`: a resource, a scope, tags, a type of all tenants, or everything."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from cachebus.base.choices import ContextMatch
from cachebus.cascade import WHOLE_SCOPE
from cachebus.cli.operate.get import Agent, Collection, Conversation, Tenant
from cachebus.cli.operate.layout import layout_of
from cachebus.cli.operate.stored import WantedRecords, count, meant
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.errors import CacheBusError, ConfigError
from cachebus.keys.naming import tenant_of
from cachebus.keys.plan import Plan, trouble_of_reason
from cachebus.producers import DirectProducer
from cachebus.producers.base import Orders
from cachebus.settings import Settings
from cachebus.writing.every_shard import invalidate_in_every_shard

DataType = Annotated[str | None, typer.Argument(metavar="TYPE", help="The data type.", show_default=False)]
ResourceId = Annotated[
    str | None, typer.Argument(metavar="ID", help="The resource id; without it, all of the type.", show_default=False)
]
AllContexts = Annotated[bool, typer.Option("--all-contexts", help="The id in every context, not only in none.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="All that has this tag, or another one.")]
AllTenants = Annotated[bool, typer.Option("--all-tenants", help="The type, whatever the tenant.")]
Everything = Annotated[bool, typer.Option("--everything", help="All of the namespace; asks first.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for who looks at the log later.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count the records that it would meet.")]

_ONE_OF: Final = (
    "name a TYPE and an ID, a TYPE, --tag, --tenant alone for all of a tenant, TYPE --all-tenants, or --everything"
)


@dataclass(frozen=True)
class Addressed:
    """What the command line names."""

    data_type: str | None
    resource_id: str | None
    """None: all of the type."""
    tenant: str | None
    contexts: Mapping[str, str]
    """By their names in L2, which are those of the options."""
    all_contexts: bool = False
    tags: tuple[str, ...] = ()
    all_tenants: bool = False
    everything: bool = False
    reason: str | None = None

    def checked(self) -> Addressed:
        """Itself; `ConfigError` where the options do not fit each other."""
        named = self.data_type is not None or self.tenant is not None or bool(self.contexts)
        if self.everything and (named or self.tags or self.all_tenants):
            raise ConfigError("--everything goes with no other name")
        alone = self.resource_id is None and self.tenant is None and not self.contexts
        if self.all_tenants and (self.data_type is None or not alone):  # "" is a variable that was not set: no TYPE
            raise ConfigError("--all-tenants takes a TYPE alone")
        if self.tags and (self.data_type is not None or self.contexts or self.all_tenants):
            raise ConfigError("--tag takes --tenant alone: a tag holds what has it, of any type")
        if self.reason is not None and (wrong := trouble_of_reason(self.reason)):
            raise ConfigError(f"--reason {wrong}")
        if self.all_contexts and (self.resource_id is None or self.contexts):
            raise ConfigError("--all-contexts takes a TYPE and an ID, and no context")
        if not (named or self.tags or self.everything):
            raise ConfigError(f"nothing to invalidate: {_ONE_OF}")
        return self

    def plans(self, settings: Settings) -> list[Plan]:
        """What invalidating it addresses, by shard; `InvalidKey`, `TenantRequired`."""
        return [plan.because(self.reason) for plan in self._plans(settings)]

    def _plans(self, settings: Settings) -> list[Plan]:
        orders = Orders(settings.shards, default_tenant=settings.default_tenant)
        contexts = [self.contexts.get(name) for name in ("agent", "conv", "coll")]
        if self.everything:
            return orders.planner.everything()
        if self.all_tenants:
            return orders.planner.type_of_all_tenants(self.data_type)
        if self.tags:
            return [orders.tags(self.tags, self.tenant).plan]
        if self.data_type is None or self.resource_id is None:
            return [orders.scope(self.tenant, self.data_type, *contexts).plan]
        match: ContextMatch = "all" if self.all_contexts else "exact"
        return [orders.invalidate(self.data_type, self.resource_id, self.tenant, match, *contexts).plan]

    def wanted(self, settings: Settings) -> WantedRecords:
        """The records that it meets."""
        tenant = self.tenant
        if not (self.everything or self.all_tenants):
            tenant = tenant_of(self.data_type, tenant, settings.default_tenant) or ""
        only = self.resource_id is not None and not self.all_contexts
        return WantedRecords(tenant, self.data_type, self.resource_id, self.contexts, only, self.tags)

    def __str__(self) -> str:
        if self.everything:
            return "everything"
        what = f"type {self.data_type}" if self.data_type is not None else "anything"
        what = f"tag {', '.join(self.tags)}" if self.tags else what
        what += f" and id {self.resource_id}" if self.resource_id is not None else ""
        whose = "of all tenants" if self.all_tenants else f"of tenant {self.tenant}" if self.tenant is not None else ""
        return " ".join([what, whose, *(f"with {name} {given}" for name, given in self.contexts.items())]).strip()


def invalidate(
    data_type: DataType = None,
    resource_id: ResourceId = None,
    tenant: Tenant = None,
    agent: Agent = None,
    conversation: Conversation = None,
    collection: Collection = None,
    all_contexts: AllContexts = False,
    tags: Tags = None,
    all_tenants: AllTenants = False,
    everything: Everything = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    reason: Reason = None,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Say that what is cached is replaced, everywhere, and print the receipt.

    TYPE ID --tenant T is a resource; TYPE --tenant T all of the type; --tenant T all of the tenant; --tag G --tenant T
    what has the tag; TYPE --all-tenants the type, whatever the tenant; --everything all. The last two are one step in
    each shard, not one over all shards.

    Cascades are declared in services, and not known here: name what else goes by further calls.

    Exit status: 0, 2 if it is not sure to have happened. Repeat it then: twice does no harm.
    """
    given = {"agent": agent, "conv": conversation, "coll": collection}
    addressed = Addressed(
        data_type,
        None if resource_id == WHOLE_SCOPE else resource_id,
        tenant,
        {name: part for name, part in given.items() if part is not None},
        all_contexts,
        tuple(tags or ()),
        all_tenants,
        everything,
        reason,
    ).checked()
    settings = settings_for(url, namespace)
    if dry_run:
        sys.stdout.write(until_signalled(_counted(settings, addressed)) + "\n")
        return
    if everything and not yes:
        _ask(settings)
    until_signalled(_done(settings, addressed))


def _ask(settings: Settings) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("--everything asks first, and nobody is there to answer: add --yes")
    found = until_signalled(_all(settings))
    typer.confirm(f"Invalidate all {found:,} records of namespace {settings.namespace}?", abort=True, err=True)


async def _all(settings: Settings) -> int:
    return await count((await layout_of(settings)).over(settings), WantedRecords())


async def _counted(settings: Settings, addressed: Addressed) -> str:
    settings = (await layout_of(settings)).over(settings)
    addressed.plans(settings)  # raises what the invalidation would
    found = await count(settings, addressed.wanted(settings))
    if not found:
        return await _nothing(settings, addressed)
    records = "1 record lies" if found == 1 else f"{found:,} records lie"
    return f"{records} in L2 under {addressed}"


async def _done(settings: Settings, addressed: Addressed) -> None:
    """Invalidate, print the receipt, and then say where nobody has what a scope names, or a resource's tenant or type
    is none."""
    settings = (await layout_of(settings)).over(settings)
    async with DirectProducer(settings, name="cachebus invalidate") as producer:
        receipt = await invalidate_in_every_shard(addressed.plans(settings), producer.send)
    sys.stdout.write(f"{receipt}\n")
    sys.stdout.flush()
    with suppress(CacheBusError):  # it is done, whether its records may be looked at or not
        if addressed.resource_id is not None:  # that one of many is not cached is usual
            if hint := await meant(settings, addressed.wanted(settings)):
                sys.stderr.write(f"cachebus: nothing lies in L2 under {addressed}{hint}\n")
        elif not await count(settings, addressed.wanted(settings), at_most=1):
            sys.stderr.write(f"cachebus: {await _nothing(settings, addressed)}\n")


async def _nothing(settings: Settings, addressed: Addressed) -> str:
    return f"nothing lies in L2 under {addressed}{await meant(settings, addressed.wanted(settings))}"
