"""What an objective must not be: every rule that needs more than one of its parts, as a function of a few lines.

an objective as built, or as configured for a run → **nothing, or a ConfigError** with the rule and a value that works

`Objective` runs `validate` when it is built, `RunConfig` runs `validate_run` where group size, lengths and gates are
known. Rules about one part alone are checked by that part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ditto_jax.errors import ConfigError
from ditto_jax.objective.checks import check, role_names
from ditto_jax.objective.losses import Kl, Nll
from ditto_jax.types import ViewRole

if TYPE_CHECKING:
    from ditto_jax.objective.objective import Objective
    from ditto_jax.objective.pool import Pool
    from ditto_jax.objective.term import Term

_ATTEMPTS = {ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB}
_READ_BY_TEACHER = {ViewRole.DRAFT, ViewRole.REFINED_PLAIN}


def validate(objective: Objective) -> None:
    """Returns nothing; raises ConfigError for a combination of parts that cannot work."""
    check(bool(objective.terms), "terms", objective.terms, "an objective needs at least one term", "a Term")
    _check_pools_and_terms_fit(objective)
    _check_words(objective)
    _check_roles_of_terms(objective)
    _check_pool_sizes(objective)
    _check_credit(objective)
    _check_denominators(objective)
    _check_lengths(objective)
    _check_teacher(objective)
    for term in objective.terms:
        _check_behaviour_anchor(objective, term)
        _check_cross_settings(objective, term)
    _check_prompt_weights(objective)


def validate_run(
    objective: Objective,
    *,
    num_generations: int,
    max_completion_length: int,
    feedback_is_given: bool,
    steps_behind: int = 0,
) -> None:
    """Returns nothing; raises ConfigError for an objective that the run's sampling cannot serve.

    feedback_is_given: whether any task may get words about a draft. steps_behind: how much older the weights are that
    sample.
    """
    require_correction(objective, steps_behind)
    for pool in objective.pools:
        kinds = _sampled_kinds(objective, pool)
        if pool.key == "prompt" and len(kinds) and len(kinds) * num_generations < pool.needed:
            works = math.ceil(pool.needed / len(kinds))
            raise ConfigError(
                f"rollout.num_generations={num_generations}: pool {role_names(pool.roles)} of objective "
                f"{objective.name!r} compares at least {pool.needed} rollouts of a prompt; {works} works"
            )
    needing = [term for term in objective.terms if _needs_feedback(term)]
    if needing and not feedback_is_given:
        raise ConfigError(
            f"objective.name={objective.name!r}: its term on {role_names(needing[0].roles)} needs feedback, but no "
            "task gives any; set tasks.<name>.feedback.by=judge and rollout.feedback_below=1.0, or objective.name=grpo"
        )
    if objective.truncated == "penalise" and (objective.response_length or 0) > max_completion_length:
        raise ConfigError(
            f"objective.response_length={objective.response_length}: above rollout.max_completion_length="
            f"{max_completion_length}, so that truncated=penalise would never see a long response; "
            f"{max_completion_length} works"
        )


def require_correction(objective: Objective, steps_behind: int) -> None:
    """Returns nothing; raises ConfigError if rollouts are sampled with older weights and a term does not weigh that.

    The weight is that of the decoupled objective of arXiv 2110.00641: a ratio to the policy at the start of the update
    (the anchor), times how much likelier that policy makes the sample than the one that drew it (`Mismatch`). An anchor
    of the sampler's own log-probs has both in one ratio.
    """
    if not steps_behind or objective.anchor == "behaviour":
        return
    for term in objective.terms:
        if term.mismatch is None and ViewRole.CRITIQUE not in term.roles:
            problem = (
                f"rollout.steps_behind={steps_behind}, but its {term.loss.kind} term on {role_names(term.roles)} takes "
                "rollouts of older weights for its own"
            )
            _fail(objective, problem, "objective.mismatch=token_tis works, or rollout.steps_behind=0")


def _fail(objective: Objective, problem: str, works: str) -> None:
    raise ConfigError(f"objective {objective.name!r}: {problem}; {works}")


def _needs_feedback(term: Term) -> bool:
    return isinstance(term.loss, Kl) or ViewRole.DRAFT not in term.roles


def _check_pools_and_terms_fit(objective: Objective) -> None:
    owners: dict[ViewRole, Pool] = {}
    for pool in objective.pools:
        for role in pool.roles:
            if role in owners:
                both = f"{role_names(owners[role].roles)} and {role_names(pool.roles)}"
                problem = f"role {role.name} is in two pools, {both}; a row has one weight"
                _fail(objective, problem, "leave the role in one of them")
            owners[role] = pool
    rewarded = {role for term in objective.terms if term.uses_rewards for role in term.roles}
    for role in sorted(rewarded - set(owners)):
        works = f"add {role.name} to a pool, such as Pool(roles=(ViewRole.{role.name},))"
        _fail(objective, f"a term trains role {role.name}, but no pool gives it a weight", works)
    for pool in objective.pools:
        if not rewarded & set(pool.roles):
            problem = f"no term reads the weights of pool {role_names(pool.roles)}"
            _fail(objective, problem, "remove the pool, or name its roles as stat_roles of another")


def _check_words(objective: Objective) -> None:
    """Reflections are the policy's words, critiques are the judge's: a run has one of them."""
    if objective.refinement.words == "judge" and ViewRole.REFLECTION in objective.views:
        problem = "role REFLECTION is in no view while the judge writes the feedback (words='judge')"
        _fail(objective, problem, "Refinement(words='policy') works")
    if objective.refinement.words == "policy" and ViewRole.CRITIQUE in objective.views:
        problem = "role CRITIQUE is in no view while the policy writes the feedback (words='policy')"
        _fail(objective, problem, "Refinement(words='judge') works")
    if objective.refinement.words == "judge" and objective.refinement.reflection_sees != "score":
        problem = "reflection_sees='words' has no effect while the judge writes the feedback (words='judge')"
        _fail(objective, problem, "reflection_sees='score' works, or Refinement(words='policy')")
    for pool in objective.pools:
        if ViewRole.CRITIQUE in (*pool.roles, *pool.counted_roles):
            problem = f"pool {role_names(pool.roles)} counts role CRITIQUE, whose rows no judge scores"
            _fail(objective, problem, "stat_roles=(ViewRole.DRAFT,) works")


def _check_roles_of_terms(objective: Objective) -> None:
    for term in objective.terms:
        kind, names = term.loss.kind, role_names(term.roles)
        if ViewRole.CRITIQUE in term.roles and not isinstance(term.loss, Nll):
            problem = f"a {kind} term trains {names}, but the policy did not sample the words of role CRITIQUE"
            _fail(objective, problem, "Nll() works on them")
        if ViewRole.CRITIQUE in term.roles and term.mismatch is not None:
            problem = f"mismatch={term.mismatch.correction!r} on {names}: no sampler wrote the words of role CRITIQUE"
            _fail(objective, problem, "null works")
        if isinstance(term.loss, Kl) and not set(term.roles) <= _READ_BY_TEACHER:
            problem = f"a kl term trains {names}, but a teacher with feedback differs only from rows without it"
            _fail(objective, problem, "roles DRAFT and REFINED_PLAIN work")


def _sampled_kinds(objective: Objective, pool: Pool) -> set[str]:
    """Which groups of a prompt the statistics count, each as large as the group of drafts; a kept best is none."""
    roles = set(pool.counted_roles)
    attempts = bool(roles & _ATTEMPTS) and objective.refinement.keep == "all"
    reflections = ViewRole.REFLECTION in roles
    drafts = bool(roles - _ATTEMPTS - {ViewRole.REFLECTION})
    present = {"attempts": attempts, "reflections": reflections, "drafts": drafts}
    return {kind for kind, here in present.items() if here}


def _check_pool_sizes(objective: Objective) -> None:
    for pool in objective.pools:
        if pool.key == "prompt" and not _sampled_kinds(objective, pool) and pool.needed > 1:
            problem = (
                f"keep='best' leaves one attempt of a prompt, but pool {role_names(pool.roles)} compares at least "
                f"{pool.needed}"
            )
            _fail(objective, problem, "Refinement(keep='all') works, or add DRAFT to the pool's stat_roles")


def _check_credit(objective: Objective) -> None:
    for pool in objective.pools:
        if pool.credit > 0.0 and not _ATTEMPTS & set(objective.views):
            problem = f"credit={pool.credit} of pool {role_names(pool.roles)} needs attempts after feedback"
            _fail(objective, f"{problem}, but no pool or term has any", "credit=0.0 works")


def _check_denominators(objective: Objective) -> None:
    kinds = {term.aggregation or objective.aggregation for term in objective.terms if term.uses_rewards}
    if objective.denominator == "shared" and len(kinds) > 1:
        problem = f"denominator='shared' over terms with different aggregations ({', '.join(sorted(kinds))})"
        _fail(objective, problem, "denominator='term' works, or one aggregation for all terms that use rewards")
    if objective.counted_rows == "live" and not objective.pools:
        _fail(objective, "counted_rows='live' has no effect without a pool", "counted_rows='valid' works")


def _check_lengths(objective: Objective) -> None:
    constant = "seq_const" in {objective.aggregation, *(term.aggregation for term in objective.terms)}
    penalised = objective.truncated == "penalise"
    length, buffer = objective.response_length, objective.overlong_buffer
    if constant or penalised:
        reader = "aggregation='seq_const' divides by it" if constant else "truncated='penalise' counts up to it"
        rule = f"{reader}; must be at least 1, such as the largest response"
        check(length is not None and length >= 1, "response_length", length, rule, 1024)
    else:
        rule = f"has no effect with aggregation={objective.aggregation!r}"
        check(length is None, "response_length", length, rule, "null")
    if penalised:
        rule = f"truncated='penalise' lowers rewards over it; must be from 1 to response_length={length}"
        fits = buffer is not None and length is not None and 1 <= buffer <= length
        check(fits, "overlong_buffer", buffer, rule, max(1, (length or 4) // 4))
        check(bool(objective.pools), "truncated", "penalise", "has no effect without a pool of rewards", "drop")
    else:
        rule = f"has no effect with truncated={objective.truncated!r}"
        check(buffer is None, "overlong_buffer", buffer, rule, "null")


def _check_teacher(objective: Objective) -> None:
    teacher = objective.teacher
    if "teacher" not in objective.passes and (teacher.weights, teacher.rate) != ("same", 0.05):
        problem = f"teacher={teacher.weights!r} has no effect: no term compares the policy with a teacher"
        _fail(objective, problem, "add Term(Kl(), (ViewRole.DRAFT,)), or leave teacher out")


def _check_behaviour_anchor(objective: Objective, term: Term) -> None:
    """The sampler's log-probabilities belong to the sampling context: an anchor only where that is the training one."""
    if objective.anchor == "rescored":
        return
    cross = tuple(role for role in term.roles if objective.is_cross(role))
    floors = term.token_floor is not None or (term.uses_rewards and term.neg_floor is not None)
    if cross and (term.uses_ratio or floors):
        problem = (
            f"anchor='behaviour' with a {term.loss.kind} term on {role_names(cross)}, whose rows were sampled with the "
            "feedback in sight: their ratios or floors would undo what the feedback taught"
        )
        _fail(objective, problem, "anchor='rescored' works")
    if term.mismatch is not None:
        problem = f"anchor='behaviour' holds the sampler's numerics already, mismatch={term.mismatch.correction!r} too"
        _fail(objective, problem, "anchor='rescored' works, or mismatch=null")
    if term.cross_is != "none":
        problem = f"cross_is={term.cross_is!r} compares two contexts, but anchor='behaviour' rescores neither"
        _fail(objective, problem, "anchor='rescored' works")


def _check_cross_settings(objective: Objective, term: Term) -> None:
    if any(objective.is_cross(role) for role in term.roles):
        return
    for name, unused in (("cross_is", "none"), ("token_floor", None), ("drop_cross_negative", False)):
        value = getattr(term, name)
        if value != unused:
            problem = f"{name}={value!r} has no effect on {role_names(term.roles)}, trained as they were sampled"
            _fail(objective, problem, f"{name}={unused!r} works")


def _check_prompt_weights(objective: Objective) -> None:
    if not objective.per_prompt_equal:
        return
    for term in objective.terms:
        for other in objective.terms:
            if set(term.roles) != set(other.roles) and set(term.roles) & set(other.roles):
                problem = (
                    f"per_prompt_equal=true counts the rows of a term, but terms on {role_names(term.roles)} and "
                    f"{role_names(other.roles)} share some"
                )
                _fail(objective, problem, "per_prompt_equal=false works, or terms that share all their roles or none")
