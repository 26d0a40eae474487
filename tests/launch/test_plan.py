"""The command prints what a plan says, as tables and as JSON, and refuses what cannot be planned."""

from __future__ import annotations

import json

import pytest

from launch.cli import main

SOUL = ["plan", "--config", "soul_8b.yaml"]


def test_one_topology_is_shown_part_by_part_and_written_as_json(tmp_path, capsys):
    output = tmp_path / "plans" / "plan.json"
    words = [*SOUL, "--topology", "h200-8", "--assume.chip_hour_price", "4", "--output", str(output)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for text in ("mesh data 2, fsdp 1, tensor 4", "weights", "sampling: cache", "decode", "gpt-5.4", "not counted:"):
        assert text in printed
    (plan,) = json.loads(output.read_text())["plans"]
    assert plan["fits"] and plan["to_fit"] is None and plan["mesh"] == {"data": 2, "fsdp": 1, "tensor": 4}
    parts = sum(plan["held"].values()) + max(sum(plan["update"].values()), sum(plan["sampling"].values()))
    assert plan["peak"] == parts
    assert plan["chip_cost"] == pytest.approx(plan["hours"] * 8 * 4)
    assert plan["hours"] == pytest.approx(
        (plan["steps"] * sum(plan["step"].values()) + plan["evaluations"] * plan["evaluation"]) / 3600
    )
    assert plan["calls_cost"] is None and {one["purpose"] for one in plan["calls"]} == {"scores", "words", "partners"}


def test_several_topologies_are_compared_and_what_does_not_fit_is_told_what_to_change(capsys):
    assert main([*SOUL, "--topology", "v5p-8,v5p-32"]) == 0
    printed = capsys.readouterr().out
    assert "v5p-8, 4 x TPU v5p" in printed and "does not fit" in printed
    assert "to fit, set --" in printed and "compared" in printed
    assert "v5p-32, 16 x TPU v5p" in printed


def test_more_drafts_take_longer_and_a_longer_reply_takes_more_memory(tmp_path):
    plans = []
    for number, flags in enumerate(([], ["--rollout.num_generations", "16"], ["--sampler.max_new_tokens", "4096"])):
        output = tmp_path / f"{number}.json"
        assert main([*SOUL, "--topology", "h200-8", "--output", str(output), *flags]) == 0
        plans += json.loads(output.read_text())["plans"]
    plain, more, longer = plans
    assert more["step"]["update"] > 1.5 * plain["step"]["update"]
    assert longer["sampling"]["cache"] > plain["sampling"]["cache"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--topology", ""], "topology=: give KIND-NUMBER"),
        (["--topology", "abacus-3"], "topology=abacus-3: give KIND-NUMBER, such as v5p-8; known: v4-N"),
        (["--topology", "v5p-7"], "there is no v5p with 7; choose one of 8, 16"),
        (["--topology", "rtx4090-3"], "does not fit 3 devices"),
        (["--model_name_or_path", "no-such-model"], "model_name_or_path=no-such-model: no such folder"),
        (["--tasks", "[]"], "tasks: the run has no task to train on"),
        (["--assume.reply_share", "2"], "assume.reply_share=2.0: is a share"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(words, text, capsys):
    assert main(["plan", "--config", "one_gpu_8b.yaml", "--topology", "rtx4090-1", *words]) == 2 or "no-such" in text
    assert text in capsys.readouterr().err
