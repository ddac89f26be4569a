"""A command: an invalidation as data, in a row, a message or a dead letter.

It is JSON with the arguments of a verb, which `op` names. Producers write it, and so can anybody who writes JSON::

    {"op": "invalidate", "tenant_id": "acme", "data_type": "agent_config", "resource_id": "a7"}
    {"op": "scope", "tenant_id": "acme", "data_type": "query_result", "collection_id": "c1"}
    {"op": "all_tenants", "shard": 3, "data_type": "query_result"}
    {"op": "tags", "tenant_id": "acme", "tags": ["plan:pro"]}
    {"op": "coordinated", "tenant_id": "acme", "data_type": "document", "resource_id": 7,
     "related": [{"data_type": "embedding", "resource_id": "doc:7"}, {"data_type": "query_result"}]}

`reason` may be added to each: why, in 1 to 200 characters. The namespace is not part of it: the row or message that
carries the command has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from cachebus.base.choices import ContextMatch
from cachebus.cascade import WHOLE_SCOPE, Target
from cachebus.errors import CacheBusError
from cachebus.keys.naming import check_contexts
from cachebus.keys.plan import LONGEST_REASON, Contexts, Plan, Planner, coordinated, target
from cachebus.policy import closest

Id = StrictInt | StrictStr


class InvalidCommand(CacheBusError, ValueError):
    """The data is no command. The message names the field, and shows no value."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Related(_Model):
    """A further resource that a command addresses. Ids that are not given are those of the primary."""

    data_type: StrictStr
    resource_id: Id = WHOLE_SCOPE
    agent_id: Id | None = None
    conversation_id: Id | None = None
    collection_id: Id | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were given, also those that are None."""
        return self.model_dump(exclude_unset=True)


class _Command(_Model):
    v: Literal[1] = 1
    reason: Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_REASON)] | None = None
    """Why, for who looks at the log later."""


class Invalidate(_Command):
    """One resource with its cascades, as `Cache.invalidate`. `related`: what the producer's cascades have added."""

    op: Literal["invalidate"] = "invalidate"
    tenant_id: Id | None = None
    data_type: StrictStr
    resource_id: Id
    agent_id: Id | None = None
    conversation_id: Id | None = None
    collection_id: Id | None = None
    contexts: ContextMatch = "exact"
    related: tuple[Related, ...] = ()

    def targets(self) -> list[Target]:
        """The resource, and the related ones."""
        contexts = self.agent_id, self.conversation_id, self.collection_id
        check_contexts(self.contexts, *contexts)
        primary = Target(self.data_type, self.resource_id, *contexts)
        return coordinated(primary, [one.given() for one in self.related], contexts)

    def plan(self, planner: Planner) -> Plan:
        """What it addresses, cascades followed; `InvalidKey`."""
        every = self.contexts == "all"
        if self.related:
            return planner.targets(self.targets(), self.tenant_id, all_contexts=every).because(self.reason)
        contexts = self.agent_id, self.conversation_id, self.collection_id
        check_contexts(self.contexts, *contexts)
        plan = planner.resource(self.data_type, self.resource_id, self.tenant_id, contexts, all_contexts=every)
        return plan.because(self.reason)


class InvalidateScope(_Command):
    """A tenant or one of its types, narrowed by at most one context id, as `Cache.invalidate_scope`."""

    op: Literal["scope"] = "scope"
    tenant_id: Id | None = None
    data_type: StrictStr | None = None
    agent_id: Id | None = None
    conversation_id: Id | None = None
    collection_id: Id | None = None

    def plan(self, planner: Planner) -> Plan:
        """What it addresses; `InvalidKey`."""
        contexts = self.agent_id, self.conversation_id, self.collection_id
        return planner.scope(self.tenant_id, self.data_type, contexts).because(self.reason)


class InvalidateAllTenants(_Command):
    """All of a data type, or everything, of all tenants in one shard, as `Cache.invalidate_type` and `Cache.clear` in
    each. Workers make them, for what changes may have touched that nobody has seen."""

    op: Literal["all_tenants"] = "all_tenants"
    shard: StrictInt
    data_type: StrictStr | None = None

    tenant_id: ClassVar[None] = None

    def plan(self, planner: Planner) -> Plan:
        """What it addresses; `InvalidKey`."""
        return planner.all_tenants(self.data_type, self.shard).because(self.reason)


class InvalidateTags(_Command):
    """All values with one of these tags, as `Cache.invalidate_tags`."""

    op: Literal["tags"] = "tags"
    tenant_id: Id
    tags: Annotated[tuple[StrictStr, ...], Field(min_length=1)]

    def plan(self, planner: Planner) -> Plan:
        """What it addresses; `InvalidKey`."""
        return planner.tags(self.tenant_id, self.tags).because(self.reason)


