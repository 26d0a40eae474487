"""SOUL tasks for inspect_ai: our prompts, episodes and scorers, played by whatever model inspect evaluates.

In: names of tasks, and how many items of each. Out: a task of inspect, whose scores are those of `ditto-jax eval` for
the same replies. What has no score (a judge that failed, an episode that broke off) is unscored there too, never 0.

    inspect eval docs/examples/inspect_soul.py -T tasks=hitom,paratomi -T limit=20 --model openai-api/ditto/ditto
"""

from __future__ import annotations

import pydantic
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Model,
    get_model,
)
from inspect_ai.scorer import Score, Scorer, Target, grouped, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from ditto_jax.config import SourceConfig, TaskConfig
from ditto_jax.judge import JudgeConfig, make_judge
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.prompts import Prompt, load_task
from ditto_jax.tasks.base import EpisodeFailure
from ditto_jax.types import Chat, Conversation, FinishReason, Outcome, Reply, RolloutRole

_AS_JSON = pydantic.TypeAdapter(Conversation)
_SAID_BY = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task
def soul(
    tasks: str = "hitom,paratomi",
    limit: int = 20,
    split: str = "test",
    judge_model: str = "",
    judge_base_url: str = "",
) -> Task:
    """Tasks by name, with commas; `limit` items of each, from the public files or released rows under $SOUL_DATA_DIR,
    else generated. Tasks that rules score need no judge; for others name a model and the address of its endpoint.
    """
    source = SourceConfig(kind="auto", split=split, limit=limit, bad_rows="skip")
    loaded = [load_task(TaskConfig(name.strip(), source=source)) for name in tasks.split(",")]
    prompts = {prompt.id: prompt for one in loaded for prompt in one.prompts}
    judge = JudgeConfig()
    if judge_model:
        judge = JudgeConfig(kind="openai", model=judge_model, base_url=judge_base_url)
    return Task(
        dataset=MemoryDataset([_sample(prompt) for prompt in prompts.values()], name=tasks),
        solver=plays(prompts),
        scorer=verdict(prompts, judge),
        version=", ".join(f"{one.task.name}-{one.task.version}" for one in loaded),
    )


def _sample(prompt: Prompt) -> Sample:
    labels = {"task": prompt.label, **prompt.task.breakdown(prompt.example)}
    shown = _messages(prompt.task.opening(prompt.example))
    return Sample(id=prompt.id, input=shown, target=str(prompt.example.gold), metadata=labels)


def _messages(chat: Chat) -> list[ChatMessage]:
    return [_SAID_BY[message.role](content=message.content) for message in chat]


@solver
def plays(prompts: dict[str, Prompt]) -> Solver:
    """Plays the episode of a sample; others than the policy are models of inspect with the role's name."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        prompt, ports = prompts[str(state.sample_id)], _Ports()
        try:
            played = await prompt.task.episode(prompt.example, ports)
        except EpisodeFailure as failure:
            state.store.set("broke_off", f"{failure.outcome}: {failure}")
            return state
        state.store.set("conversation", _AS_JSON.dump_python(played, mode="json"))
        state.messages = _messages(played.messages)
        state.output.completion = played.reply
        return state

    return solve


@scorer(metrics=[grouped(mean(), "task", all="groups"), stderr()])
def verdict(prompts: dict[str, Prompt], judge: JudgeConfig) -> Scorer:
    """Scores what was played by the task's rules, or by its judge where these say nothing."""

    async def score(state: TaskState, target: Target) -> Score:
        said = state.store.get("conversation")
        if said is None:
            return Score.unscored(reason="no conversation", explanation=state.store.get("broke_off"))
        prompt, played = prompts[str(state.sample_id)], _AS_JSON.validate_python(said)
        one = make_judge(judge)
        try:
            sample = SampleId(0, 0, prompt.id, state.epoch - 1, RolloutRole.DRAFT.value)
            found = await one.score(prompt.task, prompt.example, played, sample)
        finally:
            await one.aclose()
        about = {"dimensions": dict(found.dimensions), "judge": found.judge}
        told = {"answer": played.reply, "explanation": found.detail, "metadata": about}
        if found.outcome is not Outcome.OK or found.score is None:
            return Score.unscored(reason=str(found.outcome), **told)
        return Score(value=found.score, **told)

    return score


class _Ports:
    """The model that is evaluated in all roles of the policy; models with the roles' names for the others."""

    def policy(self, role: str = "policy") -> _Port:
        return _Port(get_model())

    def llm(self, role: str) -> _Port:
        return _Port(get_model(role=role, required=True))


class _Port:
    def __init__(self, model: Model):
        self._model = model

    async def reply(self, chat: Chat) -> Reply:
        output = await self._model.generate(_messages(chat))
        is_cut_off = output.stop_reason in ("max_tokens", "model_length")
        return Reply(output.completion.strip(), FinishReason.LENGTH if is_cut_off else FinishReason.STOP)
