"""The table of methods: one readable entry each, nothing but pools and terms.

Which rows exist and which passes run follows from the entry; what a run may change of it is in `config.py`. Where an
entry departs from its authors' code is said in docs/objectives.md. `register` adds one of your own.
"""

from __future__ import annotations

import math

from ditto_jax.errors import ConfigError
from ditto_jax.objective.losses import Cispo, Kl, Nll, PgClip, Reinforce, Shaped
from ditto_jax.objective.objective import Objective, Refinement, Teacher
from ditto_jax.objective.pool import Pool
from ditto_jax.objective.term import Mismatch, Term
from ditto_jax.types import ViewRole

_DRAFT = (ViewRole.DRAFT,)
_PLAIN = (ViewRole.REFINED_PLAIN,)
_HINTED = (ViewRole.REFINED_FB,)
_DRAFT_HINTED = (ViewRole.DRAFT_FB,)
_REFLECTION = (ViewRole.REFLECTION,)
_CRITIQUE = (ViewRole.CRITIQUE,)
_JOINT = (*_DRAFT, *_PLAIN)
_ON_POLICY = (*_DRAFT, *_HINTED)  # rows that are trained under the context they were sampled in

_NO_CLIP = PgClip(epsilon=math.inf, epsilon_high=math.inf)
_SDPO = Kl(alpha=1.0, top_k=20, tail=True, is_clip=2.0)
_SLOW_TEACHER = Teacher(weights="ema", rate=0.05)
_POSITIVE_CRITIQUE = "This reply is right in every respect: accurate, complete, well reasoned, nothing to improve."

_SCORES_ALONE = (
    # GRPO, arXiv 2402.03300, with token_mean and the clip pair of 2503.14476.
    Objective("grpo", pools=(Pool(_DRAFT),), terms=(Term(PgClip(), _DRAFT),)),
    # Dr. GRPO, arXiv 2503.20783: no scale, a constant in the place of lengths.
    Objective(
        "dr_grpo",
        pools=(Pool(_DRAFT, scale="none"),),
        terms=(Term(PgClip(epsilon_high=0.2), _DRAFT),),
        aggregation="seq_const",
        response_length=1024,
    ),
    # DAPO, arXiv 2503.14476: dead groups do not count, long responses cost.
    Objective(
        "dapo",
        pools=(Pool(_DRAFT),),
        terms=(Term(PgClip(), _DRAFT),),
        counted_rows="live",
        truncated="penalise",
        overlong_buffer=256,
        response_length=1024,
    ),
    # RLOO, arXiv 2402.14740: the mean of the others, no ratio.
    Objective(
        "rloo",
        pools=(Pool(_DRAFT, centre="loo", scale="none"),),
        terms=(Term(Reinforce(), _DRAFT),),
        aggregation="seq_sum",
    ),
    # GSPO, arXiv 2507.18071: one ratio a sequence.
    Objective(
        "gspo",
        pools=(Pool(_DRAFT),),
        terms=(Term(PgClip(epsilon=3e-4, epsilon_high=4e-4, ratio="seq"), _DRAFT),),
        aggregation="seq_mean",
    ),
    # CISPO, arXiv 2506.13585: the clipped ratio is a weight, no token is dropped.
    Objective("cispo", pools=(Pool(_DRAFT),), terms=(Term(Cispo(), _DRAFT),)),
)

_DITTO = (
    # DITTO, arXiv 2605.20506: L_group over drafts and refinements under the plain prompt, L_fb under the hinted one.
    Objective(
        "ditto",
        pools=(Pool(_JOINT), Pool(_HINTED)),
        terms=(Term(PgClip(), _JOINT), Term(PgClip(), _HINTED)),
    ),
    # Its ablation without L_fb.
    Objective("ditto_no_fb", pools=(Pool(_JOINT),), terms=(Term(PgClip(), _JOINT),)),
    # Its ablation "y1 given x only"; the statistics are the joint pool's.
    Objective("ditto_y1x", pools=(Pool(_PLAIN, stat_roles=_JOINT),), terms=(Term(PgClip(), _PLAIN),)),
    # Separate pools, which shows what the joint one does.
    Objective(
        "ditto_sep",
        pools=(Pool(_DRAFT), Pool(_PLAIN), Pool(_HINTED)),
        terms=(Term(PgClip(), _JOINT), Term(PgClip(), _HINTED)),
    ),
    # As its authors' code has it: a pool of one reinforces, dual clip 10, no floor under negative weights.
    Objective(
        "ditto_release",
        pools=(Pool(_JOINT, singleton="raw"), Pool(_HINTED, singleton="raw")),
        terms=(
            Term(PgClip(dual_clip=10.0), _JOINT, neg_floor=None),
            Term(PgClip(dual_clip=10.0), _HINTED, neg_floor=None),
        ),
    ),
)

