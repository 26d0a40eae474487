"""Pools beyond one prompt's own statistics: other roles, others alone, the parent, the batch; what never moves them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto_jax.objective import OBJECTIVES, Kl, Nll, Objective, PgClip, Pool, Refinement, Reinforce, Term
from ditto_jax.types import ViewRole
from ditto_jax.update.advantages import assign
from tests.update.test_advantages import DRAFTS, JOINT_REFINED, REFINED, ditto_table, table, tables, take

DRAFT, PLAIN, HINTED = ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB
DRAFT_FB, REFLECTION, CRITIQUE = ViewRole.DRAFT_FB, ViewRole.REFLECTION, ViewRole.CRITIQUE
OWN_WORDS = Refinement(words="policy")


def answered(drafts, refined, parents=None, **flags):
    """Returns drafts, then each refinement under the plain and the hinted prompt, refinement i of draft parents[i]."""
    parents = list(range(len(refined))) if parents is None else parents
    return dataclasses.replace(
        ditto_table(drafts, refined, **flags), parent=np.array([-1] * len(drafts) + parents + parents, np.int32)
    )


def refined_pool(**settings) -> Objective:
    return Objective("mine", pools=(Pool((PLAIN,), **settings),), terms=(Term(Reinforce(), (PLAIN,)),))


def draft_pool(**settings) -> Objective:
    return Objective("mine", pools=(Pool((DRAFT,), **settings),), terms=(Term(PgClip(), (DRAFT,)),))


def credited_pool(**settings) -> Objective:
    """Returns drafts with a share of their refinements' rewards, which are rows themselves."""
    distil = Pool((PLAIN,), centre="none", scale="none")
    terms = (Term(PgClip(), (DRAFT,)), Term(Reinforce(), (PLAIN,)))
    return Objective("mine", pools=(Pool((DRAFT,), scale="none", **settings), distil), terms=terms)


def test_rloo_matches_the_golden_numbers():
    weights = assign(table([DRAFT] * 4, DRAFTS), OBJECTIVES["rloo"]).weights
    np.testing.assert_allclose(weights, [-0.4, -0.133333, 0.133333, 0.4], atol=2e-6)


def test_refinements_against_the_mean_of_the_drafts_match_the_golden_numbers():
    result = assign(answered(DRAFTS, REFINED), OBJECTIVES["rltf_sd"])
    np.testing.assert_allclose(result.weights[4:8], [0.0, 0.4, 0.4, 0.2], atol=2e-6)
    hinted = np.array(REFINED) - np.mean(REFINED)
    np.testing.assert_allclose(result.weights[8:], hinted, atol=2e-6)


def test_one_draft_is_enough_for_the_refinements_of_others():
    rows = answered([0.2, 0.4], [0.9], truncated=[1, 0, 0, 0])
    result = assign(rows, refined_pool(stat_roles=(DRAFT,), scale="none"))
    np.testing.assert_allclose(result.weights, [0, 0, 0.5, 0], atol=1e-6)
    assert result.pools[0].live == 1


def test_without_any_draft_in_statistics_refinements_weigh_nothing():
    result = assign(answered([0.2], [0.9], reward_valid=[0, 1, 1]), refined_pool(stat_roles=(DRAFT,), scale="none"))
    assert not result.weights.any()
    assert (result.pools[0].live, result.pools[0].invalid) == (0, 1)


def test_equal_drafts_still_judge_refinements_without_a_scale_and_not_with_one():
    rows = answered([0.5, 0.5], [0.9, 0.7])
    unscaled = assign(rows, refined_pool(stat_roles=(DRAFT,), scale="none"))
    np.testing.assert_allclose(unscaled.weights[2:4], [0.4, 0.2], atol=1e-6)
    scaled = assign(rows, refined_pool(stat_roles=(DRAFT,)))
    assert not scaled.weights.any()
    assert scaled.pools[0].all_equal == 1


def test_rows_in_statistics_alone_get_no_weight_and_leave_the_loss():
    result = assign(answered(DRAFTS, REFINED), OBJECTIVES["ditto_y1x"])
    np.testing.assert_allclose(result.weights[4:8], JOINT_REFINED, atol=2e-6)
    assert result.row_valid.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert not result.weights[:4].any()


def test_roles_of_a_pool_that_no_term_trains_leave_the_loss_but_stay_in_statistics():
    objective = Objective("mine", pools=(Pool((DRAFT, PLAIN)),), terms=(Term(PgClip(), (PLAIN,)),))
    result = assign(answered(DRAFTS, REFINED), objective)
    np.testing.assert_allclose(result.weights[4:8], JOINT_REFINED, atol=2e-6)
    assert not result.weights[:4].any()
    assert not result.row_valid[:4].any()


