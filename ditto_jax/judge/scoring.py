"""Conversation → verdict by a task's own means: its rules first, then a language model's replies to its questions.

In: a task, a conversation, and a client to ask (None: nobody to ask, so a labelled stand-in by rule must do). Out: one
verdict. All questions are asked at once; the first that fails gives the outcome, and then there is no score.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from ditto_jax.errors import ConfigError
from ditto_jax.judge.cache import CallName
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Outcome, Verdict

if TYPE_CHECKING:
    from ditto_jax.judge.asking import Client  # rules need no HTTP stack


def rules_identity(task: Task[Any]) -> str:
    """Returns the name of a task's rules with their version, such as "rules@hitom-1"."""
    return f"rules@{task.name}-{task.version}"


def rule_verdict(task: Task[Any], example: Example, conversation: Conversation) -> Verdict:
    """Returns the task's rule score, else its stand-in, whose judge is then "proxy@<task>-<version>".

    Raises ConfigError if the task has neither.
    """
    verdict = task.rule_score(example, conversation)
    if verdict is not None:
        return dataclasses.replace(verdict, judge=rules_identity(task))
    proxy = task.proxy_score(example, conversation)
    if proxy is not None:
        return dataclasses.replace(proxy, judge=f"proxy@{task.name}-{task.version}")
    raise ConfigError(
        f"task {task.name} has no rule that scores a rollout: its score needs a language-model judge; set "
        "judge.kind=openai with judge.model and judge.base_url, or leave the task out of `tasks`"
    )


async def asked_verdict(
    task: Task[Any], example: Example, conversation: Conversation, client: Client, model: str, key: SampleId
) -> Verdict:
    """Returns the task's rule score where it has one, else the score that a model's replies make.

    model: its name, such as "openai:gpt-5-nano". key: the sample that is scored, by which replies are kept.
    """
    verdict = task.rule_score(example, conversation)
    if verdict is not None:
        return dataclasses.replace(verdict, judge=rules_identity(task))
    requests = task.score_requests(example, conversation)
    if not requests:
        raise ConfigError(
            f"task {task.name} has no rule that scores a rollout and no question for a judge; leave it out of `tasks`"
        )
    versions = ",".join(dict.fromkeys(request.prompt_version for request in requests.values()))
    identity = f"{model}@{versions}"
    results = await asyncio.gather(
        *(client.complete(r.messages, r.reply_model, CallName(key, r.prompt_version)) for r in requests.values())
    )
    replies = {}
    for name, result in zip(requests, results, strict=True):
        if result.outcome is not Outcome.OK or result.parsed is None:
            return Verdict(result.outcome, judge=identity, detail=f"{name}: {result.detail}")
        replies[name] = result.parsed
    return dataclasses.replace(task.judged_score(example, conversation, replies), judge=identity)
