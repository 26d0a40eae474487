"""The average over the suite: the paper's own arithmetic on its own figures, and honesty about what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from ditto_jax.config import EvalConfig
from ditto_jax.evaluation.evaluate import TaskEvaluation
from ditto_jax.evaluation.published_scores import published_scores
from ditto_jax.evaluation.soul_average import average_lines, soul_average
from ditto_jax.tasks.registry import built_in_names

# The last line of the paper's table, as printed there.
PRINTED = {
    "gpt_5_4": 0.663, "gpt_5_nano": 0.469, "sotopia_rl_7b": 0.365, "humanlm_8b": 0.487, "her_32b": 0.484,
    "coser_8b": 0.235, "base_8b": 0.533, "grpo_8b": 0.678, "ditto_8b": 0.726,
}  # fmt: skip


def evaluation(task: str, scores, stand_in: bool = False, groups=None, label: str = "") -> TaskEvaluation:
    groups = groups or [[] for _ in scores]
    rows = [
        {"id": str(i), "score": score, "groups": own} for i, (score, own) in enumerate(zip(scores, groups, strict=True))
    ]
    known = [score for score in scores if score is not None]
    value = float(np.mean(known)) if known else None
    record = {"task": task, "label": label or task, "value": value, "source": {"stand_in": stand_in}}
    return TaskEvaluation(label or task, record, rows)


def test_the_shipped_table_is_of_the_ten_tasks_and_averages_as_printed():
    paper = published_scores()
    assert set(paper.benchmarks) == set(built_in_names())
    assert {name: round(paper.average(name, paper.benchmarks), 3) for name in paper.scores} == PRINTED
    assert "2605.20506" in paper.source and len(paper.caveats) >= 5


def test_all_ten_on_real_data_are_the_papers_average_and_nothing_less_is():
    paper = published_scores()
    ten = [evaluation(task, [score] * 4) for task, score in paper.scores["ditto_8b"].items()]
    average = soul_average(ten, EvalConfig(bootstrap=50))
    assert average is not None and average["is_complete"]
    assert round(average["value"], 3) == PRINTED["ditto_8b"]
    assert average["published"]["average_over_these_tasks"]["ditto_8b"] == pytest.approx(average["value"], abs=1e-4)
    ten[0] = evaluation(ten[0].label, [1.0] * 4, stand_in=True)
    assert soul_average(ten, EvalConfig(bootstrap=50))["is_complete"] is False
    assert soul_average(ten[1:], EvalConfig(bootstrap=50))["missing"] == [ten[0].label]


def test_the_published_averages_are_over_the_same_tasks():
    average = soul_average([evaluation("hitom", [1, 0]), evaluation("sotopia", [0.5, 0.3])], EvalConfig(bootstrap=50))
    assert average["tasks"] == ["hitom", "sotopia"]
    assert average["value"] == pytest.approx((0.5 + 0.4) / 2)
    assert average["published"]["average_over_these_tasks"]["base_8b"] == pytest.approx((0.58 + 0.277) / 2)
    text = "\n".join(average_lines(average))
    assert "2 of 10 tasks" in text and "Not the paper's benchmark" in text and "| Hi" in text


def test_its_interval_shrinks_with_items_and_widens_where_they_share_stories():
    rng = np.random.default_rng(0)
    scores = [float(value) for value in rng.integers(0, 2, 120)]
    pairs = [scores[i // 4] for i in range(120)]  # four questions on a story, all right or all wrong

    def width(values, groups=None) -> float:
        interval = soul_average([evaluation("hitom", values, groups=groups)], EvalConfig(bootstrap=500))["interval"]
        return interval["high"] - interval["low"]

    stories = [[f"story:{i // 4}"] for i in range(120)]
    assert width(scores) < width(scores[:30])
    assert width(pairs, stories) > 1.5 * width(pairs)


def test_own_tasks_and_tasks_without_a_score_are_not_in_it():
    assert soul_average([evaluation("last_speaker", [1.0])], EvalConfig()) is None
    assert soul_average([evaluation("hitom", [None, None])], EvalConfig()) is None
    average = soul_average([evaluation("hitom", [1.0], label="a"), evaluation("hitom", [0.0], label="b")], EvalConfig())
    assert (average["value"], average["interval"]) == (1.0, None)  # the first label; one item has no interval
