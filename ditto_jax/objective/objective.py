"""An objective as data: pools that turn rewards into weights, and terms that turn weights into a loss.

rollouts with verdicts → **which rows share a baseline, which rows are trained how** → weights → update

An `Objective` is hashable, so that it can be a static argument of a jitted function. `advantages.py`, `loss.py` and
`rollout.py` read the data and never a name. Nothing is computed here.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ditto_jax.objective.checks import check, check_choice
from ditto_jax.objective.losses import Kl, KlRef
from ditto_jax.objective.pool import Pool
from ditto_jax.objective.term import Aggregation, Term
from ditto_jax.objective.validation import validate
from ditto_jax.types import ViewRole

Denominator = Literal["shared", "term"]
CountedRows = Literal["valid", "live"]
Truncated = Literal["drop", "keep", "penalise"]
Anchor = Literal["rescored", "behaviour"]
Author = Literal["judge", "policy"]
Kept = Literal["all", "best"]
Seen = Literal["score", "words"]
TeacherWeights = Literal["same", "ema", "frozen"]
Pass = Literal["anchor", "sample", "reference", "teacher"]
ATTEMPTED_AGAIN = (ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB, ViewRole.REFLECTION)  # no such row without an attempt


@dataclasses.dataclass(frozen=True)
class Refinement:
    """How refined rollouts come about, as far as the method decides it; gates and thresholds are the run's.

    words: who writes h, the "judge", or the "policy" itself in a reflection that is sampled as a rollout of its own.
    reflection_sees: what a reflection is told about the draft, its "score" alone or the judge's "words" too.
    keep: "all" refined rollouts of a prompt, or the "best" alone (the first of the highest score).
    draft_feedback: words under which all drafts are sampled, in the place of a judge's (arXiv 2509.22638 draws drafts
        under a fixed positive critique); "" samples them under x alone.
    """

    words: Author = "judge"
    keep: Kept = "all"
    draft_feedback: str = ""
    reflection_sees: Seen = "score"

    def __post_init__(self):
        check_choice("refinement.words", self.words, Author)
        check_choice("refinement.keep", self.keep, Kept)
        check_choice("refinement.reflection_sees", self.reflection_sees, Seen)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Whose weights score a draft under (x, h): the policy's before the update ("same"), a moving average of them
    ("ema", `rate` is the share of the new weights at each step), or the initial ones ("frozen").
    """

    weights: TeacherWeights = "same"
    rate: float = 0.05

    def __post_init__(self):
        check_choice("teacher.weights", self.weights, TeacherWeights)
        check(0.0 < self.rate <= 1.0, "teacher.rate", self.rate, "must be in (0, 1]", 0.05)
        rate_is_used = self.weights == "ema" or self.rate == 0.05
        check(rate_is_used, "teacher.rate", self.rate, f"has no effect with teacher={self.weights!r}", 0.05)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Pools and terms. Building one runs `validation.validate`, so an impossible objective does not exist.

    denominator: "shared" divides all terms that use rewards by one count, so that every trained token weighs the same
        whichever term it is in; "term" gives each its own. Other terms always have their own.
    counted_rows: denominators count the "valid" rows, or only those of "live" pools (as if dead groups were sampled
        anew, arXiv 2503.14476).
    aggregation: how token losses become one number; "seq_const" also divides by `response_length`.
    truncated: whether rows cut by the token budget leave statistics and loss, stay in both, or stay and are penalised:
        rewards lose up to 1 over the last `overlong_buffer` tokens before `response_length` (arXiv 2503.14476).
    anchor: "rescored" with the weights before the update, or the sampler's own ("behaviour"), which saves that pass.
    per_prompt_equal: every prompt weighs the same within a term, however many rows it has.
    """

    name: str
    pools: tuple[Pool, ...]
    terms: tuple[Term, ...]
    denominator: Denominator = "shared"
    counted_rows: CountedRows = "valid"
    aggregation: Aggregation = "token_mean"
    response_length: int | None = None
    truncated: Truncated = "drop"
    overlong_buffer: int | None = None
    anchor: Anchor = "rescored"
    per_prompt_equal: bool = False
    refinement: Refinement = Refinement()
    teacher: Teacher = Teacher()

    def __post_init__(self):
        check_choice("denominator", self.denominator, Denominator)
        check_choice("counted_rows", self.counted_rows, CountedRows)
        check_choice("aggregation", self.aggregation, Aggregation)
        check_choice("truncated", self.truncated, Truncated)
        check_choice("anchor", self.anchor, Anchor)
        validate(self)

    @property
    def views(self) -> tuple[ViewRole, ...]:
        """The roles whose rows must exist: every role that a term trains or a pool compares with."""
        parts = [term.roles for term in self.terms]
        parts += [roles for pool in self.pools for roles in (pool.roles, pool.counted_roles)]
        drafts = [(ViewRole.DRAFT,)] if any(pool.centre == "parent" for pool in self.pools) else []
        return tuple(sorted({role for roles in (*parts, *drafts) for role in roles}))

    @property
    def refine(self) -> bool:
        """True iff the objective needs feedback: for refined rollouts, for a teacher, or as a text to train."""
        return "teacher" in self.passes or any(role is not ViewRole.DRAFT for role in self.views)

    @property
    def refined_rollouts(self) -> bool:
        """True iff drafts with feedback must be attempted again: a teacher and the words themselves need no attempt."""
        return any(role in ATTEMPTED_AGAIN for role in self.views)

    def is_cross(self, role: ViewRole) -> bool:
        """True iff rows of the role are trained under another context than they were sampled in."""
        always = role in (ViewRole.REFINED_PLAIN, ViewRole.DRAFT_FB)
        return always or (role is ViewRole.DRAFT and bool(self.refinement.draft_feedback))

    @property
    def reads_parents(self) -> bool:
        """True iff a pool must know which draft a rollout answers to."""
        return any(pool.centre == "parent" or pool.key == "parent" or pool.credit > 0.0 for pool in self.pools)

    @property
    def passes(self) -> frozenset[Pass]:
        """The scoring passes that the terms read: log-probabilities of the anchor, of the sampling context, of the
        initial policy, and of the teacher.
        """
        needed: set[Pass] = set()
        for term in self.terms:
            if self._reads_anchor(term) and self.anchor == "rescored":
                needed.add("anchor")
            if isinstance(term.loss, KlRef):
                needed.add("reference")
            if isinstance(term.loss, Kl):
                needed.add("teacher")
            if term.mismatch is not None or term.cross_is != "none":
                needed.add("sample")
        return frozenset(needed)

    def _reads_anchor(self, term: Term) -> bool:
        cross = any(self.is_cross(role) for role in term.roles)
        floors = term.token_floor is not None or (term.uses_rewards and term.neg_floor is not None)
        return term.uses_ratio or term.cross_is != "none" or (cross and floors)
