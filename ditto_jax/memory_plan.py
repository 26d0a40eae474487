"""How much memory and time a run will need, from its configuration alone, before any weight is there.

In: a run's configuration, the sizes of its model, a kind of chip and their number. Out: bytes a device by purpose at
the two peaks (update, sampling) and hours. Parameters and optimizer state are counted leaf by leaf as they will be
split; activations, caches and times follow formulas (docs/models.md). Judges, evaluation and compiling are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import AbstractMesh, AxisType

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError
from ditto_jax.objective import make_objective
from ditto_jax.policy import find_policy
from ditto_jax.sampling.slot_shapes import CallShapes, call_shapes, rows_per_slot
from ditto_jax.tasks.registry import task_type
from ditto_jax.update.state import TrainState, make_optimizer, state_shardings
from model.config import ModelConfig
from model.generate import empty_state
from model.hf_io import load_config
from model.hf_layout import param_shapes
from model.lora import init_adapters
from model.partition import MESH_AXES, decode_state_shardings, mesh_sizes, parameter_shardings
from model.presets import PRESETS
from model.quantization import quantize_params

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """memory: bytes a program may use. flops: of dense products in the short dtype, a second. bandwidth: bytes/s."""

    name: str
    memory: float
    flops: float
    bandwidth: float


# Makers' specifications.
CHIPS: Mapping[str, Chip] = {
    "t4": Chip("T4", 15 * GIB, 65e12, 0.32e12),
    "rtx4080": Chip("RTX 4080", 16 * GIB, 97e12, 0.717e12),
    "rtx4090": Chip("RTX 4090", 24 * GIB, 165e12, 1.008e12),
    "h100": Chip("H100", 80 * GIB, 989e12, 3.35e12),
    "h200": Chip("H200", 139 * GIB, 989e12, 4.8e12),
    "v5e": Chip("TPU v5e", 15.75 * GIB, 197e12, 0.82e12),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, 2.77e12),
    "v6e": Chip("TPU v6e", 31.25 * GIB, 918e12, 1.64e12),
}

RUNTIME = 0.5 * GIB  # what the driver and the compiled programs take
# What is reached of the specification, and what a run is like where its configuration does not say.
PREFILL_EFFICIENCY, UPDATE_EFFICIENCY, DECODE_EFFICIENCY = 0.5, 0.4, 0.65
ROWS_IN_USE = 0.6  # of the sampler's rows, lengths being uneven
REFINED_SHARE = 0.5  # of the drafts get feedback
PROMPT_SHARE, REPLY_SHARE = 0.75, 0.5  # mean length over the largest bucket, and over the longest reply
FEEDBACK_TOKENS = 96


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes a device: what lies there always (`held`) and at either peak; seconds a step; steps; devices."""

    chip: Chip
    devices: int
    held: Mapping[str, float]
    update: Mapping[str, float]
    sampling: Mapping[str, float]
    step_seconds: Mapping[str, float]
    steps: int

    @property
    def peak(self) -> float:
        return sum(self.held.values()) + max(sum(self.update.values()), sum(self.sampling.values()))

    @property
    def hours(self) -> float:
        return self.steps * sum(self.step_seconds.values()) / 3600

    def lines(self) -> list[str]:
        """Returns the prediction in words: what it is for, memory, time."""
        held = " + ".join(f"{name} {_gib(size)}" for name, size in self.held.items())
        times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.step_seconds.items())
        update, sampling = (_gib(sum(part.values())) for part in (self.update, self.sampling))
        where = f"{self.devices} x {self.chip.name}"
        return [
            f"Predicted for {where}: {_gib(self.peak)} of {_gib(self.chip.memory)} GiB a device,",
            f"{held}, then {update} to update or {sampling} to sample;",
            f"{self.hours:.1f} hours for {self.steps} steps ({times} a step) without judge, evaluation and compiling.",
        ]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def model_of(config: RunConfig) -> ModelConfig:
    """Returns the sizes of a run's model: of its folder, or the published ones of that name, in the run's dtypes."""
    name = Path(config.model_name_or_path).name.lower()
    if name in PRESETS and not Path(config.model_name_or_path).expanduser().is_dir():
        return dataclasses.replace(PRESETS[name], param_dtype=config.param_dtype, compute_dtype=config.dtype)
    folder = find_policy(config.model_name_or_path)
    return load_config(folder, param_dtype=config.param_dtype, compute_dtype=config.dtype)


