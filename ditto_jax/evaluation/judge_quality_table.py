"""Figures about a judge → lines for people: the terminal, and judge_quality.md.

In: the records of `judge_check.py`. Out: Markdown, a few lines a label. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def quality_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the figures as Markdown, a few lines a label."""
    lines = []
    for record in records:
        lines += [f"## {record['label']}: {record['judge']}", ""]
        if "not_checked" in record:
            lines += [f"- not checked: {record['not_checked']}", ""]
            continue
        own = record["self_consistency"]
        lines.append(
            f"- self-consistency over {own['samples']} samples: {_number(own['identical'])} of them with equal "
            f"verdicts, standard deviation {_number(own['sd'])}, reliability {_number(own['reliability'])}"
        )
        if record["failed_verdicts"]:
            lines.append(f"- failed verdicts: {_counts(record['failed_verdicts'])}")
        lines += [*_agreement_lines(record.get("agreement")), *_control_lines(record.get("controls"))]
        lines += [*_pairwise_lines(record.get("pairwise")), ""]
    return lines


def _agreement_lines(both: Mapping[str, Any] | None) -> list[str]:
    if both is None:
        return []
    if not both["samples"]:
        return [f"- agreement with {', '.join(both['with'])}: it gave no score"]
    kappa = "" if both["kappa"] is None else f", kappa {_number(both['kappa'])}"
    return [
        f"- agreement with {', '.join(both['with'])} over {both['samples']} samples: difference "
        f"{both['difference']:+.3f}{_interval(both['interval'])}, mean absolute difference "
        f"{_number(both['mean_absolute_difference'])}, Pearson {_number(both['pearson'])}, Spearman "
        f"{_number(both['spearman'])}{kappa}"
    ]


def _control_lines(controls: Mapping[str, Any] | None) -> list[str]:
    shown = [
        f"{name.replace('_', ' ')} {_number(one['value'])} (n={one['n']})" for name, one in (controls or {}).items()
    ]
    return [f"- mean score: {', '.join(shown)}"] if shown else []


def _pairwise_lines(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    if "not_asked" in found:
        return [f"- pairs: not asked, {found['not_asked']}"]
    lines = [
        f"- pairs, {name.replace('_', ' ')}: win rate {_number(one['win_rate'])}{_interval(one['interval'])} over both "
        f"orders of {one['pairs']}, position bias {_number(one['position_bias'])}, "
        f"consistent {_number(one['consistent'])}"
        for name, one in found.items()
        if isinstance(one, Mapping)
    ]
    return [*lines, f"- pairs, win rate calibrated by the controls: {_number(found['calibrated_win_rate'])}"]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _interval(interval: Mapping[str, float] | None) -> str:
    return "" if interval is None else f" [{interval['low']:.3f}, {interval['high']:.3f}]"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