def test_separate_pools_are_the_refined_only_and_the_drafts_only_golden_numbers():
    weights = assign(answered(DRAFTS, REFINED), OBJECTIVES["ditto_sep"]).weights
    np.testing.assert_allclose(weights[:4], [-1.161891, -0.387297, 0.387297, 1.161891], atol=2e-6)
    for part in (weights[4:8], weights[8:]):
        np.testing.assert_allclose(part, [-1.305576, 0.783345, 0.783345, -0.261115], atol=2e-6)


def test_leave_one_out_of_rows_outside_the_statistics_is_the_plain_mean():
    objective = Objective(
        "mine",
        pools=(Pool((DRAFT, PLAIN), stat_roles=(DRAFT,), centre="loo", scale="none"),),
        terms=(Term(Reinforce(), (DRAFT, PLAIN)),),
    )
    weights = assign(answered(DRAFTS, [0.9]), objective).weights
    np.testing.assert_allclose(weights[:5], [-0.4, -0.133333, 0.133333, 0.4, 0.4], atol=2e-6)


def test_leave_one_out_of_a_rollout_with_several_rows_leaves_all_of_them_out():
    rows = table([DRAFT] * 4, [0.2, 0.8, 0.8, 0.5], rollout=[0, 1, 1, 2])
    weights = assign(rows, OBJECTIVES["rloo"]).weights
    np.testing.assert_allclose(weights, [-0.45, 0.45, 0.45, 0.0], atol=1e-6)


def test_the_only_rollout_in_statistics_has_no_others_to_be_left_with():
    objective = Objective(
        "mine",
        pools=(Pool((DRAFT, PLAIN), stat_roles=(DRAFT,), centre="loo", scale="none"),),
        terms=(Term(Reinforce(), (DRAFT, PLAIN)),),
    )
    result = assign(answered([0.3], [0.9]), objective)
    np.testing.assert_allclose(result.weights, [0.0, 0.6, 0.0], atol=1e-6)
    assert result.row_live.tolist() == [False, True, False]


def test_parent_centre_compares_each_refinement_with_its_own_draft():
    objective = refined_pool(centre="parent", scale="none", min_size=1)
    result = assign(answered(DRAFTS, [0.5, 0.9], parents=[3, 0]), objective)
    np.testing.assert_allclose(result.weights[4:6], [-0.3, 0.7], atol=1e-6)
    assert objective.views == (DRAFT, PLAIN)
    assert not result.row_valid[:4].any()


def test_a_parent_without_verdict_leaves_its_refinement_without_weight():
    objective = refined_pool(centre="parent", scale="none", min_size=1)
    rows = answered(DRAFTS, [0.5, 0.9], parents=[3, 0], reward_valid=[0, 1, 1, 1, 1, 1, 1, 1])
    result = assign(rows, objective)
    np.testing.assert_allclose(result.weights[4:6], [-0.3, 0.0], atol=1e-6)
    assert result.row_live[4:6].tolist() == [True, False]
    assert result.row_valid[4:6].all()


def test_parent_key_pools_a_draft_with_what_answers_to_it():
    objective = Objective(
        "mine", pools=(Pool((DRAFT, PLAIN), key="parent", scale="none"),), terms=(Term(PgClip(), (DRAFT, PLAIN)),)
    )
    result = assign(answered([0.2, 0.4, 0.6], [0.6, 0.4], parents=[0, 1]), objective)
    np.testing.assert_allclose(result.weights[:5], [-0.2, 0, 0, 0.2, 0], atol=1e-6)
    report = result.pools[0]
    assert (report.count, report.live, report.all_equal, report.too_small) == (3, 1, 1, 1)


def test_tables_that_do_not_know_parents_are_refused_where_parents_are_read():
    rows = dataclasses.replace(ditto_table(DRAFTS, REFINED), parent=None)
    with pytest.raises(ValueError, match="the rows need `parent`"):
        assign(rows, OBJECTIVES["rltf_sd"])
    assert assign(rows, OBJECTIVES["ditto"]).weights.any()


def test_batch_key_takes_all_prompts_together():
    rows = table([DRAFT] * 4, DRAFTS, prompt=[0, 1, 2, 3])
    result = assign(rows, draft_pool(key="batch"))
    np.testing.assert_allclose(result.weights, [-1.161891, -0.387297, 0.387297, 1.161891], atol=2e-6)
    assert result.pools[0].count == 1


