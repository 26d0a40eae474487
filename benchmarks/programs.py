"""The four programs of a training step, traced for a mesh without any array: update, scoring, prefill, decode chunk.

model, sizes and a mesh → abstract arguments with shardings → **lowered programs**, ready to compile

They are the functions that a run calls, placed as a run places them; arguments are shapes. Devices of the mesh need not
be present. Compiles and measures nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import logical_axis_rules
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from benchmarks.collectives import Sizes
from ditto_jax.objective import OBJECTIVES
from ditto_jax.update.batch import TrainBatch
from ditto_jax.update.score_step import make_score
from ditto_jax.update.state import OptimizerConfig, TrainState, make_optimizer, state_shardings
from ditto_jax.update.train_step import UpdateConfig, make_update
from model.config import ModelConfig
from model.generate import PromptBatch, admit, decode_chunk, empty_state
from model.hf_layout import param_shapes
from model.logprobs import GroupedIds
from model.lora import LoraConfig, combine, init_adapters
from model.partition import ACTIVATION_RULES, decode_state_shardings, parameter_shardings, row_sharding
from model.quantization import flat, quantize_params
from model.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """Tokens and rows of one training step.

    groups: prompts in a micro-batch over all devices; rows: of a prompt, each in a lane of its own. admitted: prompts
    that one admission takes. Decoding holds `decode_rows` rows, `rows` to a slot.
    """

    prompts: int = 32
    rows: int = 8
    prefix: int = 1024
    suffix: int = 512
    groups: int = 1
    decode_rows: int = 64
    ring: int = 512
    tail: int = 16
    steps: int = 16
    admitted: int = 1
    logprob_chunk: int = 4096


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of one model, adapter and step on one mesh; quantization: of the frozen base."""

    model: ModelConfig
    lora: LoraConfig
    sizes: StepSizes
    mesh: Mesh
    quantization: str = "none"

    def lowered(self) -> dict[str, Callable[[], jax.stages.Lowered]]:
        """Returns a function for each program that traces it.

        "decode chunk" and "prefill" run weights that the adapters were merged into, unless the base is quantised;
        "decode chunk, adapters apart" does not.
        """
        return {
            "decode chunk": lambda: self.decode_chunk(merged=True),
            "prefill": self.prefill,
            "scoring": self.scoring,
            "update": self.update,
            "decode chunk, adapters apart": lambda: self.decode_chunk(merged=False),
        }

    def update(self) -> jax.stages.Lowered:
        """The GRPO update of the adapters over all micro-batches, activations recomputed layer by layer."""
        state, batch = self.update_arguments()
        return make_update(self._update_config(), self._optimizer, self.mesh, state, self._base()).lower(state, batch)

    def update_arguments(self) -> tuple[TrainState, TrainBatch]:
        """Returns what an update takes beside the base: the state of the adapters, and the rows."""
        adapters = self._adapters()
        state = jax.eval_shape(lambda a: TrainState(a, self._optimizer.init(a), jnp.int32(0)), adapters)
        return _placed(state, state_shardings(state, self._optimizer, self.mesh)), self._batch()

    def scoring(self) -> jax.stages.Lowered:
        """Log-probs of all micro-batches without gradients."""
        params = self._params()
        return make_score(self._update_config(), self.mesh).lower(params, self._batch())

    def prefill(self) -> jax.stages.Lowered:
        """Admission of `admitted` prompts on each row shard into free slots, adapters merged."""
        params, prompts, shards = self._sampled(merged=True), self.prompt_batch(), self._row_shards
        with jax.set_mesh(self.mesh), logical_axis_rules(ACTIVATION_RULES):
            return admit.lower(params, self.decode_state(), prompts, **self._sampling, shards=shards)

    def prompt_batch(self) -> PromptBatch:
        """Returns the prompts of one admission; none goes on from an earlier call."""
        sizes = self.sizes
        count = sizes.admitted * self._row_shards
        rows = count * sizes.rows
        return PromptBatch(
            prefix_ids=_ints(count, sizes.prefix),
            prefix_length=_ints(count),
            tail_ids=_ints(rows, sizes.tail),
            tail_length=_ints(rows),
            row_keys=jax.ShapeDtypeStruct((rows, 2), jnp.uint32),
            limits=_ints(rows),
            source=_ints(sizes.decode_rows // sizes.rows),
            kept=_ints(count),
            kept_rows=_ints(rows),
            kept_columns=_ints(rows, 0),
        )

    def decode_chunk(self, merged: bool) -> jax.stages.Lowered:
        """`steps` tokens for every row, layers scanned; merged: the adapters are no arrays of their own."""
        params = self._sampled(merged)
        cancelled = jax.ShapeDtypeStruct((self.sizes.decode_rows,), jnp.bool_)
        with jax.set_mesh(self.mesh), logical_axis_rules(ACTIVATION_RULES):
            return decode_chunk.lower(
                params, self.decode_state(), cancelled, _ints(), **self._sampling, steps=self.sizes.steps
            )

    def decode_state(self) -> Any:
        """Returns the abstract `DecodeState` on the mesh."""
        sizes = self.sizes
        state = jax.eval_shape(
            lambda: empty_state(
                config=self.model,
                slots=sizes.decode_rows // sizes.rows,
                rows=sizes.decode_rows,
                prefix_width=sizes.prefix,
                width=sizes.ring,
            )
        )
        return _placed(state, decode_state_shardings(state, self.mesh))

    @property
    def _optimizer(self) -> Any:
        return make_optimizer(OptimizerConfig(), total_updates=100)

    @property
    def bounds(self) -> Sizes:
        """What the rules for collectives measure by."""
        layers = [leaf for path, leaf in flat(self._base()).items() if path.startswith("layers/")]
        sizes = self.sizes
        return Sizes(
            layer_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in layers) // self.model.num_layers,
            vocab=self.model.vocab_size,
            hidden=self.model.hidden_size,
            head_dim=self.model.head_dim,
            columns={sizes.prefix, sizes.suffix, sizes.ring, sizes.tail},
        )

    @property
    def _row_shards(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def _sampling(self) -> dict[str, Any]:
        stop_ids = self.model.eos_token_ids
        return {"config": self.model, "sampling": SamplingParams(), "stop_ids": stop_ids}

    def _update_config(self) -> UpdateConfig:
        return UpdateConfig(
            self.model,
            OBJECTIVES["grpo"],
            remat="full",
            logprob_chunk=self.sizes.logprob_chunk,
            lora=self.lora,
        )

    def _base(self) -> Any:
        leaves = {
            path: jax.ShapeDtypeStruct(shape, jnp.dtype(self.model.param_dtype))
            for path, shape in param_shapes(self.model).items()
        }
        base = unflatten_dict(leaves, sep="/")
        base = jax.eval_shape(lambda tree: quantize_params(tree, self.quantization), base)
        return _placed(base, parameter_shardings(base, self.mesh))

    def _sampled(self, merged: bool) -> Any:
        """What the sampler runs; a merged copy of a quantised base would be one in full."""
        if merged and self.quantization == "none":
            return self._base()
        return self._params(self.model.compute_dtype)

    def _adapters(self) -> Any:
        adapters = jax.eval_shape(lambda: init_adapters(jax.random.key(0), self.model, self.lora))
        return _placed(adapters, parameter_shardings(adapters, self.mesh))

    def _params(self, dtype: str | None = None) -> Any:
        """Base and adapters as one value, as scoring takes it; dtype: of the adapters, where the sampler casts them."""
        params = jax.eval_shape(lambda b, a: combine(b, a, self.lora, dtype), self._base(), self._adapters())
        return _placed(params, parameter_shardings(params, self.mesh))

    def _batch(self) -> TrainBatch:
        s = self.sizes
        lead = (-(-s.prompts // s.groups), s.groups)
        per_row, per_token = (*lead, s.rows), (*lead, s.rows, s.suffix)
        grouped = GroupedIds(
            prefix_ids=_ints(*lead, s.prefix),
            prefix_positions=_ints(*lead, s.prefix),
            prefix_segments=_ints(*lead, s.prefix),
            lane_ids=_ints(*per_token),
            lane_positions=_ints(*per_token),
            lane_segments=_ints(*per_token),
            lane_prefixes=_ints(*per_token),
            row_tokens=_ints(*per_token),
        )
        batch = TrainBatch(
            grouped=grouped,
            loss_mask=jax.ShapeDtypeStruct(per_token, jnp.bool_),
            behaviour=jax.ShapeDtypeStruct(per_token, jnp.float32),
            weights=jax.ShapeDtypeStruct(per_row, jnp.float32),
            role=_ints(*per_row),
            cross=jax.ShapeDtypeStruct(per_row, jnp.bool_),
            row_valid=jax.ShapeDtypeStruct(per_row, jnp.bool_),
            row_live=jax.ShapeDtypeStruct(per_row, jnp.bool_),
            row_weight=jax.ShapeDtypeStruct(per_row, jnp.float32),
            anchor=jax.ShapeDtypeStruct(per_token, jnp.float32),
        )
        rows = row_sharding(self.mesh, leading=1)
        return _placed(batch, jax.tree.map(lambda _: rows, batch))


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
