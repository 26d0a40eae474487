"""The kinds of token loss that a term may have, as data; `token_losses.py` holds their formulas.

W is the row's weight, lp the log-probability under the training context, rho = exp(lp - lp_anchor). Every kind is
minimised. `kind` is the name under which YAML chooses it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ditto_jax.objective.checks import check, check_choice

Ratio = Literal["token", "seq", "seq_token"]
Candidates = Literal["student", "teacher"]
Estimator = Literal["k1", "k2", "k3"]


@dataclasses.dataclass(frozen=True)
class PgClip:
    """Clipped policy gradient: max(-rho W, -clip(rho, 1 - epsilon, 1 + epsilon_high) W).

    `dual_clip` c caps the loss of a token with W < 0 at c |W|; beyond the cap its gradient is zero. None: no cap.
    ratio: "token"; "seq" is exp of the row's mean log-ratio (GSPO, arXiv 2507.18071); "seq_token" is the same value
    with each token's own gradient. Infinite limits give the plain ratio loss.
    """

    epsilon: float = 0.2
    epsilon_high: float = 0.28
    dual_clip: float | None = None
    ratio: Ratio = "token"
    kind: Literal["pg_clip"] = dataclasses.field(default="pg_clip", kw_only=True)

    def __post_init__(self):
        check(self.epsilon >= 0.0, "epsilon", self.epsilon, "must be >= 0", 0.2)
        check(self.epsilon_high >= 0.0, "epsilon_high", self.epsilon_high, "must be >= 0", 0.28)
        dual_is_valid = self.dual_clip is None or self.dual_clip > 1.0
        check(dual_is_valid, "dual_clip", self.dual_clip, "must be above 1, or null for no cap", 10.0)
        check_choice("ratio", self.ratio, Ratio)


@dataclasses.dataclass(frozen=True)
class Cispo:
    """-sg(clip(rho, 1 - epsilon, 1 + epsilon_high)) W lp: no token is dropped (arXiv 2506.13585)."""

    epsilon: float = 1.0
    epsilon_high: float = 4.0
    kind: Literal["cispo"] = dataclasses.field(default="cispo", kw_only=True)

    def __post_init__(self):
        check(self.epsilon >= 0.0, "epsilon", self.epsilon, "must be >= 0; 1 and above is no lower limit", 1.0)
        check(self.epsilon_high >= 0.0, "epsilon_high", self.epsilon_high, "must be >= 0", 4.0)


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """Advantage-weighted likelihood, -W lp: no ratio, no trust region."""

    kind: Literal["reinforce"] = dataclasses.field(default="reinforce", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Shaped:
    """-W z / (z + gamma) with z the token's probability ("p") or ratio ("rho"); the gradient flows through it.

    arXiv 2506.03106 (Critique-GRPO) and HeRL.
    """

    gamma: float = 0.1
    of: Literal["p", "rho"] = "p"
    kind: Literal["shaped"] = dataclasses.field(default="shaped", kw_only=True)

    def __post_init__(self):
        is_valid = self.gamma > 0.0 and math.isfinite(self.gamma)
        check(is_valid, "gamma", self.gamma, "must be finite and above 0; at 0 the shape is constant", 0.1)
        check_choice("of", self.of, Literal["p", "rho"])


@dataclasses.dataclass(frozen=True)
class Nll:
    """-lp with the row's static weight; rewards have no part in it, and no pool is needed."""

    kind: Literal["nll"] = dataclasses.field(default="nll", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Kl:
    """Divergence between the policy S under the row's context and the teacher T under the hinted one.

    alpha: 0 is KL(T || S), 1 is KL(S || T), between them the weighted Jensen-Shannon divergence. top_k: size of the
    candidate set, the most probable ids of `candidates`; with `tail` the rest of the mass is one more candidate, else
    both are renormalised. sampled: -sg(lp_T - lp_S) lp_S of the sampled token alone, top_k is then 1. is_clip: cap of
    the weight exp(lp - lp_anchor) where several updates are made; None: no weight. (arXiv 2601.20802 and relatives.)
    """

    alpha: float = 1.0
    top_k: int = 20
    tail: bool = True
    candidates: Candidates = "student"
    sampled: bool = False
    is_clip: float | None = 2.0
    kind: Literal["kl"] = dataclasses.field(default="kl", kw_only=True)

    def __post_init__(self):
        check(0.0 <= self.alpha <= 1.0, "alpha", self.alpha, "must be in [0, 1]", 1.0)
        check(self.top_k >= 1, "top_k", self.top_k, "must be at least 1", 20)
        clip_is_valid = self.is_clip is None or self.is_clip >= 1.0
        check(clip_is_valid, "is_clip", self.is_clip, "caps a weight that is 1 at first; must be at least 1", 2.0)
        check_choice("candidates", self.candidates, Candidates)
        if self.sampled:
            rule = "with sampled=true the sampled token is the only candidate"
            check(self.top_k == 1, "top_k", self.top_k, rule, "1 (or sampled=false)")
            rule = "with sampled=true only KL(S || T) has an estimate from the policy's own token"
            check(self.alpha == 1.0, "alpha", self.alpha, rule, 1.0)
        else:
            rule = "one candidate renormalised without a tail has probability 1 under both, so nothing to learn"
            check(self.top_k > 1 or self.tail, "top_k", self.top_k, rule, 20)


@dataclasses.dataclass(frozen=True)
class KlRef:
    """Penalty for leaving the initial policy, from the sampled token: with u = lp_ref - lp, k1 = -u, k2 = u^2 / 2,
    k3 = exp(u) - u - 1; `with_ratio` multiplies by rho, through which the gradient flows too.
    """

    estimator: Estimator = "k3"
    with_ratio: bool = False
    kind: Literal["kl_ref"] = dataclasses.field(default="kl_ref", kw_only=True)

    def __post_init__(self):
        check_choice("estimator", self.estimator, Estimator)
        moves = self.estimator != "k1" or self.with_ratio
        check(moves, "estimator", self.estimator, "in a loss k1 has zero expected gradient without its ratio", "k2")


TokenLoss = PgClip | Cispo | Reinforce | Shaped | Nll | Kl | KlRef