_SECOND_ATTEMPTS = (
    # RLTF-SD, arXiv 2602.02482: second attempts against the mean of the first, as weighted likelihood under x.
    Objective(
        "rltf_sd",
        pools=(
            Pool(_DRAFT, scale="none", credit=0.1),
            Pool(_HINTED, scale="none"),
            Pool(_PLAIN, scale="none", stat_roles=_DRAFT),
        ),
        terms=(
            Term(PgClip(), _ON_POLICY),
            Term(Reinforce(), _PLAIN, coef=0.1, neg_floor=None, token_floor=-5.0),
        ),
        aggregation="seq_sum",
    ),
    # RLTF-FM, same paper: the policy also learns to say what the judge said.
    Objective(
        "rltf_fm",
        pools=(Pool(_DRAFT, scale="none", credit=0.1), Pool(_HINTED, scale="none")),
        terms=(Term(PgClip(), _ON_POLICY), Term(Nll(), _CRITIQUE, coef=0.1, aggregation="token_mean")),
        aggregation="seq_sum",
    ),
    # ERL, arXiv 2602.13949: own reflections; successful second attempts are distilled, weighted by their reward.
    Objective(
        "erl",
        pools=(
            Pool(_DRAFT),
            Pool(_REFLECTION),
            Pool(_HINTED),
            Pool(_PLAIN, centre="none", scale="none", transform="positive_part"),
        ),
        terms=(Term(PgClip(), (*_ON_POLICY, *_REFLECTION)), Term(PgClip(), _PLAIN)),
        aggregation="seq_sum",
        refinement=Refinement(words="policy"),
    ),
    # Critique-GRPO, arXiv 2506.03106: the best refinement joins the group, shaped by its probability.
    Objective(
        "critique_grpo",
        pools=(Pool(_JOINT, scale="none"),),
        terms=(Term(_NO_CLIP, _DRAFT), Term(Shaped(gamma=0.1, of="p"), _PLAIN, neg_floor=None)),
        aggregation="seq_const",
        response_length=1024,
        refinement=Refinement(keep="best"),
    ),
    # HeRL: the same with the ratio in the shape, and a bonus for drafts that could be improved.
    Objective(
        "herl",
        pools=(Pool(_JOINT, credit=0.05, credit_of="gain"),),
        terms=(Term(PgClip(), _DRAFT), Term(Shaped(gamma=0.1, of="rho"), _PLAIN, neg_floor=None)),
        refinement=Refinement(keep="best"),
    ),
    # Reflect, Retry, Reward, arXiv 2505.24726: only the reflection is trained, by the reward of the retry.
    Objective(
        "reflect_retry",
        pools=(Pool(_REFLECTION),),
        terms=(Term(PgClip(), _REFLECTION),),
        refinement=Refinement(words="policy"),
    ),
)

_TEACHERS = (
    # SDPO, arXiv 2601.20802, from the sampled token alone.
    Objective(
        "sdpo_token",
        pools=(),
        terms=(Term(Kl(sampled=True, top_k=1), _DRAFT),),
        teacher=_SLOW_TEACHER,
    ),
    # SDPO over the student's likeliest tokens and the rest as one.
    Objective("sdpo", pools=(), terms=(Term(_SDPO, _DRAFT),), teacher=_SLOW_TEACHER),
    # SDPO over so many of them that the rest hardly counts: its logit level.
    Objective("sdpo_logits", pools=(), terms=(Term(Kl(top_k=100), _DRAFT),), teacher=_SLOW_TEACHER),
    # SDPO and GRPO, summed.
    Objective(
        "sdpo_grpo",
        pools=(Pool(_DRAFT),),
        terms=(Term(PgClip(), _DRAFT), Term(_SDPO, _DRAFT)),
        teacher=_SLOW_TEACHER,
    ),
    # OPCD, arXiv 2602.12275: the initial model with the words in sight.
    Objective(
        "opcd",
        pools=(),
        terms=(Term(Kl(top_k=256, tail=False, is_clip=None), _DRAFT),),
        teacher=Teacher(weights="frozen"),
    ),
    # SDFT, arXiv 2601.19897: a very slow teacher; the first tokens, which echo the words, are left out.
    Objective(
        "sdft",
        pools=(),
        terms=(Term(Kl(top_k=100, is_clip=None), _DRAFT, skip_first=3, mismatch=Mismatch()),),
        teacher=Teacher(weights="ema", rate=0.01),
    ),
)

_LIKELIHOOD = (
    # FCP, arXiv 2509.22638: drafts under a fixed positive critique, trained under the critique they then got.
    Objective(
        "fcp",
        pools=(),
        terms=(Term(Nll(), _DRAFT_HINTED),),
        refinement=Refinement(draft_feedback=_POSITIVE_CRITIQUE),
    ),
)

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (*_SCORES_ALONE, *_DITTO, *_SECOND_ATTEMPTS, *_TEACHERS, *_LIKELIHOOD)
}


def register(objective: Objective) -> Objective:
    """Returns the objective, which `ObjectiveConfig(name=...)` finds from now on in this process.

    Raises ConfigError if another objective has its name.
    """
    if OBJECTIVES.get(objective.name, objective) != objective:
        raise ConfigError(f"objective.name={objective.name!r}: taken by another objective; my_{objective.name} works")
    OBJECTIVES[objective.name] = objective
    return objective
