"""Supervised warm start: generators → worked replies → a policy that can reason, but neglects belief unless told.

Produces the tiny policy of the quick start. A skill stage teaches the trace; a habit stage teaches the reality
shortcut for unaided belief questions while words about the draft keep the careful reply, and content-free words do
not. Rows of one story share its tokens. Uses the views, batches, state and model of training; the loss here is plain
likelihood.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ditto_jax.config import TaskConfig
from ditto_jax.errors import ConfigError
from ditto_jax.keys import derive
from ditto_jax.rollouts.feedback import content_free_feedback
from ditto_jax.rollouts.views import View
from ditto_jax.tasks.base import Source, Task
from ditto_jax.tasks.registry import get_task
from ditto_jax.text.chat import ChatFormat
from ditto_jax.text.tokenizer import Tokenizer
from ditto_jax.types import Conversation, Example, Message, ViewRole
from ditto_jax.update.batch import TrainBatch, by_prompt, pack
from ditto_jax.update.packing import batch_shapes
from ditto_jax.update.state import OptimizerConfig, TrainState, make_optimizer, make_state
from model.config import ModelConfig
from model.logprobs import grouped_and_prefix_logprobs
from model.partition import row_sharding


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of supervised training on generated stories.

    careful_unaided: probability that a reply without feedback shows the careful trace instead of the reality
    shortcut; careful_reading: with words about the draft; careful_content_free: with words that say nothing.
    feedback_fraction: of wrong shortcut drafts that get a feedback row; content_free_fraction: of those that get
    content-free words. story_loss: weight of the story's own likelihood.
    """

    name: str
    steps: int
    tasks: tuple[TaskConfig, ...]
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    stories_per_step: int = 16
    questions_per_story: int = 6
    careful_unaided: float = 1.0
    careful_reading: float = 1.0
    careful_content_free: float = 1.0
    feedback_fraction: float = 0.35
    content_free_fraction: float = 0.0
    story_loss: float = 0.2

    def __post_init__(self):
        if any(task.source.kind != "generated" for task in self.tasks) or not self.tasks:
            raise ConfigError(f"stages.{self.name}.tasks: give at least one task with source.kind=generated")


@dataclasses.dataclass(frozen=True)
class LengthBuckets:
    """Ascending length buckets of story (prefix) and lane (suffix), lanes a group, and groups computed at once."""

    prefix: tuple[int, ...] = (128,)
    suffix: tuple[int, ...] = (128,)
    lanes: int = 4
    micro_batch: int = 8


@dataclasses.dataclass(frozen=True)
class _Row:
    chat: tuple[Message, ...]
    reply: str


class StageData:
    """Rows of a stage by step number: a pure function of (seed, stage, step)."""

    def __init__(self, stage: StageConfig, seed: int):
        self._stage = stage
        self._seed = seed
        self._tasks = [(get_task(t.name, t.options), t.source.split) for t in stage.tasks]
        self._weights = [t.weight for t in stage.tasks]

    def stories(self, step: int) -> list[list[_Row]]:
        """Returns the rows of each story of one step."""
        rng = random.Random(derive(self._seed, self._stage.name, step))
        stories = []
        for _ in range(self._stage.stories_per_step):
            task, split = rng.choices(self._tasks, self._weights)[0]
            source = Source(split=split, limit=self._stage.questions_per_story, seed=rng.getrandbits(48))
            examples = task.load(source)
            stories.append([self._row(task, example, rng.choice(examples), rng) for example in examples])
        return stories

    def _row(self, task: Task, example: Example, sibling: Example, rng: random.Random) -> _Row:
        stage = self._stage
        words, careful = None, stage.careful_unaided
        if rng.random() < stage.feedback_fraction:
            words = self._words(task, example, sibling, rng)
            careful = stage.careful_reading
            if words is not None and rng.random() < stage.content_free_fraction:
                words, careful = content_free_feedback(rng), stage.careful_content_free
        if words is None:
            careful = stage.careful_unaided
        return _Row(task.opening(example, words), _demonstration(task, example, rng.random() < careful))

    def _words(self, task: Task, example: Example, sibling: Example, rng: random.Random) -> str | None:
        """Words about a wrong draft: mostly the reality shortcut, sometimes the answer of a sibling question."""
        draft = _demonstration(task, example, careful=False)
        if rng.random() < 0.2:
            draft = _demonstration(task, sibling, careful=True)
        conversation = Conversation((), draft)
        verdict = task.rule_score(example, conversation)
        if verdict is None or verdict.score is None:
            return None
        return task.rule_feedback(example, conversation, verdict, rng)


