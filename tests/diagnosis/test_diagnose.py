"""Planted faults are named, healthy runs are left alone: real runs of the packaged policy, each with one thing wrong.

Faults that take thousands of steps to come about (entropy that collapses, a judge that is gamed, an evaluation that
falls) are written into the records of a healthy run instead. Programs run often here, so they are compiled in full.
"""

from __future__ import annotations

import dataclasses
import json
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ditto_jax.config import RunConfig
from ditto_jax.config_io import flatten
from ditto_jax.diagnosis import Diagnosis, Evidence, Finding, diagnose, diagnose_run, read_evidence
from ditto_jax.errors import MissingInputError
from ditto_jax.report.page import write_report
from ditto_jax.rollouts.feedback import content_free_feedback
from ditto_jax.runs.rollout_facts import RolloutFact
from ditto_jax.runs.run_dir import RunDirectory, write_atomically
from ditto_jax.trainer import Trainer
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Verdict
from launch.cli import main
from tests.diagnosed_runs import PlantedJudge, Workshop, small_config
from tests.report_runs import record, write_record

LONG = 9  # steps of the run whose records are edited


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Iterator[Workshop]:
    made = Workshop(small_config(tmp_path_factory.mktemp("diagnosed")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def cut(workshop) -> RunDirectory:
    """A run whose token budget is a quarter of what replies need."""
    return workshop.run("cut", rollout={"max_completion_length": 8})


@pytest.fixture(scope="module")
def healthy(workshop) -> RunDirectory:
    return workshop.run("healthy", LONG, seed=3)


def names(run: RunDirectory, control: RunDirectory | None = None) -> list[str]:
    """Names of the findings of a run, causes first."""
    return [f.name for f in diagnose_run(run.path, None if control is None else control.path).findings]


def found(run: RunDirectory, name: str) -> Finding:
    return next(finding for finding in diagnose_run(run.path).findings if finding.name == name)


# --- healthy runs -----------------------------------------------------------------------------------------------------


def test_a_healthy_run_has_no_finding(healthy):
    assert names(healthy) == []


def test_a_short_healthy_run_has_no_finding(workshop):
    assert names(workshop.run("short", 4, seed=11)) == []


# --- faults in the judge ----------------------------------------------------------------------------------------------


def test_a_judge_that_says_the_same_of_every_reply_is_named(workshop):
    run = workshop.run(
        "constant", judge=PlantedJudge(score=lambda e, c, verdict: dataclasses.replace(verdict, score=0.5))
    )
    first, *others = diagnose_run(run.path).findings
    assert first.name == "constant_reward" and first.severity == "error" and first.evidence["reward"] == 0.5
    assert {finding.follows_from for finding in others if finding.name in ("dead_pools", "no_gradient")} <= {
        "constant_reward"
    }


def test_a_judge_that_runs_out_of_time_over_long_replies_is_named(workshop, healthy):
    usual = [len(row["reply"]) for step in (1, 2, 3) for row in healthy.read_rollouts(step)]
    limit = np.quantile(usual, 0.75)

    def late(example: Example, conversation: Conversation, verdict: Verdict) -> Verdict:
        is_long = len(conversation.reply) > limit
        return Verdict(Outcome.TIMED_OUT, detail="no answer within 120 s") if is_long else verdict

    run = workshop.run("slow-judge", judge=PlantedJudge(score=late))
    finding = found(run, "judge_failures_depend_on_length")
    assert "long rollouts" in finding.summary and finding.severity == "error"
    rows = [row for step in run.rollout_steps() for row in run.read_rollouts(step)]
    shown = {(row["step"], row["prompt_index"], row["sample"]) for row in rows if row["outcome"] == "timed_out"}
    assert finding.examples and {(p.step, p.prompt_index, p.sample) for p in finding.examples} <= shown


def test_a_judge_that_has_no_words_for_drafts_of_some_scores_is_named(workshop):
    """Every draft is asked about; only those that are wrong are refused."""

    def refuses(example: Example, verdict: Verdict, feedback: Feedback) -> Feedback:
        return Feedback(Outcome.REFUSED) if verdict.score == 0.0 else Feedback(Outcome.OK, "Say more of who saw it.")

    run = workshop.run("choosy", judge=PlantedJudge(words=refuses), rollout={"feedback_below": 2.0})
    finding = found(run, "feedback_refusals_depend_on_score")
    assert "score badly" in finding.summary


def test_a_judge_that_gives_the_answer_away_is_named(workshop):
    def tells(example: Example, verdict: Verdict, feedback: Feedback) -> Feedback:
        return Feedback(Outcome.OK, f"The answer is {example.gold}.")

    run = workshop.run("leaking", judge=PlantedJudge(words=tells))
    assert names(run)[0] == "leak_filter"
    assert found(run, "no_refined_rollouts").follows_from == "leak_filter"


def test_words_that_say_nothing_are_named(workshop, healthy):
    empty = iter(np.random.default_rng(0).integers(0, 2**31, 10_000))

    def says_nothing(example: Example, verdict: Verdict, feedback: Feedback) -> Feedback:
        import random

        return Feedback(Outcome.OK, content_free_feedback(random.Random(int(next(empty)))))

    run = workshop.run("not-read", judge=PlantedJudge(words=says_nothing))
    assert "feedback_not_read" in names(run)
    again = workshop.run("not-read-again", seed=5, judge=PlantedJudge(words=says_nothing))
    assert "no_better_than_control" in names(run, control=again)
    assert names(healthy, control=run) == []


# --- faults in settings and in the machine ----------------------------------------------------------------------------


def test_a_token_budget_that_cuts_replies_is_named(cut):
    finding = found(cut, "truncation")
    assert finding.severity == "error" and finding.advice[0].value == "16"


def test_a_gate_that_never_opens_is_named(workshop):
    run = workshop.run("shut", rollout={"feedback_below": -1.0})
    assert "gate_never_opens" in names(run)


def test_a_sampler_that_reads_old_weights_is_named(workshop, monkeypatch):
    old = jax.tree.map(lambda leaf: leaf + 0.0, workshop.trainer.sampling_params())
    with monkeypatch.context() as patch:
        patch.setattr(workshop.trainer, "sampling_params", lambda: old)
        run = workshop.run("stale")
    assert "sampler_drift" in names(run)


def test_parameters_that_are_not_finite_are_named_and_explain_the_rest(workshop):
    def poison(trainer: Trainer, step: int) -> None:
        if step == 3:
            trainer.state = trainer.state._replace(params=jax.tree.map(lambda x: x * math.nan, trainer.state.params))

    run = workshop.run("broken", before_step=poison)
    first, *others = diagnose_run(run.path).findings
    assert first.name == "nan_updates" and first.steps == (3, 4)
    assert all(finding.follows_from for finding in others)


def test_drafts_that_are_all_alike_are_named(tmp_path):
    cold = small_config(tmp_path)
    cold = dataclasses.replace(cold, rollout=dataclasses.replace(cold.rollout, temperature=0.01))
    made = Workshop(cold)
    run = made.run("cold", 4)
    made.close()
    finding = found(run, "low_diversity")
    assert finding.advice[0].setting == "rollout.temperature" and finding.advice[0].value == "1.0"


# --- faults that take long, written into the records of a healthy run -------------------------------------------------


def edited(run: RunDirectory, folder: Path, edit: Callable[[dict[str, Any]], None]) -> RunDirectory:
    """A copy of the run with every row of its metrics edited."""
    copy = copied(run, folder)
    rows = copy.read_metrics()
    for row in rows:
        edit(row)
    write_atomically(copy.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    return copy


def copied(run: RunDirectory, folder: Path) -> RunDirectory:
    import shutil

    return RunDirectory(Path(shutil.copytree(run.path, folder / run.path.name)))


def test_entropy_that_falls_to_a_fraction_is_named(healthy, tmp_path):
    def collapse(row: dict[str, Any]) -> None:
        row["entropy"] = 0.8 * math.exp(-0.4 * row["step"])

    finding = found(edited(healthy, tmp_path, collapse), "entropy_collapse")
    assert finding.evidence["Kendall's tau"] == pytest.approx(-1.0)


def test_entropy_that_wavers_is_not_named(healthy, tmp_path):
    def waver(row: dict[str, Any]) -> None:
        row["entropy"] = 0.5 + 0.4 * math.sin(2.0 * row["step"])

    assert names(edited(healthy, tmp_path, waver)) == []


def test_a_judge_whose_scores_rise_away_from_the_shadow_judge_is_named(healthy, tmp_path):
    def game(row: dict[str, Any]) -> None:
        noise = 0.05 * math.sin(3.0 * row["step"])
        row.update({"shadow/bias": noise - 0.04 * row["step"], "shadow/compared_count": 10})

    assert "reward_hacking" in names(edited(healthy, tmp_path, game))


def test_a_shadow_judge_that_differs_by_chance_is_not_named(healthy, tmp_path):
    draws = np.random.default_rng(0)

    def differ(row: dict[str, Any]) -> None:
        row.update({"shadow/bias": float(draws.normal(-0.05, 0.1)), "shadow/compared_count": 10})

    assert names(edited(healthy, tmp_path, differ)) == []


def test_a_reward_that_falls_is_named(healthy, tmp_path):
    def fall(row: dict[str, Any]) -> None:
        row["reward"] = 0.7 - 0.05 * row["step"] + 0.02 * math.sin(3.0 * row["step"])

    assert "reward_falls" in names(edited(healthy, tmp_path, fall))


def test_ratios_that_leave_the_trust_region_are_named(healthy, tmp_path):
    def clip(row: dict[str, Any]) -> None:
        row["policy/clip_high_draft_fraction"] = 0.25
        row["policy/clip_low_draft_fraction"] = 0.15

    assert found(edited(healthy, tmp_path, clip), "ratios_clipped").evidence["draft rows"] == pytest.approx(0.4)


def evaluated(run: RunDirectory, folder: Path, right: tuple[int, int], replies: tuple[str, str]) -> RunDirectory:
    """A copy of the run with an evaluation of 60 items before and after training, so many of them right."""
    copy = copied(run, folder)
    for step, count, reply in zip((0, LONG), right, replies, strict=True):
        write_record(copy, record("held-out", step, count / 60, 60))
        lines = [{"id": f"{i}", "sample": 0, "score": float(i < count), "reply": f"{reply} {i}"} for i in range(60)]
        path = copy.evaluations / "held-out" / f"samples_{step:06d}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return copy


def test_an_evaluation_that_falls_by_more_than_noise_is_named(healthy, tmp_path):
    worse = evaluated(healthy, tmp_path / "worse", (40, 12), ("yes", "no"))
    finding = found(worse, "evaluation_worse")
    assert finding.severity == "error" and finding.evidence["better / same / worse"] == "0 / 32 / 28"
    assert names(evaluated(healthy, tmp_path / "noise", (40, 38), ("yes", "no"))) == []


def test_a_policy_whose_greedy_replies_never_change_is_named(healthy, tmp_path):
    assert names(evaluated(healthy, tmp_path, (40, 40), ("yes", "yes"))) == ["policy_unchanged"]


def test_a_run_whose_process_is_gone_and_one_that_failed_are_named(healthy, tmp_path):
    copy = copied(healthy, tmp_path)
    copy.set_status("running", LONG)
    assert names(copy) == ["run_abandoned"]
    copy.set_status("failed", LONG, 1, "judge m: 9 of 9 verdicts failed")
    assert "9 of 9 verdicts failed" in found(copy, "run_failed").summary
    status = json.loads((copy.path / "STATUS.json").read_text())
    write_atomically(
        copy.path / "STATUS.json", json.dumps({**status, "state": "running", "host": f"not-{socket.gethostname()}"})
    )
    assert names(copy) == []


# --- tests are tests: chance makes no finding -------------------------------------------------------------------------


def facts(seed: int, fails: Callable[[int, float, np.random.Generator], bool]) -> list[RolloutFact]:
    """Drafts of 60 groups of eight, of lengths that their group shares; judged by one that fails as `fails` says."""
    rng = np.random.default_rng(seed)
    made = []
    for group in range(60):
        usual = rng.lognormal(5.0, 0.8)
        for sample in range(8):
            length, score = int(usual * rng.lognormal(0.0, 0.3)), float(rng.integers(0, 2))
            failed = fails(length, score, rng)
            made.append(
                RolloutFact(
                    step=1 + group // 8,
                    prompt_index=group % 8,
                    prompt_id=f"{group}",
                    sample=sample,
                    role="draft",
                    task="quiz",
                    reply=int(rng.integers(0, 2**40)),
                    length=length,
                    score=None if failed else score,
                    outcome="timed_out" if failed else "ok",
                    asked=True,
                    asked_words=False,
                    words_outcome=None,
                    words=None,
                    is_leaked=False,
                    is_truncated=False,
                    is_finite=True,
                    second=None,
                )
            )
    return made


def diagnosed(made: list[RolloutFact], folder: Path) -> Diagnosis:
    return diagnose(Evidence(RunDirectory(folder), {}, {}, [], [], made))


def test_failures_that_strike_by_chance_are_not_said_to_depend_on_anything(tmp_path):
    """Lengths cluster by prompt, which would deceive a test that counted rollouts."""
    alarms = sum(
        bool(diagnosed(facts(s, lambda _, __, rng: rng.random() < 0.05), tmp_path).findings) for s in range(40)
    )
    assert alarms == 0


def test_failures_that_strike_long_replies_more_often_are_found(tmp_path):
    def fails(length: int, score: float, rng: np.random.Generator) -> bool:
        return rng.random() < (0.3 if length > 200 else 0.02)

    hits = [{f.name for f in diagnosed(facts(seed, fails), tmp_path).findings} for seed in range(10)]
    assert all("judge_failures_depend_on_length" in names for names in hits)


def test_a_run_without_records_has_no_finding(tmp_path):
    assert diagnose_run(tmp_path).findings == ()
    with pytest.raises(MissingInputError, match="nowhere is no run directory"):
        read_evidence(tmp_path / "nowhere")


# --- what people see --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty(healthy, tmp_path_factory) -> RunDirectory:
    def break_it(row: dict[str, Any]) -> None:
        row["grad_norm"] = math.nan if row["step"] == LONG else row["grad_norm"]
        row["policy/clip_high_draft_fraction"] = 0.9

    return edited(healthy, tmp_path_factory.mktemp("faulty"), break_it)


def test_the_command_prints_findings_and_fails_where_it_is_told_to(faulty, healthy, capsys):
    assert main(["diagnose", str(faulty.path)]) == 0
    shown = capsys.readouterr().out
    assert "nan_updates" in shown and "optimizer.learning_rate: " in shown and "ratios_clipped" in shown
    assert main(["diagnose", str(faulty.path), "--fail_on", "warning"]) == 4
    assert "--fail_on warning: nan_updates, ratios_clipped" in capsys.readouterr().err
    assert main(["diagnose", str(healthy.path), "--fail_on", "warning"]) == 0
    assert "nothing found" in capsys.readouterr().out


def test_json_holds_what_the_terminal_shows(faulty, capsys):
    assert main(["diagnose", str(faulty.path), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["schema_version"] == 1
    assert [finding["name"] for finding in read["findings"]] == names(faulty)


def test_the_report_shows_the_same_findings_and_links_their_examples(cut, tmp_path):
    page = write_report([cut.path], tmp_path / "report.html").read_text(encoding="utf-8")
    for finding in diagnose_run(cut.path).findings:
        assert finding.name in page
    place = found(cut, "truncation").examples[0]
    assert f'href="#item=0.0.{place.step}.{place.prompt_index}.{place.sample}"' in page


def test_every_setting_that_is_advised_exists(workshop):
    known = {
        part
        for name in [*flatten(dataclasses.asdict(RunConfig())), "tasks.judge", "tasks.feedback.by"]
        for part in prefixes(name)
    }
    runs = [RunDirectory(path) for path in sorted(Path(workshop.config.output_dir).iterdir())]
    advised = {a.setting for run in runs for f in diagnose_run(run.path).findings for a in f.advice}
    assert {name for setting in advised for name in setting.split(", ")} <= known


def prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
