"""Bytes a device of a run, by purpose, at its two peaks: the update and the sampler's calls.

configuration, sizes of the model, mesh → **bytes** → plan; the warning before a run

What is held (parameters, adapters, optimizer, copies for teachers) and the sampler's caches are counted leaf by leaf,
as they will be split; activations follow formulas (docs/planning.md). No array is made and no device is touched.
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

from ditto_jax.config import MeshConfig, RunConfig
from ditto_jax.errors import ConfigError
from ditto_jax.objective import make_objective
from ditto_jax.plan.chips import GIB
from ditto_jax.policy import find_policy
from ditto_jax.sampling.slot_shapes import CallShapes, call_shapes, rows_per_slot
from ditto_jax.tasks.registry import task_type
from ditto_jax.update.packing import batch_shapes
from ditto_jax.update.passes import columns_of, needs_average, needs_initial
from ditto_jax.update.state import TrainState, make_optimizer, state_shardings
from model.attention_kernels import LANES
from model.config import ModelConfig
from model.generate import empty_state
from model.hf_io import load_config
from model.hf_layout import param_shapes
from model.lora import init_adapters
from model.partition import MESH_AXES, decode_state_shardings, mesh_sizes, parameter_shardings
from model.presets import PRESETS
from model.quantization import quantize_params

RUNTIME = 0.5 * GIB  # what the driver and the compiled programs take
# What compiled updates hold at once (docs/planning.md): float32 copies of the hidden states in a layer's backward pass,
# whatever the compute dtype is, and float32 arrays of logits.
_STREAMS, _LOGITS = 12, 2


def model_of(config: RunConfig) -> ModelConfig:
    """Returns the sizes of a run's model: of its folder, or the published ones of that name, in the run's dtypes."""
    name = Path(config.model_name_or_path).name.lower()
    if name in PRESETS and not Path(config.model_name_or_path).expanduser().is_dir():
        return in_dtypes(PRESETS[name], config)
    folder = find_policy(config.model_name_or_path)
    return load_config(folder, param_dtype=config.param_dtype, compute_dtype=config.dtype)


def in_dtypes(model: ModelConfig, config: RunConfig) -> ModelConfig:
    """Returns the sizes in the dtypes of a run."""
    return dataclasses.replace(model, param_dtype=config.param_dtype, compute_dtype=config.dtype)


def mesh_over(mesh: MeshConfig, devices: int) -> dict[str, int]:
    """Returns the sizes of a run's mesh over so many devices. Raises ConfigError if it does not fit them."""
    sizes = mesh.data, mesh.fsdp, mesh.tensor
    try:
        return mesh_sizes(*sizes, devices)
    except ValueError:
        named = dict(zip(MESH_AXES, sizes, strict=True))
        raise ConfigError(
            f"mesh={named}: does not fit {devices} devices; set mesh.data to -1, which takes what the others leave"
        ) from None


def peak_of(
    held: Mapping[str, float], update: Mapping[str, float], sampling: Mapping[str, float], together: bool
) -> float:
    """Returns what lies there always, and the more of what an update and a sampler call need beside it; both, where
    they run `together`, as one step behind.
    """
    beside = sum(update.values()), sum(sampling.values())
    return sum(held.values()) + (sum(beside) if together else max(beside))


