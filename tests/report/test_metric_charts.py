"""Which charts a run gets: roles, tasks, dimensions and outcomes are those that its metrics name."""

from __future__ import annotations

from ditto_jax.report.metric_charts import cost_charts, feedback_charts, learning_charts
from tests.report_runs import metrics_row


def _titles(charts) -> list[str]:
    return [chart.title for chart in charts]


def _rows(**more) -> list[dict]:
    return [
        metrics_row(step, 4, True) | {k: v(step) if callable(v) else v for k, v in more.items()}
        for step in (1, 2, 3, 4)
    ]


def test_scores_by_dimension_have_a_chart_per_task():
    keys = {
        "rewards/sotopia/goal": 6.0,
        "rewards/sotopia/secret": -5.0,
        "rewards/sotopia/mean": 0.4,
        "rewards/coser/x": 1,
    }
    charts = learning_charts("run", _rows(**keys), [], [])
    found = {chart.title: [key.name for key in chart.keys] for chart in charts}
    assert found["Scores by dimension: sotopia"] == ["goal", "secret"]
    assert found["Scores by dimension: coser"] == ["x"]


def test_roles_and_tasks_are_those_of_the_metrics():
    keys = {
        "pool/reward_draft_mean": 0.2,
        "pool/reward_a_new_role_mean": 0.4,
        "rewards/a/mean": 0.1,
        "rewards/b/mean": 0.3,
    }
    charts = {chart.title: chart for chart in learning_charts("run", _rows(**keys), [], [])}
    assert [key.name for key in charts["Reward by role and context"].keys] == ["a_new_role", "draft"]
    assert [key.name for key in charts["Draft reward by task"].keys] == ["a", "b"]


def test_one_task_alone_has_no_chart_of_tasks():
    assert "Draft reward by task" not in _titles(learning_charts("run", _rows(**{"rewards/a/mean": 0.1}), [], []))


def test_failed_judgements_are_stacked_and_ok_is_not_among_them():
    charts = {chart.title: chart for chart in feedback_charts("run", _rows(**{"judge/score_refused_count": 2}))}
    names = [key.name for key in charts["Judgements that failed or were withheld"].keys]
    assert any(name.startswith("score refused") for name in names) and not any(" ok" in name for name in names)


def test_latency_and_tokens_are_those_of_each_step():
    rows = _rows(
        **{
            "judge/latency_s": lambda step: 3.0 * step,
            "judge/calls": lambda step: 10 * step,
            "judge/tokens_in": lambda step: 100 * step * step,
            "judge/cost_usd": lambda step: 0.5 * step,
        }
    )
    charts = {chart.title: chart for chart in cost_charts("run", rows)}
    assert [row[1] for row in charts["Latency of calls"].rows] == ["0.3"] * 4
    assert [row[1] for row in charts["Tokens of calls"].rows] == ["100", "300", "500", "700"]
    assert [row[1] for row in charts["Cost of calls"].rows] == ["0.5", "1", "1.5", "2"]


def test_run_without_metrics_has_no_charts():
    assert learning_charts("run", [], [], []) == feedback_charts("run", []) == cost_charts("run", []) == []