def make_plan(config: RunConfig, model: ModelConfig, chip: Chip, devices: int) -> Plan:
    """Returns what a run will need on `devices` chips. Raises ConfigError if its mesh does not fit them."""
    sizes = _Sizes(config, model, _mesh_sizes(config, devices))
    return Plan(
        chip, devices, sizes.held(), sizes.update(), sizes.sampling(), sizes.seconds(chip), config.train.max_steps
    )


def _mesh_sizes(config: RunConfig, devices: int) -> dict[str, int]:
    sizes = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    try:
        return mesh_sizes(*sizes, devices)
    except ValueError:
        named = dict(zip(MESH_AXES, sizes, strict=True))
        raise ConfigError(f"mesh={named}: does not fit {devices} devices") from None


class _Sizes:
    """The run's lengths and splits; each method is one line of the plan."""

    def __init__(self, config: RunConfig, model: ModelConfig, mesh: dict[str, int]):
        self.config, self.model = config, model
        self.mesh = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
        self.rows_split, self.tensor = mesh["data"] * mesh["fsdp"], mesh["tensor"]
        self.gathers = mesh["fsdp"] > 1 or config.quantization != "none" or config.param_dtype != config.dtype
        self.item = jnp.dtype(config.dtype).itemsize
        self.key_bytes = 2 * model.num_kv_heads * model.head_dim * self.item / self.tensor  # of a token in a layer
        # Of a token in a layer: the products of attention and MLP, its longest part.
        wide = 2 * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim + 3 * model.intermediate_size
        self.inside = (2 * model.hidden_size + wide / self.tensor) * self.item
        self.objective = make_objective(config.objective)

    # Bytes.

    def trees(self) -> tuple[Any, Any]:
        """Returns (all parameters as stored, what is trained), as shapes."""
        shapes = {
            path: jax.ShapeDtypeStruct(shape, self.model.param_dtype)
            for path, shape in param_shapes(self.model).items()
        }
        stored = jax.eval_shape(
            lambda tree: quantize_params(tree, self.config.quantization), unflatten_dict(shapes, sep="/")
        )
        lora = self.config.lora
        if not lora.rank:
            return stored, stored
        return stored, jax.eval_shape(lambda: init_adapters(jax.random.key(0), self.model, lora))

    def held(self) -> dict[str, float]:
        config = self.config
        stored, trained = self.trees()
        optimizer = make_optimizer(config.optimizer, config.train.max_steps)
        state = jax.eval_shape(lambda p: TrainState(p, optimizer.init(p), jnp.int32(0)), trained)
        places = state_shardings(state, optimizer, self.mesh)  # pyright: ignore[reportArgumentType]
        adapters = 0.0 if trained is stored else self._bytes(state.params, places.params)
        held = {"weights": self._bytes(stored, parameter_shardings(stored, self.mesh))}  # pyright: ignore[reportArgumentType]
        if adapters:
            held["adapters"] = adapters
        return {**held, "optimizer": self._bytes(state.opt_state, places.opt_state), "runtime": RUNTIME}

    @staticmethod
    def _bytes(tree: Any, places: Any) -> float:
        sizes = jax.tree.map(lambda leaf, at: math.prod(at.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, places)
        return float(sum(jax.tree.leaves(sizes)))

    def _layer(self) -> float:
        """Bytes of one layer's matrices in the compute dtype, as they are gathered or decoded to be multiplied."""
        values = sum(
            math.prod(shape[1:])
            for path, shape in param_shapes(self.model).items()
            if path.startswith("layers/") and path.endswith("/kernel")
        )
        return values * self.item / self.tensor if self.gathers else 0.0

    def update(self) -> dict[str, float]:
        m, train = self.model, self.config.train
        groups = math.ceil(train.micro_batch / self.rows_split)
        prefix, width = train.prefix[-1], train.suffix[-1]
        lanes = groups * min(train.lanes, self._rows_of_prompt())
        tokens = groups * prefix + lanes * width
        heads = m.num_heads / self.tensor
        scores = heads * max(lanes * width * (width + prefix), groups * prefix * prefix) * 4
        # Policies that keep part of a layer are counted as keeping all of it: the figure is then an upper bound.
        kept_layers = 1 if train.remat == "full" else m.num_layers
        _, trained = self.trees()
        places = parameter_shardings(trained, self.mesh)  # pyright: ignore[reportArgumentType]
        sums = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, train.gradient_dtype), trained)
        rows = min(train.logprob_chunk, lanes * width)
        return {
            "gradients": self._bytes(trained, places) + self._bytes(sums, places),
            "layer inputs": m.num_layers * tokens * m.hidden_size * self.item,
            "activations": 2 * kept_layers * (tokens * self.inside + scores) + scores,
            "prefix keys": 2 * m.num_layers * groups * prefix * self.key_bytes,
            "logits": 3 * rows * m.vocab_size / self.tensor * 4,
            "one layer": self._layer(),
        }

    def sampling(self) -> dict[str, float]:
        """Returns the most that a sampler call needs: of groups of drafts, or of lone requests (evaluation, a last
        refined prompt), beside the keys that a call before has left.

        Where episodes have several turns a call leaves its rows' keys too, and the next one continues them.
        """
        shapes, rollout = self.config.sampler, self.config.rollout
        merged = {"merged copy": self.held()["weights"]} if shapes.merge_adapters else {}
        sizes = [self._call_shapes(rollout.num_generations)]
        if self.config.evaluation.tasks or self.objective.refine:
            sizes.append(self._call_shapes(1))
        calls = [self._call(one, sizes[0]) for one in sizes]
        if self._many_turns():
            calls += [self._call(one, before, rows_kept=True) for one in sizes for before in sizes]
        return {**max(calls, key=lambda call: sum(call.values())), "one layer": self._layer(), **merged}

    def _many_turns(self) -> bool:
        return any(task_type(task.name).many_turns for task in (*self.config.tasks, *self.config.evaluation.tasks))

    def _call_shapes(self, members: int) -> CallShapes:
        """Of a call whose groups have so many members and share the largest prefix; a lone prompt is all prefix."""
        shapes = self.config.sampler
        tail = shapes.tail[-1] if members > 1 else shapes.tail[0]
        return call_shapes(rows_per_slot(members, shapes), shapes.prefix[-1], 0, tail, shapes, self.rows_split)

    def _call(self, sizes: CallShapes, before: CallShapes, rows_kept: bool = False) -> dict[str, float]:
        """Bytes of a sampler call of full slots beside what the call before it has left: the keys of its prefixes, and
        with `rows_kept` those of its rows, which are then continued.

        All prompts are as long as the largest buckets. The arrays are those that the sampler would make.
        """
        m, split = self.model, self.rows_split
        if rows_kept:
            sizes, before = self._continued(sizes), self._continued(before)
        rows, admitted = sizes.slots * sizes.rows_per_slot, sizes.admissions[0]
        cache, prefix = self._keys(sizes, sizes.slots, sizes.ring[-1])
        entering = sum(self._keys(sizes, admitted, sizes.history + sizes.tail))
        widening = self._keys(sizes, sizes.slots, sizes.ring[-2])[0] if len(sizes.ring) > 1 else 0.0
        left_rows, left_prefix = self._keys(before, before.slots, before.ring[-1])
        # Copied columns lie apart from the ring that they enter.
        copied = self._keys(sizes, admitted, sizes.history)[0] if rows_kept else 0.0
        seen = sizes.prefix + sizes.history + sizes.tail
        tokens = max(admitted * sizes.prefix, admitted * sizes.rows_per_slot * sizes.tail) / split
        scores = max(admitted * sizes.prefix**2, admitted * sizes.rows_per_slot * sizes.tail * seen) / split
        prefill = tokens * self.inside + m.num_heads / self.tensor * scores * 4 + entering + copied
        return {
            "cache": cache,
            "prefix keys": prefix + left_prefix,
            **({"keys of the turn before": left_rows} if rows_kept else {}),
            "prefill or a wider ring": max(prefill, widening),
            "logits": 3 * rows / split * m.vocab_size / self.tensor * 4,
        }

    def _continued(self, sizes: CallShapes) -> CallShapes:
        """The same where rows go on from what they have said in earlier turns, as much as the largest bucket holds."""
        shapes = self.config.sampler
        return call_shapes(sizes.rows_per_slot, sizes.prefix, shapes.tail[-1], shapes.tail[-1], shapes, self.rows_split)

    def _keys(self, sizes: CallShapes, slots: int, columns: int) -> tuple[float, float]:
        """Bytes of (a ring of so many columns for the rows of `slots` slots, the prefixes of these)."""
        arrays = jax.eval_shape(
            lambda: empty_state(
                config=self.model,
                slots=slots,
                rows=slots * sizes.rows_per_slot,
                prefix_width=sizes.prefix,
                width=columns,
                kv_dtype=self.config.sampler.kv_dtype,
            )
        )
        places = decode_state_shardings(arrays, self.mesh)  # pyright: ignore[reportArgumentType]
        return self._bytes(arrays.cache, places.cache), self._bytes(arrays.prefix, places.prefix)

    def _rows_of_prompt(self) -> int:
        return self.config.rollout.num_generations * len(self.objective.views)

    # Seconds.

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Returns seconds a step by phase; work is spread evenly over the devices."""
        m, config = self.model, self.config
        devices = self.rows_split * self.tensor
        prompts = config.rollout.prompts_per_step
        drafts = prompts * config.rollout.num_generations
        refined = drafts * REFINED_SHARE if self.objective.refine else 0.0
        prompt = PROMPT_SHARE * config.train.prefix[-1]
        reply = REPLY_SHARE * config.rollout.max_completion_length
        body = sum(math.prod(shape) for path, shape in param_shapes(m).items() if path.startswith("layers/"))
        whole = body + m.vocab_size * m.hidden_size
        prefilled = prompts * prompt + refined * FEEDBACK_TOKENS
        tokens = (drafts + refined) * reply
        weights = self.held()["weights"] * self.mesh.shape["fsdp"]  # each device multiplies with a whole layer
        rows = config.sampler.max_rows / self.rows_split
        stored = m.compute_dtype if config.sampler.kv_dtype == "compute" else config.sampler.kv_dtype
        one_key = jnp.dtype(stored).itemsize * m.head_dim + (4 if stored == "int8" else 0)  # codes have a scale
        keys = (
            2
            * m.num_layers
            * m.num_kv_heads
            * one_key
            / self.tensor
            * rows
            * (reply / 2 + prompt / config.rollout.num_generations)
        )
        step = max(
            (weights + keys) / (chip.bandwidth * DECODE_EFFICIENCY),
            2 * whole * rows / self.tensor / (chip.flops * PREFILL_EFFICIENCY),
        )
        trained = prompts * prompt + (drafts + 2 * refined) * reply + refined * FEEDBACK_TOKENS
        passes = (4 if config.lora.rank else 6) + (2 if config.train.remat != "none" else 0)
        passes += 2 if config.train.updates_per_step > 1 else 0
        return {
            "prefill": 2 * body * prefilled / (devices * chip.flops * PREFILL_EFFICIENCY),
            "decode": tokens / (config.sampler.max_rows * ROWS_IN_USE) * step,
            "update": passes * whole * trained / (devices * chip.flops * UPDATE_EFFICIENCY),
        }