def test_batch_std_scales_each_prompt_by_the_std_of_all():
    rewards = [0.0, 0.2, 0.0, 1.0]
    weights = assign(table([DRAFT] * 4, rewards, prompt=[0, 0, 1, 1]), draft_pool(scale="batch_std")).weights
    std = np.std(rewards, ddof=1) + 1e-6
    np.testing.assert_allclose(weights, np.array([-0.1, 0.1, -0.5, 0.5]) / std, atol=1e-5)
    equal = assign(table([DRAFT] * 4, [0.3, 0.3, 0.0, 1.0], prompt=[0, 0, 1, 1]), draft_pool(scale="batch_std"))
    assert not equal.weights[:2].any()
    assert equal.row_live.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("transform", "expected"),
    [("positive_part", [0.0, 0.5, 1.0]), ("success", [0.0, 0.0, 1.0])],
)
def test_transforms_come_before_everything_else(transform, expected):
    rows = table([DRAFT] * 3, [-0.5, 0.5, 1.0])
    raw = draft_pool(centre="none", scale="none", transform=transform, min_size=1)
    np.testing.assert_allclose(assign(rows, raw).weights, expected, atol=1e-7)
    centred = draft_pool(scale="none", transform=transform)
    np.testing.assert_allclose(assign(rows, centred).weights, np.array(expected) - np.mean(expected), atol=1e-6)


def test_success_counts_from_the_threshold_on():
    pool = draft_pool(centre="none", scale="none", transform="success", success_threshold=0.5, min_size=1)
    np.testing.assert_array_equal(assign(table([DRAFT] * 3, [0.4999, 0.5, 0.6]), pool).weights, [0, 1, 1])


def test_failures_alone_distil_nothing_in_erl():
    objective = OBJECTIVES["erl"]
    rows = answered([0.0, 0.0], [-0.2, 0.7])
    weights = assign(rows, objective).weights
    np.testing.assert_allclose(weights[2:4], [0.0, 0.7], atol=1e-6)


def test_a_pool_of_one_reinforces_where_the_released_code_is_reproduced():
    rows = answered([0.1, 0.2], [0.7], parents=[0])
    released = assign(rows, OBJECTIVES["ditto_release"])
    assert released.weights[3] == pytest.approx(0.7 / (1 + 1e-6), abs=1e-6)
    assert released.row_live[3]
    assert released.pools[1].live == 1
    assert assign(rows, OBJECTIVES["ditto"]).weights[3] == 0.0
    np.testing.assert_array_equal(released.weights[:3], assign(rows, OBJECTIVES["ditto"]).weights[:3])


def test_pools_of_two_have_unit_signs_whatever_the_gap():
    for gap in (0.01, 0.9):
        weights = assign(table([DRAFT] * 2, [0.0, gap]), OBJECTIVES["grpo"]).weights
        np.testing.assert_allclose(weights, [-math.sqrt(0.5), math.sqrt(0.5)], atol=1e-4)


def test_clip_limits_the_largest_advantage():
    rows = table([DRAFT] * 16, [1.0] + [0.0] * 15)
    assert assign(rows, draft_pool()).weights[0] == pytest.approx(3.75, abs=1e-4)
    clipped = assign(rows, draft_pool(clip=2.0)).weights
    assert clipped[0] == 2.0
    np.testing.assert_allclose(clipped[1:], -0.25, atol=1e-4)


def test_drafts_are_credited_with_a_share_of_what_followed():
    rows = answered([0.0, 0.4], [1.0, 0.1], parents=[0, 1])
    share = assign(rows, credited_pool(credit=0.1)).weights[:2]
    np.testing.assert_allclose(share, np.array([0.1, 0.41]) - np.mean([0.1, 0.41]), atol=1e-6)
    gain = assign(rows, credited_pool(credit=0.1, credit_of="gain")).weights[:2]
    np.testing.assert_allclose(gain, np.array([0.1, 0.4]) - 0.25, atol=1e-6)


def test_an_attempt_without_verdict_credits_nobody():
    rows = answered([0.0, 0.4], [1.0], parents=[0], reward_valid=[1, 1, 0, 0])
    weights = assign(rows, credited_pool(credit=0.1)).weights[:2]
    np.testing.assert_allclose(weights, [-0.2, 0.2], atol=1e-6)


