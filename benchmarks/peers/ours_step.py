"""Our GRPO step as a peer of the step benchmark: `Trainer.step`, what a training run calls, with nothing left out.

Prompts come from a prompt stream, episodes run in the engine, the judge scores by rule, rows are packed and one update
follows. The scoring pass is part of the update: with one update a step its log-probs are the anchor.
"""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.paired import Link, settings, timed
from launch.environment import prepare_allocator, set_defaults


def main() -> None:
    link = Link()
    set_defaults()
    prepare_allocator()
    import jax

    from benchmarks.figures import versions
    from benchmarks.word_task import WordOptions, WordTask
    from ditto_jax.config import RolloutConfig, RunConfig, TrainConfig
    from ditto_jax.objective import ObjectiveConfig
    from ditto_jax.rollouts.prompts import LoadedTask, PromptStream
    from ditto_jax.runs.metrics import Stopwatch
    from ditto_jax.sampling.slot_shapes import SamplerShapes
    from ditto_jax.setup import assemble
    from ditto_jax.tasks.base import Source
    from ditto_jax.trainer import Trainer
    from ditto_jax.update.state import OptimizerConfig

    given = settings()
    prompts, group, new = given["prompts"], given["group"], given["new"]
    shapes: dict[str, Any] = {"max_rows": prompts * group, "max_new_tokens": new, **given["shapes"]}
    train: dict[str, Any] = {
        # One group at a time: on a CPU its activations stay in the caches, which saves a third of the update.
        "micro_batch": 1,
        "lanes": group,
        "prefix": (given["prompt_tokens"],),
        # The last token of a prompt belongs to its rows: each predicts its own first token.
        "suffix": (new + 8,),
        # More than the positions of a group: all of its logits are kept, 18 MB, and none is computed twice.
        "logprob_chunk": 2048,
        **given["train"],
    }
    config = RunConfig(
        model_name_or_path=given["folder"],
        rollout=RolloutConfig(prompts, group, max_completion_length=new),
        sampler=SamplerShapes(**shapes),
        # No stop token ends a row here, and the rows that the budget ends are trained all the same.
        objective=ObjectiveConfig(name="grpo", truncated="keep"),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        train=TrainConfig(max_steps=10_000, **train),
    )
    task = WordTask(WordOptions(given["vocab_size"], given["prompt_tokens"]))
    examples = task.load(Source(limit=given["examples"]))
    trainer = Trainer(config, assemble(config), PromptStream([LoadedTask("words", 1.0, task, examples)], config.seed))
    runner = asyncio.Runner()

    def run(seed: int) -> dict[str, Any]:
        """One more step; what is drawn follows from its number, so the round's seed has no part in it."""
        watch = Stopwatch()

        def work() -> dict[str, Any]:
            metrics, _ = runner.run(trainer.step(watch))
            jax.block_until_ready(trainer.state)
            return metrics

        spent, metrics = timed(work)
        return {**spent, "tokens": metrics["completions/sampled_tokens"], "split": watch.split()}

    link.serve({"hello": lambda: versions("jax", "jaxlib"), "run": run})


if __name__ == "__main__":
    main()