class Memory:
    """Bytes a device on one mesh, part by part; each method is one line of the account."""

    def __init__(self, config: RunConfig, model: ModelConfig, mesh: dict[str, int], kernel: str = ""):
        """kernel: the attention kernel that the device has for training and prefill, "" for none."""
        self.config, self.model = config, model
        self.kernel = _serves(kernel, config)
        self.mesh = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
        self.rows_split, self.tensor = mesh["data"] * mesh["fsdp"], mesh["tensor"]
        self.gathers = mesh["fsdp"] > 1 or config.quantization != "none" or config.param_dtype != config.dtype
        self.item = jnp.dtype(config.dtype).itemsize
        self.key_bytes = 2 * model.num_kv_heads * model.head_dim * self.item / self.tensor  # of a token in a layer
        # Of a token in a layer: the products of attention and MLP, its longest part.
        wide = 2 * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim + 3 * model.intermediate_size
        self.inside = (2 * model.hidden_size + wide / self.tensor) * self.item
        self.objective = make_objective(config.objective)

    @property
    def peak(self) -> float:
        return peak_of(self.held(), self.update(), self.sampling(), bool(self.config.rollout.steps_behind))

    def held(self) -> dict[str, float]:
        """Returns what lies there from the first step to the last."""
        stored, trained = self._trees()
        optimizer = make_optimizer(self.config.optimizer, self.config.train.max_steps)
        state = jax.eval_shape(lambda p: TrainState(p, optimizer.init(p), jnp.int32(0)), trained)
        places = state_shardings(state, optimizer, self.mesh)  # pyright: ignore[reportArgumentType]
        held = {"weights": self._split(stored)}
        if trained is not stored:
            held["adapters"] = self._split(trained)
        held["optimizer"] = self._bytes(state.opt_state, places.opt_state)
        if needs_average(self.objective):
            held["average of a teacher"] = self._split(_as(trained, "float32"))
        if needs_initial(self.objective) and trained is stored:
            held["initial policy"] = self._split(stored)
        if self.config.rollout.steps_behind:
            held["weights of the step before"] = self._split(trained)
        return {**held, "runtime": RUNTIME}

    def _trees(self) -> tuple[Any, Any]:
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

    def _split(self, tree: Any) -> float:
        """Bytes of one device's part of parameters."""
        return self._bytes(tree, parameter_shardings(tree, self.mesh))  # pyright: ignore[reportArgumentType]

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
        """Returns what an update needs when it needs most: in the backward pass of a layer, or at the logits."""
        m, train = self.model, self.config.train
        groups = math.ceil(train.micro_batch / self.rows_split)
        prefix, width = train.prefix[-1], train.suffix[-1]
        lanes = groups * min(train.lanes, self._rows_of_prompt())
        tokens = groups * prefix + lanes * width
        scores = max(self._scores(lanes, width, width + prefix), self._scores(groups, prefix, prefix))
        _, trained = self._trees()
        # Policies that keep part of a layer are counted as keeping all of it: the figure is then an upper bound.
        kept = 0.0 if train.remat == "full" else 2 * (m.num_layers - 1) * (tokens * self.inside + scores)
        backward = 2 * tokens * self.inside + 3 * scores + _STREAMS * tokens * m.hidden_size * 4
        logits = _LOGITS * self._logits(min(train.logprob_chunk, lanes * width * self.rows_split))
        return {
            "gradients": 2 * self._split(trained) + self._split(_as(trained, train.gradient_dtype)),
            "rows": self._batch(groups, lanes),
            "layer inputs": m.num_layers * tokens * m.hidden_size * self.item,
            "prefix keys": 2 * m.num_layers * groups * prefix * self.key_bytes,
            **({"activations kept": kept} if kept else {}),
            **({"activations": backward} if backward >= logits else {"logits": logits}),
            "one layer": self._layer(),
        }

    def _scores(self, rows: float, queries: int, keys: int) -> float:
        """Bytes of the attention scores of a layer, or of the mask that a kernel reads in their place."""
        return rows * queries * keys * (1 if self.kernel else 4 * self.model.num_heads / self.tensor)

    def _logits(self, positions: float) -> float:
        """Bytes of one array of float32 over the vocabulary for so many positions of all rows."""
        split = self.rows_split * self.tensor
        return positions * self.model.vocab_size * 4 / (split if self.model.vocab_size % split == 0 else self.tensor)

    def _batch(self, groups: int, lanes: int) -> float:
        """Bytes of the ids and columns of an update's rows."""
        config, train = self.config, self.config.train
        prompts = math.ceil(config.rollout.prompts_per_step / train.updates_per_step)
        shapes = batch_shapes(
            prompts, self._rows_of_prompt(), groups * self.rows_split, train.lanes, train.prefix, train.suffix
        )
        columns = columns_of(self.objective, self.model.vocab_size, train.updates_per_step)
        # int32 places and candidates, a bool, and float32 for all else.
        a_token = 9 + 4 * (columns.anchor + columns.sample + columns.reference) + 8 * columns.teacher
        of_rows = shapes.rows * train.suffix[-1] * a_token
        of_group = of_rows + 12 * train.prefix[-1] + 16 * shapes.lanes * train.suffix[-1]
        return shapes.micro_batches * groups * of_group

    def sampling(self) -> dict[str, float]:
        """Returns the most that a sampler call needs: of groups of drafts, or of lone requests (evaluation, a last
        refined prompt), beside the keys that a call before has left.

        Where episodes have several turns a call leaves its rows' keys too, and the next one continues them.
        """
        shapes, rollout = self.config.sampler, self.config.rollout
        merged = {"merged copy": self._split(self._trees()[0])} if shapes.merge_adapters else {}
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
        if rows_kept:
            sizes, before = self._continued(sizes), self._continued(before)
        parts = self._alone(sizes)
        widening = self._keys(sizes, sizes.slots, sizes.ring[-2])[0] if len(sizes.ring) > 1 else 0.0
        left_rows, left_prefix = self._keys(before, before.slots, before.ring[-1])
        return {
            "cache": parts["cache"],
            "prefix keys": parts["prefixes"] + left_prefix,
            **({"keys of the turn before": left_rows} if rows_kept else {}),
            "prefill or a wider ring": max(parts["prefill"], widening),
            "logits": parts["logits"],
        }

    def drafting(self) -> dict[str, float]:
        """Returns bytes of a call of drafts by itself: rings, prefixes, what a prefill takes beside, and logits."""
        return self._alone(self._call_shapes(self.config.rollout.num_generations))

    def _alone(self, sizes: CallShapes) -> dict[str, float]:
        m, split = self.model, self.rows_split
        rows, admitted = sizes.slots * sizes.rows_per_slot, sizes.admissions[0]
        cache, prefix = self._keys(sizes, sizes.slots, sizes.ring[-1])
        entering = sum(self._keys(sizes, admitted, sizes.history + sizes.tail))
        # Columns that are copied from the turn before lie apart from the ring that they enter.
        copied = self._keys(sizes, admitted, sizes.history)[0] if sizes.history else 0.0
        seen = sizes.prefix + sizes.history + sizes.tail
        tokens = max(admitted * sizes.prefix, admitted * sizes.rows_per_slot * sizes.tail) / split
        scores = max(
            self._scores(admitted, sizes.prefix, sizes.prefix),
            self._scores(admitted * sizes.rows_per_slot, sizes.tail, seen),
        )
        # Where slots are split over devices, compilers keep the ring as it was before the admission beside the new one.
        before = cache if split > 1 else 0.0
        return {
            "cache": cache,
            "prefixes": prefix,
            "prefill": tokens * self.inside + scores / split + entering + copied + before,
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


def _serves(kernel: str, config: RunConfig) -> bool:
    """Whether the longest calls of a run go to the device's kernel, by the rules of `model.attention_kernels`."""
    if kernel not in ("cudnn", "splash") or config.attention not in ("auto", kernel):
        return False
    lengths = config.train.prefix[-1], config.train.suffix[-1], config.sampler.prefix[-1]
    if kernel == "cudnn":
        return config.dtype != "float32" and all(length % 2 == 0 for length in lengths)
    return config.dtype != "float16" and all(length % LANES == 0 for length in lengths)


def _as(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), tree)
