"""What an objective asks of the scoring passes: which columns, of which rows, read by whose weights.

objective → **columns of a batch, weights to keep** → scoring passes

In: the objective as data. Out: plain answers that are the same in every step. Runs no pass and holds no weights.
"""

from __future__ import annotations

from ditto_jax.errors import ConfigError
from ditto_jax.objective import Kl, KlRef, Objective
from ditto_jax.types import ViewRole
from ditto_jax.update.batch import Columns


def distilled(objective: Objective) -> Kl | None:
    """Returns the loss whose candidates a teacher is asked for, None if no term has a teacher.

    Raises ConfigError if two terms want different candidates: a token has one set of them.
    """
    losses = [term.loss for term in objective.terms if isinstance(term.loss, Kl)]
    wanted = {(loss.candidates, loss.top_k, loss.sampled) for loss in losses}
    if len(wanted) > 1:
        raise ConfigError(
            f"objective {objective.name!r}: its kl terms have different candidates, {sorted(wanted)} as (candidates, "
            "top_k, sampled); a token has one set of them, such as candidates='student', top_k=20 in every kl term"
        )
    return losses[0] if losses else None


def roles_of(objective: Objective, kind: type[Kl] | type[KlRef]) -> frozenset[ViewRole]:
    """Returns the roles that terms with this kind of loss train."""
    return frozenset(role for term in objective.terms if isinstance(term.loss, kind) for role in term.roles)


def columns_of(objective: Objective, vocabulary: int, updates: int, constrained: bool = False) -> Columns:
    """Returns the columns that the run's batches have; `updates`: optimiser updates per step. constrained: replies are
    held to forms.

    The first update's weights are those of the anchors: where it is the only one, a pass would repeat the forward pass
    bit for bit, and there is no such column.
    """
    passes, loss = objective.passes, distilled(objective)
    candidates = 0
    if loss is not None:
        candidates = 1 if loss.sampled else min(loss.top_k, vocabulary)
    return Columns(
        anchor=objective.anchor == "behaviour" or ("anchor" in passes and updates > 1),
        sample="sample" in passes,
        reference="reference" in passes,
        teacher=candidates,
        mask=constrained,
    )


def needs_initial(objective: Objective) -> bool:
    """True iff a pass reads the initial policy: as reference, or as a teacher that never changes."""
    passes = objective.passes
    return "reference" in passes or ("teacher" in passes and objective.teacher.weights == "frozen")


def needs_average(objective: Objective) -> bool:
    """True iff the teacher is a moving average of the policy."""
    return "teacher" in objective.passes and objective.teacher.weights == "ema"
