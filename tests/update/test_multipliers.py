"""Filters and weights: which tokens a term leaves out and what multiplies the others, on numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.objective import OBJECTIVES, Cispo, Mismatch, Nll, PgClip, Reinforce, Shaped
from ditto_jax.update.loss import finish_metrics
from tests.loss_rows import (
    DRAFT,
    PLAIN,
    counts,
    drafts_only,
    evaluate,
    full_rows,
    make_rows,
    on_plain,
    strict_arrays,
    sums_of,
)

DITTO = OBJECTIVES["ditto"]


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    with strict_arrays():
        yield


def cross_rows(anchor, weights, **columns):
    """Returns rows under the plain prompt that were sampled under another."""
    n = len(anchor)
    rows = make_rows(anchor, np.ones(np.shape(anchor)), weights, role=[PLAIN] * n, cross=[True] * n)
    return rows._replace(**{name: jnp.asarray(values, jnp.float32) for name, values in columns.items()})


def multiplied(rows, objective):
    """Returns the factor of every token: its gradient at the anchor, times the denominator, over its own -W."""
    _, gradient = evaluate(rows.lp_anchor, rows, objective)
    return -np.asarray(gradient) * float(counts(rows, objective)[0]) / np.asarray(rows.weights)[:, None]


# Filters


def test_token_floor_leaves_out_unlikely_tokens_of_either_sign():
    anchor = np.array([[-6.0, -4.0], [-6.0, -4.0]], np.float32)
    rows, objective = cross_rows(anchor, [1.0, -1.0]), on_plain(Reinforce(), token_floor=-5.0)
    np.testing.assert_allclose(multiplied(rows, objective), [[0, 1], [0, 1]], atol=1e-6)
    metrics = finish_metrics(sums_of(anchor, rows, objective))
    assert metrics["policy/token_floor_tokens_refined_plain_count"] == 2.0
    own = rows._replace(cross=jnp.zeros(2, bool))  # sampled where it is trained: nothing is unlikely by leakage
    np.testing.assert_allclose(multiplied(own, objective), 1.0, atol=1e-6)


def test_negative_cross_rows_can_be_dropped():
    rows = cross_rows([[-1.0, -1.0], [-1.0, -1.0]], [1.0, -1.0])
    objective = on_plain(PgClip(), drop_cross_negative=True)
    np.testing.assert_allclose(multiplied(rows, objective), [[1, 1], [0, 0]], atol=1e-6)
    assert not np.any(evaluate(rows.lp_anchor, rows, objective)[1][1])
    metrics = finish_metrics(sums_of(rows.lp_anchor, rows, objective))
    assert metrics["policy/drop_cross_negative_tokens_refined_plain_count"] == 2.0
    assert metrics["policy/neg_floor_tokens_refined_plain_count"] == 0.0


def test_the_first_sampled_tokens_can_be_skipped():
    mask = np.array([[0, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 1]], bool)
    rows = make_rows(np.full((2, 6), -1.0), mask, [1.0, 1.0])
    objective = drafts_only(Reinforce(), {"skip_first": 3})
    np.testing.assert_allclose(multiplied(rows, objective), [[0, 0, 0, 0, 0, 1], [0] * 6], atol=1e-6)
    assert counts(rows, objective).tolist() == [6.0]  # left-out tokens stay in the denominator
    metrics = finish_metrics(sums_of(rows.lp_anchor, rows, objective))
    assert metrics["policy/skip_first_tokens_draft_count"] == 5.0
    assert "policy/token_floor_tokens_draft_count" not in metrics


@pytest.mark.parametrize("kind", [PgClip(), PgClip(np.inf, np.inf), Cispo(), Reinforce(), Shaped()])
def test_neg_floor_holds_for_every_kind_that_uses_rewards(kind):
    rows = cross_rows([[-9.0, -7.0]], [-1.0])
    _, gradient = evaluate(rows.lp_anchor, rows, on_plain(kind))
    assert float(gradient[0, 0]) == 0.0
    assert float(gradient[0, 1]) > 0.0


def test_a_likelihood_term_has_no_negative_rows():
    rows, objective = cross_rows([[-9.0, -7.0]], [-1.0]), on_plain(Nll(), drop_cross_negative=True)
    _, gradient = evaluate(rows.lp_anchor, rows, objective)
    np.testing.assert_allclose(gradient, -0.5, rtol=1e-6)


# Mismatch of sampler and trainer

D = np.log(np.array([[4.0, 0.5, 1.0], [1.01, 1.02, 0.97]]))


@pytest.mark.parametrize(
    ("setting", "factors"),
    [
        (Mismatch("token_tis", high=2.0), [[2, 0.5, 1], [1.01, 1.02, 0.97]]),
        (Mismatch("token_mask", 0.6, 2.0), [[0, 0, 1], [1.01, 1.02, 0.97]]),
        (Mismatch("seq_tis", high=1.5), [[1.5] * 3, [1.01 * 1.02 * 0.97] * 3]),
        (Mismatch("geometric", 0.99, 1.01), [[0] * 3, [1] * 3]),
        (Mismatch("veto", 0.6, 9.0), [[0] * 3, [1] * 3]),
    ],
    ids=lambda value: value.correction if isinstance(value, Mismatch) else "",
)
def test_mismatch_weights_are_what_they_say(setting, factors):
    sample = np.full((2, 3), -1.5)
    rows = make_rows(np.full((2, 3), -3.0), np.ones((2, 3)), [1.0, -0.5])
    rows = rows._replace(lp_sample=jnp.asarray(sample, jnp.float32), lp_behave=jnp.asarray(sample - D, jnp.float32))
    objective = drafts_only(PgClip(), {"mismatch": setting})
    np.testing.assert_allclose(multiplied(rows, objective), factors, rtol=1e-5, atol=1e-6)
    metrics = finish_metrics(sums_of(rows.lp_anchor, rows, objective))
    assert metrics["policy/mismatch_weight_draft_mean"] == pytest.approx(np.mean(factors), rel=1e-5)
    assert metrics["policy/mismatch_removed_tokens_draft_count"] == np.sum(np.equal(factors, 0))


def test_masked_tokens_have_no_part_in_a_sequence_weight():
    rows = make_rows(np.full((1, 3), -1.0), [[1, 0, 1]], [1.0])
    behave = jnp.asarray([[-1.1, -7.0, -1.2]], jnp.float32)
    rows = rows._replace(lp_sample=jnp.full((1, 3), -1.0, jnp.float32), lp_behave=behave)
    factors = multiplied(rows, drafts_only(Reinforce(), {"mismatch": Mismatch("seq_tis", high=9.0)}))
    np.testing.assert_allclose(factors, [[np.exp(0.3), 0, np.exp(0.3)]], rtol=1e-5)


def test_on_cross_rows_the_mismatch_is_measured_where_they_were_sampled():
    """Under the training context it would erase the feedback: the tokens are unlikely there, and that is the signal."""
    sampled = [[-0.5, -0.7]]
    rows = cross_rows([[-4.0, -6.0]], [1.0], lp_sample=sampled, lp_behave=sampled)
    objective = on_plain(PgClip(), mismatch=Mismatch())
    np.testing.assert_allclose(multiplied(rows, objective), 1.0, rtol=1e-6)
    moved = rows._replace(lp_anchor=rows.lp_anchor - 1.0)
    np.testing.assert_allclose(multiplied(moved, objective), 1.0, rtol=1e-6)
    erased = rows._replace(lp_sample=rows.lp_anchor)  # broken twin
    assert multiplied(erased, objective).max() < 0.04


def test_what_the_sampler_reports_matters_only_where_it_is_asked_for():
    lp, _, rows = full_rows(0)
    garbage = rows._replace(
        lp_behave=jnp.full_like(rows.lp_behave, jnp.nan), lp_sample=jnp.full_like(rows.lp_sample, 1e30)
    )
    loss, gradient = evaluate(lp, rows, DITTO)
    other_loss, other_gradient = evaluate(lp, garbage, DITTO)
    assert float(loss) == float(other_loss)
    np.testing.assert_array_equal(gradient, other_gradient)
    asked = dataclasses.replace(DITTO, terms=tuple(dataclasses.replace(t, mismatch=Mismatch()) for t in DITTO.terms))
    other = rows._replace(lp_behave=rows.lp_behave + 1.0)
    assert float(evaluate(lp, rows, asked)[0]) != float(evaluate(lp, other, asked)[0])


# The true weight of cross rows


def test_cross_weights_are_the_capped_ratio_of_the_contexts():
    rows = cross_rows([[-2.0, -1.0], [-1.0, -1.5]], [1.0, 1.0], lp_sample=[[-1.0, -3.0], [-1.2, -1.6]])
    token = multiplied(rows, on_plain(Reinforce(), cross_is="token", cross_cap=2.0))
    np.testing.assert_allclose(token, [[np.exp(-1), 2.0], [np.exp(0.2), np.exp(0.1)]], rtol=1e-5)
    objective = on_plain(Reinforce(), cross_is="seq", cross_cap=2.0)
    np.testing.assert_allclose(multiplied(rows, objective), [[2.0] * 2, [np.exp(0.3)] * 2], rtol=1e-5)
    metrics = finish_metrics(sums_of(rows.lp_anchor, rows, objective))
    assert metrics["policy/cross_weight_refined_plain_mean"] == pytest.approx(1 + np.exp(0.3) / 2, rel=1e-5)
    own = rows._replace(cross=jnp.zeros(2, bool))
    np.testing.assert_allclose(multiplied(own, objective), 1.0, rtol=1e-6)


def test_row_weights_multiply_their_rows():
    rows = make_rows(np.full((2, 3), -1.0), np.ones((2, 3)), [1.0, -0.5])._replace(row_weight=jnp.array([0.25, 3.0]))
    np.testing.assert_allclose(multiplied(rows, drafts_only(PgClip())), [[0.25] * 3, [3.0] * 3], rtol=1e-6)


# Aggregation and denominators


def test_a_term_may_have_an_aggregation_of_its_own():
    lp, rows = np.full((2, 3), -1.0, np.float32), make_rows(np.full((2, 3), -1.0), [[1, 1, 1], [1, 0, 0]], [1.0, 1.0])
    objective = drafts_only(Nll(), {"aggregation": "seq_sum"})
    assert float(evaluate(lp, rows, objective)[0]) == 2.0
    assert counts(rows, objective).tolist() == [2.0]
    assert counts(rows, drafts_only(Nll())).tolist() == [4.0]


def test_terms_without_rewards_have_their_own_denominator():
    rows = make_rows(np.zeros((3, 2)), np.ones((3, 2)), np.zeros(3), role=[DRAFT, DRAFT, PLAIN])
    auxiliary = dataclasses.replace(on_plain(Nll()).terms[0], coef=0.1)
    objective = dataclasses.replace(DITTO, terms=(*DITTO.terms, auxiliary))
    assert counts(rows, objective).tolist() == [6.0, 6.0, 2.0]


def test_live_denominators_leave_dead_pools_out_of_the_terms_that_use_rewards():
    rows = make_rows(np.zeros((3, 2)), np.ones((3, 2)), np.zeros(3))._replace(row_live=jnp.array([True, False, False]))
    objective = drafts_only(PgClip(), counted_rows="live")
    assert counts(rows, objective).tolist() == [2.0]
    assert counts(rows, drafts_only(PgClip())).tolist() == [6.0]
    both = dataclasses.replace(objective, terms=(*objective.terms, drafts_only(Nll()).terms[0]))
    assert counts(rows, both).tolist() == [2.0, 6.0]
    with pytest.raises(ValueError, match="pass row_live"):
        counts(rows._replace(row_live=None), objective)
    metrics = finish_metrics(sums_of(rows.lp_anchor, rows, objective))
    assert metrics["policy/rows_live_draft_count"] == 1.0
    assert metrics["policy/rows_draft_count"] == 3.0


@pytest.mark.parametrize(
    ("term", "missing"), [({"mismatch": Mismatch()}, "lp_behave"), ({"cross_is": "token"}, "lp_sample")]
)
def test_columns_that_a_weight_needs_are_asked_for(term, missing):
    lp, _, rows = full_rows(0)
    with pytest.raises(ValueError, match=f"the pg_clip term on refined_plain reads {missing}, which is None"):
        evaluate(lp, rows._replace(**{missing: None}), on_plain(PgClip(), **term))