class InvalidateCoordinated(_Command):
    """A resource and what is related to it, in one step, as `invalidate_coordinated`."""

    op: Literal["coordinated"] = "coordinated"
    tenant_id: Id | None = None
    data_type: StrictStr
    resource_id: Id
    related: tuple[Related, ...] = ()
    agent_id: Id | None = None
    conversation_id: Id | None = None
    collection_id: Id | None = None

    def targets(self) -> list[Target]:
        """The resource ("*" for the whole scope), and the related ones."""
        contexts: Contexts = (self.agent_id, self.conversation_id, self.collection_id)
        primary = target(self.data_type, self.resource_id, contexts)
        return coordinated(primary, [one.given() for one in self.related], contexts)

    def plan(self, planner: Planner) -> Plan:
        """What it addresses, cascades followed; `InvalidKey`."""
        return planner.targets(self.targets(), self.tenant_id, all_contexts=True).because(self.reason)


class Resource(NamedTuple):
    """What `Invalidate` says of one resource in no context, whose parts are text already. Workers make one of each row
    that changes, in a tenth of the time; where it is handed on it becomes the command."""

    data_type: str
    resource_id: str
    tenant_id: str | None
    contexts: ContextMatch = "exact"

    def command(self) -> Invalidate:
        """The command."""
        tenant: dict[str, Any] = {} if self.tenant_id is None else {"tenant_id": self.tenant_id}
        return Invalidate(data_type=self.data_type, resource_id=self.resource_id, contexts=self.contexts, **tenant)

    def plan(self, planner: Planner) -> Plan:
        """What it addresses, cascades followed; `InvalidKey`."""
        every = self.contexts == "all"
        return planner.resource(self.data_type, self.resource_id, self.tenant_id, _NO_CONTEXTS, all_contexts=every)


_NO_CONTEXTS: Contexts = (None, None, None)
_Written = Invalidate | InvalidateScope | InvalidateAllTenants | InvalidateTags | InvalidateCoordinated
Command = _Written | Resource
OPS: Final = tuple(str(kind.model_fields["op"].default) for kind in get_args(_Written))
"""What `op` may be."""
_parser: TypeAdapter[_Written] = TypeAdapter(Annotated[_Written, Field(discriminator="op")])

_validate: Callable[[bytes | str], Command] = _parser.validator.validate_json
"""What the adapter itself calls, without its handling of options, which takes longer."""


def encode(command: Command) -> bytes:
    """The command as JSON, UTF-8; what was not given is left out."""
    if isinstance(command, Resource):
        command = command.command()
    return _parser.dump_json(command.model_copy(update={"op": command.op}), exclude_unset=True)


def parse(data: bytes | str) -> Command:
    """The command in this JSON; `InvalidCommand`, whatever the bytes are."""
    try:
        return _validate(data)
    except ValidationError as error:
        raise InvalidCommand("; ".join(_clause(problem) for problem in error.errors(include_url=False))) from None


def with_reason(command: Command, reason: str) -> Command:
    """The command, with why it was given."""
    if isinstance(command, Resource):
        command = command.command()
    return command.model_copy(update={"reason": reason})


def apart(command: Command) -> list[Invalidate | InvalidateCoordinated]:
    """What a command with related resources names, each by itself; empty for what names one thing. Of a related one all
    contexts' resources are named."""
    if not isinstance(command, Invalidate | InvalidateCoordinated) or not command.related:
        return []
    fixed: dict[str, Any] = {"op": "coordinated", "tenant_id": command.tenant_id}
    if command.reason is not None:
        fixed["reason"] = command.reason
    return [
        command.model_copy(update={"related": ()}),
        *(InvalidateCoordinated(**fixed, **one.given()) for one in command.related),
    ]


def related_of(targets: Sequence[Target]) -> tuple[Related, ...]:
    """Targets for a command, with every id given, so that none is inherited from the primary."""
    return tuple(_related(one.in_text()) for one in targets)


def _related(one: Target) -> Related:
    fields = one._asdict()
    if fields.pop("whole"):
        fields["resource_id"] = WHOLE_SCOPE
    return Related(**fields)


def _clause(problem: Any) -> str:
    if problem["type"] == "union_tag_invalid":  # its own message shows the value
        meant = closest(str(problem["ctx"]["tag"]), OPS)  # one of ours: the word that was given is not shown
        return f"op: must be one of {problem['ctx']['expected_tags']}" + (f", did you mean {meant!r}?" if meant else "")
    where = ".".join(str(part) for part in problem["loc"][1:])  # behind the name of the kind
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
