"""The benchmark of hidden latency: its server is as slow as it says, its figures are what they are called."""

from __future__ import annotations

import json
import statistics

import pytest

from benchmarks import judge_overlap
from benchmarks.judge_overlap import figures, picture, table
from benchmarks.slow_judge import GRADES, Desk, Latencies


def test_latencies_are_log_normal_with_the_stated_mean_and_deviation():
    latencies = Latencies(deviation=0.6)
    assert latencies.of("anything") == 0.0
    latencies.mean = 5.0
    drawn = [latencies.of(f"request {number}") for number in range(20_000)]
    assert drawn[:3] == [latencies.of(f"request {number}") for number in range(3)]
    assert statistics.fmean(drawn) == pytest.approx(5.0, rel=0.02)
    assert statistics.stdev(drawn) == pytest.approx(3.0, rel=0.05)
    assert statistics.median(drawn) < 0.9 * statistics.fmean(drawn)


def test_the_judge_answers_what_it_is_asked_and_counts_it():
    desk = Desk(2, Latencies(0.6), "t1 t2")

    def asked(name: str) -> dict:
        schema = {"json_schema": {"schema": {"properties": {name: {}}}}}
        return {"messages": [{"role": "user", "content": "t3"}], "response_format": schema}

    assert desk.answer(asked("feedback")) == {"feedback": "t1 t2"}
    assert 0 <= desk.answer(asked("grade"))["grade"] < GRADES
    assert desk.settle()["calls"] == 2 and desk.settle() == {"calls": 0, "busy_s": 0.0}


def step(seconds: float, busy_s: float, reward: float = 0.5, **more) -> dict:
    """A step whose update takes 5 s."""
    return {
        "seconds": seconds + 5.0,
        "rollouts_s": seconds,
        "busy_s": busy_s,
        "calls": 30,
        "learned": {"reward": reward},
        **more,
    }


def played(streaming: float, barrier: float, off: float, device: float = 10.0, busy_s: float = 80.0, **more) -> dict:
    modes = {"streaming": step(streaming, busy_s, unhidden_s=1.0, **more), "barrier": step(barrier, busy_s)}
    modes |= {"off": step(off, busy_s), "behind": step(device - 5.0, 0.0)}
    points = [{"ratio": 1.0, "mean_latency_s": 0.2, "modes": modes}]
    at_once = {mode: step(device, 0.0) for mode in judge_overlap.MODES}
    return {"device_floor_s": device, "at_once": at_once, "points": points}


def test_efficiency_is_the_larger_floor_over_the_rollouts_of_the_same_round():
    # 80 s in 8 places are a floor of 10 s. The second round met a machine half as fast.
    result = figures([played(12.5, 20.0, 25.0), played(25.0, 40.0, 50.0, device=20.0)], places=8)
    (point,) = result["points"]
    assert point["judge_floor_s"]["values"] == [10.0, 10.0]
    assert point["efficiency"]["streaming"]["values"] == [0.8, 0.8]
    assert point["efficiency"]["off"]["values"] == [0.4, 0.4]
    assert point["streaming_is_faster_than"]["barrier"]["values"] == [1.6, 1.6]
    assert point["efficiency_of_steps"]["streaming"]["values"] == [15.0 / 17.5, 25.0 / 30.0]
    assert point["behind_is_faster_than"]["streaming"]["values"] == [17.5 / 10.0, 30.0 / 20.0]
    assert "| 1 | 0.200 (0.200–0.200) | 18.75 (12.50–25.00) |" in table(result)
    assert "Efficiency of streaming by judge floor over device floor: 1: 0.80" in picture(result)


def test_steps_that_differ_are_no_comparison():
    with pytest.raises(SystemExit, match="did not sample and learn the same"):
        figures([played(1.0, 2.0, 3.0, reward=0.25)], places=8)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    small = ["--size", "tiny", "--prompts", "2", "--group", "2", "--rows", "4", "--prompt", "8", "--new", "8"]
    judge_overlap.main([*small, "--rounds", "1", "--floors", "1", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "judge_overlap.json").read_text())
    (point,) = result["points"]
    assert point["unhidden_s"]["median"] > 0 and result["calls"] >= 4
    assert (tmp_path / "judge_overlap.svg").read_text().startswith("<svg")
