"""Judges are measured: figures on scores made for it, and `ditto-jax judge` on judges with known habits."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ditto_jax.config import EvalConfig, SourceConfig, TaskConfig
from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.evaluation.judge_check import JudgeCheckConfig, SecondJudge, check_judge
from ditto_jax.evaluation.judge_quality import Choice, agreement, calibrated, pairwise, self_consistency
from ditto_jax.evaluation.run import run_evaluation
from ditto_jax.judge.config import JudgeConfig, PolicyConfig
from launch.cli import main
from tests.judge.server import says, serving
from tests.tiny_run import run_config, story_task

REAL = "nah that did not work for me, any other way to fix the printer?"
FAKE = "I would very much appreciate further assistance with my device."


def test_a_judge_that_repeats_itself_is_reliable_and_one_that_throws_dice_is_not():
    rng = np.random.default_rng(0)
    truth = rng.random(200)
    same = self_consistency([[x, x, x] for x in truth])
    assert (same["identical"], same["sd"], same["reliability"]) == pytest.approx((1.0, 0.0, 1.0))
    noisy = self_consistency([(x + 0.1 * rng.standard_normal(3)).tolist() for x in truth])
    assert noisy["sd"] == pytest.approx(0.1, abs=0.02)
    assert noisy["reliability"] == pytest.approx(truth.var() / (truth.var() + 0.01), abs=0.05)
    dice = self_consistency(rng.random((200, 3)).tolist())
    assert abs(dice["reliability"]) < 0.15 and dice["identical"] == 0.0


def test_samples_that_were_judged_once_say_nothing():
    assert self_consistency([[0.5], []])["samples"] == 0
    assert self_consistency([[0.5, 0.5], [0.5, 0.5]])["reliability"] is None


def test_agreement_tells_a_harsh_judge_from_one_who_orders_otherwise():
    scores = np.linspace(0, 1, 50)
    harsh = agreement(scores, scores - 0.2)
    assert harsh["difference"] == pytest.approx(-0.2) and harsh["pearson"] == pytest.approx(1.0)
    assert harsh["interval"]["low"] <= -0.2 + 1e-9 and harsh["interval"]["high"] >= -0.2 - 1e-9
    contrary = agreement(scores, 1 - scores)
    assert contrary["spearman"] == pytest.approx(-1.0) and abs(contrary["difference"]) < 1e-9
    assert agreement(scores, np.full(50, 0.5))["pearson"] is None


@pytest.mark.parametrize(
    ("first", "second", "kappa"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([1, 1, 0, 0], [1, 0, 1, 0], 0.0),
        ([1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15, 0.4),  # Cohen's arithmetic
        ([1, 1], [1, 1], None),
    ],
)
def test_kappa_takes_away_what_chance_gives(first, second, kappa):
    found = agreement(first, second)["kappa"]
    assert found is None if kappa is None else found == pytest.approx(kappa)


def test_a_judge_that_takes_whoever_comes_first_wins_nobody_anything():
    biased = pairwise([Choice("first", "second")] * 10)
    assert (biased["win_rate"], biased["position_bias"], biased["consistent"]) == (0.5, 1.0, 0.0)
    fair = pairwise([Choice("first", "first")] * 6 + [Choice("second", "second")] * 2 + [Choice("tie", "tie")] * 2)
    assert (fair["win_rate"], fair["position_bias"], fair["consistent"]) == (pytest.approx(0.7), 0.0, 1.0)
    assert fair["ties"] == pytest.approx(0.2) and pairwise([])["win_rate"] is None


def test_controls_that_lie_together_calibrate_nothing():
    assert calibrated(0.6, 0.9, 0.3) == pytest.approx(0.5)
    assert (calibrated(1.0, 0.9, 0.3), calibrated(0.0, 0.9, 0.3)) == (1.0, 0.0)
    assert calibrated(0.6, 0.5, 0.5) is None


# The command, on chats of a simulated user


def chats(folder: Path, count: int = 4) -> Path:
    rows = [
        {
            "conversation_id": f"c{number}",
            "task_description": "The person wants a printer to work.",
            "dataset": "oasst1",
            "turns": [{"role": "user", "content": f"{REAL} ({number})"}],
        }
        for number in range(count)
    ]
    folder.mkdir()
    (folder / "oasst1_mirror.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Habits:
    """A server that is policy and judge: its policy says FAKE; its judge scores and chooses as told."""

    def __init__(self, score, choose):
        self.score, self.choose = score, choose

    def __call__(self, handler) -> None:
        request = handler.received.json
        schema = request.get("response_format", {}).get("json_schema", {}).get("name")
        text = request["messages"][-1]["content"]
        if schema == "Likeness":
            content = json.dumps({"reasoning": "so", "score": self.score(text)})
        elif schema == "Preference":
            a, _, b = text.partition("Chat B:")
            content = json.dumps({"reasoning": "so", "verdict": self.choose(a, b)})
        else:
            content = FAKE
        says(content)(handler)


def by_reading(a: str, b: str) -> str:
    if (REAL in a) == (REAL in b):
        return "TIE"
    return "A" if REAL in a else "B"


def likeness(text: str) -> float:
    """1 where the simulated user speaks like the real one, 0.2 elsewhere."""
    _, _, simulated = text.partition("Simulated chat:")
    return 1.0 if (REAL in text.partition("Simulated chat:")[0]) == (REAL in simulated) else 0.2


@pytest.fixture
def evaluated(tmp_path):
    def run(server) -> Path:
        source = SourceConfig(kind="files", path=str(chats(tmp_path / "data")), split="test")
        endpoint = {"kind": "openai", "base_url": server.base_url}
        config = run_config(
            Path(),
            tmp_path,
            run_name="measured",
            tasks=(),
            model_name_or_path="",
            judge=JudgeConfig(model="judge", **endpoint),
            evaluation=EvalConfig(
                tasks=(TaskConfig("mirrorbench", source=source), story_task(2, "test")), bootstrap=50
            ),
        )
        config = dataclasses.replace(config, policy=PolicyConfig(model="policy", **endpoint))
        return run_evaluation(config, [])

    return run


def test_a_judge_that_reads_passes_every_check(evaluated, capsys):
    with serving(Habits(likeness, by_reading)) as server:
        run = evaluated(server)
        assert main(["judge", "--run", str(run), "--repeats", "2", "--second.kind", "rules"]) == 0
    written = json.loads((run / "judge_quality.json").read_text())
    mirror, stories = written["labels"]
    assert written["schema_version"] == 1 and "scored by rules alone" in stories["not_checked"]
    assert (mirror["samples"], mirror["self_consistency"]["identical"]) == (4, 1.0)
    values = {name: one["value"] for name, one in mirror["controls"].items()}
    assert values == {"proxy_vs_human": pytest.approx(0.2), "human_vs_human": 1.0, "proxy_vs_proxy": 1.0}
    pairs = mirror["pairwise"]
    assert (pairs["proxy_vs_human"]["win_rate"], pairs["proxy_vs_human"]["position_bias"]) == (0.0, 0.0)
    assert (pairs["human_vs_human"]["win_rate"], pairs["human_vs_human"]["ties"]) == (0.5, 1.0)
    assert pairs["calibrated_win_rate"] is None  # equal sides win as often as equal sides
    assert mirror["agreement"]["with"] == ["proxy@mirrorbench-1"] and mirror["agreement"]["samples"] == 4
    printed = capsys.readouterr().out
    assert "self-consistency over 4 samples" in printed and (run / "judge_quality.md").read_text() in printed


def test_a_judge_with_bad_habits_is_seen_through(evaluated):
    moods = itertools.cycle([0.0, 1.0, 0.5])
    with serving(Habits(lambda text: next(moods), lambda a, b: "A")) as server:
        run = evaluated(server)
        path, records = check_judge(JudgeCheckConfig(str(run), labels=("mirrorbench",), repeats=2))
    assert path == run / "judge_quality.md"
    (mirror,) = records
    assert mirror["self_consistency"]["identical"] < 1.0 and mirror["self_consistency"]["sd"] > 0.1
    for name in ("proxy_vs_human", "human_vs_human", "proxy_vs_proxy"):
        found = mirror["pairwise"][name]
        assert (found["win_rate"], found["position_bias"], found["consistent"]) == (0.5, 1.0, 0.0)


def test_a_second_judge_is_asked_about_the_same_words(evaluated):
    with (
        serving(Habits(lambda text: 0.8, by_reading)) as server,
        serving(Habits(lambda text: 0.5, by_reading)) as other,
    ):
        run = evaluated(server)
        second = SecondJudge(kind="openai", model="other", base_url=other.base_url)
        config = JudgeCheckConfig(str(run), labels=("mirrorbench",), repeats=0, controls=False, second=second)
        (mirror,) = check_judge(config)[1]
        asked = [received.json for received in other.received[1:]]
    assert mirror["agreement"]["difference"] == pytest.approx(-0.3)
    assert mirror["agreement"]["with"] == ["openai:other@mirrorbench-likeness-1"]
    assert len(asked) == 4 and all(FAKE in request["messages"][-1]["content"] for request in asked)
    assert mirror["self_consistency"]["samples"] == 0 and "controls" not in mirror


def test_what_cannot_be_checked_says_why(evaluated, tmp_path):
    with pytest.raises(ConfigError, match=r"no run directory"):
        check_judge(JudgeCheckConfig(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"repeats=-1"):
        JudgeCheckConfig("x", repeats=-1)
    with serving(Habits(likeness, by_reading)) as server:
        run = evaluated(server)
        with pytest.raises(ConfigError, match=r"labels=\['sotopia'\]: the run evaluates mirrorbench, hitom"):
            check_judge(JudgeCheckConfig(str(run), labels=("sotopia",)))
        data = tmp_path / "data" / "oasst1_mirror.jsonl"
        data.write_text(data.read_text().replace("printer to work", "telephone to work"))
        with pytest.raises(MissingInputError, match=r"its items are not those that mirrorbench has now"):
            check_judge(JudgeCheckConfig(str(run), labels=("mirrorbench",)))
