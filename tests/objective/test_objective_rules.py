"""Combinations that cannot work are refused when they are built or read, with the rule and a value that works."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from ditto_jax.config import RunConfig
from ditto_jax.config_io import merge, to_plain
from ditto_jax.errors import ConfigError
from ditto_jax.objective import (
    OBJECTIVES,
    Cispo,
    Kl,
    KlRef,
    Mismatch,
    Nll,
    Objective,
    ObjectiveConfig,
    PgClip,
    Pool,
    Refinement,
    Reinforce,
    Shaped,
    Teacher,
    Term,
    make_objective,
)
from ditto_jax.strict import build
from ditto_jax.types import ViewRole

DRAFT, PLAIN, HINTED = ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB
DRAFT_FB, REFLECTION, CRITIQUE = ViewRole.DRAFT_FB, ViewRole.REFLECTION, ViewRole.CRITIQUE
JOINT = (DRAFT, PLAIN)
GRPO = OBJECTIVES["grpo"]
DITTO = OBJECTIVES["ditto"]


def one(loss: Any, *roles: ViewRole, **settings) -> Term:
    return Term(loss, roles, **settings)


def mine(*terms: Term, pools: tuple[Pool, ...] = (), **settings) -> Objective:
    return Objective("mine", pools=pools, terms=terms, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dataclasses.replace(DITTO, refinement=Refinement(reflection_sees="words")),
            "reflection_sees='words' has no effect while the judge writes",
        ),
        (lambda: Pool((DRAFT,), min_size=1), "min_size=1: must be at least 2: a pool of one.* 2 works"),
        (lambda: Pool((PLAIN,), key="parent"), "one rollout a draft, and a pool of one .* key='prompt'"),
        (lambda: Pool((DRAFT,), centre="parent"), "has drafts, which answer to no other; .* centre='mean'"),
        (lambda: Pool(JOINT, centre="parent", scale="none"), "has drafts, which answer to no other"),
        (lambda: Pool((PLAIN,), stat_roles=()), "stat_roles of pool refined_plain.*non-empty"),
        (lambda: Pool((PLAIN,), stat_roles=(DRAFT,), min_size=3), "min_size=3: has no effect.* 2 works"),
        (lambda: Pool((PLAIN,), stat_roles=(DRAFT,), singleton="raw"), "singleton='raw': has no effect"),
        (lambda: Pool((DRAFT,), centre="none", scale="none", singleton="raw"), "singleton='raw': has no effect"),
        (lambda: Pool((DRAFT,), clip=0.0), "clip=0.0: must be finite and above 0, or null for no limit; 5.0 works"),
        (lambda: Pool((DRAFT,), success_threshold=math.nan), "success_threshold=nan"),
        (lambda: Pool((DRAFT,), credit=-0.1), "credit=-0.1: must be finite and >= 0"),
        (lambda: Pool((PLAIN,), credit=0.1), "credit=0.1: goes to drafts"),
        (lambda: Pool((DRAFT,), transform="square"), "transform='square': must be one of identity"),  # pyright: ignore[reportArgumentType]
        (lambda: Cispo(epsilon_high=-1.0), "epsilon_high=-1.0: must be >= 0; 4.0 works"),
        (lambda: Shaped(gamma=0.0), "gamma=0.0: must be finite and above 0.* 0.1 works"),
        (lambda: Kl(alpha=1.5), r"alpha=1.5: must be in \[0, 1\]; 1.0 works"),
        (lambda: Kl(top_k=0), "top_k=0: must be at least 1; 20 works"),
        (lambda: Kl(is_clip=0.5), "is_clip=0.5: .* at least 1; 2.0 works"),
        (lambda: Kl(sampled=True, top_k=20), "top_k=20: with sampled=true .* 1 .* works"),
        (lambda: Kl(sampled=True, top_k=1, alpha=0.0), r"alpha=0.0: with sampled=true only KL\(S \|\| T\)"),
        (lambda: Kl(top_k=1, tail=False), "top_k=1: one candidate renormalised .* nothing to learn; 20 works"),
        (lambda: KlRef("k1"), "estimator='k1': .* zero expected gradient .*k2 works"),
        (lambda: Teacher("ema", rate=0.0), "teacher.rate=0.0: must be in"),
        (lambda: Teacher("frozen", rate=0.5), "teacher.rate=0.5: has no effect with teacher='frozen'"),
        (lambda: Mismatch(low=3.0), "ascending; 0.5 and 2.0 works"),
        (lambda: Mismatch("token_tis", high=0.5), "mismatch_high=0.5: .* no signal is left; 0.5 and 2.0 works"),
        (lambda: Mismatch("token_mask", low=1.1), "no signal is left"),
        (lambda: Mismatch("geometric", low=0.5, high=0.9), "no signal is left"),
        (lambda: Mismatch("veto"), "mismatch_low=0.0: mismatch='veto' .* 0.0001 works"),
        (lambda: one(PgClip(), DRAFT, cross_cap=0.0), "cross_cap=0.0: must be above 0"),
        (lambda: one(PgClip(), DRAFT, skip_first=-1), "skip_first=-1: must be >= 0"),
        (lambda: one(PgClip(), DRAFT, aggregation="mean"), "aggregation='mean': must be one of token_mean"),
        (lambda: Refinement(words="nobody"), "words='nobody': must be one of judge, policy"),  # pyright: ignore[reportArgumentType]
        (lambda: Refinement(keep="worst"), "keep='worst': must be one of all, best"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_parts_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


BEHAVIOUR = {"anchor": "behaviour"}
NO_FLOOR = {"neg_floor": None}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # Roles, pools and terms must fit.
        (lambda: mine(one(Kl(), DRAFT), pools=(Pool((DRAFT,)),)), "no term reads the weights of pool draft; remove"),
        (lambda: mine(one(PgClip(), REFLECTION), pools=(Pool((REFLECTION,)),)), "REFLECTION is in no view .*'policy'"),
        (
            lambda: mine(one(PgClip(), DRAFT), pools=(Pool((DRAFT,), stat_roles=(DRAFT, REFLECTION)),)),
            "REFLECTION is in no view",
        ),
        (
            lambda: mine(one(PgClip(), DRAFT), pools=(Pool((DRAFT,), stat_roles=(DRAFT, CRITIQUE)),)),
            "counts role CRITIQUE, whose rows no judge scores",
        ),
        (lambda: mine(one(Nll(), CRITIQUE), refinement=Refinement("policy")), "CRITIQUE is in no view .*'judge'"),
        (lambda: mine(one(Kl(), CRITIQUE)), "a kl term trains critique, but the policy did not sample"),
        (lambda: mine(one(Nll(), CRITIQUE, mismatch=Mismatch())), "no sampler wrote the words .* null works"),
        (lambda: mine(one(Kl(), HINTED)), "a kl term trains refined_fb.* DRAFT and REFINED_PLAIN work"),
        (lambda: mine(one(Kl(), DRAFT_FB)), "a kl term trains draft_fb"),
        (
            lambda: mine(one(PgClip(), DRAFT), pools=(Pool((DRAFT,), credit=0.1),)),
            "credit=0.1 .* needs attempts after feedback.* credit=0.0 works",
        ),
        # A kept best is a pool of one.
        (
            lambda: dataclasses.replace(DITTO, refinement=Refinement(keep="best")),
            "keep='best' leaves one attempt .* pool refined_fb compares at least 2; .*keep='all'",
        ),
        # Denominators, lengths, weights of prompts.
        (
            lambda: mine(one(PgClip(), DRAFT), one(PgClip(), PLAIN, aggregation="seq_sum"), pools=(Pool(JOINT),)),
            r"different aggregations \(seq_sum, token_mean\); denominator='term' works",
        ),
        (lambda: mine(one(Kl(), DRAFT), counted_rows="live"), "counted_rows='live' has no effect .*'valid' works"),
        (lambda: dataclasses.replace(GRPO, truncated="penalise"), "response_length=None: truncated='penalise'"),
        (
            lambda: dataclasses.replace(GRPO, truncated="penalise", response_length=64),
            "overlong_buffer=None: .* from 1 to response_length=64; 16 works",
        ),
        (
            lambda: dataclasses.replace(GRPO, truncated="penalise", response_length=64, overlong_buffer=65),
            "overlong_buffer=65",
        ),
        (
            lambda: dataclasses.replace(GRPO, overlong_buffer=8),
            "overlong_buffer=8: has no effect with truncated='drop'",
        ),
        (
            lambda: mine(one(Kl(), DRAFT), truncated="penalise", response_length=64, overlong_buffer=8),
            "truncated='penalise': has no effect without a pool",
        ),
        (
            lambda: mine(one(Nll(), CRITIQUE, aggregation="seq_const")),
            "response_length=None: aggregation='seq_const' divides by it",
        ),
        (
            lambda: mine(
                one(PgClip(), DRAFT),
                one(PgClip(), DRAFT, HINTED),
                pools=(Pool((DRAFT, HINTED)),),
                per_prompt_equal=True,
            ),
            "per_prompt_equal=true .* draft and draft.refined_fb share some",
        ),
        # A teacher needs someone who listens.
        (lambda: dataclasses.replace(GRPO, teacher=Teacher("frozen")), "teacher='frozen' has no effect"),
        # What the sampler recorded under the feedback is no anchor for rows without it.
        (
            lambda: dataclasses.replace(DITTO, anchor="behaviour"),
            "anchor='behaviour' with a pg_clip term on refined_plain",
        ),
        (
            lambda: mine(one(Cispo(), PLAIN, **NO_FLOOR), pools=(Pool((PLAIN,)),), **BEHAVIOUR),
            "cispo term on refined_plain.* anchor='rescored' works",
        ),
        (
            lambda: mine(one(Shaped(of="rho"), PLAIN, **NO_FLOOR), pools=(Pool((PLAIN,)),), **BEHAVIOUR),
            "shaped term on refined_plain",
        ),
        (lambda: mine(one(Reinforce(), PLAIN), pools=(Pool((PLAIN,)),), **BEHAVIOUR), "ratios or floors"),
        (lambda: mine(one(PgClip(), DRAFT_FB), pools=(Pool((DRAFT_FB,)),), **BEHAVIOUR), "term on draft_fb"),
        (
            lambda: dataclasses.replace(GRPO, anchor="behaviour", refinement=Refinement(draft_feedback="well done")),
            "anchor='behaviour' with a pg_clip term on draft,",
        ),
        (
            lambda: mine(one(PgClip(), DRAFT, mismatch=Mismatch()), pools=(Pool((DRAFT,)),), **BEHAVIOUR),
            "holds the sampler's numerics already.* mismatch=null",
        ),
        (
            lambda: mine(one(Reinforce(), PLAIN, cross_is="seq", **NO_FLOOR), pools=(Pool((PLAIN,)),), **BEHAVIOUR),
            "cross_is='seq' compares two contexts",
        ),
        # Settings for rows of another context, where there are none.
        (
            lambda: mine(one(PgClip(), DRAFT, cross_is="token"), pools=(Pool((DRAFT,)),)),
            "cross_is='token' has no effect",
        ),
        (
            lambda: mine(one(PgClip(), HINTED, token_floor=-5.0), pools=(Pool((HINTED,)),)),
            "token_floor=-5.0 has no effect",
        ),
        (
            lambda: mine(one(PgClip(), DRAFT, drop_cross_negative=True), pools=(Pool((DRAFT,)),)),
            "drop_cross_negative=True has no effect",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pool((PLAIN,), centre="parent", scale="none"),
        lambda: Pool((PLAIN,), key="parent", centre="parent", scale="none"),
        lambda: Pool((PLAIN,), key="batch"),
        lambda: Pool((DRAFT, PLAIN), key="parent", scale="none"),
        lambda: Kl(sampled=True, top_k=1),
        lambda: Kl(top_k=1),
        lambda: KlRef("k1", with_ratio=True),
        lambda: Mismatch("veto", low=1e-4),
        lambda: mine(one(Reinforce(), PLAIN, **NO_FLOOR), pools=(Pool((PLAIN,)),), **BEHAVIOUR),
        lambda: dataclasses.replace(GRPO, anchor="behaviour"),
        lambda: dataclasses.replace(DITTO, refinement=Refinement(words="policy")),
        lambda: dataclasses.replace(OBJECTIVES["ditto_no_fb"], refinement=Refinement(keep="best")),
        lambda: mine(
            one(PgClip(), DRAFT),
            one(PgClip(), PLAIN, aggregation="seq_sum"),
            pools=(Pool(JOINT),),
            denominator="term",
        ),
        lambda: mine(one(Reinforce(), PLAIN, cross_is="seq"), pools=(Pool((PLAIN,)),)),
    ],
)
def test_the_values_that_the_messages_name_do_work(make):
    make()


def test_scoring_passes_are_those_that_the_terms_read():
    assert OBJECTIVES["rloo"].passes == frozenset()
    assert dataclasses.replace(GRPO, anchor="behaviour").passes == frozenset()
    assert OBJECTIVES["rltf_sd"].passes == {"anchor"}
    floor_alone = mine(one(Reinforce(), PLAIN), pools=(Pool((PLAIN,)),))
    assert floor_alone.passes == {"anchor"}
    assert mine(one(Reinforce(), PLAIN, neg_floor=None), pools=(Pool((PLAIN,)),)).passes == frozenset()
    assert mine(one(Reinforce(), PLAIN, cross_is="seq"), pools=(Pool((PLAIN,)),)).passes == {"anchor", "sample"}
    assert mine(one(Kl(is_clip=None), DRAFT), one(KlRef(), DRAFT)).passes == {"teacher", "reference"}
    assert OBJECTIVES["sdft"].passes == {"teacher", "sample"}


def test_attempts_are_sampled_only_where_a_row_needs_one():
    without = {name for name, objective in OBJECTIVES.items() if objective.refine and not objective.refined_rollouts}
    assert without == {"sdpo_token", "sdpo", "sdpo_logits", "sdpo_grpo", "opcd", "sdft", "fcp"}


def run(**settings) -> RunConfig:
    """Returns a run with one task, built as YAML is, so that the checks of the configuration apply."""
    plain = to_plain(RunConfig())
    task = {"name": "hitom", "source": {"kind": "generated", "limit": 8}}
    return build(RunConfig, merge(plain, {"tasks": [task], **settings}))


CLOSED = [{"name": "hitom", "source": {"kind": "generated", "limit": 8}, "feedback": {"by": "nobody"}}]


@pytest.mark.parametrize("name", ["ditto", "sdpo", "sdpo_grpo", "opcd", "fcp", "rltf_fm", "erl"])
def test_objectives_that_need_feedback_are_refused_where_nobody_gives_any(name):
    with pytest.raises(ConfigError, match=r"needs feedback, but no task gives any; .*feedback\.by=judge"):
        run(objective={"name": name}, tasks=CLOSED)
    assert run(objective={"name": name}).objective.name == name


@pytest.mark.parametrize("name", ["grpo", "ditto_no_fb"])
def test_objectives_that_work_on_drafts_alone_do_without_feedback(name):
    assert run(objective={"name": name}, tasks=CLOSED).objective.name == name


def test_one_task_with_feedback_is_enough():
    tasks = [*CLOSED, {"name": "paratomi", "source": {"kind": "generated", "limit": 8}}]
    assert run(objective={"name": "sdpo"}, tasks=tasks).objective.name == "sdpo"


def test_groups_too_small_for_a_pool_are_refused_with_the_size_that_works():
    large = {
        "name": "mine",
        "pools": [{"roles": ["draft"], "min_size": 6}],
        "terms": [{"loss": {"kind": "pg_clip"}, "roles": ["draft"]}],
    }
    with pytest.raises(ConfigError, match=r"num_generations=4: pool draft .* at least 6 rollouts of a prompt; 6 works"):
        run(objective=large, rollout={"num_generations": 4})
    run(objective=large, rollout={"num_generations": 6})
    joint = {**large, "pools": [{"roles": ["draft", "refined_plain"], "min_size": 6}]}
    with pytest.raises(ConfigError, match="3 works"):
        run(objective=joint, rollout={"num_generations": 2})
    run(objective=joint, rollout={"num_generations": 3})


def test_prompts_that_do_not_divide_into_updates_are_refused():
    with pytest.raises(ConfigError, match=r"prompts_per_step=7: not divisible by train\.updates_per_step=2.* 6 works"):
        run(rollout={"prompts_per_step": 7}, train={"updates_per_step": 2})
    run(rollout={"prompts_per_step": 6}, train={"updates_per_step": 2})


def test_a_penalty_that_no_response_reaches_is_refused():
    with pytest.raises(ConfigError, match=r"response_length=1024: above rollout\.max_completion_length=64.* 64 works"):
        run(objective={"name": "dapo"}, rollout={"max_completion_length": 64})
    settings = {"name": "dapo", "response_length": 64, "overlong_buffer": 16}
    assert (
        make_objective(run(objective=settings, rollout={"max_completion_length": 64}).objective).truncated == "penalise"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "gspo", "top_k": 8}, "top_k=8: objective 'gspo' has no use for it"),
        ({"name": "sdpo", "epsilon": 0.1}, "epsilon=0.1: objective 'sdpo' has no use for it"),
        ({"name": "sdpo", "scale": "none"}, "scale='none': objective 'sdpo' has no use for it"),
        ({"name": "grpo", "neg_floor": -5.0}, "neg_floor=-5.0: objective 'grpo' has no use for it"),
        ({"name": "grpo", "teacher": "ema"}, "teacher='ema': objective 'grpo' has no use for it"),
        ({"name": "grpo", "mismatch_high": 3.0}, "mismatch_high=3.0: objective 'grpo' has no use for it"),
        ({"name": "grpo", "teacher_coef": 2.0}, "no teacher term"),
        ({"name": "sdpo", "teacher_coef": -1.0}, "teacher_coef=-1.0: must be finite and above 0"),
        ({"name": "sdpo_token", "top_k": 8}, "top_k=8: with sampled=true"),
        ({"name": "ditto", "anchor": "behaviour"}, "anchor='rescored' works"),
        ({"name": "ditto", "keep": "best"}, "keep='best' leaves one attempt"),
        ({"name": "erl", "words": "judge"}, "REFLECTION is in no view"),
        ({"name": "rltf_fm", "words": "policy"}, "CRITIQUE is in no view"),
        ({"name": "sdpo", "teacher": "frozen", "teacher_rate": 0.5}, "teacher.rate=0.5: has no effect"),
        ({"name": "grpo", "mismatch": "token_tis", "anchor": "behaviour"}, "holds the sampler's numerics already"),
    ],
)
def test_settings_that_an_entry_has_no_use_for_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_objective(ObjectiveConfig(**settings))
