"""Checks of the update and of what it comes to: not finite, not moving, off the sampler, clipped, worse than before.

records of a run → **checks** → findings
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from ditto_jax.diagnosis.evidence import Evidence, late, places, series, span_of
from ditto_jax.diagnosis.finding import Advice, Finding, Suspicion
from ditto_jax.errors import DittoError
from ditto_jax.evaluation.comparison import Pair, intervals_overlap
from ditto_jax.evaluation.paired_comparison import compare, read_items
from ditto_jax.report.rollout_sources import rows_of
from ditto_jax.runs.readings import number

_FINITE = re.compile(r"grad_norm|entropy|policy/(loss|ratio|log_ratio)_.+|policy/sampler_logprob_gap_.+")
_SKIPPED = 0.05  # share of updates that float16 may skip while its scale is found
_DRIFT, _LARGE_DRIFT = 0.02, 0.1  # nats a token; bfloat16 and keys in 8 bits stay below 0.001 on the packaged policy
_GROWN = 10.0
_CLIPPED, _CLIPPED_SEQUENCES = 0.3, 0.6  # share of tokens
_FAR = 0.5  # nats a token
_LEAST_ITEMS = 16
_LEAST_STEPS = 3
_CLIP = re.compile(r"policy/clip_(?:low|high|dual)_(.+)_fraction")
_REFERENCE = re.compile(r"policy/kl_ref_(.+)_mean")


def nan_updates(evidence: Evidence) -> Iterator[Suspicion]:
    """Losses, gradients or log-probs that are not finite. Rollouts of a policy whose parameters are not are cut off and
    may leave no row to compute a loss of, so that only their log-probs tell.
    """
    broken = {int(row["step"]): bad for row in evidence.rows if (bad := _not_finite(row))}
    sampled = [fact for fact in evidence.facts if not fact.is_finite]
    for fact in sampled:
        broken.setdefault(fact.step, []).append("log-probs of rollouts")
    if not broken:
        return
    share = len(broken) / len(evidence.rows)
    is_scaling = evidence.setting("dtype") == "float16" and share <= _SKIPPED
    names = sorted({name for bad in broken.values() for name in bad})
    yield Suspicion(
        Finding(
            "nan_updates",
            "note" if is_scaling else "error",
            f"{len(broken)} of {len(evidence.rows)} steps had numbers that are not finite, first in step {min(broken)}",
            {"metrics": ", ".join(names[:6]) + (" …" if len(names) > 6 else "")},
            (min(broken), max(broken)),
            places(sampled),
            (
                evidence.other_rate(1 / 10, "large steps overflow"),
                Advice("dtype", "float32, or bfloat16", "float16 ends at 65,504"),
                Advice(
                    "resume", f"from a checkpoint before step {min(broken)}", "parameters that are not finite stay so"
                ),
            ),
        )
    )


def _not_finite(row: Mapping[str, object]) -> list[str]:
    return [k for k, v in row.items() if _FINITE.fullmatch(k) and isinstance(v, float) and not math.isfinite(v)]


def no_gradient(evidence: Evidence) -> Iterator[Suspicion]:
    """The gradient is zero in most steps."""
    norms = series(evidence.rows, "grad_norm")
    still = [step for step, norm in norms if norm == 0.0]
    if not norms or len(still) <= len(norms) / 2:
        return
    yield Suspicion(
        Finding(
            "no_gradient",
            "error",
            f"the gradient was zero in {len(still)} of {len(norms)} steps: they changed nothing but by weight decay",
            {"steps without a gradient": len(still)},
            (still[0], still[-1]),
            advice=(Advice("tasks", "of another difficulty", "without rewards that differ there is no gradient"),),
        )
    )


def policy_unchanged(evidence: Evidence) -> Iterator[Suspicion]:
    """Greedy evaluations before and after training have the same replies, to the letter."""
    for pair in evidence.pairs if len(evidence.rows) >= _LEAST_STEPS else ():
        before, after = (_greedy_replies(evidence, record) for record in (pair.before, pair.after))
        shared = before.keys() & after.keys()
        if len(shared) < _LEAST_ITEMS or any(before[item] != after[item] for item in shared):
            continue
        yield Suspicion(
            Finding(
                "policy_unchanged",
                "error",
                f"{pair.label}: all {len(shared)} greedy replies are the same before and after training: the "
                "parameters hardly moved",
                {
                    "optimizer.learning_rate": evidence.learning_rate,
                    "param_dtype": str(evidence.setting("param_dtype", "float32")),
                },
                span_of(evidence.rows),
                advice=(
                    evidence.other_rate(10, "steps are too small to show"),
                    Advice("param_dtype", "float32", "steps below 1/256 of a parameter are rounded away in bfloat16"),
                ),
            )
        )
        return


def _greedy_replies(evidence: Evidence, record: Mapping[str, object] | None) -> dict[str, str]:
    if record is None or record.get("temperature") != 0.0:
        return {}
    rows = rows_of(evidence.run, f"evaluation {record.get('label')}", int(str(record.get("step") or 0)))
    return {str(row.get("id")): str(row.get("reply")) for row in rows}


def sampler_drift(evidence: Evidence) -> Iterator[Suspicion]:
    """Log-probs of the sampler and of the update differ, or begin to. One step behind they are meant to."""
    if evidence.setting("rollout.steps_behind", 0):
        return
    gaps = series(evidence.rows, "policy/sampler_logprob_gap_mean")
    values = [value for _, value in gaps]
    if not values:
        return
    second = values[len(values) // 2 :]
    now, first = sum(second) / len(second), values[0]
    has_grown = now > _GROWN * first and now > _DRIFT / 4
    if now <= _DRIFT and not has_grown:
        return
    largest = max((value for _, value in series(late(evidence.rows), "policy/sampler_logprob_gap_max")), default=0.0)
    yield Suspicion(
        Finding(
            "sampler_drift",
            "error" if now > _LARGE_DRIFT else "warning",
            f"log-probs of sampler and update differ by {now:.2g} nats a token in the second half of the run, "
            f"{first:.2g} in its first step: what is trained is not what was sampled",
            {"largest of a token": largest, "first step": first},
            span_of(late(evidence.rows)),
            advice=(
                Advice("sampler.merge_adapters", "false", "a merged copy is rounded to param_dtype"),
                Advice("sampler.kv_dtype", "compute", "keys in 8 bits are rounded"),
                Advice("dtype", "float32", "where the gap is gone then, it was rounding"),
            ),
        )
    )


def ratios_clipped(evidence: Evidence) -> Iterator[Suspicion]:
    """Many tokens leave the trust region in the second half of the run."""
    rows = late(evidence.rows)
    by_role: dict[str, float] = {}
    for row in rows:
        for key in row:
            if found := _CLIP.fullmatch(key):
                by_role[found.group(1)] = by_role.get(found.group(1), 0.0) + (number(row, key) or 0.0) / len(rows)
    limit = _CLIPPED_SEQUENCES if evidence.setting("objective.name") == "gspo" else _CLIPPED
    clipped = {role: share for role, share in by_role.items() if share > limit}
    if not clipped:
        return
    role, share = max(clipped.items(), key=lambda item: item[1])
    updates = int(evidence.setting("train.updates_per_step", 1))
    yield Suspicion(
        Finding(
            "ratios_clipped",
            "warning",
            f"{share:.0%} of the tokens of {role} rows left the trust region: their gradient is cut",
            {f"{name} rows": value for name, value in sorted(clipped.items())},
            span_of(rows),
            advice=(
                evidence.other_rate(1 / 3, "smaller steps stay inside"),
                Advice(
                    "train.updates_per_step",
                    str(max(1, updates // 2)),
                    "the policy moves less between sampling and update",
                ),
            ),
        )
    )


def far_from_reference(evidence: Evidence) -> Iterator[Suspicion]:
    """The policy is far from the one that it began as, where the objective measures that."""
    rows = late(evidence.rows)
    for key in sorted({key for row in rows for key in row if _REFERENCE.fullmatch(key)}):
        values = [value for _, value in series(rows, key)]
        mean = sum(values) / len(values) if values else 0.0
        if mean > _FAR:
            yield Suspicion(
                Finding(
                    "far_from_reference",
                    "warning",
                    f"{key} is {mean:.2g} nats a token in the second half of the run",
                    {"largest": max(values)},
                    span_of(rows),
                    advice=(Advice("objective", "a larger coefficient of the KL term", "it holds the policy near"),),
                )
            )
            return


def evaluation_worse(evidence: Evidence) -> Iterator[Suspicion]:
    """An evaluation without feedback is worse after training than before, by more than noise."""
    for pair in evidence.pairs:
        change = pair.whole.change
        if change is None or change >= 0.0:
            continue
        figures = _is_worse(evidence, pair)
        if figures is None:
            continue
        assert pair.before is not None and pair.after is not None
        yield Suspicion(
            Finding(
                "evaluation_worse",
                "error",
                f"{pair.label}: the mean score without feedback is {change:+.3f} from what it was before training",
                figures,
                (int(pair.before.get("step") or 0), int(pair.after.get("step") or 0)),
                advice=(
                    evidence.other_rate(1 / 3, "too large steps undo what was there"),
                    Advice(
                        "evaluation.every",
                        "a tenth of the steps",
                        "shows when it turns; earlier checkpoints may be better",
                    ),
                ),
            )
        )


def _is_worse(evidence: Evidence, pair: Pair) -> dict[str, float | int | str] | None:
    """Figures of a fall that is no noise: paired by item where the samples are there, else by the intervals."""
    assert pair.before is not None and pair.after is not None
    steps = [int(record.get("step") or 0) for record in (pair.before, pair.after)]
    try:
        before, after = (read_items(f"{evidence.run.path}@{step}") for step in steps)
        (found,) = compare({"before": {pair.label: before[pair.label]}, "after": {pair.label: after[pair.label]}}, 0.99)
    except (DittoError, KeyError):
        return None if intervals_overlap(pair.whole) is not False else {"by": "intervals"}
    if found.noise or found.value >= 0 or found.low is None:
        return None
    return {
        "difference": found.value,
        "99 % interval": f"{found.low:+.3f} to {found.high:+.3f}",
        "p": found.p_value,
        "items": found.n,
        "better / same / worse": f"{found.wins} / {found.ties} / {found.losses}",
    }


CHECKS = (
    nan_updates,
    no_gradient,
    policy_unchanged,
    sampler_drift,
    ratios_clipped,
    far_from_reference,
    evaluation_worse,
)
