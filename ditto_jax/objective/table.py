"""The table of methods: one readable entry each, nothing but pools and terms.

Which rows exist follows from the entry; what a run may change of it is in `config.py`.
"""

from __future__ import annotations

from ditto_jax.objective.losses import PgClip
from ditto_jax.objective.objective import Objective
from ditto_jax.objective.pool import Pool
from ditto_jax.objective.term import Term
from ditto_jax.types import ViewRole

_JOINT = (ViewRole.DRAFT, ViewRole.REFINED_PLAIN)
_HINTED = (ViewRole.REFINED_FB,)

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        # arXiv 2402.03300, with the clip pair of 2503.14476.
        Objective(
            name="grpo",
            pools=(Pool(roles=(ViewRole.DRAFT,)),),
            terms=(Term(loss=PgClip(), roles=(ViewRole.DRAFT,)),),
        ),
        # arXiv 2605.20506: L_group over drafts and refinements under the plain prompt, plus L_fb under the hinted one.
        Objective(
            name="ditto",
            pools=(Pool(roles=_JOINT), Pool(roles=_HINTED)),
            terms=(Term(loss=PgClip(), roles=_JOINT), Term(loss=PgClip(), roles=_HINTED)),
        ),
        # The paper's ablation without L_fb.
        Objective(
            name="ditto_no_fb",
            pools=(Pool(roles=_JOINT),),
            terms=(Term(loss=PgClip(), roles=_JOINT),),
        ),
    )
}
