"""Settings → endpoints, judges and partners: which model, where it is, how long and how often it may be asked.

In: values from YAML and flags (`judge.*`, `partner.*`, `shadow.*`, `endpoints`). Out: checked, immutable, serialisable
records that `make_judge` and the like turn into what they describe. Holds no secret: a key is named by its environment
variable. Reads no environment and opens no connection.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Annotated, ClassVar, Literal, get_args
from urllib.parse import urlsplit

import pydantic

from ditto_jax.errors import ConfigError

Kind = Literal["rules", "openai", "python", "ensemble", "policy"]
MemberKind = Literal["rules", "openai", "python"]
PartnerKind = Literal["scripted", "openai"]
ShadowKind = Literal["none", "openai"]
FeedbackContent = Literal["full", "content_free", "shuffled"]
ResponseFormat = Literal["json_schema", "json_object", "none"]
MaxTokensParameter = Literal["max_tokens", "max_completion_tokens"]
CacheMode = Literal["off", "read-write", "replay"]
# YAML reads a bare `off` as false.
_CacheSetting = Annotated[CacheMode, pydantic.BeforeValidator(lambda value: "off" if value is False else value)]

FEEDBACK_ROLE = "feedback"

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """A language model behind an OpenAI-compatible endpoint. Raises ConfigError for values that cannot work.

    kind: "openai" asks the endpoint; what else there is, is said by the kinds of endpoint below.
    model: model name that the endpoint knows; required by "openai".
    base_url: address up to and without "/chat/completions"; None reads the environment variable OPENAI_BASE_URL.
    api_key_env: name of the environment variable that holds the key; None uses OPENAI_API_KEY where it is set, else
        sends no key.
    api_key_command: program and arguments that print the key, run without a shell; api_key_file: file that holds it.
        One of the three may be set. A key that the endpoint rejects (401) is obtained again, once a request.
    max_concurrent: requests in flight at once.
    max_rpm, max_tpm: most requests and tokens in any 60 seconds; None sets no bound. A request counts as its estimated
        prompt and `max_tokens` until its reply tells better.
    timeout_s: seconds that one call may take, retries and their waits included, once it has its place among
        `max_concurrent`; waiting for a rate limit, a budget or an endpoint that is down excluded.
    max_retries: further requests of one call after overload, server faults and lost connections.
    unparsable_retries: further requests of one call after replies that break the schema; a separate budget.
    temperature: None leaves it to the endpoint (some models accept no other).
    max_tokens: longest reply, reasoning included.
    max_tokens_parameter: request field for `max_tokens`; newer reasoning models want "max_completion_tokens".
    reasoning_effort: passed on if set, for example "low".
    response_format: how the endpoint is told to answer in JSON. The schema is also stated in the prompt and always
        checked.
    hedge_percentile: a request that takes longer than this percentile of recent ones is sent a second time, and the
        first reply counts; None (default) never does, 95 is usual.
    outage_after, max_outage_s: after so many requests in a row without an answer the endpoint counts as down; calls
        then wait for it, up to so many seconds an outage, before they fail. 0 seconds: no waiting.
    input_price, output_price: of a million tokens, in any currency; max_cost: the most that the run may spend on the
        endpoints of these settings, in that currency. Then calls are over_budget, and the run stops.
    cache: keep replies and use them again (read-write), use kept ones alone (replay), or neither (off). cache_path: the
        SQLite file; None is judge_cache.sqlite in the run directory.
    """

    where: ClassVar[str] = "endpoint"  # the name of these settings in errors
    kinds: ClassVar[tuple[str, ...]] = ("openai",)

    kind: str = "openai"
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    api_key_command: tuple[str, ...] = ()
    api_key_file: str | None = None
    max_concurrent: int = 16
    max_rpm: int | None = None
    max_tpm: int | None = None
    timeout_s: float = 120.0
    max_retries: int = 4
    unparsable_retries: int = 2
    temperature: float | None = 0.0
    max_tokens: int = 1024
    max_tokens_parameter: MaxTokensParameter = "max_tokens"
    reasoning_effort: str | None = None
    response_format: ResponseFormat = "json_schema"
    hedge_percentile: float | None = None
    outage_after: int = 8
    max_outage_s: float = 600.0
    input_price: float | None = None
    output_price: float | None = None
    max_cost: float | None = None
    cache: _CacheSetting = "read-write"
    cache_path: str | None = None

    def __post_init__(self):
        where = self.where
        _check_choice(f"{where}.kind", self.kind, self.kinds)
        _check_choice(f"{where}.response_format", self.response_format, get_args(ResponseFormat))
        _check_choice(f"{where}.max_tokens_parameter", self.max_tokens_parameter, get_args(MaxTokensParameter))
        _check_at_least(f"{where}.max_concurrent", self.max_concurrent, 1, example=16)
        _check_at_least(f"{where}.max_tokens", self.max_tokens, 1, example=1024)
        _check_at_least(f"{where}.max_retries", self.max_retries, 0, example=4)
        _check_at_least(f"{where}.unparsable_retries", self.unparsable_retries, 0, example=2)
        _check_choice(f"{where}.cache", self.cache, get_args(CacheMode))
        _check_at_least(f"{where}.outage_after", self.outage_after, 1, example=8)
        if not (math.isfinite(self.max_outage_s) and self.max_outage_s >= 0):
            raise ConfigError(f"{where}.max_outage_s={self.max_outage_s}: must be a number of seconds; 600 works")
        self._check_limits()
        self._check_prices()
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ConfigError(f"{where}.timeout_s={self.timeout_s}: must be a positive number of seconds; 120 works")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ConfigError(f"{where}.temperature={self.temperature}: must be from 0 to 2, or null; 0 works")
        if self.kind == "openai" and not (self.model and self.model.strip()):
            raise ConfigError(
                f"{where}.model={self.model!r}: {where}.kind=openai needs a model name that the endpoint knows"
            )
        if self.base_url is not None:
            check_base_url(self.base_url, where=f"{where}.base_url")
        if self.api_key_env is not None and not _ENVIRONMENT_NAME.fullmatch(self.api_key_env):
            # The value is not repeated: whoever gets this wrong has most likely put the key itself here.
            raise ConfigError(
                f"{where}.api_key_env: must be the name of an environment variable (letters, digits, underscores), not "
                "a key; put the key into that variable and name it here, for example OPENAI_API_KEY"
            )
        if sum(map(bool, (self.api_key_env, self.api_key_command, self.api_key_file))) > 1:
            raise ConfigError(
                f"{where}.api_key_env, api_key_command, api_key_file: set one of them; a key has one source"
            )

    def _check_limits(self) -> None:
        for name, example in (("max_rpm", 500), ("max_tpm", 200_000)):
            value = getattr(self, name)
            if value is not None:
                _check_at_least(f"{self.where}.{name}", value, 1, example)
        if self.hedge_percentile is not None and not 50 <= self.hedge_percentile < 100:
            raise ConfigError(
                f"{self.where}.hedge_percentile={self.hedge_percentile}: must be from 50 to below 100; 95 works"
            )

    def _check_prices(self) -> None:
        for name in ("input_price", "output_price", "max_cost"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{self.where}.{name}={value}: must be a number of at least 0; 0.4 works")
        if (self.input_price is None) != (self.output_price is None):
            raise ConfigError(
                f"{self.where}.input_price, output_price: set both (0 is a price) or neither, for example 0.05 and 0.4"
            )
        if self.max_cost is not None and self.input_price is None:
            raise ConfigError(
                f"{self.where}.max_cost={self.max_cost}: needs {self.where}.input_price and output_price (of a million "
                "tokens), for example 0.05 and 0.4"
            )


@dataclasses.dataclass(frozen=True)
class MemberConfig(EndpointConfig):
    """One judge of an ensemble; other fields are those of every endpoint. kind, function: as for a judge alone."""

    where: ClassVar[str] = "judge.members"
    kinds: ClassVar[tuple[str, ...]] = get_args(MemberKind)

    kind: MemberKind = "openai"
    function: str | None = None

    def __post_init__(self):
        super().__post_init__()
        _check_function(self.where, self.kind, self.function)


@dataclasses.dataclass(frozen=True)
class JudgeConfig(EndpointConfig):
    """Which judge assesses drafts and writes feedback; other fields are those of every endpoint.

    kind: "rules" is embedded and needs nothing; "openai" asks the endpoint; "python" calls a function on whole groups;
        "ensemble" takes the mean of its members; "policy" asks the policy itself, with its weights of the step,
        under max_tokens and temperature.
    function: "path.py:my_judge" for kind "python". members: the judges of an ensemble, of which the first writes words.
    feedback_content: of what refined rollouts are told. "content_free" and "shuffled" are control arms: words that say
        only that the draft is wrong, and the words about another draft (`ditto_jax.rollouts.shuffled_words`).
    max_error_rate: the run stops when a larger fraction of a step's verdicts fails.
    """

    where: ClassVar[str] = "judge"
    kinds: ClassVar[tuple[str, ...]] = get_args(Kind)

    kind: Kind = "rules"
    function: str | None = None
    members: tuple[MemberConfig, ...] = ()
    feedback_content: FeedbackContent = "full"
    max_error_rate: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        _check_function("judge", self.kind, self.function)
        if self.kind == "ensemble" and len(self.members) < 2:
            raise ConfigError(
                f"judge.members: an ensemble of {len(self.members)}; list at least two under judge.members"
            )
        _check_choice("judge.feedback_content", self.feedback_content, get_args(FeedbackContent))
        if not 0 <= self.max_error_rate <= 1:
            raise ConfigError(f"judge.max_error_rate={self.max_error_rate}: is a fraction from 0 to 1; 0.5 works")


@dataclasses.dataclass(frozen=True)
class PartnerConfig(EndpointConfig):
    """Who speaks in episodes beside the policy (partner, assistant, narrator …); other fields are those of endpoints.

    kind: "scripted" is embedded, needs nothing and says what the task's script says; "openai" asks the endpoint.
    """

    where: ClassVar[str] = "partner"
    kinds: ClassVar[tuple[str, ...]] = get_args(PartnerKind)

    kind: PartnerKind = "scripted"


@dataclasses.dataclass(frozen=True)
class PolicyConfig(EndpointConfig):
    """Where the policy that is evaluated runs; other fields are those of endpoints.

    kind: "local" loads the weights of model_name_or_path; "openai" asks the endpoint (evaluation only). max_tokens:
    longest reply of one turn. temperature: that of evaluation.temperature is sent; null sends none, for models that
    accept no other than their own. send_seed: give each request a seed of its own, so that servers that can repeat do.
    regex: how the endpoint takes a regular expression for its reply (evaluation.constrained): refuse says that it does
    not, vllm sends `structured_outputs`, sglang `regex`. JSON goes with `response_format: json_schema`.
    """

    where: ClassVar[str] = "policy"
    kinds: ClassVar[tuple[str, ...]] = ("local", "openai")

    kind: str = "local"
    send_seed: bool = True
    regex: Literal["refuse", "vllm", "sglang"] = "refuse"

    def __post_init__(self):
        super().__post_init__()
        _check_choice("policy.regex", self.regex, ("refuse", "vllm", "sglang"))
        if self.temperature not in (0.0, None):
            raise ConfigError(
                f"policy.temperature={self.temperature}: set evaluation.temperature instead; here only null, which "
                "sends none, may be set"
            )


@dataclasses.dataclass(frozen=True)
class RoleConfig(PartnerConfig):
    """An endpoint for some roles only: `roles` of episodes as their tasks name them, or "feedback", which writes h."""

    where: ClassVar[str] = "endpoints"

    roles: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.roles:
            raise ConfigError("endpoints.roles: name at least one role, for example [narrator] or [feedback]")
        if FEEDBACK_ROLE in self.roles and self.kind != "openai":
            raise ConfigError(f"endpoints.kind={self.kind}: the role 'feedback' needs kind: openai")


@dataclasses.dataclass(frozen=True)
class ShadowConfig(EndpointConfig):
    """A second judge, which scores some rollouts of training again; other fields are those of every endpoint.

    kind: "none" (default), or "openai", which asks the endpoint.
    fraction: of the rollouts that are scored again. Those whose score comes from rules are not compared.
    max_divergence: the alarm sounds when the scores of the last `window` pairs differ by more than this on average.
    """

    where: ClassVar[str] = "shadow"
    kinds: ClassVar[tuple[str, ...]] = get_args(ShadowKind)

    kind: ShadowKind = "none"
    fraction: float = 0.1
    window: int = 64
    max_divergence: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        _check_at_least("shadow.window", self.window, 1, example=64)
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"shadow.fraction={self.fraction}: must be above 0 and at most 1; 0.1 works")
        if not (math.isfinite(self.max_divergence) and self.max_divergence >= 0):
            raise ConfigError(f"shadow.max_divergence={self.max_divergence}: must be at least 0; 0.25 works")


def check_base_url(url: str, where: str) -> None:
    """Returns nothing if `url` can be an endpoint's address; raises ConfigError naming `where` otherwise."""
    works = "http://localhost:8000/v1 works"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{where}: not an address; {works}") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"{where}: must hold no user name, password, query or fragment (not shown here); {works}")
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or any(c.isspace() for c in url):
        raise ConfigError(f"{where}={url!r}: must be an http:// or https:// address with a host; {works}")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        short = url.rstrip("/").removesuffix("/chat/completions")
        raise ConfigError(f"{where}={url!r}: the path /chat/completions is added to it; set it to {short}")


def _check_function(where: str, kind: str, function: str | None) -> None:
    if kind == "python" and ".py:" not in (function or ""):
        raise ConfigError(f"{where}.function={function!r}: {where}.kind=python needs one, as in path.py:my_judge")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: must be one of {', '.join(choices)}")


def _check_at_least(name: str, value: int, least: int, example: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r}: must be an integer of at least {least}; {example} works")
