"""A term: one summand of the loss, which rows it trains, which tokens it leaves out, and what multiplies its tokens.

Data alone; `loss.py` reads it. Everything that multiplies a token loss is a constant: no gradient flows through it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import pydantic

from ditto_jax.objective.checks import Roles, check, check_choice, check_roles, role_names
from ditto_jax.objective.losses import Cispo, Kl, KlRef, Nll, PgClip, Shaped, TokenLoss

Aggregation = Literal["token_mean", "seq_mean", "seq_sum", "seq_const"]
CrossWeight = Literal["none", "token", "seq"]
Correction = Literal["token_tis", "token_mask", "seq_tis", "geometric", "veto"]


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """Weight for what sampler and trainer disagree on, from d = lp_sample - lp_behave in the *sampling* context.

    "token_tis": min(exp(d), high). "token_mask": exp(d) inside [low, high], else 0. "seq_tis": min(exp(sum d), high).
    "geometric": the row is left out if exp(mean d) is outside [low, high]. "veto": it is if any exp(d) is below low.
    """

    correction: Correction = "token_tis"
    low: float = 0.0
    high: float = 2.0

    def __post_init__(self):
        check_choice("mismatch.correction", self.correction, Correction)
        field = f"mismatch_low={self.low!r}, objective.mismatch_high"
        check(0.0 <= self.low < self.high, field, self.high, "must be >= 0 and ascending", "0.5 and 2.0")
        keeps_agreement = self.low <= 1.0 <= self.high
        rule = "a sampler that agrees with the trainer has weight 1, which these limits would cut: no signal is left"
        check(keeps_agreement, field, self.high, rule, "0.5 and 2.0")
        vetoes = self.correction != "veto" or self.low > 0.0
        check(vetoes, "mismatch_low", self.low, "mismatch='veto' leaves out rows below it; must be above 0", 1e-4)


@dataclasses.dataclass(frozen=True)
class Term:
    """`coef` times the aggregated token losses over the rows with one of `roles`.

    aggregation: None takes the objective's.
    neg_floor: on rows whose training context is not their sampling context, tokens with W < 0 and lp_anchor below it
        get no weight, for nothing else bounds how far such a token is pushed down. None: no floor.
    token_floor: the same for both signs (arXiv 2602.02482 uses -5). drop_cross_negative: no weight at all for W < 0 on
        such rows. skip_first: so many sampled tokens at the start of a response get none (arXiv 2601.19897: 3).
    cross_is: the true weight of such rows, exp(lp_anchor - lp_sample), per token or over the row, at most `cross_cap`.
    mismatch: correction for the sampler's numerics; None: none.
    """

    loss: Annotated[TokenLoss, pydantic.Field(discriminator="kind")]
    roles: Roles
    coef: float = 1.0
    neg_floor: float | None = -8.0
    token_floor: float | None = None
    drop_cross_negative: bool = False
    skip_first: int = 0
    aggregation: Aggregation | None = None
    cross_is: CrossWeight = "none"
    cross_cap: float = 2.0
    mismatch: Mismatch | None = None

    def __post_init__(self):
        check_roles(f"term on {role_names(self.roles)}", self.roles)
        rule = "must be finite and above 0; to leave a term out choose an objective without it"
        check(self.coef > 0.0 and math.isfinite(self.coef), "coef", self.coef, rule, 1.0)
        for name in ("neg_floor", "token_floor"):
            floor = getattr(self, name)
            floor_is_valid = floor is None or (math.isfinite(floor) and floor < 0.0)
            check(floor_is_valid, name, floor, "is a log-probability below 0, or null for none", -8.0)
        check(self.skip_first >= 0, "skip_first", self.skip_first, "must be >= 0", 0)
        check_choice("cross_is", self.cross_is, CrossWeight)
        check(self.cross_cap > 0.0, "cross_cap", self.cross_cap, "must be above 0", 2.0)
        if self.aggregation is not None:
            check_choice("aggregation", self.aggregation, Aggregation)

    @property
    def uses_rewards(self) -> bool:
        """True iff the loss is multiplied by the row's weight, so that each role needs a pool."""
        return not isinstance(self.loss, Nll | Kl | KlRef)

    @property
    def uses_ratio(self) -> bool:
        """True iff the loss compares the policy with the anchor, token by token."""
        loss = self.loss
        if isinstance(loss, PgClip | Cispo):
            return True
        return (
            (isinstance(loss, Shaped) and loss.of == "rho")
            or (isinstance(loss, KlRef) and loss.with_ratio)
            or (isinstance(loss, Kl) and loss.is_clip is not None)
        )
