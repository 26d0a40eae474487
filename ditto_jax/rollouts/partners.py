"""Who speaks in episodes beside the policy: partner, assistant, narrator, next-speaker predictor.

In: settings, and chats as tasks write them. Out: ports whose replies are visible text, from an endpoint of their own
or from the task's script; a failed call raises AuxiliaryFailure, and no text of a failure is ever spoken. Drafts and
refined rollouts have the same partners. Imports no jax.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.judge.cache import CallName
from ditto_jax.judge.config import FEEDBACK_ROLE, PartnerConfig, RoleConfig
from ditto_jax.judge.division import DividedPort
from ditto_jax.judge.endpoint import resolve_endpoint
from ditto_jax.judge.words import call_rng
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import AuxiliaryFailure, ReplyPort, Task
from ditto_jax.team.post import Post
from ditto_jax.types import Chat, Example, FinishReason, Outcome, Reply

if TYPE_CHECKING:
    from ditto_jax.judge.client import ChatClient
    from ditto_jax.judge.hub import Hub

SCRIPTED = "scripted"
# Those of ClientTotals, whose module needs an HTTP stack; scripted partners count zeros.
_COSTS = ("calls", "retries", "tokens_in", "tokens_out", "latency_s", "cache_hits", "hedges", "cost", "waited_s")


class Partners(Protocol):
    """Everyone whom episodes may speak with."""

    def identity(self, role: str, task: Task[Any]) -> str:
        """Returns who plays a role, such as "openai:gpt-5-nano" or "scripted@mirrorbench-1"; printed in all outputs."""
        ...

    def port(self, role: str, task: Task[Any], example: Example, key: SampleId) -> ReplyPort:
        """Returns the partner of one episode in one role."""
        ...

    async def check(self) -> None:
        """Raises JudgeUnavailableError if an endpoint does not answer."""
        ...

    def counters(self) -> Mapping[str, float]:
        """Cumulative calls and costs since the start."""
        ...

    async def aclose(self) -> None: ...


@dataclasses.dataclass
class _Script:
    """What the task's script says, turn by turn."""

    role: str
    task: Task[Any]
    example: Example
    key: SampleId
    turn: int = 0

    async def reply(self, chat: Chat) -> Reply:
        rng = call_rng(self.key, f"script {self.role} {self.turn}")
        self.turn += 1
        text = self.task.scripted_reply(self.example, self.role, chat, rng)
        if text is None:
            raise ConfigError(
                f"task {self.task.name} has no script for the role '{self.role}'; set partner.kind=openai with "
                "partner.model and partner.base_url, or list the role under `endpoints`"
            )
        return Reply(text, FinishReason.STOP)


@dataclasses.dataclass
class _Caller:
    """A language model in one role."""

    role: str
    client: ChatClient
    failures: list[str]
    name: CallName

    async def reply(self, chat: Chat) -> Reply:
        result = await self.client.say(chat, self.name)
        if result.outcome is not Outcome.OK or result.parsed is None:
            self.failures.append(self.role)
            raise AuxiliaryFailure(f"{self.role}: {result.outcome}: {result.detail}", result.outcome)
        return Reply(result.parsed, FinishReason.STOP)


class RoleBook:
    """Partners by role: `endpoints` for the roles they name, `partner` for all others."""

    def __init__(
        self,
        partner: PartnerConfig,
        endpoints: Sequence[RoleConfig] = (),
        hub: Hub | None = None,
        post: Post | None = None,
    ):
        """post: to the other processes of the run, if there are any: each partner is asked by one of them."""
        self._default = _client(partner, hub)
        self._models = {"": partner.model}
        self._by_role: dict[str, ChatClient | None] = {}
        for config in endpoints:
            roles = [role for role in config.roles if role != FEEDBACK_ROLE]
            client = _client(config, hub) if roles else None
            for role in roles:
                if role in self._by_role:
                    raise ConfigError(f"endpoints.roles: '{role}' is listed twice; give each role one endpoint")
                self._by_role[role] = client
                self._models[role] = config.model
        self._failures: list[str] = []
        self._scripted = 0
        self._post = post

    def identity(self, role: str, task: Task[Any]) -> str:
        if self._client(role) is None:
            return f"{SCRIPTED}@{task.name}-{task.version}"
        return f"openai:{self._models[role if role in self._by_role else '']}"

    def port(self, role: str, task: Task[Any], example: Example, key: SampleId) -> ReplyPort:
        client = self._client(role)
        if client is None:
            self._scripted += self._post is None or self._post.is_mine(key)
            return _Script(role, task, example, key)
        name = CallName(key, f"{task.name}-{task.version}/{role}")
        caller = _Caller(role, client, self._failures, name)
        return caller if self._post is None else DividedPort(caller, self._post, role, key)

    async def check(self) -> None:
        for client in self._clients():
            result = await client.probe()
            if result.outcome is not Outcome.OK:
                raise JudgeUnavailableError(
                    f"a partner's endpoint cannot be used: {result.outcome} after {result.attempts} attempt(s): "
                    f"{result.detail}\nstart the server or correct partner.base_url (or that under `endpoints`); "
                    "partner.kind=scripted needs no server"
                )

    def counters(self) -> Mapping[str, float]:
        """Costs (see ClientTotals) summed over endpoints; failed replies, in all and by role; roles of
        episodes by script.
        """
        totals = [dataclasses.asdict(client.totals) for client in self._clients()]
        summed = {name: float(sum(total[name] for total in totals)) for name in _COSTS}
        by_role = {f"failed/{role}": count for role, count in sorted(Counter(self._failures).items())}
        return {**summed, "failed": len(self._failures), **by_role, "scripted": self._scripted}

    async def aclose(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients()))

    def _client(self, role: str) -> ChatClient | None:
        return self._by_role.get(role, self._default)

    def _clients(self) -> list[ChatClient]:
        return list(dict.fromkeys(c for c in (self._default, *self._by_role.values()) if c is not None))


def _client(config: PartnerConfig, hub: Hub | None) -> ChatClient | None:
    if config.kind != "openai":
        return None
    from ditto_jax.judge.client import ChatClient  # scripted partners need no HTTP stack

    return ChatClient(config, resolve_endpoint(config), hub=hub)
