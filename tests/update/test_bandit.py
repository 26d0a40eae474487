"""A six-answer bandit tells the objectives apart: where drafts never succeed, only a re-scored anchor learns.

Mean of 5 seeds. Plain policy: logits 0 but for the good answer at -6; rewards .3, .2, .1, .1, 0 and 1 (good).
Hinted policy: fixed, logits 0 but for the good answer at +2. G = 8 drafts and 8 refinements a step, 400 steps, two
updates a step, plain gradient descent at rate 0.3, clip 0.2 / 0.28. The true weight is the term's own, `cross_is`, its
cap beyond reach.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.objective import OBJECTIVES, Objective
from ditto_jax.types import ViewRole
from ditto_jax.update.advantages import RowTable, assign
from ditto_jax.update.loss import LossRows, denominators, objective_loss

SEEDS, G, STEPS, UPDATES, RATE = 5, 8, 400, 2, 0.3
REWARDS = np.array([0.3, 0.2, 0.1, 0.1, 0.0, 1.0], np.float32)
PLAIN = np.array([0, 0, 0, 0, 0, -6], np.float32)
HINTED_LP = np.asarray(jax.nn.log_softmax(jnp.array([0, 0, 0, 0, 0, 2], jnp.float32)), np.float64)

GRPO, FLOORED = OBJECTIVES["grpo"], OBJECTIVES["ditto_no_fb"]


def _with_terms(**changes) -> Objective:
    """Returns the objective without L_fb, other fields of its terms changed."""
    return dataclasses.replace(FLOORED, terms=tuple(dataclasses.replace(term, **changes) for term in FLOORED.terms))


FREE = _with_terms(neg_floor=None)
TRUE_WEIGHT = _with_terms(neg_floor=None, cross_is="token", cross_cap=1e6)


def _row_table(objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """Returns (role, seed) of every row: each seed is a prompt of its own with G rows a view."""
    role = np.tile(np.repeat(objective.views, G), SEEDS).astype(np.int32)
    return role, np.repeat(np.arange(SEEDS), G * len(objective.views))


def _make_update(objective: Objective, role: np.ndarray, seed: np.ndarray):
    @jax.jit
    def update(logits, answers, weights, lp_sample):
        def log_probs(logits):
            return jax.nn.log_softmax(logits, axis=1)[seed, answers][:, None]

        rows = LossRows(
            lp_anchor=log_probs(logits),
            loss_mask=jnp.ones((len(role), 1), bool),
            weights=weights,
            role=jnp.asarray(role),
            cross=jnp.asarray(role == ViewRole.REFINED_PLAIN),
            row_valid=jnp.ones(len(role), bool),
            lp_sample=lp_sample[:, None],
        )
        counts = denominators(rows.loss_mask, rows.role, rows.row_valid, objective)
        for _ in range(UPDATES):
            gradient = jax.grad(lambda x: objective_loss(log_probs(x), rows, objective, counts)[0])(logits)
            logits = logits - RATE * SEEDS * gradient  # the loss is a mean over seeds, which share no parameter
        return logits

    return update


def train(objective: Objective) -> tuple[float, float]:
    """Returns (mean final reward of the plain policy, its smallest log-probability)."""
    rng = np.random.default_rng(0)
    role, seed = _row_table(objective)
    is_refined = role == ViewRole.REFINED_PLAIN
    update = _make_update(objective, role, seed)
    logits = jnp.tile(PLAIN, (SEEDS, 1))
    yes = np.ones(len(role), bool)
    for _ in range(STEPS):
        plain_lp = np.asarray(jax.nn.log_softmax(logits, axis=1), np.float64)
        sampling_lp = np.where(is_refined[:, None], HINTED_LP, plain_lp[seed])
        answers = np.argmax(sampling_lp + rng.gumbel(size=sampling_lp.shape), axis=1)
        rows = RowTable(role, seed, np.arange(len(role)), REWARDS[answers], yes, yes, ~yes)
        lp_sample = sampling_lp[np.arange(len(role)), answers].astype(np.float32)
        logits = update(logits, answers, assign(rows, objective).weights, lp_sample)
    final = np.asarray(jax.nn.log_softmax(logits, axis=1))
    return float((np.exp(final) @ REWARDS).mean()), float(final.min())


def test_drafts_alone_do_not_find_the_good_answer():
    assert train(GRPO)[0] < 0.35


@pytest.mark.parametrize("objective", [FREE, FLOORED], ids=["free", "floored"])
def test_refinements_under_the_plain_prompt_with_a_re_scored_anchor_do(objective):
    assert train(objective)[0] > 0.95


def test_the_true_cross_context_weight_takes_the_feedback_signal_away():
    assert train(TRUE_WEIGHT)[0] < 0.35


def test_the_floor_keeps_unlikely_answers_from_sinking_without_end():
    assert train(FLOORED)[1] > -12.0
    assert train(FREE)[1] < -40.0  # broken twin: without it they do
