"""How near a GPU or TPU comes to its limits: decoding to memory bandwidth, prefill and update to arithmetic.

A random policy of a published size (Qwen3-8B unless told otherwise) in bfloat16 on one device. Decode: bytes of weights
and keys that a step must read, over the bandwidth that a copy reaches on the same device. Prefill and the update of
adapters: floating-point operations that the products with weights need (2 and 4 for each weight and token; recomputing
is not counted) over the chip's specification. Then whole DITTO steps through the trainer, with their time split. Writes
accelerator.json.

    python -m benchmarks.accelerator --output benchmark_results
    python -m benchmarks.accelerator --model tiny --rows 8 --prefix 128 --ring 64 --prompts 2 --copy 1000000   # a trial

For a resumed run that equals the straight one bit for bit on a GPU:
XLA_FLAGS=--xla_gpu_deterministic_ops=true JAX_PLATFORMS=cuda python -m pytest tests/runs/test_resume.py
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.figures import machine, spread, versions, write_results
from benchmarks.paired import timed
from benchmarks.programs import Programs, StepSizes
from benchmarks.word_task import WordOptions, WordTask
from benchmarks.workloads import export
from ditto_jax.config import RolloutConfig, RunConfig, TrainConfig
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.plan.chips import CHIPS
from ditto_jax.rollouts.prompts import LoadedTask, PromptStream
from ditto_jax.runs.metrics import Stopwatch
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.setup import assemble
from ditto_jax.tasks.base import Source
from ditto_jax.trainer import Trainer
from launch.environment import set_defaults
from model.config import ModelConfig
from model.hf_layout import param_shapes
from model.llama import init
from model.lora import LoraConfig
from model.partition import make_mesh
from model.presets import PRESETS

Figures = dict[str, Any]


def seconds_of(work: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Returns the spread of the seconds that `work` takes, after one call that compiles."""
    jax.block_until_ready(work())
    return spread([timed(lambda: jax.block_until_ready(work()))[0]["seconds"] for _ in range(rounds)])


