"""Who is asked how often: judges, coaches and partners of a run, the least time that takes, and what it costs.

work of a step, evaluations, settings of endpoints → **calls, tokens, seconds, money** → plan

Counted as if every reply were new and came at once: no cache, no retries. Costs are in the currency of `input_price`
and `output_price`; without these there is none. Asks nobody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ditto_jax.config import RunConfig, TaskConfig
from ditto_jax.judge import feedback_judge
from ditto_jax.judge.config import EndpointConfig, JudgeConfig, MemberConfig
from ditto_jax.objective import make_objective
from ditto_jax.plan.assumptions import Assumptions
from ditto_jax.plan.work import Work, evaluated, evaluations
from ditto_jax.tasks.base import Task
from ditto_jax.tasks.registry import get_task

SCORES, WORDS, PARTNERS = "scores", "words", "partners"
_ASKED = ("openai", "policy", "python")  # kinds that take their time, unlike rules and scripts


@dataclasses.dataclass(frozen=True)
class Calls:
    """Of one purpose at one endpoint. who: its model, or its kind where it has no name. a_step: calls of a mean step;
    evaluating: of all evaluations together; run: of both. tokens: (in, out) of a call; 0 where no tokens are paid for.
    seconds: the least that a step's calls take; evaluation_seconds: all evaluations'. cost: of the run, None without
    prices.
    """

    purpose: str
    who: str
    a_step: float
    evaluating: float
    run: float
    tokens: tuple[float, float]
    seconds: float
    evaluation_seconds: float
    cost: float | None


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Calls of one task. in_turn: how many of them wait for one another within an episode."""

    purpose: str
    endpoint: EndpointConfig
    a_step: float
    evaluating: float
    tokens: tuple[float, float]
    in_turn: float = 1.0


def calls_of(config: RunConfig, work: Work, assume: Assumptions) -> tuple[Calls, ...]:
    """Returns all calls of a run by purpose and endpoint, those that are asked most first."""
    found: dict[tuple[str, EndpointConfig], list[_Asked]] = {}
    for asked in (*_of_training(config, work, assume), *_of_evaluation(config, work, assume)):
        if asked.a_step + asked.evaluating > 0:
            found.setdefault((asked.purpose, _settings(asked.endpoint)), []).append(asked)
    steps = config.train.max_steps
    calls = [_together(purpose, endpoint, every, steps, assume) for (purpose, endpoint), every in found.items()]
    return tuple(sorted(calls, key=lambda one: -one.run))


def judge_seconds(calls: Sequence[Calls]) -> float:
    """Returns the least seconds that a step's calls take: purposes after one another, endpoints at once."""
    purposes = {one.purpose for one in calls}
    return sum(max(one.seconds for one in calls if one.purpose == purpose) for purpose in purposes)


def _of_training(config: RunConfig, work: Work, assume: Assumptions) -> Iterator[_Asked]:
    by_judge = make_objective(config.objective).refinement.words == "judge"
    for one in work.rollouts:
        played = one.drafts + one.refined
        yield from _of_task(config, one.task, work, assume, (played, 0.0))
        if one.task.feedback.by == "judge" and by_judge:
            coach = feedback_judge(config.judge_for(one.task), config.endpoints)
            for endpoint in _endpoints(coach)[:1]:
                yield _Asked(WORDS, endpoint, one.asked, 0.0, _of_question(work, assume, assume.feedback_tokens))


def _of_evaluation(config: RunConfig, work: Work, assume: Assumptions) -> Iterator[_Asked]:
    times, evaluation = evaluations(config), config.evaluation
    for task in evaluation.tasks:
        items = times * evaluated(evaluation, task)
        again = items * assume.refined_share if evaluation.with_feedback else 0.0
        # The control arm has words without content, which no judge writes, and a rollout of its own.
        yield from _of_task(config, task, work, assume, (0.0, items + 2 * again))
        if task.feedback.by == "judge":
            coach = feedback_judge(config.judge_for(task), config.endpoints)
            for endpoint in _endpoints(coach)[:1]:
                yield _Asked(WORDS, endpoint, 0.0, again, _of_question(work, assume, assume.feedback_tokens))


def _of_task(
    config: RunConfig, task: TaskConfig, work: Work, assume: Assumptions, played: tuple[float, float]
) -> Iterator[_Asked]:
    """Calls about so many rollouts (a step, in evaluations): partners who play along, and scores."""
    found: Task = get_task(task.name, task.options)
    in_step, evaluating = played
    for endpoint in _endpoints(config.judge_for(task)):
        tokens = _of_question(work, assume, assume.judge_reply)
        yield _Asked(SCORES, endpoint, in_step * found.questions, evaluating * found.questions, tokens)
    for role in found.auxiliary_roles:
        endpoint = next((one for one in config.endpoints if role in one.roles), config.partner)
        if endpoint.kind in _ASKED:
            tokens = work.prompt + work.reply / 2, work.reply / assume.turns
            yield _Asked(
                PARTNERS, endpoint, in_step * assume.turns, evaluating * assume.turns, tokens, in_turn=assume.turns
            )


def _of_question(work: Work, assume: Assumptions, reply: float) -> tuple[float, float]:
    return work.prompt + work.reply + assume.judge_instructions, reply


def _endpoints(judge: JudgeConfig) -> list[EndpointConfig]:
    """Who is asked for a score."""
    members: Sequence[JudgeConfig | MemberConfig] = judge.members if judge.kind == "ensemble" else (judge,)
    return [one for one in members if one.kind in _ASKED]


def _settings(endpoint: EndpointConfig) -> EndpointConfig:
    """What calls of the same endpoint have in common, wherever it is set."""
    fields = {field.name: getattr(endpoint, field.name) for field in dataclasses.fields(EndpointConfig)}
    return EndpointConfig(**{**fields, "kind": "openai", "model": endpoint.model or endpoint.kind})


def _together(
    purpose: str, endpoint: EndpointConfig, every: Sequence[_Asked], steps: int, assume: Assumptions
) -> Calls:
    a_step, evaluating = sum(asked.a_step for asked in every), sum(asked.evaluating for asked in every)
    run = steps * a_step + evaluating
    # Functions and the policy itself are not paid by the token.
    paid = 0.0 if endpoint.model in _ASKED else 1 / run
    given, got = (sum((steps * a.a_step + a.evaluating) * a.tokens[i] for a in every) * paid for i in (0, 1))
    least = [assume.judge_seconds / endpoint.max_concurrent]  # of a call among many
    least += [60 / endpoint.max_rpm] if endpoint.max_rpm else []
    least += [60 * (given + got) / endpoint.max_tpm] if endpoint.max_tpm else []
    one_after_another = max(asked.in_turn for asked in every) * assume.judge_seconds
    cost = None
    if endpoint.input_price is not None and endpoint.output_price is not None:
        cost = run * (given * endpoint.input_price + got * endpoint.output_price) / 1e6
    return Calls(
        purpose,
        endpoint.model or endpoint.kind,
        a_step,
        evaluating,
        run,
        (given, got),
        max(a_step * max(least), one_after_another) if a_step else 0.0,
        evaluating * max(least),
        cost,
    )
