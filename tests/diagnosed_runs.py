"""Real runs of the packaged policy with something wrong in them, many of them from one set of compiled programs.

A `Workshop` trains as `loop.train` does, step by step through `Trainer.step`, and writes the same files; between runs
it puts back the weights that it began with. What is wrong is planted where it would be in life: in the judge, in the
configuration, between sampler and update.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ditto_jax.config import RolloutConfig, RunConfig, TaskConfig, TrainConfig
from ditto_jax.config_io import find_config, read_yaml
from ditto_jax.judge.base import Judge
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.desk import JudgeDesk
from ditto_jax.judge.rules import RulesJudge
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.prompts import PromptStream
from ditto_jax.runs.metrics import Stopwatch
from ditto_jax.runs.run_dir import RunDirectory, open_run
from ditto_jax.setup import assemble, training_stream
from ditto_jax.strict import build
from ditto_jax.tasks.base import Task
from ditto_jax.trainer import Trainer
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Verdict
from ditto_jax.update.state import make_state

MODEL = "openai:planted@1"
_COMMAND = ["ditto-jax", "train", "--config", "quickstart.yaml"]


class PlantedJudge(RulesJudge):
    """The rules judge under the name of a model; `wrong` may put another score or other words in the place of its."""

    def __init__(
        self,
        score: Callable[[Example, Conversation, Verdict], Verdict] = lambda example, conversation, verdict: verdict,
        words: Callable[[Example, Verdict, Feedback], Feedback] = lambda example, verdict, feedback: feedback,
    ):
        super().__init__(JudgeConfig())
        self._wrong_score = score
        self._wrong_words = words

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        verdict = await super().score(task, example, conversation, key)
        return dataclasses.replace(self._wrong_score(example, conversation, verdict), judge=MODEL)

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        feedback = await super().feedback(task, example, conversation, verdict, key)
        feedback = dataclasses.replace(self._wrong_words(example, verdict, feedback), judge=MODEL)
        if feedback.outcome is not Outcome.OK:
            return feedback
        return dataclasses.replace(feedback, leak=task.leak(example, str(feedback.text)))


def small_config(folder: Path, **changes: Any) -> RunConfig:
    """Returns the quick start with fewer prompts, drafts and evaluations. Keywords are fields of RunConfig."""
    preset = read_yaml(find_config("quickstart.yaml"))
    tasks = tuple(build(TaskConfig, task, where="tasks") for task in preset["tasks"])
    values: dict[str, Any] = {
        **{name: preset[name] for name in ("model_name_or_path", "objective", "optimizer", "sampler")},
        "output_dir": str(folder),
        "rollout": {**preset["rollout"], "prompts_per_step": 8, "num_generations": 4},
        "train": {**preset["train"], "max_steps": 4},
    }
    config = build(RunConfig, values, where="config")
    return dataclasses.replace(config, tasks=tasks, **changes)


class Workshop:
    """Trains runs of one configuration one after another. Close it when done."""

    def __init__(self, config: RunConfig):
        self.config = config
        stream, _ = training_stream(config)
        self.trainer = Trainer(config, assemble(config, stream.tasks), stream)
        self._parts = self.trainer.parts
        self._stream = stream
        self._limit = self._parts.engine.max_completion_length
        self._initial = jax.device_get(self.trainer.state.params)

    def run(
        self,
        name: str,
        steps: int = 4,
        *,
        seed: int = 0,
        judge: Judge | None = None,
        rollout: Mapping[str, Any] | None = None,
        before_step: Callable[[Trainer, int], None] = lambda trainer, step: None,
    ) -> RunDirectory:
        """Trains from the beginning; returns the run directory. rollout: fields of RolloutConfig that differ.

        before_step: may do harm to the trainer.
        """
        trainer = self.trainer
        changed: RolloutConfig = dataclasses.replace(self.config.rollout, **(rollout or {}))
        train: TrainConfig = dataclasses.replace(self.config.train, max_steps=steps)
        config = dataclasses.replace(self.config, run_name=name, seed=seed, rollout=changed, train=train)
        trainer.config = config
        trainer.parts = (
            self._parts if judge is None else dataclasses.replace(self._parts, judge=JudgeDesk(judge, {}, {}))
        )
        trainer.parts.engine.max_completion_length = changed.max_completion_length
        trainer.stream = PromptStream(self._stream.tasks, seed)
        trainer.state = make_state(self._initial, trainer.optimizer, trainer.parts.mesh)
        trainer.position = trainer.done_steps = 0
        trainer.ledger = {}
        run, _ = open_run(Path(config.output_dir) / name, config, _COMMAND, resume="never", overwrite=False)
        with asyncio.Runner() as runner:
            for step in range(1, steps + 1):
                before_step(trainer, step)
                watch = Stopwatch()
                metrics, rows = runner.run(trainer.step(watch))
                run.write_rollouts(step, rows)
                run.append_metrics({**metrics, **watch.split()})
        run.set_status("finished", steps, 0)
        return run

    def close(self) -> None:
        """Closes what judges and partners have open."""
        with asyncio.Runner() as runner:
            runner.run(self._parts.aclose())
