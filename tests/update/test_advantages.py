"""Rewards to weights: golden numbers worked out independently, corner cases, and laws that hold for every table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto_jax.objective import OBJECTIVES, Objective, ObjectiveConfig, PgClip, Pool, Term, make_objective
from ditto_jax.types import ViewRole
from ditto_jax.update.advantages import RowTable, assign

DRAFT, PLAIN, HINTED = ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB
GRPO, DITTO = OBJECTIVES["grpo"], OBJECTIVES["ditto"]
DRAFTS, REFINED = [0.2, 0.4, 0.6, 0.8], [0.5, 0.9, 0.9, 0.7]
JOINT_DRAFTS = [-1.704871, -0.902579, -0.100287, 0.702006]
JOINT_REFINED = [-0.501433, 1.103152, 1.103152, 0.300860]


def table(role, reward, prompt=None, rollout=None, parent=None, length=None, **flags) -> RowTable:
    """Returns a row table with one prompt, own rollouts without parents and no failures unless said otherwise."""
    n = len(role)
    columns = {"reward_valid": np.ones(n, bool), "row_valid": np.ones(n, bool), "truncated": np.zeros(n, bool)}
    columns.update({name: np.asarray(flag, dtype=bool) for name, flag in flags.items()})
    return RowTable(
        role=np.asarray(role, dtype=np.int32),
        prompt=np.zeros(n, np.int32) if prompt is None else np.asarray(prompt, dtype=np.int32),
        rollout=np.arange(n, dtype=np.int32) if rollout is None else np.asarray(rollout, dtype=np.int32),
        reward=np.asarray(reward, dtype=np.float32),
        parent=np.full(n, -1, np.int32) if parent is None else np.asarray(parent, dtype=np.int32),
        length=np.zeros(n, np.int32) if length is None else np.asarray(length, dtype=np.int32),
        **columns,
    )


def ditto_table(drafts, refined, **flags) -> RowTable:
    """Returns drafts, then each refinement under the plain prompt, then under the hinted one (same rollout id)."""
    g, k = len(drafts), len(refined)
    rollout = [*range(g), *range(g, g + k), *range(g, g + k)]
    return table([DRAFT] * g + [PLAIN] * k + [HINTED] * k, [*drafts, *refined, *refined], rollout=rollout, **flags)


def take(rows: RowTable, index) -> RowTable:
    return RowTable(**{field.name: getattr(rows, field.name)[index] for field in dataclasses.fields(rows)})


def with_pool(**settings) -> Objective:
    return Objective("one_pool", pools=(Pool((DRAFT,), **settings),), terms=(Term(PgClip(), (DRAFT,)),))


def test_joint_and_refined_only_pools_match_the_golden_numbers():
    weights = assign(ditto_table(DRAFTS, REFINED), DITTO).weights
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights[:4], JOINT_DRAFTS, atol=2e-6)
    np.testing.assert_allclose(weights[4:8], JOINT_REFINED, atol=2e-6)
    np.testing.assert_allclose(weights[8:], [-1.305576, 0.783345, 0.783345, -0.261115], atol=2e-6)


def test_biased_std_misses_the_golden_numbers():
    """Broken twin: dividing by n is seen."""
    pools = tuple(dataclasses.replace(pool, unbiased=False) for pool in DITTO.pools)
    weights = assign(ditto_table(DRAFTS, REFINED), dataclasses.replace(DITTO, pools=pools)).weights
    np.testing.assert_allclose(weights[:4], (np.array(DRAFTS) - 0.625) / (0.233184 + 1e-6), atol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(weights[:4], JOINT_DRAFTS, atol=2e-6)


def test_separate_pools_miss_the_golden_numbers():
    """Broken twin: normalising drafts and refinements apart is seen."""
    terms = tuple(Term(PgClip(), (role,)) for role in (DRAFT, PLAIN))
    separate = Objective("apart", pools=(Pool((DRAFT,)), Pool((PLAIN,))), terms=terms)
    weights = assign(ditto_table(DRAFTS, REFINED), separate).weights
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(weights[:8], [*JOINT_DRAFTS, *JOINT_REFINED], atol=2e-6)


def test_drafts_only_match_the_golden_numbers():
    weights = assign(table([DRAFT] * 4, DRAFTS), GRPO).weights
    np.testing.assert_allclose(weights, [-1.161891, -0.387297, 0.387297, 1.161891], atol=2e-6)


def test_ragged_pools_match_the_golden_numbers():
    weights = assign(ditto_table(DRAFTS, [0.5, 0.9]), DITTO).weights
    np.testing.assert_allclose(weights[:4], [-1.420088, -0.645495, 0.129099, 0.903693], atol=2e-6)
    np.testing.assert_allclose(weights[4:6], [-0.258198, 1.290989], atol=2e-6)
    np.testing.assert_allclose(weights[6:], [-0.707104, 0.707104], atol=2e-6)


def test_reference_vectors_of_the_released_estimator():
    rows = ditto_table([0, 0, 1, 0], [1, 1, 0])
    weights = assign(rows, DITTO).weights
    np.testing.assert_allclose(weights[:7], np.where(rows.reward[:7] > 0, 1.069043, -0.801782), atol=2e-6)
    np.testing.assert_allclose(weights[7:], [0.577349, 0.577349, -1.154699], atol=2e-6)


def test_singleton_pool_gives_zero_and_is_reported_as_too_small():
    result = assign(ditto_table([0.1, 0.2], [0.7]), DITTO)
    assert result.weights[3] == 0.0
    assert result.row_valid[3]
    assert not result.row_live[3]
    assert (result.pools[1].count, result.pools[1].live, result.pools[1].too_small) == (1, 0, 1)


def test_one_success_in_n_has_the_known_size():
    for n, size in ((2, 0.7071), (4, 1.5), (8, 2.4749), (16, 3.75)):
        weights = assign(table([DRAFT] * n, [1.0] + [0.0] * (n - 1)), GRPO).weights
        assert weights[0] == pytest.approx(size, abs=1e-4)


@given(st.integers(2, 12), st.floats(-3, 3, width=32))
def test_equal_rewards_give_exactly_zero(n, reward):
    result = assign(table([DRAFT] * n, [reward] * n), GRPO)
    assert np.array_equal(result.weights, np.zeros(n, np.float32))
    assert result.pools[0].all_equal == 1
    assert result.row_valid.all()


def test_epsilon_alone_does_not_make_equal_rewards_zero():
    """Broken twin: fp32 statistics of seven copies of 0.7 without the range test."""
    reward = np.full(7, 0.7, np.float32)
    mean = reward.sum() / np.float32(7)
    spread = np.sqrt(((reward - mean) ** 2).sum() / np.float32(6))
    assert np.abs((reward - mean) / (spread + np.float32(1e-6))).max() > 1e-3


@pytest.mark.parametrize(("gap", "is_live"), [(0.00005, False), (0.0001, False), (0.0002, True)])
def test_rewards_within_the_tolerance_count_as_equal(gap, is_live):
    result = assign(table([DRAFT] * 2, [0.7, 0.7 + gap]), GRPO)
    assert bool(result.weights.any()) is is_live
    assert result.row_live.tolist() == [is_live] * 2


def test_std_floor_bounds_near_ties():
    rewards = [0.50, 0.51]
    assert assign(table([DRAFT] * 2, rewards), with_pool(std_floor=0.05)).weights[1] == pytest.approx(0.1, abs=1e-4)
    assert assign(table([DRAFT] * 2, rewards), with_pool()).weights[1] == pytest.approx(0.7071, abs=1e-3)


def test_centre_and_scale_can_be_left_out():
    rows = table([DRAFT] * 4, DRAFTS)
    np.testing.assert_allclose(assign(rows, with_pool(scale="none")).weights, np.array(DRAFTS) - 0.5, atol=1e-6)
    std = np.std(DRAFTS, ddof=1)
    np.testing.assert_allclose(
        assign(rows, with_pool(centre="none")).weights, np.array(DRAFTS) / (std + 1e-6), atol=1e-5
    )
    raw = with_pool(centre="none", scale="none", min_size=1)
    np.testing.assert_allclose(assign(rows, raw).weights, DRAFTS, atol=1e-7)
    alone = assign(table([DRAFT], [0.7]), raw)
    np.testing.assert_allclose(alone.weights, [0.7], atol=1e-7)
    assert alone.pools[0].live == 1


def test_views_of_one_rollout_count_once_and_all_receive():
    rows = table([DRAFT] * 5, [0.2, 0.8, 0.8, 0.8, 0.5], rollout=[0, 1, 1, 1, 2])
    weights = assign(rows, GRPO).weights
    alone = assign(table([DRAFT] * 3, [0.2, 0.8, 0.5]), GRPO).weights
    np.testing.assert_array_equal(weights, alone[[0, 1, 1, 1, 2]])


def test_own_ids_for_every_row_would_count_sub_sequences_several_times():
    """Broken twin: without shared rollout ids the long trajectory moves the mean."""
    weights = assign(table([DRAFT] * 5, [0.2, 0.8, 0.8, 0.8, 0.5]), GRPO).weights
    alone = assign(table([DRAFT] * 3, [0.2, 0.8, 0.5]), GRPO).weights
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(weights, alone[[0, 1, 1, 1, 2]], atol=1e-3)


def test_rollout_ids_may_repeat_between_prompts():
    rows = table([DRAFT] * 4, [0.2, 0.8, 0.9, 0.1], prompt=[0, 0, 1, 1], rollout=[0, 1, 0, 1])
    np.testing.assert_allclose(assign(rows, GRPO).weights, [-0.7071, 0.7071, 0.7071, -0.7071], atol=1e-3)


@pytest.mark.parametrize("bad", ["flag", "nan", "inf"])
def test_failed_verdicts_leave_statistics_and_loss_in_every_view_of_their_rollout(bad):
    rows = ditto_table(DRAFTS, [*REFINED, 0.3])
    plain, hinted = 8, 13
    if bad == "flag":
        rows.reward_valid[plain] = False  # one view flagged: the rollout is out
    else:
        rows.reward[[plain, hinted]] = float(bad)
    result = assign(rows, DITTO)
    lost = np.isin(np.arange(14), [plain, hinted])
    assert np.array_equal(result.row_valid, ~lost)
    assert np.array_equal(result.row_live, ~lost)
    np.testing.assert_array_equal(result.weights[~lost], assign(ditto_table(DRAFTS, REFINED), DITTO).weights)
    assert not result.weights[lost].any()
    assert np.isfinite(result.weights).all()
    assert result.metrics["pool/unscored_fraction"] == pytest.approx(2 / 14)


def test_a_failed_reward_taken_as_zero_would_move_the_others():
    """Broken twin: an outage that becomes a number is seen."""
    rows = table([DRAFT] * 5, [*DRAFTS, 0.0])
    weights = assign(rows, GRPO).weights[:4]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(weights, assign(table([DRAFT] * 4, DRAFTS), GRPO).weights, atol=1e-3)


def test_truncated_rows_leave_both_unless_kept():
    rows = table([DRAFT] * 5, [*DRAFTS, 0.0], truncated=[0, 0, 0, 0, 1])
    dropped = assign(rows, GRPO)
    assert dropped.row_valid.tolist() == [True] * 4 + [False]
    np.testing.assert_array_equal(dropped.weights[:4], assign(table([DRAFT] * 4, DRAFTS), GRPO).weights)
    assert dropped.weights[4] == 0.0
    assert dropped.metrics["pool/truncated_fraction"] == pytest.approx(0.2)
    kept = assign(rows, make_objective(ObjectiveConfig(name="grpo", truncated="keep")))
    assert kept.row_valid.all()
    np.testing.assert_array_equal(kept.weights, assign(table([DRAFT] * 5, [*DRAFTS, 0.0]), GRPO).weights)


def test_dead_pools_are_told_apart_by_cause():
    rows = table(
        [DRAFT] * 9,
        [0.1, 0.9, 0.5, 0.5, 0.4, 0.3, 0.6, 0.2, 0.7],
        prompt=[0, 0, 1, 1, 2, 3, 3, 4, 4],
        reward_valid=[1, 1, 1, 1, 1, 0, 1, 1, 1],
        truncated=[0, 0, 0, 0, 0, 0, 0, 1, 0],
    )
    result = assign(rows, GRPO)
    report = result.pools[0]
    assert (report.count, report.live, report.all_equal, report.too_small, report.invalid) == (5, 1, 1, 1, 2)
    assert result.metrics["pool/draft_live_count"] == 1.0
    assert result.metrics["pool/draft_count"] == 5.0
    assert result.metrics["pool/frac_reward_zero_std"] == 0.5
    assert result.row_live.tolist() == [True, True] + [False] * 7


def test_pools_live_by_the_gap_between_drafts_and_refinements_alone():
    result = assign(ditto_table([0, 0, 0], [1, 1, 1]), DITTO)
    assert (result.weights[:3] < 0).all()
    assert (result.weights[3:6] > 0).all()
    assert not result.weights[6:].any()


def test_metrics_are_worked_out_by_role_over_rollouts():
    metrics = assign(ditto_table(DRAFTS, REFINED), DITTO).metrics
    assert metrics["pool/reward_draft_mean"] == pytest.approx(0.5)
    assert metrics["pool/reward_refined_plain_mean"] == pytest.approx(0.75)
    assert metrics["pool/reward_refined_fb_mean"] == pytest.approx(0.75)
    assert metrics["pool/weight_abs_draft_mean"] == pytest.approx(np.mean(np.abs(JOINT_DRAFTS)), abs=1e-5)
    assert metrics["pool/rows_refined_fb_count"] == 4.0
    assert metrics["pool/frac_reward_zero_std"] == 0.0
    shared = assign(table([DRAFT] * 3, [0.0, 1.0, 1.0], rollout=[0, 1, 1]), GRPO).metrics
    assert shared["pool/reward_draft_mean"] == pytest.approx(0.5)


def test_ditto_without_refinements_equals_grpo_bit_for_bit():
    rows = table([DRAFT] * 8, [*DRAFTS, *REFINED], prompt=[0] * 4 + [1] * 4)
    np.testing.assert_array_equal(assign(rows, DITTO).weights, assign(rows, GRPO).weights)


def test_ditto_joint_pool_equals_grpo_on_twice_the_drafts():
    joint = assign(ditto_table(DRAFTS, REFINED), DITTO).weights[:8]
    np.testing.assert_array_equal(joint, assign(table([DRAFT] * 8, [*DRAFTS, *REFINED]), GRPO).weights)


def test_roles_without_a_pool_get_no_weight_and_leave_the_loss():
    result = assign(ditto_table(DRAFTS, REFINED), GRPO)
    assert not result.weights[4:].any()
    assert result.row_valid.tolist() == [True] * 4 + [False] * 8


def test_empty_tables_are_served():
    result = assign(table([], []), DITTO)
    assert result.weights.shape == (0,)
    assert all(report.count == 0 for report in result.pools)


def test_tables_with_unequal_columns_or_number_flags_are_refused():
    good = table([DRAFT] * 2, [0.0, 1.0])
    with pytest.raises(ValueError, match="shape"):
        dataclasses.replace(good, reward=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="row_valid must be bool"):
        dataclasses.replace(good, row_valid=np.ones(2, np.int32))


@st.composite
def tables(draw) -> RowTable:
    """Tables with several prompts, views that share rollouts, failures, truncation and padding."""
    n = draw(st.integers(1, 24))

    def column(values):
        return draw(st.lists(values, min_size=n, max_size=n))

    prompt, rollout = column(st.integers(0, 3)), column(st.integers(0, 5))
    reward_of: dict[tuple[int, int], float] = {}
    for key in zip(prompt, rollout, strict=True):
        reward_of.setdefault(key, draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])))
    rare = st.integers(0, 9).map(lambda value: value == 0)
    return table(
        column(st.sampled_from(list(ViewRole))),
        [reward_of[key] for key in zip(prompt, rollout, strict=True)],
        prompt=prompt,
        rollout=rollout,
        reward_valid=~np.array(column(rare)),
        row_valid=~np.array(column(rare)),
        truncated=column(rare),
    )


@settings(max_examples=60, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_row_order_does_not_matter(rows, random):
    order = list(range(len(rows.role)))
    random.shuffle(order)
    result, permuted = assign(rows, DITTO), assign(take(rows, order), DITTO)
    np.testing.assert_allclose(permuted.weights, result.weights[order], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(permuted.row_live, result.row_live[order])
    assert permuted.pools == result.pools


@settings(max_examples=60, deadline=None)
@given(tables())
def test_padding_rows_do_not_matter_whatever_they_hold(rows):
    n = len(rows.role)
    padding = table([DRAFT, PLAIN, HINTED], [np.nan, 1e30, -5.0], rollout=[0, 1, 2], row_valid=[0, 0, 0])
    padding.reward_valid[0] = False
    both = {f.name: np.concatenate([getattr(rows, f.name), getattr(padding, f.name)]) for f in dataclasses.fields(rows)}
    result, padded = assign(rows, DITTO), assign(RowTable(**both), DITTO)
    np.testing.assert_array_equal(padded.weights[:n], result.weights)
    assert not padded.weights[n:].any()
    assert not padded.row_valid[n:].any()
    assert padded.pools == result.pools


@settings(max_examples=60, deadline=None)
@given(tables())
def test_every_instance_is_counted_once_and_dead_rows_weigh_nothing(rows):
    result = assign(rows, DITTO)
    for report in result.pools:
        assert report.count == report.live + report.all_equal + report.too_small + report.invalid
    assert not result.weights[~result.row_live].any()
    assert not (result.row_live & ~result.row_valid).any()
    assert not (result.row_valid & ~rows.row_valid).any()
    assert np.isfinite(result.weights).all()


@settings(max_examples=60, deadline=None)
@given(tables())
def test_weights_of_a_centred_pool_sum_to_zero_over_its_rollouts(rows):
    result = assign(rows, DITTO)
    for pool in DITTO.pools:
        for prompt in np.unique(rows.prompt):
            inside = np.isin(rows.role, pool.roles) & (rows.prompt == prompt) & result.row_valid
            _, first = np.unique(rows.rollout[inside], return_index=True)
            assert abs(result.weights[inside][first].sum()) < 1e-4


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from([-2.0, 0.5, 3.0]), st.sampled_from([0.5, 2.0, 10.0]))
def test_centred_pools_ignore_a_constant_and_scaled_pools_a_factor(rows, constant, factor):
    plain = assign(rows, DITTO)
    shifted = assign(dataclasses.replace(rows, reward=rows.reward + np.float32(constant)), DITTO)
    scaled = assign(dataclasses.replace(rows, reward=rows.reward * np.float32(factor)), DITTO)
    np.testing.assert_allclose(shifted.weights, plain.weights, atol=1e-4)
    np.testing.assert_allclose(scaled.weights, plain.weights, atol=1e-4)


def test_raw_rewards_are_moved_by_a_constant_and_centred_ones_by_a_factor():
    """Broken twin of the invariances: pools without centre or scale do not have them."""
    rows = table([DRAFT] * 4, DRAFTS)
    moved = dataclasses.replace(rows, reward=rows.reward + np.float32(1.0))
    grown = dataclasses.replace(rows, reward=rows.reward * np.float32(2.0))
    uncentred, unscaled = with_pool(centre="none"), with_pool(scale="none")
    assert np.abs(assign(moved, uncentred).weights - assign(rows, uncentred).weights).min() > 1.0
    assert np.abs(assign(grown, unscaled).weights - assign(rows, unscaled).weights).min() > 0.05
