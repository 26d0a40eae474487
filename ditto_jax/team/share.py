"""Limits of endpoints, divided among the processes that ask them: together they keep what the run was set to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ditto_jax.config import RunConfig, TaskConfig
from ditto_jax.errors import ConfigError
from ditto_jax.judge.config import EndpointConfig, JudgeConfig
from ditto_jax.team.post import Post

EndpointT = TypeVar("EndpointT", bound=EndpointConfig)


def shared_out(config: RunConfig, post: Post) -> RunConfig:
    """Returns the settings of one of the processes of a run. Raises ConfigError for what needs one process alone."""
    for task in (None, *config.tasks, *config.evaluation.tasks):
        judge = config.judge if task is None else config.judge_for(task)
        if judge.kind == "policy":
            raise ConfigError(
                f"judge.kind=policy with {post.count} processes: what the policy is asked is put together as it comes, "
                "and would differ between processes; use one process or another judge"
            )
    if config.shadow.kind != "none":
        raise ConfigError(f"shadow.kind={config.shadow.kind} with {post.count} processes: use one, or shadow.kind=none")
    if post.leader_asks:
        return config
    count = post.count
    return dataclasses.replace(
        config,
        judge=_judge(config.judge, count),
        tasks=_tasks(config.tasks, count),
        evaluation=dataclasses.replace(config.evaluation, tasks=_tasks(config.evaluation.tasks, count)),
        partner=_part(config.partner, count),
        endpoints=tuple(_part(endpoint, count) for endpoint in config.endpoints),
    )


def _tasks(tasks: Sequence[TaskConfig], count: int) -> tuple[TaskConfig, ...]:
    return tuple(dataclasses.replace(task, judge={**task.judge, **_changes(task.judge, count)}) for task in tasks)


def _judge(config: JudgeConfig, count: int) -> JudgeConfig:
    return dataclasses.replace(_part(config, count), members=tuple(_part(member, count) for member in config.members))


def _part(config: EndpointT, count: int) -> EndpointT:
    return dataclasses.replace(config, **_changes(dataclasses.asdict(config), count))


def _changes(settings: Mapping[str, object], count: int) -> dict[str, object]:
    """The limits among `settings`, one process's share each; the rest as it is."""
    shares: dict[str, object] = {}
    for name in ("max_concurrent", "max_rpm", "max_tpm"):
        if isinstance(limit := settings.get(name), int):
            shares[name] = max(1, limit // count)
    if isinstance(cost := settings.get("max_cost"), int | float):
        shares["max_cost"] = cost / count
    return shares