def test_overlong_rollouts_lose_reward_over_the_buffer_before_statistics():
    rows = table([DRAFT] * 5, [1.0] * 5, length=[60, 80, 90, 100, 10], truncated=[0, 0, 0, 0, 1])
    objective = dataclasses.replace(
        draft_pool(scale="none"), truncated="penalise", response_length=100, overlong_buffer=20
    )
    result = assign(rows, objective)
    rewards = np.array([1.0, 1.0, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(result.weights, rewards - rewards.mean(), atol=1e-6)
    assert result.row_valid.all()
    with pytest.raises(ValueError, match="the rows need `length`"):
        assign(dataclasses.replace(rows, length=None), objective)


def test_rows_of_terms_without_rewards_need_no_pool_and_no_verdict():
    objective = Objective("mine", pools=(), terms=(Term(Kl(), (DRAFT,)), Term(Nll(), (CRITIQUE,))))
    rows = table(
        [DRAFT, DRAFT, CRITIQUE, CRITIQUE, PLAIN, DRAFT],
        [math.nan, 0.5, 0.5, 0.5, 0.5, 0.5],
        rollout=[0, 1, 0, 1, 2, 3],
        reward_valid=[0, 1, 1, 1, 1, 1],
        truncated=[0, 1, 0, 0, 0, 0],
        row_valid=[1, 1, 1, 1, 1, 0],
    )
    result = assign(rows, objective)
    assert result.row_valid.tolist() == [True, False, True, True, False, False]
    np.testing.assert_array_equal(result.row_live, result.row_valid)
    assert not result.weights.any()


def test_a_dead_pool_leaves_its_drafts_to_the_teacher():
    result = assign(table([DRAFT] * 3, [0.5] * 3), OBJECTIVES["sdpo_grpo"])
    assert result.row_valid.all()
    assert not result.row_live.any()
    assert not result.weights.any()


def test_critiques_stay_although_the_drafts_pool_is_dead():
    rows = table([DRAFT, DRAFT, CRITIQUE], [0.5, 0.5, 0.0], rollout=[0, 1, 0])
    result = assign(rows, OBJECTIVES["rltf_fm"])
    assert result.row_valid.all()
    assert result.row_live.tolist() == [False, False, True]


def test_reflections_are_weighed_among_themselves():
    objective = OBJECTIVES["reflect_retry"]
    rows = table([REFLECTION] * 3, [0.0, 1.0, 0.5], parent=[0, 1, 2], rollout=[5, 6, 7])
    np.testing.assert_allclose(assign(rows, objective).weights, [-1, 1, 0], atol=1e-5)


def test_prompts_weigh_the_same_where_that_is_asked_for():
    rows = table([DRAFT] * 6, [0, 1, 0, 1, 0, 1], prompt=[0, 0, 1, 1, 1, 1])
    assert assign(rows, draft_pool()).row_weight.tolist() == [1.0] * 6
    equal = assign(rows, dataclasses.replace(draft_pool(), per_prompt_equal=True)).row_weight
    assert equal.dtype == np.float32
    np.testing.assert_allclose(equal, [1.5, 1.5, 0.75, 0.75, 0.75, 0.75])
    assert equal[:2].sum() == pytest.approx(equal[2:].sum())


def test_prompts_are_evened_out_term_by_term_over_valid_rows():
    rows = table(
        [DRAFT, DRAFT, DRAFT, PLAIN, PLAIN, HINTED, HINTED, HINTED],
        [0, 1, 0.5, 0.4, 0.9, 0.4, 0.9, 0.1],
        prompt=[0, 0, 1, 1, 1, 1, 1, 0],
        rollout=[0, 1, 0, 1, 2, 1, 2, 2],
        truncated=[0, 1, 0, 0, 0, 0, 0, 0],
    )
    equal = assign(rows, dataclasses.replace(OBJECTIVES["ditto"], per_prompt_equal=True)).row_weight
    # Joint term: one valid row of prompt 0 and three of prompt 1; hinted term: one and two.
    np.testing.assert_allclose(equal, [2, 1, 2 / 3, 2 / 3, 2 / 3, 0.75, 0.75, 1.5], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(sorted(OBJECTIVES)), st.randoms(use_true_random=False))
def test_every_entry_gives_finite_weights_whatever_the_order_of_rows(rows, name, random):
    """Padding, failures, truncation, any mixture of roles: no entry of the table is hurt by them."""
    objective = OBJECTIVES[name]
    result = assign(rows, objective)
    assert np.isfinite(result.weights).all()
    assert not result.weights[~result.row_live].any()
    assert not (result.row_live & ~result.row_valid).any()
    assert not (result.row_valid & ~rows.row_valid).any()
    order = list(range(len(rows.role)))
    random.shuffle(order)
    permuted = assign(take(rows, order), objective)
    np.testing.assert_allclose(permuted.weights, result.weights[order], rtol=1e-5, atol=1e-6)
    for report in result.pools:
        assert report.count == report.live + report.all_equal + report.too_small + report.invalid


@settings(max_examples=40, deadline=None)
@given(tables(), st.sampled_from(["mean", "loo"]), st.sampled_from([-2.0, 0.5, 3.0]))
def test_centred_pools_ignore_a_constant_of_the_other_roles_too(rows, centre, constant):
    objective = refined_pool(stat_roles=(DRAFT,), centre=centre, scale="none")
    moved = dataclasses.replace(rows, reward=rows.reward + np.float32(constant))
    np.testing.assert_allclose(assign(moved, objective).weights, assign(rows, objective).weights, atol=1e-4)
