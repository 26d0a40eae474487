"""What the loss tells about itself: sums by role that micro-batches add up, and the metrics made of them.

token losses and masks of one term → **sums over tokens and rows, by role** → metrics of the step

`role_sums` is jax inside the update and carries no gradient, `finish_metrics` runs on the host. A token counts once
for every term that trains it. What a term did not ask for is absent, not 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ditto_jax.objective import Term
from ditto_jax.types import ViewRole
from ditto_jax.update.loss_rows import LossRows
from ditto_jax.update.multipliers import FILTERS, Multipliers
from ditto_jax.update.token_losses import TokenLosses

Sums = dict[str, jax.Array]
OPENING = 3  # tokens: where echoes of a hint and errors of alignment show

_SUMS = (
    "trained_max",
    "loss",
    "rows",
    "rows_live",
    "teacher_asked",
    "teacher_missing",
    "tokens",
    "tokens_kept",
    "ratio",
    "log_ratio",
    "log_ratio_abs_max",
    "clip_tokens",
    "clip_low",
    "clip_high",
    "clip_dual",
    "mismatch_tokens",
    "mismatch_weight",
    "mismatch_removed",
    "cross_tokens",
    "cross_weight",
    "kl_tokens",
    "kl",
    "kl_abs",
    "kl_abs_opening",
    "teacher_excess",
    "teacher_excess_max",
    "kl_ref_tokens",
    "kl_ref",
    "negative_cross_nll_max",
    *(f"{name}_asked" for name in FILTERS),
    *FILTERS,
)


class TermTokens(NamedTuple):
    """One term on one micro-batch. mask: bool[R, T], its tokens before filters. removed: bool[R, T] by filter.
    kept: bool[R, T], what all filters left. weighted: float[R, T], their losses times their weights, 0 elsewhere.
    row_losses: float[R], what each row adds to the loss. without_teacher: bool[R], rows that the term would train if a
    teacher had read them; None for a term without a teacher.
    """

    mask: jax.Array
    kept: jax.Array
    removed: Mapping[str, jax.Array]
    tokens: TokenLosses
    multipliers: Multipliers
    weighted: jax.Array
    row_losses: jax.Array
    without_teacher: jax.Array | None


def role_sums(lp: jax.Array, rows: LossRows, term: Term, found: TermTokens) -> Sums:
    """Returns float32[roles] by name, of one term on one micro-batch, without gradient."""
    kept = found.kept
    log_ratio = jnp.where(kept, lp - rows.lp_anchor.astype(lp.dtype), 0.0)
    live = rows.row_valid if rows.row_live is None else rows.row_live
    per_row = {
        "loss": found.row_losses,
        "rows": jnp.any(found.mask, axis=1),
        "rows_live": jnp.any(found.mask, axis=1) & live,
        "tokens": _per_row(found.mask),
        "tokens_kept": _per_row(kept),
        "ratio": _per_row(kept, found.tokens.ratio),
        "log_ratio": _per_row(kept, log_ratio),
        "log_ratio_abs_max": jnp.max(jnp.abs(log_ratio), axis=1, initial=0.0),
    }
    per_row |= _limits(kept, found) | _weights(rows, kept, found) | _divergences(rows, kept, found)
    for name, removed in found.removed.items():
        per_row |= {f"{name}_asked": _per_row(found.mask), name: _per_row(found.mask & removed)}
    if found.without_teacher is not None:
        valid_rows = jnp.any(found.mask, axis=1) | found.without_teacher
        per_row |= {"teacher_asked": valid_rows, "teacher_missing": found.without_teacher}
    if term.uses_rewards:
        negative_cross = found.mask & (rows.cross & (rows.weights < 0.0))[:, None]
        per_row["negative_cross_nll_max"] = jnp.max(jnp.where(negative_cross, -lp, 0.0), axis=1, initial=0.0)
    stacked = jnp.stack([values.astype(jnp.float32) for values in per_row.values()])[:, None, :]
    is_role = (rows.role[None, :] == jnp.arange(len(ViewRole), dtype=rows.role.dtype)[:, None])[None]
    by_role = jnp.where(is_role, stacked, 0.0)  # [sums, roles, R]
    added, largest = jnp.sum(by_role, axis=2), jnp.max(by_role, axis=2, initial=0.0)
    sums = {name: (largest if name.endswith("_max") else added)[i] for i, name in enumerate(per_row)}
    sums["trained_max"] = jnp.asarray(np.isin(list(ViewRole), term.roles), jnp.float32)
    return jax.lax.stop_gradient({**zero_metrics(), **sums})


def _per_row(mask: jax.Array, values: jax.Array | float = 1.0) -> jax.Array:
    """float[R]: sum of the values at the tokens of `mask`."""
    return jnp.sum(jnp.where(mask, values, 0.0), axis=1)


def _limits(kept: jax.Array, found: TermTokens) -> dict[str, jax.Array]:
    clips = found.tokens.clips
    if clips is None:
        return {}
    return {
        "clip_tokens": _per_row(kept),
        "clip_low": _per_row(kept & clips.low),
        "clip_high": _per_row(kept & clips.high),
        "clip_dual": _per_row(kept & clips.dual),
    }


def _weights(rows: LossRows, kept: jax.Array, found: TermTokens) -> dict[str, jax.Array]:
    sums: dict[str, jax.Array] = {}
    mismatch, cross = found.multipliers.mismatch, found.multipliers.cross
    if mismatch is not None:
        sums |= {
            "mismatch_tokens": _per_row(kept),
            "mismatch_weight": _per_row(kept, mismatch),
            "mismatch_removed": _per_row(kept & (mismatch == 0.0)),
        }
    if cross is not None:
        weighted = kept & rows.cross[:, None]
        sums |= {"cross_tokens": _per_row(weighted), "cross_weight": _per_row(weighted, cross)}
    return sums


def _divergences(rows: LossRows, kept: jax.Array, found: TermTokens) -> dict[str, jax.Array]:
    sums: dict[str, jax.Array] = {}
    teacher, reference = found.tokens.teacher, found.tokens.reference
    if teacher is not None:
        size = jnp.abs(teacher.value)
        sums |= {
            "kl_tokens": _per_row(kept),
            "kl": _per_row(kept, teacher.value),
            "kl_abs": _per_row(kept, size),
            "kl_abs_opening": _per_row(kept & _opens_turn(rows.loss_mask), size),
            "teacher_excess": _per_row(kept, teacher.excess),
            "teacher_excess_max": jnp.max(jnp.where(kept, teacher.excess_max, 0.0), axis=1, initial=0.0),
        }
    if reference is not None:
        sums |= {"kl_ref_tokens": _per_row(kept), "kl_ref": _per_row(kept, reference)}
    return sums


def _opens_turn(loss_mask: jax.Array) -> jax.Array:
    """bool[R, T]: the first `OPENING` tokens of every stretch that the policy sampled."""
    position = jnp.broadcast_to(jnp.arange(loss_mask.shape[1], dtype=jnp.int32)[None], loss_mask.shape)
    last_other = jax.lax.cummax(jnp.where(loss_mask, -1, position), axis=1)
    return loss_mask & (position - last_other <= OPENING)


def zero_metrics() -> Sums:
    """Returns the sums of no row, the identity of `add_metrics`: float32[roles] by name."""
    return {name: jnp.zeros(len(ViewRole), dtype=jnp.float32) for name in _SUMS}


def add_metrics(left: Sums, right: Sums) -> Sums:
    """Returns the sums of two micro-batches together: entries named `..._max` by maximum, all others by addition."""
    return {
        name: jnp.maximum(left[name], right[name]) if name.endswith("_max") else left[name] + right[name]
        for name in _SUMS
    }


def finish_metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """Returns means, fractions, counts and maxima by `policy/what_role_unit`, on the host.

    A role that a term trains but that has no row says so with `rows_..._count` 0 and nothing else; one that no term
    trains is absent. Ratios, limits, weights and divergences are over the tokens that filters left.
    """
    host = {name: np.asarray(value, dtype=np.float64) for name, value in sums.items()}
    metrics: dict[str, float] = {}
    for role in ViewRole:
        of_role = {name: float(values[role]) for name, values in host.items()}
        if of_role["trained_max"]:
            metrics |= {f"policy/{name}": value for name, value in _of_role(of_role, role.name.lower()).items()}
    return metrics


def _of_role(sums: dict[str, float], role: str) -> dict[str, float]:
    def mean(name: str, over: str) -> float:
        return sums[name] / max(sums[over], 1.0)

    found = {f"rows_{role}_count": sums["rows"]}
    if sums["teacher_asked"]:
        found[f"rows_without_teacher_{role}_count"] = sums["teacher_missing"]
    if not sums["tokens"]:
        return found
    found |= {
        f"loss_{role}": sums["loss"],
        f"rows_live_{role}_count": sums["rows_live"],
        f"tokens_{role}_count": sums["tokens"],
        f"ratio_{role}_mean": mean("ratio", "tokens_kept"),
        f"log_ratio_{role}_mean": mean("log_ratio", "tokens_kept"),
        f"log_ratio_abs_{role}_max": sums["log_ratio_abs_max"],
        f"negative_cross_nll_{role}_max": sums["negative_cross_nll_max"],
    }
    found |= {f"{name}_tokens_{role}_count": sums[name] for name in FILTERS if sums[f"{name}_asked"]}
    if sums["clip_tokens"]:
        found |= {f"{n}_{role}_fraction": mean(n, "clip_tokens") for n in ("clip_low", "clip_high", "clip_dual")}
    if sums["mismatch_tokens"]:
        found[f"mismatch_weight_{role}_mean"] = mean("mismatch_weight", "mismatch_tokens")
        found[f"mismatch_removed_tokens_{role}_count"] = sums["mismatch_removed"]
    if sums["cross_tokens"]:
        found[f"cross_weight_{role}_mean"] = mean("cross_weight", "cross_tokens")
    if sums["kl_tokens"]:
        found |= {
            f"kl_{role}_mean": mean("kl", "kl_tokens"),
            f"teacher_excess_{role}_mean": mean("teacher_excess", "kl_tokens"),
            f"teacher_excess_{role}_max": sums["teacher_excess_max"],
            f"kl_opening_{role}_fraction": sums["kl_abs_opening"] / sums["kl_abs"] if sums["kl_abs"] else 0.0,
        }
    if sums["kl_ref_tokens"]:
        found[f"kl_ref_{role}_mean"] = mean("kl_ref", "kl_ref_tokens")
    return found
