"""The loss: golden numbers, gradients that stop where they must, masks that do not leak, metrics that are true."""

from __future__ import annotations

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.objective import OBJECTIVES, PgClip, Reinforce, TokenLoss
from ditto_jax.update.loss import add_metrics, finish_metrics, objective_loss, zero_metrics
from ditto_jax.update.token_losses import TokenInputs, token_losses
from tests.loss_rows import (
    ANCHOR,
    DRAFT,
    HINTED,
    MASK,
    NOW,
    PLAIN,
    counts,
    drafts_only,
    evaluate,
    make_rows,
    random_rows,
    strict_arrays,
    sums_of,
)

GRPO, DITTO = OBJECTIVES["grpo"], OBJECTIVES["ditto"]
CLIPPED = np.array([[-1.25, -0.8, -0.8], [1.0, 0.4, 0.0]])
GRADIENT = np.array([[-1.25, -0.8, -0.8], [1.0, 0.0, 0.0]])


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    with strict_arrays():
        yield


# Golden numbers


def test_clipped_token_losses_match_the_golden_numbers():
    weights = jnp.asarray([[1.0] * 3, [-0.5] * 3], jnp.float32)
    tokens = token_losses(TokenInputs(jnp.asarray(NOW), jnp.asarray(ANCHOR), weights, jnp.asarray(MASK)), PgClip())
    np.testing.assert_allclose(np.where(MASK, tokens.loss, 0.0), CLIPPED, atol=1e-6)
    np.testing.assert_allclose(tokens.ratio, [[1.25, 0.8, 0.8], [2, 0.625, 1]], rtol=1e-5)


def test_clipped_gradients_match_the_golden_numbers():
    _, gradient = evaluate(NOW, make_rows(), drafts_only(PgClip(), aggregation="token_mean"))
    np.testing.assert_allclose(gradient * 5, GRADIENT, atol=1e-5)
    assert float(gradient[1, 1]) == 0.0


def test_unclipped_gradients_miss_the_golden_numbers():
    """Broken twin: leaving the clip out is seen."""
    _, gradient = evaluate(NOW, make_rows(), drafts_only(PgClip(epsilon=np.inf, epsilon_high=np.inf)))
    np.testing.assert_allclose(gradient[1, 1] * 5, 0.3125, rtol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(gradient * 5, GRADIENT, atol=1e-5)


@pytest.mark.parametrize(
    ("aggregation", "length", "value"),
    [("token_mean", None, -0.29), ("seq_mean", None, -0.125), ("seq_const", 4, -0.18125), ("seq_sum", None, -0.725)],
)
def test_aggregations_match_the_golden_numbers(aggregation, length, value):
    objective = drafts_only(PgClip(), aggregation=aggregation, response_length=length)
    loss, _ = evaluate(NOW, make_rows(), objective)
    assert float(loss) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("dual_clip", "value", "slope"), [(3.0, 1.5, 0.0), (None, 2.0, 2.0)])
def test_dual_clip_matches_the_golden_numbers(dual_clip, value, slope):
    rows = make_rows(np.log([[0.2]]), [[True]], [-0.5])
    objective = drafts_only(PgClip(dual_clip=dual_clip))
    loss, gradient = evaluate(np.log([[0.8]]), rows, objective)
    assert float(loss) == pytest.approx(value, rel=1e-5)
    assert float(gradient[0, 0]) == pytest.approx(slope, rel=1e-5)
    assert float(sums_of(np.log([[0.8]]), rows, objective)["clip_dual"][DRAFT]) == (dual_clip is not None)


def test_reinforce_matches_the_golden_numbers():
    loss, gradient = evaluate(NOW, make_rows(), drafts_only(Reinforce()))
    assert float(loss) == pytest.approx(0.362434, abs=1e-6)
    np.testing.assert_allclose(gradient * 5, [[-1, -1, -1], [0.5, 0.5, 0]], atol=1e-6)


# Ratios and gradients


