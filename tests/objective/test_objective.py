"""Objectives are data: presets, overrides by name, and every impossible combination refused with help."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.objective import (
    OBJECTIVES,
    Objective,
    ObjectiveConfig,
    PgClip,
    Pool,
    Reinforce,
    Term,
    make_objective,
    role_names,
)
from ditto_jax.strict import build
from ditto_jax.types import ViewRole

DRAFT, PLAIN, HINTED = ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB


def test_table_keys_are_the_names_of_the_objectives():
    assert set(OBJECTIVES) >= {"grpo", "ditto", "ditto_no_fb"}
    assert all(name == objective.name for name, objective in OBJECTIVES.items())


@pytest.mark.parametrize(
    ("name", "views", "refine"),
    [
        ("grpo", (DRAFT,), False),
        ("ditto", (DRAFT, PLAIN, HINTED), True),
        ("ditto_no_fb", (DRAFT, PLAIN), True),
    ],
)
def test_views_and_refine_follow_from_the_parts(name, views, refine):
    assert OBJECTIVES[name].views == views
    assert OBJECTIVES[name].refine is refine


def test_a_role_used_for_statistics_alone_is_a_view_too():
    refined_only = Objective("y1x", pools=(Pool((DRAFT, PLAIN)),), terms=(Term(PgClip(), (PLAIN,)),))
    assert refined_only.views == (DRAFT, PLAIN)


def test_default_config_is_ditto_as_published_with_a_floor():
    objective = make_objective(ObjectiveConfig())
    assert [pool.roles for pool in objective.pools] == [(DRAFT, PLAIN), (HINTED,)]
    for pool in objective.pools:
        assert (pool.centre, pool.scale, pool.unbiased, pool.eps, pool.min_size) == ("mean", "std", True, 1e-6, 2)
    assert [term.roles for term in objective.terms] == [(DRAFT, PLAIN), (HINTED,)]
    for term in objective.terms:
        assert term.loss == PgClip(epsilon=0.2, epsilon_high=0.28, dual_clip=None)
        assert (term.coef, term.neg_floor) == (1.0, -8.0)
    assert (objective.denominator, objective.aggregation) == ("shared", "token_mean")


def test_objectives_are_hashable_so_that_they_can_be_static_arguments():
    assert hash(make_objective(ObjectiveConfig())) == hash(make_objective(ObjectiveConfig()))
    assert make_objective(ObjectiveConfig()) != make_objective(ObjectiveConfig(epsilon=0.3))


def test_every_setting_reaches_every_part_that_has_it():
    config = ObjectiveConfig(
        name="ditto",
        epsilon=0.1,
        epsilon_high=math.inf,
        dual_clip=10.0,
        feedback_coef=0.5,
        neg_floor=None,
        aggregation="seq_const",
        std_floor=0.03,
        reward_tolerance=0.01,
        truncated="keep",
        response_length=64,
    )
    objective = make_objective(config)
    assert {term.loss for term in objective.terms} == {PgClip(epsilon=0.1, epsilon_high=math.inf, dual_clip=10.0)}
    assert [term.coef for term in objective.terms] == [1.0, 0.5]
    assert [term.neg_floor for term in objective.terms] == [None, -8.0]  # only cross-context rows have a floor
    assert {(pool.std_floor, pool.reward_tolerance) for pool in objective.pools} == {(0.03, 0.01)}
    assert (objective.aggregation, objective.response_length, objective.truncated) == ("seq_const", 64, "keep")
    centred = make_objective(ObjectiveConfig(scale="none"))
    assert {pool.scale for pool in centred.pools} == {"none"}


def test_no_setting_is_without_effect_somewhere():
    """Every field of the config changes at least one objective: none is forgotten by `make_objective`."""
    others = {
        "name": "grpo",
        "epsilon": 0.1,
        "epsilon_high": 0.5,
        "dual_clip": 3.0,
        "scale": "none",
        "feedback_coef": 2.0,
        "neg_floor": -5.0,
        "aggregation": "seq_sum",
        "std_floor": 0.1,
        "reward_tolerance": 0.0,
        "truncated": "keep",
        "unbiased": False,
        "singleton": "raw",
        "clip": 5.0,
        "token_floor": -5.0,
        "skip_first": 3,
        "cross_is": "token",
        "mismatch": "token_tis",
        "denominator": "term",
        "counted_rows": "live",
        "per_prompt_equal": True,
        "words": "policy",
        "draft_feedback": "well done",
    }
    elsewhere = {
        "gamma": ("critique_grpo", 0.2),
        "alpha": ("sdpo", 0.5),
        "top_k": ("sdpo", 50),
        "tail": ("sdpo", False),
        "is_clip": ("sdpo", None),
        "teacher_coef": ("sdpo_grpo", 0.5),
        "teacher": ("sdpo", "frozen"),
        "teacher_rate": ("sdpo", 0.01),
        "mismatch_low": ("sdft", 0.5),
        "mismatch_high": ("sdft", 3.0),
        "anchor": ("grpo", "behaviour"),
        "keep": ("ditto_no_fb", "best"),
        "reflection_sees": ("erl", "words"),
        "response_length": ("dr_grpo", 9),
        "overlong_buffer": ("dapo", 9),
    }
    for field, (name, value) in {**{key: ("ditto", value) for key, value in others.items()}, **elsewhere}.items():
        changed = make_objective(dataclasses.replace(ObjectiveConfig(name=name), **{field: value}))
        assert changed != OBJECTIVES[name], field
    spelled_out = {"pools", "terms"}
    assert set(others) | set(elsewhere) | spelled_out == {field.name for field in dataclasses.fields(ObjectiveConfig)}


def test_presets_are_left_as_they_are_by_overrides():
    before = dict(OBJECTIVES)
    make_objective(ObjectiveConfig(epsilon=0.5, feedback_coef=3.0, neg_floor=None))
    assert before == OBJECTIVES


def test_config_is_built_from_plain_values_strictly():
    assert build(ObjectiveConfig, {"dual_clip": None, "neg_floor": None}, "objective").neg_floor is None
    with pytest.raises(ConfigError, match="did you mean 'epsilon_high'"):
        build(ObjectiveConfig, {"epsilon_hi": 0.3}, "objective")
    with pytest.raises(ConfigError, match=r"objective\.scale"):
        build(ObjectiveConfig, {"scale": "variance"}, "objective")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dito"}, "did you mean 'ditto'"),
        ({"name": "xyz"}, "known objectives: grpo, dr_grpo"),
        ({"epsilon": -0.1}, r"objective\.epsilon=-0\.1"),
        ({"epsilon": math.nan}, r"objective\.epsilon=nan"),
        ({"epsilon_high": -1.0}, r"objective\.epsilon_high"),
        ({"dual_clip": 1.0}, r"objective\.dual_clip=1\.0: must be above 1"),
        ({"scale": "variance"}, r"objective\.scale='variance': must be one of std, batch_std, none"),
        ({"feedback_coef": 0.0}, "ditto_no_fb"),
        ({"feedback_coef": -1.0}, r"objective\.feedback_coef"),
        ({"feedback_coef": math.inf}, r"objective\.feedback_coef"),
        ({"name": "grpo", "feedback_coef": 0.5}, "no feedback term"),
        ({"name": "ditto_no_fb", "feedback_coef": 0.5}, "no feedback term"),
        ({"neg_floor": 0.0}, r"objective\.neg_floor"),
        ({"neg_floor": -math.inf}, r"objective\.neg_floor"),
        ({"aggregation": "mean"}, r"objective\.aggregation='mean': must be one of token_mean"),
        ({"aggregation": "seq_const"}, r"objective\.response_length=None"),
        ({"aggregation": "seq_const", "response_length": 0}, r"objective\.response_length=0"),
        ({"response_length": 8}, "has no effect with aggregation='token_mean'"),
        ({"std_floor": -0.1}, r"objective\.std_floor"),
        ({"std_floor": 0.1, "scale": "none"}, "has no effect with scale='none'"),
        ({"reward_tolerance": -1.0}, r"objective\.reward_tolerance"),
        ({"truncated": "mask"}, r"objective\.truncated"),
    ],
)
def test_impossible_settings_are_config_errors_naming_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_objective(ObjectiveConfig(**settings))


@pytest.mark.parametrize(
    ("pools", "terms", "message"),
    [
        ((Pool((DRAFT,)), Pool((PLAIN, DRAFT))), (Term(PgClip(), (DRAFT,)),), "DRAFT is in two pools"),
        ((Pool((DRAFT,)),), (Term(PgClip(), (DRAFT, PLAIN)),), "REFINED_PLAIN, but no pool"),
        ((), (Term(Reinforce(), (DRAFT,)),), "DRAFT, but no pool"),
        ((Pool((DRAFT,)),), (), "at least one term"),
    ],
)
def test_validate_refuses_combinations_that_cannot_work(pools, terms, message):
    with pytest.raises(ConfigError, match=message):
        Objective("mine", pools=pools, terms=terms)


def test_validate_refuses_unknown_denominators():
    with pytest.raises(ConfigError, match="denominator"):
        dataclasses.replace(OBJECTIVES["ditto"], denominator="row")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pool(()),
        lambda: Pool((DRAFT, DRAFT)),
        lambda: Pool((DRAFT,), centre="median"),  # pyright: ignore[reportArgumentType]
        lambda: Pool((DRAFT,), min_size=1),
        lambda: Pool((DRAFT,), eps=-1.0),
        lambda: Term(PgClip(), ()),
        lambda: Term(PgClip(), (DRAFT,), coef=0.0),
    ],
)
def test_broken_parts_cannot_be_built(make):
    with pytest.raises(ConfigError):
        make()


def test_pool_without_statistics_may_hold_one_rollout():
    assert Pool((DRAFT,), centre="none", scale="none", min_size=1).has_statistics is False


def test_role_names_join_in_order():
    assert role_names((DRAFT, PLAIN)) == "draft+refined_plain"
