"""Divergence from a teacher: golden numbers, limits of the candidate set, and what a sampled token estimates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.objective import Kl, Nll
from ditto_jax.update.divergence import divergence, renormalised, with_tail
from ditto_jax.update.loss import finish_metrics, objective_loss
from tests.loss_rows import (
    DRAFT,
    counts,
    drafts_only,
    evaluate,
    evaluate_both,
    full_rows,
    make_rows,
    strict_arrays,
    sums_of,
)

STUDENT = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
TEACHER = np.log(np.array([0.2, 0.6, 0.1, 0.05, 0.05], np.float32))
ALPHAS = [0.0, 0.5, 1.0]


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    with strict_arrays():
        yield


def one_token(student, teacher, kind: Kl, vocabulary=None, lp=-1.0, anchor=-1.0):
    """Returns (loss, gradient with respect to the student's candidates) of one token of one row."""
    rows = make_rows([[anchor]], [[True]], [0.0])
    rows = rows._replace(teacher_lp=jnp.asarray(teacher, jnp.float32)[None, None], teacher_ok=jnp.ones(1, bool))
    loss, (_, gradient) = evaluate_both(
        [[lp]], np.asarray(student)[None, None], rows, drafts_only(kind), None, vocabulary
    )
    return float(loss), np.asarray(gradient)[0, 0]


# Golden numbers


@pytest.mark.parametrize(("alpha", "value"), [(1.0, 0.308326), (0.0, 0.310194)])
def test_divergences_over_the_whole_vocabulary_match_the_golden_numbers(alpha, value):
    assert one_token(STUDENT, TEACHER, Kl(alpha), vocabulary=5)[0] == pytest.approx(value, abs=1e-6)
    # Without the size the tail is there, and next to nothing.
    assert one_token(STUDENT, TEACHER, Kl(alpha))[0] == pytest.approx(value, abs=3e-6)


@pytest.mark.parametrize(("alpha", "value"), [(1.0, 0.295064), (0.0, 0.297394), (0.5, 0.071723)])
def test_two_candidates_with_a_tail_match_the_golden_numbers(alpha, value):
    assert one_token(STUDENT[:2], TEACHER[:2], Kl(alpha), vocabulary=5)[0] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("alpha", "value"), [(1.0, 0.383576), (0.0, 0.362990)])
def test_two_renormalised_candidates_match_the_golden_numbers(alpha, value):
    kind = Kl(alpha, tail=False)
    assert one_token(STUDENT[:2], TEACHER[:2], kind, vocabulary=5)[0] == pytest.approx(value, abs=1e-6)


# Candidates


@pytest.mark.parametrize("tail", [True, False], ids=["tail", "renormalised"])
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_teacher_that_agrees_teaches_nothing(alpha, size, tail):
    teacher = np.asarray(jax.nn.log_softmax(jnp.asarray(STUDENT)))
    rows = make_rows([[-1.0]], [[True]], [0.0])._replace(
        teacher_lp=jnp.asarray(teacher[:size])[None, None], teacher_ok=jnp.ones(1, bool)
    )
    objective = drafts_only(Kl(alpha, tail=tail))

    def value(logits):
        student = jax.nn.log_softmax(logits)[:size]
        lp, one = jnp.full((1, 1), -1.0, jnp.float32), jnp.ones(1, jnp.float32)
        return objective_loss(lp, rows, objective, one, student[None, None], vocabulary=5)[0]

    same, moved = jnp.asarray(STUDENT), jnp.asarray(STUDENT) + jnp.array([1.0, 0, 0, 0, 0], jnp.float32)
    assert float(value(same)) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(jax.grad(value)(same), 0.0, atol=1e-6)
    assert float(value(moved)) > 1e-3
    assert np.abs(jax.grad(value)(moved)).max() > 1e-2


