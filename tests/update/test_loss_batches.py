"""The loss over batches: order, padding and micro-batches change nothing, and objectives relate as they should."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto_jax.objective import OBJECTIVES, Objective, PgClip, Pool, Reinforce, Term
from ditto_jax.update.loss import LossRows, add_metrics, finish_metrics, objective_loss, zero_metrics
from tests.loss_rows import (
    DRAFT,
    HINTED,
    NOW,
    PLAIN,
    counts,
    drafts_only,
    evaluate,
    make_rows,
    random_rows,
    strict_arrays,
    sums_of,
    take,
)

GRPO, DITTO, DITTO_NO_FB = OBJECTIVES["grpo"], OBJECTIVES["ditto"], OBJECTIVES["ditto_no_fb"]


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    with strict_arrays():
        yield


# Batches


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_row_order_does_not_matter(seed, random):
    lp, rows = random_rows(seed)
    order = np.array(random.sample(range(len(lp)), len(lp)))
    loss, gradient = evaluate(lp, rows, DITTO)
    permuted_loss, permuted_gradient = evaluate(lp[order], take(rows, order), DITTO)
    assert float(permuted_loss) == pytest.approx(float(loss), rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(permuted_gradient, gradient[order], rtol=1e-6)


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean", "seq_sum", "seq_const"])
def test_padding_rows_and_positions_do_not_matter(aggregation):
    lp, rows = random_rows(5)
    objective = dataclasses.replace(
        DITTO, aggregation=aggregation, response_length=16 if aggregation == "seq_const" else None
    )

    def more(array, fill):
        return jnp.pad(array, ((0, 3), (0, 4))[: array.ndim], constant_values=fill)

    padded = LossRows(
        lp_anchor=more(rows.lp_anchor, -3.0),
        loss_mask=more(rows.loss_mask, False).at[len(lp) :].set(True),  # padding rows may claim tokens
        weights=more(rows.weights, 5.0),
        role=more(rows.role, int(DRAFT)),
        cross=more(rows.cross, False),
        row_valid=more(rows.row_valid, False),
    )
    padded_lp = more(jnp.asarray(lp), -1.0)
    loss, gradient = evaluate(lp, rows, objective)
    padded_loss, padded_gradient = evaluate(padded_lp, padded, objective)
    assert float(padded_loss) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(padded_gradient[: len(lp), : lp.shape[1]], gradient, rtol=1e-6)
    assert not np.any(padded_gradient[len(lp) :])
    metrics, padded_metrics = sums_of(lp, rows, objective), sums_of(padded_lp, padded, objective)
    assert finish_metrics(padded_metrics) == pytest.approx(finish_metrics(metrics), rel=1e-5)


@pytest.mark.parametrize(
    ("aggregation", "denominator"),
    [
        ("token_mean", "shared"),
        ("token_mean", "term"),
        ("seq_mean", "term"),
        ("seq_sum", "term"),
        ("seq_const", "term"),
    ],
)
def test_micro_batches_add_up_to_the_batch(aggregation, denominator):
    lp, rows = random_rows(6)
    length = 16 if aggregation == "seq_const" else None
    objective = dataclasses.replace(DITTO, aggregation=aggregation, denominator=denominator, response_length=length)
    whole = counts(rows, objective)
    loss, gradient = evaluate(lp, rows, objective)
    pieces = np.array_split(np.arange(len(lp)), 3)
    parts = [evaluate(lp[i], take(rows, i), objective, whole) for i in pieces]
    assert sum(float(part[0]) for part in parts) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), gradient, rtol=1e-6)
    added = functools.reduce(add_metrics, [sums_of(lp[i], take(rows, i), objective, whole) for i in pieces])
    assert finish_metrics(added) == pytest.approx(finish_metrics(sums_of(lp, rows, objective)), rel=1e-5)


def test_means_of_micro_batches_would_not_add_up():
    """Broken twin: rows of 4 and 1 tokens with losses 1, 1, 1, 1 and 2 have mean 1.2; their means average to 1.5."""
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0]], bool)
    rows, lp = make_rows(np.zeros((2, 4)), mask, [-1.0, -2.0]), np.zeros((2, 4))
    loss, _ = evaluate(lp, rows, GRPO)
    assert float(loss) == pytest.approx(1.2)
    pieces = [evaluate(lp[i : i + 1], take(rows, slice(i, i + 1)), GRPO)[0] for i in range(2)]
    assert float(sum(pieces)) / 2 == pytest.approx(1.5)


def test_a_batch_in_a_scan_equals_the_batch():
    lp, rows = random_rows(7)
    whole = counts(rows, DITTO)

    def body(sums, piece):
        loss, more = objective_loss(piece[0], piece[1], DITTO, whole)
        return add_metrics(sums, more), loss

    split = jax.tree.map(lambda array: array.reshape(3, 4, *array.shape[1:]), (jnp.asarray(lp), rows))
    sums, losses = jax.lax.scan(body, zero_metrics(), split)
    loss, _ = evaluate(lp, rows, DITTO)
    assert float(losses.sum()) == pytest.approx(float(loss), rel=1e-6, abs=1e-7)  # positive and negative rows cancel
    assert finish_metrics(sums) == pytest.approx(finish_metrics(sums_of(lp, rows, DITTO)), rel=1e-5)


def test_denominators_count_what_they_say():
    rows = make_rows(
        np.zeros((5, 3)),
        [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]],
        np.zeros(5),
        role=[DRAFT, PLAIN, HINTED, HINTED, HINTED],
        valid=[1, 1, 1, 1, 0],
    )
    own = dataclasses.replace(DITTO, denominator="term")
    rows_of = dataclasses.replace(own, aggregation="seq_mean")
    constant = dataclasses.replace(own, aggregation="seq_const", response_length=10)
    assert counts(rows, DITTO).tolist() == [6.0, 6.0]
    assert counts(rows, own).tolist() == [5.0, 1.0]
    assert counts(rows, rows_of).tolist() == [2.0, 1.0]
    assert counts(rows, constant).tolist() == [20.0, 10.0]
    assert counts(rows, GRPO).tolist() == [3.0]
    assert counts(take(rows, slice(3, 5)), DITTO).tolist() == [1.0, 1.0]


def test_a_row_of_two_terms_is_counted_once_in_a_shared_denominator():
    terms = (Term(PgClip(), (DRAFT,)), Term(Reinforce(), (DRAFT,), coef=0.1))
    both = Objective("both", pools=(Pool((DRAFT,)),), terms=terms)
    assert counts(make_rows(), both).tolist() == [5.0, 5.0]
    parts = [float(evaluate(NOW, make_rows(), drafts_only(term.loss))[0]) * term.coef for term in terms]
    assert float(evaluate(NOW, make_rows(), both)[0]) == pytest.approx(sum(parts), rel=1e-6)


def test_empty_batches_have_loss_and_gradient_zero():
    lp, rows = random_rows(8)
    loss, gradient = evaluate(lp, rows._replace(row_valid=jnp.zeros(len(lp), bool)), DITTO)
    assert float(loss) == 0.0
    assert not np.any(gradient)
    metrics = finish_metrics(sums_of(lp, rows._replace(row_valid=jnp.zeros(len(lp), bool)), DITTO))
    assert metrics == {f"policy/rows_{role}_count": 0.0 for role in ("draft", "refined_plain", "refined_fb")}
    assert finish_metrics(zero_metrics()) == {}


# Relations between objectives


@pytest.mark.parametrize("absent", ["invalid rows", "no rows"])
def test_ditto_without_refinements_equals_grpo_bit_for_bit(absent):
    lp, rows = random_rows(9)
    is_draft = np.asarray(rows.role == DRAFT)
    if absent == "no rows":
        lp, rows = lp[is_draft], take(rows, is_draft)
    else:
        rows = rows._replace(row_valid=rows.row_valid & is_draft)
    ditto, grpo = evaluate(lp, rows, DITTO), evaluate(lp, rows, GRPO)
    np.testing.assert_array_equal(ditto[0], grpo[0])
    np.testing.assert_array_equal(ditto[1], grpo[1])
    of_ditto = finish_metrics(sums_of(lp, rows, DITTO))
    assert {name: value for name, value in of_ditto.items() if "refined" not in name} == finish_metrics(
        sums_of(lp, rows, GRPO)
    )
    full = random_rows(9)
    with pytest.raises(AssertionError):  # broken twin: refined rows present
        np.testing.assert_allclose(evaluate(*full, DITTO)[0], evaluate(*full, GRPO)[0], rtol=1e-3)


@pytest.mark.parametrize("denominator", ["shared", "term"])
def test_ditto_in_one_context_equals_grpo_on_twice_the_rows_plus_the_feedback_term(denominator):
    lp, rows = random_rows(10)
    rows = rows._replace(cross=jnp.zeros_like(rows.cross))
    ditto = dataclasses.replace(DITTO, denominator=denominator)
    total, gradient = evaluate(lp, rows, ditto)
    scale = counts(rows, ditto)
    is_hinted = np.asarray(rows.role == HINTED)
    # As drafts, the refined rows under x are grpo's second half; the hinted rows alone are one more policy gradient.
    as_drafts = rows._replace(role=jnp.zeros_like(rows.role), row_valid=rows.row_valid & ~is_hinted)
    grpo_loss, grpo_gradient = evaluate(lp, as_drafts, GRPO, scale[:1])
    hinted = rows._replace(role=jnp.zeros_like(rows.role), row_valid=rows.row_valid & is_hinted)
    hinted_loss, hinted_gradient = evaluate(lp, hinted, GRPO, scale[1:])
    assert float(total) == pytest.approx(float(grpo_loss) + float(hinted_loss), rel=1e-6)
    np.testing.assert_array_equal(gradient[~is_hinted], grpo_gradient[~is_hinted])
    np.testing.assert_array_equal(gradient[is_hinted], hinted_gradient[is_hinted])
    assert np.abs(hinted_gradient).max() > 0.0
    if denominator == "term":
        assert float(scale[0]) == float(counts(as_drafts, GRPO)[0])
        assert float(scale[1]) == float(counts(hinted, GRPO)[0])


def test_ditto_without_the_feedback_term_leaves_hinted_rows_alone():
    lp, rows = random_rows(11)
    _, gradient = evaluate(lp, rows, DITTO_NO_FB)
    assert not np.any(np.asarray(gradient)[np.asarray(rows.role == HINTED)])
    kept = rows._replace(row_valid=rows.row_valid & (rows.role != HINTED))
    np.testing.assert_array_equal(gradient, evaluate(lp, kept, DITTO)[1])


def test_coefficients_scale_their_term_alone():
    lp, rows = random_rows(12)
    halved = dataclasses.replace(DITTO, terms=(DITTO.terms[0], dataclasses.replace(DITTO.terms[1], coef=0.5)))
    factor = np.where(np.asarray(rows.role == HINTED), 0.5, 1.0)[:, None]
    np.testing.assert_allclose(evaluate(lp, rows, halved)[1], evaluate(lp, rows, DITTO)[1] * factor, rtol=1e-6)
