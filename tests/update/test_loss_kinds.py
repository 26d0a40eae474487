"""Every kind of term: its golden numbers, its gradient against finite differences, and what it must not depend on."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.objective import Cispo, Kl, KlRef, Nll, PgClip, Reinforce, Shaped
from ditto_jax.update.loss import add_metrics, finish_metrics, objective_loss
from tests.loss_rows import (
    ANCHOR,
    DRAFT,
    EVERYTHING,
    MASK,
    NOW,
    counts,
    drafts_only,
    evaluate,
    evaluate_both,
    full_rows,
    make_rows,
    strict_arrays,
    sums_of,
    take,
)


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    with strict_arrays():
        yield


# Golden numbers


def test_sequence_ratios_match_the_golden_numbers():
    objective = drafts_only(PgClip(3e-4, 4e-4, ratio="seq"), aggregation="seq_mean")
    loss, gradient = evaluate(NOW, make_rows(), objective)
    assert float(loss) == pytest.approx(-0.184650, abs=1e-6)
    # d(-s A) / d lp = -s A / |y| at each token; neither row is clipped.
    np.testing.assert_allclose(gradient[0] * 2, -0.928318 / 3, atol=1e-6)
    np.testing.assert_allclose(gradient[1, :2] * 2, 0.559017 / 2, atol=1e-6)
    metrics = finish_metrics(sums_of(NOW, make_rows(), objective))
    assert metrics["policy/ratio_draft_mean"] == pytest.approx((3 * 0.928318 + 2 * 1.118034) / 5, rel=1e-5)


def test_a_clipped_sequence_has_no_gradient():
    rows = make_rows(weights=[-1.0, 0.5])  # ratios .93 with A < 0 and 1.12 with A > 0: both beyond their limit
    loss, gradient = evaluate(NOW, rows, drafts_only(PgClip(3e-4, 4e-4, ratio="seq"), aggregation="seq_mean"))
    assert float(loss) == pytest.approx((1 - 3e-4 - 0.5 * (1 + 4e-4)) / 2, abs=1e-6)
    assert not np.any(gradient)


def test_sequence_ratios_per_token_have_the_same_gradient():
    gradients = [
        evaluate(NOW, make_rows(), drafts_only(PgClip(3e-4, 4e-4, ratio=ratio), aggregation="seq_mean"))[1]
        for ratio in ("seq", "seq_token", "token")
    ]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-6)
    assert np.abs(gradients[0] - gradients[2]).max() > 1e-2  # broken twin: token ratios differ


def test_cispo_matches_the_golden_numbers():
    objective = drafts_only(Cispo(epsilon=1.0, epsilon_high=0.28))
    loss, gradient = evaluate(NOW, make_rows(), objective)
    assert float(loss) == pytest.approx(0.368106, abs=1e-6)
    np.testing.assert_allclose(gradient * 5, [[-1.25, -0.8, -0.8], [0.64, 0.3125, 0]], atol=1e-6)
    assert finish_metrics(sums_of(NOW, make_rows(), objective))["policy/clip_high_draft_fraction"] == pytest.approx(0.2)


def test_shaped_matches_the_golden_numbers():
    loss, gradient = evaluate(NOW, make_rows(), drafts_only(Shaped(0.1)))
    assert float(loss) == pytest.approx(-0.324286, abs=1e-6)
    expected = [[-0.138889, -0.222222, -0.16], [0.061224, 0.125, 0]]
    np.testing.assert_allclose(gradient * 5, expected, atol=1e-6)


def test_shaped_of_the_ratio_starts_at_one_over_one_plus_gamma():
    loss, gradient = evaluate(ANCHOR, make_rows(), drafts_only(Shaped(1.0, of="rho")))
    assert float(loss) == pytest.approx(-(3 - 1) / 2 / 5, rel=1e-6)
    np.testing.assert_allclose(gradient[0] * 5, -0.25, rtol=1e-6)  # rho gamma / (rho + gamma)^2


def test_nll_is_the_mean_surprise_whatever_the_weights_are():
    loss, gradient = evaluate(NOW, make_rows(weights=[7.0, np.nan]), drafts_only(Nll()))
    assert float(loss) == pytest.approx(-NOW[MASK].mean(), rel=1e-6)
    np.testing.assert_allclose(gradient * 5, np.where(MASK, -1.0, 0.0), atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        ("k2", lambda u: u * u / 2, lambda u: -u),
        ("k3", lambda u: np.exp(u) - u - 1, lambda u: 1 - np.exp(u)),
    ],
)
def test_penalties_for_leaving_the_initial_policy_are_what_they_say(estimator, value, slope):
    u = (ANCHOR - NOW)[MASK].astype(np.float64)
    rows = make_rows()._replace(lp_ref=jnp.asarray(ANCHOR))
    loss, gradient = evaluate(NOW, rows, drafts_only(KlRef(estimator)))
    assert float(loss) == pytest.approx(value(u).mean(), abs=1e-6)
    np.testing.assert_allclose(np.asarray(gradient)[MASK] * 5, slope(u), rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_which_divergence_a_sampled_penalty_differentiates(estimator):
    """The gradient averaged over sampled tokens: k2, and with the ratio k1 and k3, that of KL(pi || ref); k3 without it
    that of the other direction.
    """
    logits, old = jnp.array([0.3, -0.4, 0.9, 0.0], jnp.float32), jnp.array([0.1, 0.2, 0.5, -0.3], jnp.float32)
    ref = jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.5, 0.4], jnp.float32))

    def averaged(sampled_from, with_ratio):
        def value(x):
            lp = jax.nn.log_softmax(x)[:, None]
            anchor = jax.nn.log_softmax(sampled_from)[:, None]
            rows = make_rows(anchor, np.ones((4, 1)), np.zeros(4))._replace(lp_ref=ref[:, None])
            # Each token weighed by the probability that it was sampled with.
            rows = rows._replace(row_weight=jnp.exp(anchor[:, 0]))
            objective = drafts_only(KlRef(estimator, with_ratio=with_ratio), aggregation="seq_sum")
            return objective_loss(lp, rows, objective, jnp.ones(1, jnp.float32))[0]

        return jax.grad(value)(logits)

    def kl(p, q):
        return jnp.sum(jnp.exp(p) * (p - q))

    reverse = jax.grad(lambda x: kl(jax.nn.log_softmax(x), ref))(logits)
    forward = jax.grad(lambda x: kl(ref, jax.nn.log_softmax(x)))(logits)
    if estimator != "k1":  # without its ratio that has no gradient on average
        expected = {"k2": reverse, "k3": forward}[estimator]
        np.testing.assert_allclose(averaged(logits, with_ratio=False), expected, atol=1e-6)
    if estimator != "k2":  # with a ratio that is a biased estimate
        np.testing.assert_allclose(averaged(old, with_ratio=True), reverse, atol=1e-6)
    assert np.abs(reverse - forward).max() > 1e-2


# Gradients

SMOOTH = {
    "token": PgClip(dual_clip=1.5),
    "sequence": PgClip(0.1, 0.1, ratio="seq"),
    "reinforce": Reinforce(),
    "shaped p": Shaped(),
    "shaped rho": Shaped(of="rho"),
    "nll": Nll(),
    "k1 with ratio": KlRef("k1", with_ratio=True),
    "k2": KlRef("k2"),
    "k3": KlRef("k3"),
    "k3 with ratio": KlRef("k3", with_ratio=True),
}


def slopes_of(value, at):
    """Returns the central differences of a float64 function, one an entry of `at`."""
    step = 1e-6
    directions = jnp.eye(at.size, dtype=jnp.float64).reshape(-1, *at.shape) * step
    slopes = jax.jit(jax.vmap(lambda d: (value(at + d) - value(at - d)) / (2 * step)))(directions)
    return np.asarray(slopes).reshape(at.shape)


@pytest.mark.parametrize("kind", SMOOTH.values(), ids=SMOOTH)
def test_gradients_equal_finite_differences(kind):
    objective = drafts_only(kind, aggregation="seq_mean")
    with jax.enable_x64(True):
        lp, _, rows = full_rows(1, n=6, t=4)
        rows = rows._replace(role=jnp.full(6, int(DRAFT), jnp.int32))
        lp = jnp.asarray(lp, jnp.float64)

        def value(x):
            return objective_loss(x, rows, objective, counts(rows, objective))[0]

        gradient = np.asarray(jax.jit(jax.grad(value))(lp))
        slopes = slopes_of(value, lp)
    np.testing.assert_allclose(slopes, gradient, atol=1e-8)
    assert np.abs(gradient).max() > 1e-3


# Kinds with a constant inside: the constant, at the point where the gradient is taken, times what has a gradient.
FROZEN = {
    "cispo": (Cispo(0.2, 0.28), lambda lp, anchor, at, w: -jnp.clip(jnp.exp(at - anchor), 0.8, 1.28) * w * lp),
    "unclipped sequence ratio per token": (
        PgClip(np.inf, np.inf, ratio="seq_token"),
        lambda lp, anchor, at, w: -jnp.exp(jnp.mean(at - anchor, axis=1, keepdims=True)) * jnp.exp(lp - at) * w,
    ),
    "sampled divergence": (
        Kl(sampled=True, top_k=1),
        lambda lp, anchor, at, w: (at - -1.3) * lp * jnp.minimum(jnp.exp(at - anchor), 2.0),
    ),
}


@pytest.mark.parametrize(("kind", "surrogate"), FROZEN.values(), ids=FROZEN)
def test_gradients_with_a_constant_inside_equal_finite_differences(kind, surrogate):
    objective = drafts_only(kind)
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        anchor = np.log(rng.uniform(0.1, 0.9, (5, 4))).astype(np.float32)
        lp = jnp.asarray(anchor + rng.normal(0, 0.4, (5, 4)), jnp.float64)
        rows = make_rows(anchor, np.ones((5, 4)), rng.normal(0, 1, 5))
        teacher = jnp.full((5, 4, 1), -1.3, jnp.float32)
        rows = rows._replace(teacher_lp=teacher, teacher_ok=jnp.ones(5, bool))
        gradient = jax.grad(lambda x: objective_loss(x, rows, objective, counts(rows, objective))[0])(lp)
        constants = (jnp.asarray(anchor, jnp.float64), lp, jnp.asarray(rows.weights, jnp.float64)[:, None])
        slopes = slopes_of(lambda x: jnp.mean(surrogate(x, *constants)), lp)
    np.testing.assert_allclose(slopes, gradient, atol=1e-7)
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("tail", [True, False], ids=["tail", "renormalised"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradients_of_divergences_equal_finite_differences_and_flow_through_the_candidates_alone(alpha, tail):
    objective = drafts_only(Kl(alpha, tail=tail))
    with jax.enable_x64(True):
        lp, student, rows = full_rows(2, n=4, t=3, k=3)
        rows = rows._replace(role=jnp.full(4, int(DRAFT), jnp.int32))
        lp, student = jnp.asarray(lp, jnp.float64), jnp.asarray(student, jnp.float64)

        def value(x, y):
            return objective_loss(x, rows, objective, counts(rows, objective), y)[0]

        of_lp, of_student = jax.jit(jax.grad(value, argnums=(0, 1)))(lp, student)
        slopes = slopes_of(functools.partial(value, lp), student)
    np.testing.assert_allclose(slopes, of_student, atol=1e-7)
    assert np.abs(of_student).max() > 1e-3
    assert not np.any(of_lp)


def test_at_the_anchor_all_policy_gradients_are_one():
    _, _, rows = full_rows(4)
    rows = rows._replace(role=jnp.full(12, int(DRAFT), jnp.int32), row_weight=None)
    for aggregation in ("token_mean", "seq_mean"):
        kinds = [Reinforce(), PgClip(), Cispo(), PgClip(np.inf, np.inf)]
        kinds += [PgClip(ratio="seq"), PgClip(ratio="seq_token")] if aggregation == "seq_mean" else []
        gradients = [evaluate(rows.lp_anchor, rows, drafts_only(k, aggregation=aggregation))[1] for k in kinds]
        for gradient in gradients[1:]:
            np.testing.assert_allclose(gradient, gradients[0], rtol=1e-6)
        assert np.abs(gradients[0]).max() > 1e-3


# All kinds at once


def test_nothing_flows_into_any_column():
    lp, student, rows = full_rows(5)
    columns = {k: v for k, v in rows._asdict().items() if v.dtype == jnp.float32}

    def value(columns):
        given = rows._replace(**columns)
        return objective_loss(jnp.asarray(lp), given, EVERYTHING, counts(rows, EVERYTHING), jnp.asarray(student))[0]

    gradients = jax.jit(jax.grad(value))(columns)
    assert set(gradients) >= {"lp_anchor", "weights", "row_weight", "lp_sample", "lp_behave", "lp_ref", "teacher_lp"}
    for name, gradient in gradients.items():
        assert not np.any(gradient), name


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e38])
def test_garbage_where_nothing_is_trained_changes_no_kind(garbage):
    lp, student, rows = full_rows(6)
    live = np.asarray(rows.loss_mask & rows.row_valid[:, None])
    columns = {}
    for name in ("lp_anchor", "lp_sample", "lp_behave", "lp_ref", "teacher_lp"):
        array = getattr(rows, name)
        columns[name] = jnp.where(live if array.ndim == 2 else live[..., None], array, garbage)
    columns["teacher_lp"] = jnp.where(rows.teacher_ok[:, None, None], columns["teacher_lp"], garbage)
    for name in ("weights", "row_weight"):
        columns[name] = jnp.where(rows.row_valid, getattr(rows, name), garbage)
    spoiled = rows._replace(**columns)
    spoiled_lp, spoiled_student = np.where(live, lp, garbage), np.where(live[..., None], student, garbage)
    loss, gradients = evaluate_both(lp, student, rows, EVERYTHING)
    spoiled_loss, spoiled_gradients = evaluate_both(spoiled_lp, spoiled_student, spoiled, EVERYTHING)
    assert np.isfinite(loss)
    assert float(spoiled_loss) == float(loss)
    for spoiled_gradient, gradient in zip(spoiled_gradients, gradients, strict=True):
        np.testing.assert_array_equal(spoiled_gradient, gradient)
        assert np.abs(gradient).max() > 1e-3
    metrics = finish_metrics(sums_of(lp, rows, EVERYTHING, student_lp=student))
    assert finish_metrics(sums_of(spoiled_lp, spoiled, EVERYTHING, student_lp=spoiled_student)) == metrics


def test_order_and_micro_batches_change_no_kind():
    lp, student, rows = full_rows(7)
    whole = counts(rows, EVERYTHING)
    loss, gradients = evaluate_both(lp, student, rows, EVERYTHING)
    metrics = finish_metrics(sums_of(lp, rows, EVERYTHING, student_lp=student))
    pieces = np.random.default_rng(0).permutation(12).reshape(3, 4)
    total, sums = 0.0, []
    for piece in pieces:
        part, part_gradients = evaluate_both(lp[piece], student[piece], take(rows, piece), EVERYTHING, whole)
        total += float(part)
        for part_gradient, gradient in zip(part_gradients, gradients, strict=True):
            np.testing.assert_allclose(part_gradient, gradient[piece], rtol=1e-5, atol=1e-8)
        sums.append(sums_of(lp[piece], take(rows, piece), EVERYTHING, whole, student[piece]))
    assert total == pytest.approx(float(loss), rel=1e-6)
    assert finish_metrics(functools.reduce(add_metrics, sums)) == pytest.approx(metrics, rel=1e-5)


def test_padding_changes_no_kind():
    lp, student, rows = full_rows(8)

    def padded(array):
        return jnp.pad(jnp.asarray(array), ((0, 2), (0, 3), (0, 0))[: np.ndim(array)], constant_values=1)

    more = jax.tree.map(padded, rows)._replace(row_valid=jnp.pad(rows.row_valid, (0, 2)))
    more = more._replace(loss_mask=more.loss_mask.at[:, 7:].set(False))
    loss, gradients = evaluate_both(lp, student, rows, EVERYTHING)
    padded_loss, padded_gradients = evaluate_both(padded(lp), padded(student), more, EVERYTHING)
    assert float(padded_loss) == pytest.approx(float(loss), rel=1e-6)
    for padded_gradient, gradient in zip(padded_gradients, gradients, strict=True):
        np.testing.assert_allclose(padded_gradient[:12, :7], gradient, rtol=1e-5, atol=1e-8)
        assert not np.any(padded_gradient[12:])
        assert not np.any(padded_gradient[:, 7:])


def test_terms_without_rows_add_exactly_nothing():
    lp, student, rows = full_rows(9)
    nobody = rows._replace(teacher_ok=jnp.zeros(12, bool))
    divergences = tuple(term for term in EVERYTHING.terms if isinstance(term.loss, Kl))
    alone = dataclasses.replace(EVERYTHING, terms=divergences, pools=(), counted_rows="valid")
    loss, (gradient, student_gradient) = evaluate_both(lp, student, nobody, alone)
    assert float(loss) == 0.0
    assert np.array_equal(gradient, np.zeros_like(lp))
    assert np.array_equal(student_gradient, np.zeros_like(student))
    assert counts(nobody, alone).tolist() == [1.0, 1.0, 1.0]


def test_in_a_dead_pool_other_terms_go_on():
    lp, student, rows = full_rows(10)
    dead = rows._replace(weights=jnp.zeros(12, jnp.float32), row_live=jnp.zeros(12, bool))
    loss, (gradient, student_gradient) = evaluate_both(lp, student, dead, EVERYTHING)
    others = tuple(term for term in EVERYTHING.terms if not term.uses_rewards)
    alone = dataclasses.replace(EVERYTHING, terms=others, pools=(), counted_rows="valid")
    expected, (expected_gradient, expected_student) = evaluate_both(lp, student, dead, alone)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(student_gradient, expected_student, rtol=1e-5, atol=1e-8)
    assert np.abs(student_gradient).max() > 1e-3
