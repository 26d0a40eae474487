"""Evaluation files as they are or were written → rows of text; what is missing is left out, what is there is shown."""

from __future__ import annotations

import json

from ditto_jax.evaluation.reading import (
    COLUMNS,
    evaluation_rows,
    fault_rows,
    metric_rows,
    not_measured,
    read_evaluation_table,
    suite_average,
)
from ditto_jax.report.page import write_report
from ditto_jax.runs.run_dir import RunDirectory
from tests.report_runs import make_run, record

_TASKS = [{"task": "hitom", "score": 0.5}, {"task": "coser", "not_measured": "no file is at hand"}]


def _average() -> dict:
    return {
        "value": 0.41,
        "interval": {"low": 0.36, "high": 0.46, "confidence": 0.95},
        "tasks": ["hitom", "coser"],
        "missing": ["userllm"],
        "stand_ins": ["coser"],
        "measured": {"hitom": 0.5, "coser": 0.32},
        "published": {
            "source": "Table 3",
            "caveats": ["other judges"],
            "scores": {"paper model": {"hitom": 0.6}},
            "average_over_these_tasks": {"paper model": 0.6},
        },
    }


def test_table_is_read_as_a_list_or_as_an_object(tmp_path):
    run = RunDirectory(tmp_path)
    assert read_evaluation_table(run) == {}
    for body in (_TASKS, {"schema_version": 1, "policy": "p", "tasks": _TASKS}):
        (tmp_path / "evaluation.json").write_text(json.dumps(body))
        assert read_evaluation_table(run)["tasks"] == _TASKS
        assert not_measured(read_evaluation_table(run)) == [("coser", "no file is at hand")]
    (tmp_path / "evaluation.json").write_text(json.dumps({"schema_version": 9, "tasks": "elsewhere"}))
    assert read_evaluation_table(run)["tasks"] == []


def test_record_becomes_a_row_with_its_interval_and_all_outcomes():
    written = record("hitom", 4, 0.5, 100) | {
        "outcomes": {"score_ok_count": 98, "score_timed_out_count": 2, "score_refused_count": 0},
        "scored_by": ["rules:hitom@1"],
        "source": {"kind": "generated", "stand_in": True},
        "rows": {"found": 120, "used": 100, "refused": 3, "left_out": {"prompt too long": 17}},
    }
    row = dict(zip(COLUMNS, evaluation_rows([written])[0], strict=True))
    assert row["score"] == "50.0\u00a0%" and row["interval"] == "40.2 to 59.8\u00a0% (95\u00a0%)"
    assert row["outcomes"] == "ok 98, timed out 2" and row["items × trials"] == "100 × 1"
    assert row["rows"] == "generated stand-in; 100 used of 120; 3 refused; 17 left out: prompt too long"


def test_record_without_a_score_or_anything_else_is_still_a_row():
    assert evaluation_rows([{"label": "x"}]) == [("x", "–", "no score", "–", "0 × 1", "–", "–", "unknown", "–")]


def test_dimensions_and_faults_are_listed():
    entry = {"value": 6.5, "interval": {"low": 6.0, "high": 7.0}, "n": 20}
    written = record("sotopia", 0, 0.5, 20) | {
        "metrics": {"goal": entry, "believability": {"value": 8.0, "n": 20}, "broken": None},
        "faults": {"episodes": 20, "role_inversion": 3, "empty_turn": 0},
    }
    assert metric_rows([written]) == [
        ("sotopia", "0", "believability", "8", "–", "20"),
        ("sotopia", "0", "goal", "6.5", "6 to 7", "20"),
    ]
    assert fault_rows([written]) == [("sotopia", "0", "role inversion", "3 of 20 episodes")]


def test_average_stands_beside_published_figures():
    found = suite_average({"soul_average": _average()})
    assert found is not None
    assert (found["value"], found["interval"]) == ("0.410", "0.36 to 0.46")
    assert found["columns"] == ["task", "measured", "paper model"]
    assert found["rows"] == [
        ("hitom", "0.500", "0.600"),
        ("coser", "0.320", "–"),
        ("average over these", "0.410", "0.600"),
    ]
    assert found["missing"] == ["userllm", "coser (stand-in)"]
    assert suite_average({}) is None and suite_average({"soul_average": None}) is None


def test_page_shows_the_tables(tmp_path):
    folder = make_run(tmp_path / "run", 2, rollouts=False)
    (folder / "evaluation.json").write_text(json.dumps({"tasks": _TASKS, "soul_average": _average()}))
    page = write_report([folder]).read_text(encoding="utf-8")
    for words in ("All evaluations", "no file is at hand", "SOUL average 0.410", "other judges"):
        assert words in page
