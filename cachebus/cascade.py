"""Declared cascades: what else is replaced when a resource of some type is.

Registered once, followed by every invalidation of that type from any path. The targets inherit the context ids of
the invalidation; the last part of a target is a template of its resource id (see `cachebus.base.templates`), or "*" for
the whole scope.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cachebus.base.ids import Id, check_part, text_of
from cachebus.base.templates import Template
from cachebus.errors import ConfigError, InvalidKey

FAN_OUT_MAX = 256
PLACEHOLDERS = ("resource_id", "tenant_id", "agent_id", "conversation_id", "collection_id")
WHOLE_SCOPE = "*"
_CONTEXTS = PLACEHOLDERS[2:]


class Target(NamedTuple):
    """One thing that an invalidation addresses: a resource in a context; or, with `whole`, all of a type there."""

    data_type: str
    resource_id: Id
    agent_id: Id | None = None
    conversation_id: Id | None = None
    collection_id: Id | None = None
    whole: bool = False
    """Whether it is all of the type: the resource id is then "*"."""

    def in_text(self) -> Target:
        """The same with each id as the text that stands for it, and `whole` where that is "*"; `InvalidKey` for what is
        no id."""
        agent, conversation, collection = (
            None if part is None else text_of(name, part) for name, part in zip(_CONTEXTS, self[2:5], strict=True)
        )
        data_type, resource_id = text_of("data_type", self.data_type), text_of("resource_id", self.resource_id)
        whole = self.whole or resource_id == WHOLE_SCOPE
        return Target(data_type, resource_id, agent, conversation, collection, whole)


class Cascade:
    """`Cascade("document", to=[("embedding", "doc:{resource_id}"), ("query_result", "*")], on_set=False)`.

    `on_set=True` follows it also when a new value is `set`, not only when one is invalidated or deleted.
    """

    __slots__ = ("data_type", "on_set", "to")

    def __init__(self, data_type: str, to: Iterable[tuple[str, str]], *, on_set: bool = False) -> None:
        try:
            self.data_type = data_type = check_part("data_type", data_type)
        except InvalidKey as error:
            raise ConfigError(f"cascade: {error}") from None
        pairs = tuple(to)
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise ConfigError(f"cascade of {data_type!r}: `to` takes pairs of data type and resource id, not {pairs!r}")
        try:
            self.to = tuple((check_part("data_type", t), Template(template)) for t, template in pairs)
        except (InvalidKey, ConfigError) as error:
            raise ConfigError(f"cascade of {data_type!r}: {error}") from None
        self.on_set = on_set
        for _, template in self.to:
            for name in template.fields:
                if name not in PLACEHOLDERS:
                    raise ConfigError(
                        f"cascade of {data_type!r}: {template.text!r} has the unknown placeholder {{{name}}}; "
                        f"known are {', '.join(PLACEHOLDERS)}"
                    )


class CascadeTable:
    """All declared cascades of a cache."""

    def __init__(self, cascades: Iterable[Cascade] = (), fan_out_max: int = FAN_OUT_MAX) -> None:
        self._by_type: dict[str, list[Cascade]] = {}
        self._sizes: dict[str, int] = {}
        self._fan_out_max = fan_out_max
        for cascade in cascades:
            self.register(cascade)

    def register(self, cascade: Cascade) -> None:
        """Add one; `ConfigError` when it closes a cycle or one invalidation would address too many targets."""
        before = self._by_type.get(cascade.data_type, [])
        self._by_type[cascade.data_type] = [*before, cascade]
        try:
            self._check(cascade.data_type)
        except ConfigError:
            self._by_type[cascade.data_type] = before
            raise

    def _check(self, changed: str) -> None:
        sizes: dict[str, int] = {}

        def size(data_type: str, path: tuple[str, ...]) -> int:
            if data_type in path:
                raise ConfigError("cascades form a cycle: " + " -> ".join([*path, data_type]))
            if data_type not in sizes:
                below = [t for cascade in self._by_type.get(data_type, ()) for t, _ in cascade.to]
                sizes[data_type] = 1 + sum(size(t, (*path, data_type)) for t in below)
            return sizes[data_type]

        for data_type in list(self._by_type):
            if size(data_type, ()) - 1 > self._fan_out_max:
                raise ConfigError(
                    f"the cascade of {data_type!r} addresses {size(data_type, ()) - 1} targets, "
                    f"at most {self._fan_out_max} (found when {changed!r} was registered)"
                )
        self._sizes = sizes

    def entails(self, data_type: str) -> bool:
        """Whether anything else is replaced when a resource of this type is."""
        return data_type in self._by_type

    def size(self, data_type: str) -> int:
        """How many targets a resource of this type and all that it entails are at most."""
        return self._sizes.get(data_type, 1)

    def expand(
        self, targets: Sequence[Target], tenant_id: object, *, on_set: bool = False, refused: list[str] | None = None
    ) -> list[Target]:
        """The targets and all that they entail, each once, in order, with ids in text. Whole scopes entail nothing.
        `refused`: takes why something that is entailed has no name, which is left out then; else that raises."""
        found = dict.fromkeys(target.in_text() for target in targets)
        todo = list(found) if self._by_type else []
        tenant = None if tenant_id is None else text_of("tenant_id", tenant_id)
        while todo:
            target = todo.pop()
            if target.whole:
                continue
            for cascade in self._by_type.get(target.data_type, ()):
                if on_set and not cascade.on_set:
                    continue
                for data_type, template in cascade.to:
                    try:
                        entailed = _fill_in(cascade, data_type, template, target, tenant)
                    except InvalidKey as error:
                        if refused is None:
                            raise
                        refused.append(str(error))
                        continue
                    if entailed not in found:
                        found[entailed] = None
                        todo.append(entailed)
        return list(found)


def _fill_in(cascade: Cascade, data_type: str, template: Template, source: Target, tenant: str | None) -> Target:
    if template.text == WHOLE_SCOPE:
        return source._replace(data_type=data_type, resource_id=WHOLE_SCOPE, whole=True)
    values = {**source._asdict(), "tenant_id": tenant}
    for name in template.fields:
        if values[name] is None:
            raise InvalidKey(
                f"the cascade of {cascade.data_type!r} needs {name} for {data_type!r} ({template.text!r}): give it"
            )
    return source._replace(data_type=data_type, resource_id=template.fill(values))