def test_a_certain_teacher_is_the_likelihood_of_its_token():
    certain = np.array([-np.inf, 0.0, -np.inf, -np.inf, -np.inf], np.float32)
    loss, gradient = one_token(STUDENT, certain, Kl(0.0), vocabulary=5)
    likelihood, _ = evaluate(STUDENT[None, 1:2], make_rows([[-1.0]], [[True]], [0.0]), drafts_only(Nll()))
    assert loss == pytest.approx(float(likelihood), rel=1e-6)
    np.testing.assert_allclose(gradient, [0, -1, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_teacher_that_rules_a_token_out_gives_a_finite_loss(alpha):
    ruled_out = np.array([0.0, -np.inf], np.float32)
    for tail in (True, False):
        loss, gradient = one_token(STUDENT[:2], ruled_out, Kl(alpha, tail=tail))
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
    reverse = one_token([np.log(0.5)] * 2, ruled_out, Kl(1.0), vocabulary=2)[0]
    assert reverse == pytest.approx(np.log(0.5) + 15.0, rel=1e-6)  # 0.5 x 30: the teacher's limit


def test_candidates_whose_mass_rounds_above_one_have_a_tail():
    above = np.log(np.array([0.7, 0.3], np.float32)) + np.float32(1e-6)
    assert np.asarray(with_tail(jnp.asarray(above)))[2] == pytest.approx(np.log(1e-7), rel=1e-3)
    for alpha in ALPHAS:
        loss, gradient = one_token(above, TEACHER[:2], Kl(alpha))
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
    with np.errstate(invalid="ignore"):  # broken twin: without the limit there is no logarithm
        assert np.isnan(np.log(-np.expm1(np.logaddexp(*above.astype(np.float64)))))


def test_tails_and_renormalising_give_all_the_mass():
    for lp in (with_tail(jnp.asarray(STUDENT[:2])), renormalised(jnp.asarray(STUDENT[:2]))):
        assert float(jnp.sum(jnp.exp(lp))) == pytest.approx(1.0, rel=1e-6)


# Sampled tokens


def test_sampled_tokens_have_the_gradient_of_the_divergence_on_average():
    logits, teacher = jnp.array([0.3, -0.4, 0.9], jnp.float32), jax.nn.log_softmax(jnp.array([1.0, 0.0, -1.0]))
    objective = drafts_only(Kl(sampled=True, top_k=1), aggregation="seq_sum")

    def sampled(x):
        lp = jax.nn.log_softmax(x)[:, None]
        anchor = jax.lax.stop_gradient(lp)
        rows = make_rows(anchor, np.ones((3, 1)), np.zeros(3))
        rows = rows._replace(teacher_lp=teacher[:, None, None], teacher_ok=jnp.ones(3, bool))
        rows = rows._replace(row_weight=jnp.exp(anchor[:, 0]))
        return objective_loss(lp, rows, objective, jnp.ones(1, jnp.float32))[0]

    exact = jax.grad(lambda x: divergence(jax.nn.log_softmax(x), teacher, 1.0))(logits)
    np.testing.assert_allclose(jax.grad(sampled)(logits), exact, atol=1e-6)
    assert np.abs(exact).max() > 1e-2


def test_the_ratio_multiplies_up_to_its_cap():
    plain = one_token(STUDENT[:2], TEACHER[:2], Kl(is_clip=None), lp=-1.0, anchor=-1.5)[0]
    assert one_token(STUDENT[:2], TEACHER[:2], Kl(is_clip=2.0), lp=-1.0, anchor=-1.5)[0] == pytest.approx(
        plain * np.exp(0.5), rel=1e-5
    )
    assert one_token(STUDENT[:2], TEACHER[:2], Kl(is_clip=2.0), lp=-1.0, anchor=-9.0)[0] == pytest.approx(
        plain * 2, rel=1e-5
    )


# Rows


def test_rows_without_a_teacher_are_left_out_and_counted():
    lp, student, rows = full_rows(0, n=3, t=4)
    rows = rows._replace(
        role=jnp.full(3, int(DRAFT), jnp.int32),
        row_valid=jnp.ones(3, bool),
        loss_mask=jnp.ones((3, 4), bool),
        teacher_ok=jnp.array([True, False, True]),
        teacher_lp=rows.teacher_lp.at[1].set(0.0),  # the fill value that would mean certainty
    )
    objective = drafts_only(Kl())
    assert counts(rows, objective).tolist() == [8.0]
    loss, (_, gradient) = evaluate_both(lp, student, rows, objective)
    assert not np.any(gradient[1])
    index = np.array([0, 2])
    rest = jax.tree.map(lambda array: array[index], rows)
    assert float(loss) == pytest.approx(float(evaluate_both(lp[index], student[index], rest, objective)[0]), rel=1e-6)
    metrics = finish_metrics(sums_of(lp, rows, objective, student_lp=student))
    assert metrics["policy/rows_without_teacher_draft_count"] == 1.0
    assert metrics["policy/rows_draft_count"] == 2.0


def test_metrics_say_where_and_how_far_the_teacher_is():
    lp = np.log(np.full((1, 8), 0.5, np.float32))
    excess = np.array([0.4, 0.1, 0.1, 0.1, 9.0, 0.2, -0.3, 0.0], np.float32)
    mask = [[1, 1, 1, 1, 0, 1, 1, 0]]  # two turns with a partner's token between them
    rows = make_rows(lp, mask, [0.0])
    rows = rows._replace(teacher_lp=jnp.asarray(lp + excess)[..., None], teacher_ok=jnp.ones(1, bool))
    metrics = finish_metrics(sums_of(lp, rows, drafts_only(Kl(sampled=True, top_k=1))))
    assert metrics["policy/kl_draft_mean"] == pytest.approx(-0.6 / 6, abs=1e-6)
    assert metrics["policy/teacher_excess_draft_mean"] == pytest.approx(0.6 / 6, abs=1e-6)
    assert metrics["policy/teacher_excess_draft_max"] == pytest.approx(0.4, abs=1e-6)
    assert metrics["policy/kl_opening_draft_fraction"] == pytest.approx(1.1 / 1.2, rel=1e-5)


def test_the_mean_over_candidates_is_weighted_by_the_policy():
    student, teacher = np.log([[[0.6, 0.2]]]), np.log([[[0.3, 0.5]]])
    rows = make_rows([[-1.0]], [[True]], [0.0])
    rows = rows._replace(teacher_lp=jnp.asarray(teacher, jnp.float32), teacher_ok=jnp.ones(1, bool))
    metrics = finish_metrics(sums_of([[-1.0]], rows, drafts_only(Kl()), student_lp=student))
    assert metrics["policy/teacher_excess_draft_mean"] == pytest.approx(
        0.75 * np.log(0.5) + 0.25 * np.log(2.5), rel=1e-5
    )
    assert metrics["policy/teacher_excess_draft_max"] == pytest.approx(np.log(2.5), rel=1e-5)


def test_a_column_that_nobody_filled_is_asked_for():
    lp, student, rows = full_rows(1)
    for missing, given in (("teacher_lp", student), ("student_lp", None)):
        spoiled = rows._replace(teacher_lp=None) if missing == "teacher_lp" else rows
        with pytest.raises(ValueError, match=f"the kl term on draft reads {missing}, which is None"):
            evaluate_both(lp, given, spoiled, drafts_only(Kl()))
    with pytest.raises(ValueError, match="needs teacher_ok"):
        counts(rows._replace(teacher_ok=None), drafts_only(Kl()))
    with pytest.raises(ValueError, match=r"student_lp must have shape \(12, 7, 4\), got \(12, 7, 3\)"):
        evaluate_both(lp, student[..., :3], rows, drafts_only(Kl()))