def copy_bandwidth(rounds: int, size: int) -> float:
    """Returns bytes per second, read and written, of the fastest copy of `size` bytes."""
    array = jnp.zeros(size // 2, jnp.bfloat16)
    copy = jax.jit(lambda x: x + 1)
    return 2 * array.nbytes / seconds_of(lambda: copy(array), rounds)["low"]


class Bench:
    """One policy on one device, and what its programs must read and compute."""

    def __init__(self, model: ModelConfig, sizes: StepSizes, lora: LoraConfig, rounds: int):
        self.model, self.rounds = model, rounds
        self.mesh: Mesh = make_mesh(devices=jax.devices()[:1])
        self.programs = Programs(model, lora, sizes, self.mesh)
        self.params = jax.jit(init, static_argnums=1)(jax.random.key(0), model)
        shapes = param_shapes(model)
        # Of an embedding a step reads some rows only, unless it is the head as well.
        self.read = [p for p in shapes if p != "embed/embedding" or model.tie_embeddings]
        self.product_weights = sum(int(np.prod(shapes[path])) for path in self.read if not path.endswith("scale"))

    def weight_bytes(self) -> int:
        leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in _leaves(self.params)}
        return sum(leaves[path].nbytes for path in self.read)

    def decode(self, rows: int, bandwidth: float) -> Figures:
        """Time of a decode step of `rows` rows, and the share of the copy's bandwidth that it reaches."""
        sizes = dataclasses.replace(self.programs.sizes, decode_rows=rows)
        programs = dataclasses.replace(self.programs, sizes=sizes)
        chunk = programs.decode_chunk(merged=True).compile()
        held = [_filled(programs.decode_state())]
        key_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(held[0]) if leaf.ndim >= 4)
        idle = jnp.zeros(rows, bool)

        def run() -> Any:
            state = held[0]._replace(done=jnp.zeros(rows, bool), limits=jnp.full(rows, 2**30, jnp.int32))
            held[0], drawn = chunk(self.params, state, idle, jnp.int32(rows + 1))
            return drawn

        seconds = seconds_of(run, self.rounds)
        needed = self.weight_bytes() + key_bytes
        step = seconds["median"] / sizes.steps
        return {
            "rows": rows,
            "seconds_a_chunk": seconds,
            "tokens_per_s": rows / step,
            "bytes_a_step": needed,
            "bytes_per_s": needed / step,
            "share_of_copy_bandwidth": needed / step / bandwidth,
        }

    def prefill(self, flops: float | None) -> Figures:
        """Time of an admission, and the share of the chip's specified operations."""
        sizes = self.programs.sizes
        admit = self.programs.prefill().compile()
        held = [_filled(self.programs.decode_state())]
        prompts = _filled(self.programs.prompt_batch())

        def run() -> Any:
            held[0], drawn = admit(self.params, held[0], prompts)
            return drawn

        seconds = seconds_of(run, self.rounds)
        tokens = sizes.admitted * (sizes.prefix + sizes.rows * sizes.tail)
        return {"tokens": tokens, "seconds": seconds, **self._reached(2, tokens, seconds, flops)}

    def update(self, flops: float | None) -> Figures:
        """Time of an update of adapters, and the share of the chip's specified operations (4 a weight and token)."""
        sizes = self.programs.sizes
        update = self.programs.update().compile()
        state, batch = self.programs.update_arguments()
        held, batch = [_filled(state)], _filled(batch)

        def run() -> Any:
            held[0], *measured = update(held[0], self.params, batch, None)
            return measured

        seconds = seconds_of(run, self.rounds)
        tokens = sizes.prompts * (sizes.prefix + sizes.rows * sizes.suffix)
        return {"tokens": tokens, "seconds": seconds, **self._reached(4, tokens, seconds, flops)}

    def _reached(self, per_weight: int, tokens: int, seconds: Figures, flops: float | None) -> Figures:
        reached = per_weight * self.product_weights * tokens / seconds["median"]
        return {"flops": reached, "share_of_specification": flops and reached / flops}


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _filled(shapes: Any) -> Any:
    """Arrays of these shapes: integers 1, flags True, floats 0. What is computed does not depend on them."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = 0 if jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.unsignedinteger) else 1
        return jnp.full(leaf.shape, value, leaf.dtype, device=leaf.sharding)

    return jax.tree.map(fill, shapes)


def whole_steps(model: ModelConfig, sizes: StepSizes, lora: LoraConfig, rounds: int) -> Figures:
    """Returns the time split of DITTO steps of the trainer: drafts, words about each, refined replies, one update."""
    with tempfile.TemporaryDirectory() as scratch:
        config = RunConfig(
            model_name_or_path=str(export(Path(scratch) / "policy", model)),
            dtype="bfloat16",
            param_dtype="bfloat16",
            lora=lora,
            rollout=RolloutConfig(sizes.prompts, sizes.rows, max_completion_length=sizes.suffix, feedback_below=2.0),
            sampler=SamplerShapes(max_rows=sizes.decode_rows, max_new_tokens=sizes.suffix, prefix=(sizes.prefix,)),
            objective=ObjectiveConfig(name="ditto", truncated="keep"),
            train=TrainConfig(
                max_steps=10_000,
                micro_batch=sizes.groups,
                lanes=sizes.rows,
                prefix=(sizes.prefix,),
                suffix=(2 * sizes.suffix,),
                remat="full",
                logprob_chunk=sizes.logprob_chunk,
            ),
        )
        task = WordTask(WordOptions(model.vocab_size, sizes.prefix - 64))
        examples = task.load(Source(limit=100))
        trainer = Trainer(config, assemble(config), PromptStream([LoadedTask("words", 1.0, task, examples)], 0))
    steps, metrics = [], {}
    with asyncio.Runner() as runner:
        for _ in range(rounds + 1):
            watch = Stopwatch()
            metrics, _ = runner.run(trainer.step(watch))
            jax.block_until_ready(trainer.state)
            steps.append({**watch.split(), "sampled_tokens": metrics["completions/sampled_tokens"]})
    gaps = {name: value for name, value in metrics.items() if "gap" in name or "log_ratio" in name}
    split = {name: spread([step[name] for step in steps[1:]]) for name in steps[1]}
    return {"split": split, "first_step_s": steps[0]["time/step_s"], "sampler_and_trainer": gaps}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--model", default="qwen3-8b", choices=list(PRESETS))
    parser.add_argument("--chip", default="", choices=["", *CHIPS], help="whose specification the shares refer to")
    parser.add_argument("--rows", type=int, nargs="*", default=[8, 64, 256], help="rows decoded together")
    parser.add_argument("--prefix", type=int, default=1024)
    parser.add_argument("--ring", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a step, of 8 rows each")
    parser.add_argument("--copy", type=int, default=2**31, help="bytes that are copied to find the bandwidth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="*", default=["decode", "prefill", "update", "steps"])
    options = parser.parse_args(arguments)
    set_defaults()
    model = dataclasses.replace(PRESETS[options.model], param_dtype="bfloat16", compute_dtype="bfloat16")
    sizes = StepSizes(prompts=options.prompts, prefix=options.prefix, suffix=options.ring, ring=options.ring)
    lora = LoraConfig()
    device = jax.devices()[0]
    flops = CHIPS[options.chip].flops if options.chip else None
    bandwidth = copy_bandwidth(options.rounds, options.copy)
    results: dict[str, Any] = {
        "benchmark": "accelerator",
        "device": device.device_kind,
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "flax"),
        "model": options.model,
        "sizes": dataclasses.asdict(sizes),
        "copy_bytes_per_s": bandwidth,
    }
    lines = [f"{device.device_kind}, {options.model}: a copy reaches {bandwidth / 1e9:,.0f} GB/s"]

    def keep(part: str, found: Any, line: str) -> None:
        results[part] = found
        lines.append(line)
        print(line, flush=True)
        write_results(options.output, "accelerator", results, "\n".join(lines))

    if {"decode", "prefill", "update"} & set(options.parts):
        bench = Bench(model, sizes, lora, options.rounds)
        for rows in options.rows if "decode" in options.parts else []:
            found = bench.decode(rows, bandwidth)
            share = found["share_of_copy_bandwidth"]
            keep(
                f"decode {rows}",
                found,
                f"decode, {rows} rows: {found['tokens_per_s']:,.0f} tokens/s, {share:.2f} of it",
            )
        for part in ("prefill", "update"):
            if part in options.parts:
                found = getattr(bench, part)(flops)
                share = found["share_of_specification"]
                said = "" if share is None else f", {share:.2f} of the specification"
                keep(part, found, f"{part}: {found['flops'] / 1e12:,.2f} TFLOP/s{said}")
        del bench
    if "steps" in options.parts:
        found = whole_steps(model, sizes, lora, options.rounds)
        split = ", ".join(f"{name} {value['median']:.2f}" for name, value in found["split"].items())
        keep("steps", found, f"DITTO step: {split}")


if __name__ == "__main__":
    main()