def _demonstration(task: Task, example: Example, careful: bool) -> str:
    reply = task.demonstration(example, careful)
    if reply is None:
        raise ConfigError(f"task {task.name}: has no worked replies for a warm start; use a task with a generator")
    return reply


def views_of_stories(
    stories: Sequence[Sequence[_Row]], chat_format: ChatFormat, tokenizer: Tokenizer, end_id: int
) -> list[View]:
    """Returns one view per row: context (x) or (x, h), response = worked reply and the end token."""
    views = []
    for number, story in enumerate(stories):
        for row in story:
            context = np.asarray(chat_format.open(row.chat), np.int32)
            response = np.asarray([*tokenizer.encode(row.reply), end_id], np.int32)
            views.append(
                View(
                    role=ViewRole.DRAFT,
                    prompt=number,
                    rollout=len(views),
                    context=context,
                    response=response,
                    loss_mask=np.ones(len(response), bool),
                    behaviour=np.zeros(len(response), np.float32),
                    reward=None,
                    truncated=False,
                    cross=False,
                )
            )
    return views


def _sft_update(optimizer: optax.GradientTransformation, config: ModelConfig, story_loss: float, mesh: Mesh):
    def loss_of(params, micro: TrainBatch, reply_tokens, story_tokens):
        lp, story_lp = grouped_and_prefix_logprobs(params, config, micro.grouped)
        reply = micro.loss_mask & micro.row_valid[..., None]
        inside = (micro.grouped.prefix_segments > 0) & (micro.grouped.prefix_positions > 0)
        nll = -jnp.sum(jnp.where(reply, lp, 0.0)) / reply_tokens
        story = -jnp.sum(jnp.where(inside, story_lp, 0.0)) / story_tokens
        return nll + story_loss * story, nll

    def update(state: TrainState, batch: TrainBatch):
        reply_tokens = jnp.maximum(1.0, jnp.sum(batch.loss_mask & batch.row_valid[..., None]))
        story_tokens = jnp.maximum(1.0, jnp.sum(batch.grouped.prefix_segments > 0))

        def add(carry, micro):
            grads, total = carry
            (_, nll), more = jax.value_and_grad(loss_of, has_aux=True)(state.params, micro, reply_tokens, story_tokens)
            return jax.tree.map(jnp.add, grads, more), total + nll

        def accumulate(carry, micro):
            return jax.lax.cond(jnp.any(micro.row_valid), add, lambda carry, _: carry, carry, micro), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (grads, nll), _ = jax.lax.scan(accumulate, (zeros, jnp.float32(0)), batch)
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, changes), opt_state, state.updates + 1), nll

    jitted = jax.jit(update, donate_argnums=0)

    def call(state, batch):
        with jax.set_mesh(mesh):
            return jitted(state, jax.device_put(batch, row_sharding(mesh, leading=1)))

    return call


def train_stage(
    params: Any,
    stage: StageConfig,
    config: ModelConfig,
    chat_format: ChatFormat,
    tokenizer: Tokenizer,
    mesh: Mesh,
    seed: int,
    shapes: LengthBuckets,
    report: Callable[[int, float, float], None],
) -> Any:
    """Returns the parameters after one stage; calls report(step, nll, seconds) after every step."""
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    state = make_state(params, optimizer, mesh)
    update = _sft_update(optimizer, config, stage.story_loss, mesh)
    data = StageData(stage, seed)
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    packed = batch_shapes(
        prompts=stage.stories_per_step,
        rows=stage.questions_per_story,
        groups=-(-shapes.micro_batch // split) * split,
        lanes=shapes.lanes,
        prefix=shapes.prefix,
        suffix=shapes.suffix,
    )
    end_id = chat_format.stop_ids[0]
    started = time.monotonic()
    for step in range(stage.steps):
        views = views_of_stories(data.stories(step), chat_format, tokenizer, end_id)
        groups = list(by_prompt(views).values())
        ones = np.ones(len(views), np.float32)
        state, nll = update(state, pack(views, groups, ones, ones.astype(bool), packed))
        report(step + 1, nll, time.monotonic() - started)
    return state.params
