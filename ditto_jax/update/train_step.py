"""The sharded update: one jitted, donated function from (state, batch) to (state, metrics).

views and pools → sharded update. Micro-batches run in a scan; gradients are summed in float32 and divided by
denominators counted over the whole batch, so the number of micro-batches and devices changes nothing but rounding.
Under adapters the frozen base is one more argument: not differentiated, not donated, not returned.
Columns of the batch that scoring passes filled (`scoring`) are constants here. No I/O, no host code.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen import logical_axis_rules
from jax.sharding import Mesh

from ditto_jax.objective import Objective
from ditto_jax.types import ViewRole
from ditto_jax.update.batch import TrainBatch
from ditto_jax.update.loss import LossRows, Sums, add_metrics, denominators, objective_loss, zero_metrics
from ditto_jax.update.passes import distilled
from ditto_jax.update.state import TrainState, state_shardings, whole_params
from model.config import ModelConfig
from model.logprobs import grouped_scores
from model.lora import LoraConfig
from model.partition import ACTIVATION_RULES, parameter_shardings, replicated, row_sharding
from model.remat import Remat
from model.token_masks import Allowed


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    """What the compiled update depends on besides shapes.

    temperature: of sampling; log-probs are taken at it everywhere. lora: set if the state's parameters are adapters.
    gradient_dtype: of the sum over micro-batches.
    """

    model: ModelConfig
    objective: Objective
    temperature: float = 1.0
    remat: Remat = "none"
    logprob_chunk: int = 1024
    lora: LoraConfig | None = None
    gradient_dtype: str = "float32"


def _rows(array: jax.Array, per_row: int) -> jax.Array:
    """Merges the group and row axes: [n, S, ...] → [n * S, ...], keeping `per_row` trailing axes."""
    return array.reshape(-1, *array.shape[array.ndim - per_row :]) if per_row else array.reshape(-1)


class ReadRows(NamedTuple):
    """A micro-batch as the current weights read it. lp, entropy: float32[R, T]; student_lp: float32[R, T, K], at the
    teacher's candidates, None without any; rows: the constants of the loss.
    """

    lp: jax.Array
    entropy: jax.Array
    rows: LossRows
    student_lp: jax.Array | None


def allowed_in(micro: TrainBatch, masks: jax.Array | None) -> Allowed | None:
    """Returns what the tokens of a micro-batch were drawn among; masks: int32[K, words] of the step, None for none."""
    if micro.mask is None or masks is None:
        return None
    return Allowed(masks, micro.mask)


def read_rows(trained: Any, base: Any, micro: TrainBatch, masks: jax.Array | None, config: UpdateConfig) -> ReadRows:
    """Returns what the loss is computed from: the forward pass of the update."""
    distils = distilled(config.objective)
    scores = grouped_scores(
        whole_params(trained, base, config.lora),
        config.model,
        micro.grouped,
        temperature=config.temperature,
        remat=config.remat,
        chunk=config.logprob_chunk,
        candidates=None if distils is None or distils.sampled else micro.teacher_ids,
        wanted=micro.loss_mask,
        allowed=allowed_in(micro, masks),
    )
    assert scores.entropy is not None
    lp = _rows(scores.logprob, 1)
    student_lp = None if scores.of_candidates is None else _rows(scores.of_candidates, 2)
    return ReadRows(lp, _rows(scores.entropy, 1), _loss_rows(lp, micro), student_lp)


def batch_denominators(batch: TrainBatch, objective: Objective) -> jax.Array:
    """Returns float32[terms], `loss.denominators` of all micro-batches of an update."""
    return denominators(
        _rows(batch.loss_mask, 1),
        _rows(batch.role, 0),
        _rows(batch.row_valid, 0),
        objective,
        _rows(batch.row_live, 0),
        None if batch.teacher_ok is None else _rows(batch.teacher_ok, 0),
    )


def _loss(
    trained: Any, base: Any, micro: TrainBatch, masks: jax.Array | None, denominator: jax.Array, config: UpdateConfig
):
    """Returns (loss times `_loss_scale`, (sums, gap)); the first argument is what is differentiated."""
    lp, entropy, rows, student_lp = read_rows(trained, base, micro, masks, config)
    loss, sums = objective_loss(lp, rows, config.objective, denominator, student_lp, config.model.vocab_size)
    drafted = rows.loss_mask & (rows.row_valid & ~rows.cross & (rows.role == ViewRole.DRAFT))[:, None]
    gap = {
        **_sampler_gap(lp, _rows(micro.behaviour, 1), rows),
        "entropy_sum": jnp.sum(jnp.where(drafted, entropy, 0.0)),
        "entropy_tokens": jnp.sum(drafted, dtype=jnp.float32),
    }
    return loss * _loss_scale(denominator, config), (sums, jax.lax.stop_gradient(gap))


def _loss_rows(lp: jax.Array, micro: TrainBatch) -> LossRows:
    """The columns of a micro-batch as rows. Without anchors the weights before the update are the current ones; where
    sampling and training context are one, so are their log-probs.
    """
    anchor = jax.lax.stop_gradient(lp) if micro.anchor is None else _rows(micro.anchor, 1)
    cross = _rows(micro.cross, 0)
    return LossRows(
        lp_anchor=anchor,
        loss_mask=_rows(micro.loss_mask, 1),
        weights=_rows(micro.weights, 0),
        role=_rows(micro.role, 0),
        cross=cross,
        row_valid=_rows(micro.row_valid, 0),
        row_live=_rows(micro.row_live, 0),
        row_weight=_rows(micro.row_weight, 0),
        lp_behave=_rows(micro.behaviour, 1),
        lp_sample=None if micro.sample is None else jnp.where(cross[:, None], _rows(micro.sample, 1), anchor),
        lp_ref=None if micro.reference is None else _rows(micro.reference, 1),
        teacher_lp=None if micro.teacher_lp is None else _rows(micro.teacher_lp, 2),
        teacher_ok=None if micro.teacher_ok is None else _rows(micro.teacher_ok, 0),
    )


def _loss_scale(denominator: jax.Array, config: UpdateConfig) -> jax.Array | float:
    """A power of two near the largest denominator where activations are float16, else 1.

    A token's gradient is its weight over thousands of tokens: in float16 most would be zero. Powers of two do not
    round.
    """
    if config.model.compute_dtype != "float16":
        return 1.0
    return jnp.exp2(jnp.floor(jnp.log2(jnp.max(denominator))))


def _sampler_gap(lp: jax.Array, behaviour: jax.Array, rows: LossRows) -> dict[str, jax.Array]:
    """Sums over tokens: sampler minus trainer on rows trained as they were sampled, which measures numerics, and the
    context gap (8.6) on refined rows under x: from the trainer's own numbers where a pass read the sampling context.
    """
    token = rows.loss_mask & rows.row_valid[:, None]
    own = token & (~rows.cross & (rows.role != ViewRole.CRITIQUE))[:, None]
    internalised = token & (rows.cross & (rows.role == ViewRole.REFINED_PLAIN))[:, None]
    sampled = behaviour if rows.lp_sample is None else rows.lp_sample
    difference = jnp.where(own, jnp.abs(behaviour - lp), 0.0)
    return {
        "gap_sum": jnp.sum(difference),
        "gap_max": jnp.max(difference),
        "gap_tokens": jnp.sum(own, dtype=jnp.float32),
        "context_gap_sum": jnp.sum(jnp.where(internalised, sampled - rows.lp_anchor, 0.0)),
        "context_gap_tokens": jnp.sum(internalised, dtype=jnp.float32),
    }


def _add_gap(left: dict[str, jax.Array], right: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {k: jnp.maximum(left[k], right[k]) if k.endswith("_max") else left[k] + right[k] for k in left}


def make_update(
    config: UpdateConfig, optimizer: optax.GradientTransformation, mesh: Mesh, state: TrainState, base: Any = None
):
    """Returns the compiled-on-first-use function (state, batch, masks) → (state, sums, gap, gradient norm).

    The state is donated; its shardings in and out are equal, so that the second step does not recompile. base: the
    frozen parameters where `state.params` are adapters; every call reads it. masks: as in `allowed_in`, may be left
    out. Where activations are float16 an update whose gradient is not finite leaves the state as it was.
    """
    shardings = state_shardings(state, optimizer, mesh)

    def update(state: TrainState, base: Any, batch: TrainBatch, masks: jax.Array | None):
        denominator = batch_denominators(batch, config.objective)
        scale = _loss_scale(denominator, config)

        def add(carry, micro):
            grads, sums, gap = carry
            (_, (more_sums, more_gap)), more = jax.value_and_grad(_loss, has_aux=True)(
                state.params, base, micro, masks, denominator, config
            )
            grads = jax.tree.map(lambda a, b: a + (b.astype(jnp.float32) / scale).astype(a.dtype), grads, more)
            return grads, add_metrics(sums, more_sums), _add_gap(gap, more_gap)

        def accumulate(carry, micro):
            # There are as many micro-batches as the fullest step needs; those of padding alone cost nothing.
            return jax.lax.cond(jnp.any(micro.row_valid), add, lambda carry, _: carry, carry, micro), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, config.gradient_dtype), state.params)
        zeros = jax.lax.with_sharding_constraint(zeros, shardings.params)
        empty_gap = {k: jnp.float32(0) for k in _GAP}
        (grads, sums, gap), _ = jax.lax.scan(accumulate, (zeros, zero_metrics(), empty_gap), batch)
        grads = optax.tree.cast(grads, jnp.float32)
        norm = optax.tree.norm(grads)
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        moved = optax.apply_updates(state.params, changes)
        after = TrainState(moved, opt_state, state.updates + 1, state.average)
        if config.model.compute_dtype == "float16":
            after = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(norm), new, old), after, state)
        return after, sums, gap, norm

    whole = replicated(mesh)
    jitted = jax.jit(
        update,
        in_shardings=(shardings, parameter_shardings(base, mesh), row_sharding(mesh, leading=1), whole),
        out_shardings=(shardings, whole, whole, whole),
        donate_argnums=0,
    )
    placed = on_mesh(jitted, mesh)

    def call(state: TrainState, batch: TrainBatch, masks: np.ndarray | None = None):
        return placed(state, base, batch, masks)

    call.lower = lambda state, batch: placed.lower(state, base, batch, None)
    return call


_GAP = (
    "gap_sum",
    "gap_max",
    "gap_tokens",
    "context_gap_sum",
    "context_gap_tokens",
    "entropy_sum",
    "entropy_tokens",
)


def make_gradient(config: UpdateConfig, mesh: Mesh, base: Any = None):
    """Returns the function (trained parameters, micro-batch, denominators, masks or nothing) → (loss, gradients): what
    tests compare.
    """

    def gradient(trained, micro, denominator, masks=None):
        (loss, _), grads = jax.value_and_grad(_loss, has_aux=True)(trained, base, micro, masks, denominator, config)
        scale = _loss_scale(denominator, config)
        return loss / scale, jax.tree.map(lambda g: g / scale, grads)

    return on_mesh(jax.jit(gradient), mesh)


def on_mesh(function, mesh: Mesh):
    """Returns the compiled function, traced and run under the mesh and the names of its axes."""

    def call(*args):
        with jax.set_mesh(mesh), logical_axis_rules(ACTIVATION_RULES):
            return function(*args)

    if hasattr(function, "lower"):
        call.lower = on_mesh(function.lower, mesh)
    return call


def finish_gap(gap: dict[str, Any]) -> dict[str, float]:
    """Returns sampler and context gaps, and the policy's entropy on its drafts, as metrics; nats per token."""
    host = {k: float(v) for k, v in gap.items()}
    return {
        "policy/sampler_logprob_gap_mean": host["gap_sum"] / max(1.0, host["gap_tokens"]),
        "policy/sampler_logprob_gap_max": host["gap_max"],
        "policy/context_gap_mean": host["context_gap_sum"] / max(1.0, host["context_gap_tokens"]),
        "entropy": host["entropy_sum"] / max(1.0, host["entropy_tokens"]),
    }


__all__ = [
    "ReadRows",
    "Sums",
    "UpdateConfig",
    "allowed_in",
    "batch_denominators",
    "finish_gap",
    "make_gradient",
    "make_update",
    "on_mesh",
    "read_rows",
]