def test_all_kinds_have_the_same_gradient_at_the_anchor():
    _, rows = random_rows(0)
    gradients = []
    for kind in (PgClip(), PgClip(dual_clip=3.0), Reinforce()):
        terms = tuple(dataclasses.replace(term, loss=kind) for term in DITTO.terms)
        gradients.append(evaluate(rows.lp_anchor, rows, dataclasses.replace(DITTO, terms=terms))[1])
    np.testing.assert_array_equal(gradients[0], gradients[1])
    np.testing.assert_array_equal(gradients[0], gradients[2])
    lp, rows = random_rows(0)  # broken twin: away from the anchor they differ
    terms = tuple(dataclasses.replace(term, loss=Reinforce()) for term in DITTO.terms)
    apart = [evaluate(lp, rows, objective)[1] for objective in (DITTO, dataclasses.replace(DITTO, terms=terms))]
    assert np.abs(apart[0] - apart[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "aggregation"),
    [(PgClip(), "token_mean"), (PgClip(dual_clip=1.5), "seq_mean"), (Reinforce(), "token_mean")],
)
def test_gradient_equals_finite_differences(kind, aggregation):
    terms = tuple(
        dataclasses.replace(term, loss=kind, coef=coef) for term, coef in zip(DITTO.terms, (1, 0.5), strict=True)
    )
    objective = dataclasses.replace(DITTO, terms=terms, aggregation=aggregation)
    with jax.enable_x64(True):
        lp, rows = random_rows(1)
        lp = jnp.asarray(lp, jnp.float64)

        def value(x):
            return objective_loss(x, rows, objective, counts(rows, objective))[0]

        gradient = np.asarray(jax.jit(jax.grad(value))(lp))
        step = 1e-6
        directions = jnp.eye(lp.size, dtype=jnp.float64).reshape(-1, *lp.shape) * step
        slopes = jax.jit(jax.vmap(lambda d: (value(lp + d) - value(lp - d)) / (2 * step)))(directions)
    np.testing.assert_allclose(np.asarray(slopes).reshape(lp.shape), gradient, atol=1e-8)
    assert np.abs(gradient).max() > 1e-3
    with pytest.raises(AssertionError):  # broken twin: a gradient that forgets the weights' signs
        np.testing.assert_allclose(np.asarray(slopes).reshape(lp.shape), -gradient, atol=1e-8)


def test_nothing_flows_into_anchor_or_weights():
    lp, rows = random_rows(2)

    def value(anchor, weights):
        given_rows = rows._replace(lp_anchor=anchor, weights=weights)
        return objective_loss(jnp.asarray(lp), given_rows, DITTO, counts(rows, DITTO))[0]

    anchor_gradient, weight_gradient = jax.grad(value, argnums=(0, 1))(rows.lp_anchor, rows.weights)
    assert not np.any(anchor_gradient)
    assert not np.any(weight_gradient)

    def tokens(anchor, weights):
        return token_losses(TokenInputs(jnp.asarray(lp), anchor, weights, rows.loss_mask), PgClip()).loss.sum()

    for gradient in jax.grad(tokens, argnums=(0, 1))(rows.lp_anchor, jnp.full(lp.shape, 0.5, jnp.float32)):
        assert not np.any(gradient)


def test_metrics_carry_no_gradient():
    lp, rows = random_rows(2)

    def total(x):
        return sum(jnp.sum(value) for value in objective_loss(x, rows, DITTO, counts(rows, DITTO))[1].values())

    assert not np.any(jax.grad(total)(jnp.asarray(lp)))


def test_huge_log_ratios_stay_finite():
    rows = make_rows([[-1.0, -500.0]], [[True, True]], [-1.0])
    loss, gradient = evaluate([[-500.0, -1.0]], rows, drafts_only(PgClip(epsilon=np.inf)))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert float(loss) == pytest.approx(np.exp(20.0) / 2, rel=1e-5)


def test_equal_rewards_have_a_gradient_of_exactly_zero():
    lp, rows = random_rows(3)
    _, gradient = evaluate(lp, rows._replace(weights=jnp.zeros_like(rows.weights)), DITTO)
    assert np.array_equal(gradient, np.zeros_like(lp))


# Masks


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e38])
def test_masked_positions_and_invalid_rows_change_neither_value_nor_gradient(garbage):
    lp, rows = random_rows(4)
    live = np.asarray(rows.loss_mask & rows.row_valid[:, None])
    invalid = ~np.asarray(rows.row_valid)
    spoiled = rows._replace(
        lp_anchor=jnp.where(live, rows.lp_anchor, garbage),
        weights=jnp.where(invalid, garbage, rows.weights),
        role=jnp.where(invalid, 77, rows.role),
    )
    for now in (lp, np.where(live, lp, garbage)):
        loss, gradient = evaluate(lp, rows, DITTO)
        spoiled_loss, spoiled_gradient = evaluate(now, spoiled, DITTO)
        assert float(spoiled_loss) == float(loss)
        np.testing.assert_array_equal(spoiled_gradient, gradient)
        assert not np.any(np.asarray(gradient)[~live])
        assert finish_metrics(sums_of(now, spoiled, DITTO)) == finish_metrics(sums_of(lp, rows, DITTO))


def test_multiplying_by_the_mask_would_let_garbage_through():
    """Broken twin: 0 x inf, in the value or in the gradient of a select after the arithmetic."""

    def late_select(lp):
        return jnp.sum(jnp.where(MASK, -jnp.exp(lp - ANCHOR), 0.0))

    spoiled = jnp.where(MASK, jnp.asarray(NOW), np.inf)
    assert np.isfinite(late_select(spoiled))
    assert not np.isfinite(jax.grad(late_select)(spoiled)).all()
    assert np.isfinite(evaluate(spoiled, make_rows(), GRPO)[1]).all()


