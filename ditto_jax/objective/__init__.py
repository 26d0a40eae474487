"""Objectives as data: pools, terms, the table of methods, and what a configuration may change of them."""

from ditto_jax.objective.checks import role_names
from ditto_jax.objective.config import ObjectiveConfig, make_objective
from ditto_jax.objective.losses import Cispo, Kl, KlRef, Nll, PgClip, Reinforce, Shaped, TokenLoss
from ditto_jax.objective.objective import Objective, Refinement, Teacher
from ditto_jax.objective.pool import Pool
from ditto_jax.objective.table import OBJECTIVES, register
from ditto_jax.objective.term import Mismatch, Term
from ditto_jax.objective.validation import validate_run

__all__ = [
    "OBJECTIVES",
    "Cispo",
    "Kl",
    "KlRef",
    "Mismatch",
    "Nll",
    "Objective",
    "ObjectiveConfig",
    "PgClip",
    "Pool",
    "Refinement",
    "Reinforce",
    "Shaped",
    "Teacher",
    "Term",
    "TokenLoss",
    "make_objective",
    "register",
    "role_names",
    "validate_run",
]
