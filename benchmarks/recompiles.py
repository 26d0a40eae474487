"""Does anything compile after warm-up? Ragged steps of sampler and update, and the programs that were compiled in them.

Every step samples drafts of prompts of random lengths, each reply with its own forced length, then again for some of
them with longer prompts (as refined rollouts have), packs all rows and updates once. Warm-up is the sampler's own,
which runs everything that the configured shapes allow, and some steps. Prints 0, or what was compiled and at which
step. Writes recompiles.json.

    python -m benchmarks.recompiles --output benchmark_results [--config configs/quickstart.yaml]

With `--config` the steps are those of a training run with this configuration instead, whose sampler warms up if it is
told to (`sampler.warm_up`). `--met-by-chance` leaves the sampler's warm-up out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.figures import machine, versions, write_results
from benchmarks.workloads import SIZES
from ditto_jax.config import RunConfig
from ditto_jax.config_io import load_config
from ditto_jax.objective import OBJECTIVES
from ditto_jax.rollouts.views import View
from ditto_jax.runs.metrics import Stopwatch
from ditto_jax.sampling.sampler import Sampler
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.sampling.slots import SampleRequest
from ditto_jax.setup import assemble, training_stream
from ditto_jax.trainer import Trainer
from ditto_jax.types import ViewRole
from ditto_jax.update.advantages import RowTable, assign
from ditto_jax.update.batch import by_prompt, pack
from ditto_jax.update.packing import batch_shapes
from ditto_jax.update.state import OptimizerConfig, make_optimizer, make_state
from ditto_jax.update.train_step import UpdateConfig, make_update
from launch.environment import set_defaults
from model.llama import init
from model.partition import make_mesh, row_sharding
from model.sampling import SamplingParams

_COMPILED = "/jax/core/compile/backend_compile_duration"

PROMPTS, GROUP, LONGEST_PROMPT, LONGEST_HINT, LONGEST_REPLY = 4, 4, 60, 30, 48


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """Yields a list that receives the name of every program that is compiled (or fetched from a compile cache)."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **facts: Any) -> None:
        if event == _COMPILED:
            names.append(str(facts.get("fun_name", "unnamed")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def count_recompiles(
    warm_up: Callable[[], int] | None, step: Callable[[int], None], warmup: int, steps: int
) -> dict[str, Any]:
    """Returns how many programs the sampler's warm-up compiled, and in what time; how many more `step` did in its first
    `warmup` calls, and which in the `steps` calls after.
    """
    with compiled_programs() as names:
        start = time.perf_counter()
        shapes = warm_up() if warm_up else 0
        seconds, of_sampler = time.perf_counter() - start, len(names)
        for index in range(warmup):
            step(index)
        before, later = len(names) - of_sampler, []
        for index in range(warmup, warmup + steps):
            names.clear()
            step(index)
            later += [{"step": index - warmup + 1, "program": name} for name in names]
    return {
        "sampler_warm_up": {"shapes_of_calls": shapes, "compiled": of_sampler, "seconds": seconds},
        "warmup_steps": warmup,
        "compiled_in_warmup_steps": before,
        "steps": steps,
        "compiled_later": later,
    }


class RaggedSteps:
    """A policy of a few thousand parameters, its sampler and its update, and steps that draw their own lengths."""

    def __init__(self, seed: int = 0):
        self.config = SIZES["tiny"].config
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.objective = OBJECTIVES["grpo"]
        optimizer = make_optimizer(OptimizerConfig(), 1000)
        params = jax.jit(init, static_argnums=1)(jax.random.key(seed), self.config)
        self.state = make_state(params, optimizer, self.mesh)
        self.update = make_update(UpdateConfig(self.config, self.objective), optimizer, self.mesh, self.state)
        shapes = SamplerShapes(
            prefix=(LONGEST_PROMPT,),
            tail=(1, LONGEST_HINT + 1),
            max_new_tokens=LONGEST_REPLY,
            max_rows=PROMPTS * GROUP,
            rows_per_prefix=(1, GROUP),
        )
        self.sampler = Sampler(self.config, shapes, (), lambda ids: "", self.mesh)
        longest = LONGEST_HINT + LONGEST_REPLY + 2
        self.shapes = batch_shapes(PROMPTS, 2 * GROUP, 2, GROUP, (LONGEST_PROMPT,), (longest,))
        self.rng = np.random.default_rng(seed)

    def warm_up(self) -> int:
        """The sampler's; returns how many shapes its calls can have."""
        return self.sampler.warm_up(self.state.params, SamplingParams(), GROUP, LONGEST_PROMPT + LONGEST_HINT)

    def __call__(self, number: int) -> None:
        """One step; its lengths follow from the steps before it."""
        rng = self.rng
        prompts = [self._ids(int(rng.integers(8, LONGEST_PROMPT + 1))) for _ in range(PROMPTS)]
        drafts = [(prompt, ids) for prompt, ids in enumerate(prompts) for _ in range(GROUP)]
        asked_again = rng.random(len(drafts)) < rng.random()
        refined = [
            (prompt, np.concatenate([ids, self._ids(int(rng.integers(1, LONGEST_HINT + 1)))]))
            for (prompt, ids), again in zip(drafts, asked_again, strict=True)
            if again
        ]
        views = [*self._views(drafts), *self._views(refined)]
        rewards = np.array([view.reward for view in views], np.float32)
        yes = np.ones(len(views), bool)
        numbers = np.array([view.prompt for view in views], np.int32)
        rows = RowTable(np.zeros(len(views), np.int32), numbers, np.arange(len(views)), rewards, yes, yes, ~yes)
        advantages = assign(rows, self.objective)
        groups = list(by_prompt(views).values())
        batch = pack(views, groups, advantages.weights, advantages.row_valid, self.shapes)
        placed = jax.device_put(batch, row_sharding(self.mesh, leading=1))
        self.state, *measured = self.update(self.state, placed)
        jax.device_get(measured)

    def _ids(self, length: int) -> np.ndarray:
        return self.rng.integers(1, self.config.vocab_size, length).astype(np.int32)

    def _views(self, contexts: list[tuple[int, np.ndarray]]) -> list[View]:
        """Samples one reply of random length for every (prompt, context) and returns the rows to train on."""
        lengths = np.clip(self.rng.lognormal(2.3, 0.83, len(contexts)), 1, LONGEST_REPLY).astype(int)
        requests = [
            SampleRequest(ids, prompt, self.rng.integers(0, 2**32, 2, dtype=np.uint32), int(length))
            for (prompt, ids), length in zip(contexts, lengths, strict=True)
        ]
        views = []
        for finished in self.sampler.generate(self.state.params, requests, SamplingParams(), ()):
            for index, sampled in finished:
                prompt, context = contexts[index]
                reward, mask = float(self.rng.random()), np.ones(len(sampled.ids), bool)
                facts = (sampled.ids, mask, sampled.logprobs, reward, False, False)
                views.append(View(ViewRole.DRAFT, prompt, index, context, *facts))
        return views


def training_steps(path: Path) -> tuple[Callable[[], int] | None, Callable[[int], None]]:
    """Returns the warm-up, if it has one, and the steps of a run with the configuration in `path`; nothing is
    written.
    """
    config, _ = load_config(RunConfig, [str(path)])
    stream, _ = training_stream(config)
    trainer = Trainer(config, assemble(config), stream)
    runner = asyncio.Runner()

    def step(number: int) -> None:
        runner.run(trainer.step(Stopwatch()))

    return trainer.warm_up if config.sampler.warm_up else None, step


def told(result: dict[str, Any]) -> str:
    """Returns the finding as text: a number, and below it what was compiled where."""
    later, before = result["compiled_later"], result["sampler_warm_up"]
    warmed = "{compiled} programs for {shapes_of_calls} shapes of sampler calls compiled beforehand, {seconds:.0f} s"
    lines = [warmed.format(**before), f"{result['compiled_in_warmup_steps']} more in the steps of warm-up"]
    lines += [f"programs compiled in {result['steps']} steps after {result['warmup_steps']} of warm-up: {len(later)}"]
    return "\n".join([*lines, *(f"  step {entry['step']}: {entry['program']}" for entry in later)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--config", type=Path, default=None, help="YAML of a training run")
    parser.add_argument("--met-by-chance", action="store_true", help="no warm-up of the sampler")
    options = parser.parse_args(arguments)
    set_defaults()
    if options.config:
        warm_up, step = training_steps(options.config)
    else:
        step = RaggedSteps()
        warm_up = step.warm_up
    if options.met_by_chance:
        warm_up = None
    result = count_recompiles(warm_up, step, options.warmup, options.steps)
    facts = {"config": str(options.config or ""), "machine": machine(), "versions": versions("jax", "jaxlib", "flax")}
    text = told(result)
    write_results(options.output, "recompiles", {"benchmark": "recompiles", **facts, **result}, text)
    print(text)


if __name__ == "__main__":
    main()