def test_neg_floor_removes_unlikely_negative_cross_tokens_alone():
    anchor = np.array([[-9.0, -7.0]] * 4, np.float32)
    roles, cross = [DRAFT, PLAIN, PLAIN, PLAIN], [False, True, True, False]
    rows = make_rows(anchor, np.ones((4, 2), bool), [-1.0, -1.0, 1.0, -1.0], role=roles, cross=cross)
    loss, gradient = evaluate(anchor, rows, DITTO)
    expected = np.array([[1, 1], [0, 1], [-1, -1], [1, 1]]) / 8  # removed tokens stay in the denominator
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    assert float(loss) == pytest.approx(expected.sum())
    assert float(sums_of(anchor, rows, DITTO)["neg_floor"][PLAIN]) == 1.0
    free = tuple(dataclasses.replace(term, neg_floor=None) for term in DITTO.terms)
    unbounded = dataclasses.replace(DITTO, terms=free)
    _, unfloored = evaluate(anchor, rows, unbounded)
    assert float(unfloored[1, 0]) == pytest.approx(1 / 8)
    assert float(sums_of(anchor, rows, unbounded)["neg_floor"][PLAIN]) == 0.0


# Metrics and arguments


def test_metrics_are_worked_out_by_role():
    metrics = finish_metrics(sums_of(NOW, make_rows(role=[DRAFT, HINTED]), DITTO))
    assert metrics["policy/tokens_draft_count"] == 3.0
    assert metrics["policy/tokens_refined_fb_count"] == 2.0
    assert metrics["policy/ratio_draft_mean"] == pytest.approx((1.25 + 0.8 + 0.8) / 3, rel=1e-5)
    assert metrics["policy/log_ratio_draft_mean"] == pytest.approx(np.log([1.25, 0.8, 0.8]).mean(), rel=1e-5)
    assert metrics["policy/log_ratio_abs_refined_fb_max"] == pytest.approx(np.log(2), rel=1e-5)
    assert metrics["policy/clip_low_refined_fb_fraction"] == 0.5
    assert metrics["policy/clip_high_draft_fraction"] == 0.0
    assert metrics["policy/loss_draft"] == pytest.approx(-2.85 / 5, rel=1e-5)
    assert metrics["policy/loss_refined_fb"] == pytest.approx(1.4 / 5, rel=1e-5)
    of_plain = {name: value for name, value in metrics.items() if "refined_plain" in name}
    assert of_plain == {"policy/rows_refined_plain_count": 0.0}  # a term trains that role, and has nothing to train


def test_high_clips_are_counted():
    rows = make_rows(np.log([[0.4, 0.4]]), [[True, True]], [1.0])
    metrics = finish_metrics(sums_of(np.log([[0.6, 0.5]]), rows, GRPO))
    assert metrics["policy/clip_high_draft_fraction"] == 0.5
    assert metrics["policy/clip_low_draft_fraction"] == 0.0


def test_the_divergence_alarm_is_the_least_likely_negative_cross_token():
    anchor = np.array([[-9.5, -2.0], [-30.0, -1.0], [-40.0, -1.0]], np.float32)
    rows = make_rows(
        anchor, np.ones((3, 2), bool), [-1.0, 1.0, -1.0], role=[PLAIN, PLAIN, DRAFT], cross=[True, True, False]
    )
    metrics = finish_metrics(sums_of(anchor, rows, DITTO))
    assert metrics["policy/negative_cross_nll_refined_plain_max"] == pytest.approx(9.5)
    assert metrics["policy/negative_cross_nll_draft_max"] == 0.0


def test_zero_metrics_are_the_identity():
    lp, rows = random_rows(13)
    sums = sums_of(lp, rows, DITTO)
    assert set(zero_metrics()) == set(sums)
    for name, value in add_metrics(zero_metrics(), sums).items():
        np.testing.assert_array_equal(value, sums[name])


def test_wrong_dtypes_and_shapes_are_refused():
    rows = make_rows()
    with pytest.raises(ValueError, match="bfloat16"):
        objective_loss(jnp.asarray(NOW, jnp.bfloat16), rows, GRPO, counts(rows, GRPO))
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\), got \(2, 1\)"):
        objective_loss(jnp.asarray(NOW), rows._replace(weights=rows.weights[:, None]), GRPO, counts(rows, GRPO))


def test_every_kind_of_term_has_a_token_loss():
    inputs = TokenInputs(jnp.asarray(NOW), jnp.asarray(ANCHOR), jnp.ones(NOW.shape, jnp.float32), jnp.asarray(MASK))
    one = jnp.full((*NOW.shape, 1), -1.0, jnp.float32)
    inputs = inputs._replace(lp_ref=jnp.asarray(ANCHOR), teacher_lp=one, student_lp=one)
    for kind in get_args(TokenLoss):
        assert token_losses(inputs, kind()).loss.shape == NOW.shape
