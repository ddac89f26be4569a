"""How values of a data type are kept: lifetimes, loading, encoding.

1. A user writes a `Policy`, which pydantic checks.
2. `Rules` are what the data path reads of it: plain slots, defaults resolved.
3. `PolicyTable` has the rules of every type.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from inspect import iscoroutinefunction
from types import MappingProxyType
from typing import Annotated, Any, TypedDict, Unpack, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from cachebus.base.choices import Codec
from cachebus.base.ids import check_part
from cachebus.base.lifetimes import TAGS_MAX, TTL_MAX_S, TTL_MIN_S, check_ttl
from cachebus.base.templates import Template
from cachebus.errors import ConfigError, InvalidKey
from cachebus.observe import TYPES_MAX
from cachebus.values import Decode, Encode, Form, OwnType, check_model
from cachebus.values.cipher import ValueCipher

TTL_SHORT = 300.0
"""5 minutes, in seconds."""
TTL_STANDARD = 3_600.0
"""1 hour, in seconds."""
TTL_EXTENDED = 86_400.0
"""1 day, in seconds."""
DEFAULT_TTL_MAPPING: Mapping[str, float] = MappingProxyType(
    {
        "embedding": TTL_EXTENDED,
        "query_result": TTL_STANDARD,
        "agent_config": TTL_STANDARD,
        "vector_store": TTL_STANDARD,
        "token_counter": TTL_SHORT,
        "system": TTL_EXTENDED,
    }
)
"""TTL in seconds by data type; any other type has `TTL_STANDARD`."""

VALUE_MAX_BYTES = 500 * 1024 * 1024
"""A server takes 512 MB at once, and what goes with a value needs some of it."""
VERSION_MAX = 2**32 - 1
RULES_MAX = TYPES_MAX
TAG_FIELDS = ("resource_id", "tenant_id")


def closest(name: str, known: Collection[str]) -> str | None:
    """The known name that a misspelt one most likely means, or None where none is like it."""
    import difflib  # only for errors

    longer = [k for k in known if k.startswith(f"{name}_")]  # "ttl" is "ttl_s" without its unit
    return next(iter(longer or difflib.get_close_matches(name, known, 1, 0.8)), None)


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """One line that says so, and what may have been meant."""
    meant = closest(name, known)
    return f"there is no such {what}" + (f", did you mean {meant}?" if meant else "")


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number of seconds is needed, not a bool")
    return value


Seconds = Annotated[float, BeforeValidator(_no_bool), Field(ge=TTL_MIN_S, le=TTL_MAX_S, allow_inf_nan=False)]
Lifetime = Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]


class PolicyOptions(TypedDict, total=False):
    """What a `Policy` is made of, by name: the fields are told there."""

    ttl_s: float | None
    ttl_jitter: float
    l1: bool
    l1_ttl_s: float | None
    negative_ttl_s: float | None
    soft_ttl_s: float | None
    fail_safe_s: float | None
    fail_safe_throttle_s: float
    load_soft_timeout_s: float | None
    load_timeout_s: float
    retries: int
    retry_on: Sequence[type[Exception]]
    retry_backoff_s: float
    model: Any
    lossy: bool
    codec: Codec
    compress_over_bytes: int | None
    max_value_bytes: int
    copy: bool
    tags: Sequence[str]
    version: int
    encode: Encode | None
    decode: Decode | None


class Policy(BaseModel):
    """What may differ between data types: `Settings(policies={"config": Policy(ttl_s=60)})`, or `Cache.register`.

    All times are in seconds; each field says what it is for. Raises `ConfigError`, which names every field that is
    wrong, or that there is none of that name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    ttl_s: Lifetime | None = Field(None, description="how long a value lives; None: by DEFAULT_TTL_MAPPING")
    ttl_jitter: float = Field(0.0, ge=0.0, le=0.5, description="shorten each TTL by up to this share, at random")
    l1: bool = Field(True, description="whether values enter the node's memory")
    l1_ttl_s: Seconds | None = Field(None, description="a shorter life in the node's memory")
    negative_ttl_s: Seconds | None = Field(None, description='how long "not found" is cached; None: not at all')
    soft_ttl_s: Seconds | None = Field(None, description="past this age a value is refreshed in the background")
    fail_safe_s: Seconds | None = Field(
        None, description="how long an expired value may be the fallback for a failing source"
    )
    fail_safe_throttle_s: Seconds = Field(
        10.0,
        description="how long about a source that has failed a key is left alone by whoever can serve an older value",
    )
    load_soft_timeout_s: Seconds | None = Field(None, description="after this an expired value is served meanwhile")
    load_timeout_s: Seconds = Field(30.0, description="after this a load is given up, with all its retries")
    retries: int = Field(2, ge=0, le=20, description="attempts after the first")
    retry_on: tuple[type[Exception], ...] = Field(
        (ConnectionError, TimeoutError, OSError), description="the source's errors that are worth another attempt"
    )
    retry_backoff_s: Seconds = Field(0.05, description="the first pause between attempts; it grows, with jitter")
    model: Any = Field(None, description="what values are decoded into: a pydantic model, dataclass, list[Item], ...")
    lossy: bool = Field(False, description="allow values of which a part comes back changed, or is lost")
    codec: Codec = Field("msgpack", description="how values are encoded")
    compress_over_bytes: int | None = Field(None, gt=0, description="compress encoded values larger than this")
    max_value_bytes: int = Field(
        8 * 1024 * 1024, gt=0, le=VALUE_MAX_BYTES, description="larger encoded values are refused"
    )
    copy_values: bool = Field(
        False,
        alias="copy",
        description="give each caller a copy of what is cached; else all share one object, which none may change",
    )
    tags: tuple[str, ...] = Field((), description="tags of every value: templates of {resource_id} and {tenant_id}")
    version: int = Field(
        1,
        ge=1,
        le=VERSION_MAX,
        strict=True,
        description="raise it when the values' shape changes: what was stored by another version is loaded anew",
    )
    encode: Encode | None = Field(
        None, description="makes bytes, or plain data, of a value of a type of your own; with decode, in place of model"
    )
    decode: Decode | None = Field(None, description="makes the value again of what encode gave")

    def __init__(self, **values: Unpack[PolicyOptions]) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_lines("policy", error)) from None

    @field_validator("ttl_s")
    @classmethod
    def _in_range(cls, ttl_s: float | None) -> float | None:
        return None if ttl_s is None else check_ttl(ttl_s)

    @field_validator("model")
    @classmethod
    def _is_type(cls, model: object) -> object:
        if model is not None and not isinstance(model, type) and get_origin(model) is None:
            raise ValueError(f"a type is needed, such as a pydantic model or list[Item], not {type(model).__name__}")
        if model is not None:
            try:
                check_model(model)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return model

    @field_validator("tags")
    @classmethod
    def _known_fields(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        if len(tags) > TAGS_MAX:
            raise ValueError(f"a value takes at most {TAGS_MAX} tags")
        for tag in tags:
            try:
                fields = Template(tag).fields
            except ConfigError as error:
                raise ValueError(str(error)) from None
            for name in fields:
                if name not in TAG_FIELDS:
                    raise ValueError(
                        f"{tag!r} has the unknown placeholder {{{name}}}; known are {', '.join(TAG_FIELDS)}"
                    )
        return tags

    @model_validator(mode="after")
    def _in_order(self) -> Policy:
        if self.soft_ttl_s is not None and self.ttl_s is not None and self.soft_ttl_s >= self.ttl_s:
            raise ValueError("soft_ttl_s must be below ttl_s")
        if self.load_soft_timeout_s is not None and self.load_soft_timeout_s >= self.load_timeout_s:
            raise ValueError("load_soft_timeout_s must be below load_timeout_s")
        if self.load_soft_timeout_s is not None and self.fail_safe_s is None:
            raise ValueError("load_soft_timeout_s needs fail_safe_s: only an expired value can be served meanwhile")
        if self.model is not None and self.codec != "msgpack":
            raise ValueError(f"model needs codec msgpack: what codec {self.codec} gives fits no model")
        if (self.encode is None) != (self.decode is None):
            given, other = ("encode", "decode") if self.decode is None else ("decode", "encode")
            raise ValueError(f"{given} needs {other}: what one makes of a value, the other makes a value of again")
        if self.decode is not None and self.model is not None:
            raise ValueError("decode and model both say what values are decoded into: leave one out")
        return self

    @field_validator("encode", "decode")
    @classmethod
    def _is_sync(cls, hook: Any) -> Any:
        if hook is not None and (iscoroutinefunction(hook) or iscoroutinefunction(type(hook).__call__)):
            raise ValueError("a sync function is needed: it is called in the event loop, and must not wait")
        return hook


def _lines(what: str, error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = [field.alias or name for name, field in Policy.model_fields.items()]
            message = unknown("field", where, known)
        problems.append(f"{what} {where}: {message}" if where else f"{what}: {message}")
    return "; ".join(problems)


class Rules:
    """A policy as the data path reads it: plain attributes, the TTL resolved, tags as templates; `ConfigError`."""

    __slots__ = (
        "cipher",
        "copy",
        "data_type",
        "fail_safe_s",
        "fail_safe_throttle_s",
        "form",
        "l1",
        "l1_ttl_s",
        "load_soft_timeout_s",
        "load_timeout_s",
        "model",
        "negative_ttl_s",
        "retries",
        "retry_backoff_s",
        "retry_on",
        "soft_ttl_s",
        "tags",
        "ttl_jitter",
        "ttl_s",
        "version",
    )

    def __init__(self, data_type: str, policy: Policy, cipher: ValueCipher | None = None) -> None:
        """`cipher`: what encrypts values in L2, if anything does."""
        try:
            self.data_type = data_type = check_part("data_type", data_type)
        except InvalidKey as error:
            raise ConfigError(f"policy: {error}") from None
        self.ttl_s = DEFAULT_TTL_MAPPING.get(data_type, TTL_STANDARD) if policy.ttl_s is None else policy.ttl_s
        self.ttl_jitter = policy.ttl_jitter
        self.l1 = policy.l1
        self.l1_ttl_s = policy.l1_ttl_s
        self.negative_ttl_s = policy.negative_ttl_s
        self.soft_ttl_s = policy.soft_ttl_s
        self.fail_safe_s = policy.fail_safe_s
        self.fail_safe_throttle_s = policy.fail_safe_throttle_s
        self.load_soft_timeout_s = policy.load_soft_timeout_s
        self.load_timeout_s = policy.load_timeout_s
        self.retries = policy.retries
        self.retry_on = policy.retry_on
        self.retry_backoff_s = policy.retry_backoff_s
        self.model = policy.model
        own_type = None if policy.encode is None or policy.decode is None else OwnType(policy.encode, policy.decode)
        self.form = Form(
            policy.codec, policy.compress_over_bytes, policy.max_value_bytes, policy.model, policy.lossy, own_type
        )
        """How its values are stored."""
        self.version, self.cipher = policy.version, cipher
        self.copy = policy.copy_values
        self.tags = tuple(Template(tag) for tag in policy.tags)
        if self.soft_ttl_s is not None and self.soft_ttl_s >= self.ttl_s:
            raise ConfigError(f"policy of {data_type!r}: soft_ttl_s must be below ttl_s ({self.ttl_s:g} s)")


DEFAULT_POLICY = Policy()


class PolicyTable:
    """The rules of every data type; a type without a policy has the defaults."""

    def __init__(self, policies: Mapping[str, Policy] | None = None, cipher: ValueCipher | None = None) -> None:
        """`cipher`: what encrypts values in L2, of all types."""
        self._cipher = cipher
        self._registered: dict[str, Rules] = {}
        self._rules: dict[str, Rules] = {}
        for data_type, policy in (policies or {}).items():
            self.register(data_type, policy)

    def register(self, data_type: str, policy: Policy) -> None:
        """Set a type's policy, in place of an earlier one; `ConfigError`."""
        rules = Rules(data_type, policy, self._cipher)
        self._rules[rules.data_type] = self._registered[rules.data_type] = rules

    def rules(self, data_type: str) -> Rules:
        """The rules of a data type."""
        found = self._rules.get(data_type)
        if found is None:
            if len(self._rules) >= RULES_MAX:  # a caller that makes up types must not fill the memory
                self._rules = dict(self._registered)
            found = self._rules[data_type] = Rules(data_type, DEFAULT_POLICY, self._cipher)
        return found
