"""A step of a finished run is regenerated from its nearest checkpoint and its records, bit for bit, and only read."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ditto_jax.config import EvalConfig, RolloutConfig
from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.replay.differences import differences
from ditto_jax.replay.past import open_past
from ditto_jax.replay.replay import Replay, ReplayRequest, replay
from ditto_jax.replay.rerun import open_trainer
from ditto_jax.replay.show import write_page
from ditto_jax.replay.tokens import TokenReader, ViewTokens, pieces
from ditto_jax.runs.metrics import Stopwatch
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.trainer import Lesson
from launch.cli import main
from model.lora import LoraConfig
from tests.tiny_run import contents, files_of, run_config, train_config, train_quietly

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS, PROMPTS = 3, 4
COMPARED = 100
HOSTILE = "<b>[red]who?"
SAID = ("tokens", "logprobs", "score", "outcome", "advantage", "reply", "feedback", "used_feedback")


@pytest.fixture(scope="module")
def run(policy_folder, tmp_path_factory, quick_compilation) -> RunDirectory:
    """Three steps of four prompts with eight drafts each, two updates a step; checkpoints of steps 2 and 3."""
    config = run_config(
        policy_folder,
        tmp_path_factory.mktemp("past"),
        rollout=RolloutConfig(prompts_per_step=PROMPTS, num_generations=8, max_completion_length=32),
        train=dataclasses.replace(train_config(STEPS), updates_per_step=2),
        evaluation=EvalConfig(),
        save_steps=2,
    )
    return train_quietly(config)


@pytest.fixture(scope="module")
def replays(run) -> dict[int, Replay]:
    """Step → its replay, of every step of the run."""
    return {step: replay(ReplayRequest(run.path, step, "1")) for step in range(1, STEPS + 1)}


@pytest.fixture
def copy(run, tmp_path) -> RunDirectory:
    """The same run in a folder where a test may change it."""
    return RunDirectory(Path(shutil.copytree(run.path, tmp_path / "copy")))


def change_setting(run: RunDirectory, old: str, new: str) -> None:
    file = run.path / "config.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def slot(row: dict) -> tuple:
    return row["step"], row["prompt_index"], row["role"], row["sample"]


def a_refined(run: RunDirectory, step: int = 1) -> dict:
    return next(row for row in run.read_rollouts(step) if row["role"] == "refined" and row["score"] is not None)


def asked(run: RunDirectory, row: dict, **changes) -> ReplayRequest:
    return ReplayRequest(run.path, row["step"], str(row["prompt_index"]), sample=row["sample"], **changes)


def test_a_hundred_of_a_hundred_random_recorded_rows_are_regenerated_exactly(run, replays):
    recorded = [row for rows in contents(run).values() for row in rows]
    regenerated = {slot(row): row for one in replays.values() for row in one.regenerated}
    equal = 0
    for row in random.Random(0).sample(recorded, COMPARED):
        again = json.loads(json.dumps(regenerated[slot(row)]))
        equal += all(row[name] == again[name] for name in SAID)
    assert equal == COMPARED
    assert all(one.is_exact and one.compared >= 8 * PROMPTS for one in replays.values())


def test_the_nearest_checkpoint_is_taken_and_the_steps_between_are_repeated(replays):
    starts = {step: (one.checkpoint, one.repeated) for step, one in replays.items()}
    assert starts == {1: (0, ()), 2: (0, (1,)), 3: (2, ())}


def first_step_again(run: RunDirectory, scratch: Path) -> tuple[dict[str, float], list[ViewTokens]]:
    """The metrics of the first step, and every view of all its prompts."""
    past = open_past(run.path)
    trainer, prompts, readers = open_trainer(past, scratch), past.config.rollout.prompts_per_step, []

    def look(lesson: Lesson) -> None:
        for reader in readers:
            reader(lesson)

    async def step():
        experience = await trainer.experience(Stopwatch())
        readers.extend(TokenReader(trainer, experience.rollouts, prompt) for prompt in range(prompts))
        return await trainer.learn(experience, Stopwatch(), look)

    with asyncio.Runner() as runner:
        metrics, _ = runner.run(step())
        runner.run(trainer.parts.aclose())
    return metrics, [view for reader in readers for view in reader.views]


def test_what_is_shown_token_by_token_adds_up_to_the_metrics_of_the_step(run, tmp_path):
    metrics, views = first_step_again(run, tmp_path)
    # Metrics are of the last update of a step.
    trained = [view for view in views if view.update == 2 and not view.left_out]
    assert sum(sum(view.share) for view in trained) == pytest.approx(1.0)
    seen = set()
    for role in ("draft", "refined_plain", "refined_fb"):
        tokens = [token for view in trained if view.view == role for token in columns(view)]
        kept = [token for token in tokens if token["limit"] not in ("neg_floor", "token_floor")]
        seen |= {token["limit"] for token in tokens}

        def metric(name: str, role: str = role) -> float:
            return metrics[f"policy/{name}".replace("ROLE", role)]

        assert len(tokens) == metric("tokens_ROLE_count")
        assert sum(token["loss"] for token in tokens) == pytest.approx(metric("loss_ROLE"), rel=1e-4, abs=1e-6)
        assert np.mean([token["ratio"] for token in kept]) == pytest.approx(metric("ratio_ROLE_mean"), rel=1e-5)
        for limit in ("clip_low", "clip_high"):
            count = sum(token["limit"] == limit.replace("_", " ") for token in kept)
            assert count / len(kept) == pytest.approx(metric(f"{limit}_ROLE_fraction"))
        if role == "refined_plain":
            assert sum(token["limit"] == "neg_floor" for token in tokens) == metric("neg_floor_tokens_ROLE_count")
    assert seen & {"clip low", "clip high"} and "neg_floor" in seen
    for view in views:
        if view.update == 1 and not view.left_out:
            np.testing.assert_allclose(view.ratio, 1.0, atol=1e-5)


def test_adapters_and_a_teacher_are_read_as_the_update_reads_them(policy_folder, tmp_path):
    config = run_config(
        policy_folder,
        tmp_path,
        lora=LoraConfig(rank=4, alpha=8.0),
        objective=ObjectiveConfig(name="sdpo"),
        train=train_config(1),
        evaluation=EvalConfig(),
    )
    run = train_quietly(config)
    (tmp_path / "scratch").mkdir()
    metrics, views = first_step_again(run, tmp_path / "scratch")
    tokens = [token for view in views if not view.left_out for token in columns(view)]
    assert metrics["policy/loss_draft"] != 0.0
    assert sum(token["loss"] for token in tokens) == pytest.approx(metrics["policy/loss_draft"], rel=1e-4)
    assert metrics["policy/loss_draft"] == run.read_metrics()[0]["policy/loss_draft"]


def columns(view: ViewTokens) -> list[dict]:
    """The sampled tokens of a view, one mapping each."""
    names = ("limit", "loss", "ratio")
    return [{name: getattr(view, name)[i] for name in names} for i, sampled in enumerate(view.sampled) if sampled]


def test_the_tokens_are_those_of_the_recorded_rollouts_with_their_log_probs_and_advantages(replays):
    for one in replays.values():
        recorded = {(row["role"], row["sample"]): row for row in one.of_prompt(one.recorded)}
        assert one.views and any(view.view == "refined_fb" for view in one.views)
        for view in one.views:
            row = recorded[view.role, view.sample]
            assert row["tokens"]["policy"][-len(view.ids) :] == view.ids
            assert row["logprobs"]["policy"][-len(view.ids) :] == view.behaviour
            assert row["advantage"].get(view.view, 0.0) == view.advantage
            assert "".join(view.texts).strip().startswith(row["reply"][:10])
            if view.view == "draft" and not view.left_out:  # sampled and trained in the same context
                np.testing.assert_allclose(view.anchor, view.behaviour, atol=2e-4)


def test_pieces_of_a_text_are_read_behind_the_piece_before():
    words = {1: " the", 2: " cat", 3: "s"}

    def decode(ids) -> str:
        return "".join(words[i] for i in ids).lstrip()

    assert pieces([1, 2, 3], decode) == ["the", " cat", "s"]
    assert pieces([], decode) == []


def test_the_judges_words_as_own_words_give_the_recorded_refined_rollout(run):
    row = a_refined(run)
    found = replay(asked(run, row, feedback=row["used_feedback"]))
    assert found.own is not None and found.is_exact
    assert found.own["tokens"] == row["tokens"] and found.own["score"] == row["score"]
    np.testing.assert_allclose(found.own["logprobs"]["policy"], row["logprobs"]["policy"], atol=1e-4)


def test_other_words_give_another_prompt_and_nothing_of_it_is_learned(run, replays):
    row = a_refined(run, step=3)
    found = replay(asked(run, row, feedback="who\u202e was in the room\x1b?  "))
    assert found.own is not None and found.is_exact
    assert found.own["used_feedback"] == "who was in the room?"
    assert found.own["prompt"][-1]["content"].endswith("Hint: who was in the room?")
    assert found.own["tokens"] != row["tokens"] and found.own["outcome"] == "ok"
    assert found.regenerated == replays[3].regenerated


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("the answer is {gold}", "give the answer away"),
        ("\u200b \x1b", "no visible character"),
        ("look at it again. " * 60, "too long, as a judge's words would be"),
    ],
)
def test_words_that_no_judge_could_have_used_are_refused_before_anything_is_repeated(run, words, says):
    row, told = a_refined(run), []
    with pytest.raises(ConfigError, match=says):
        replay(asked(run, row, feedback=words.format(gold=row["gold"])), tell=told.append)
    assert not told


def command(capsys, run: Path, *words: str) -> tuple[int, str, str]:
    code = main(["replay", str(run), *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_tables_writes_json_and_leaves_the_run_as_it_is(copy, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    before, there = files_of(copy.path), sorted(copy.path.rglob("*"))
    times = {path: path.stat().st_mtime_ns for path in there}
    row = a_refined(copy, step=3)
    words = ("--step", "3", "--prompt", row["prompt_id"], "--sample", str(row["sample"]))
    output = tmp_path / "replay.json"
    code, out, err = command(capsys, copy.path, *words, "--feedback", HOSTILE, "--output", str(output))
    assert code == 0, err
    assert "rollouts regenerated, bit for bit" in out and HOSTILE in out and "refined_fb" in out
    found = json.loads(output.read_text())
    assert found["is_exact"] and found["prompt_id"] == row["prompt_id"] and found["own"]["used_feedback"] == HOSTILE
    assert {one["view"] for one in found["views"]} == {"draft", "refined_plain", "refined_fb"}
    assert files_of(copy.path) == before and sorted(copy.path.rglob("*")) == there
    assert {path: path.stat().st_mtime_ns for path in there} == times


def test_a_page_shows_text_as_text(replays, tmp_path):
    row = replays[3].recorded[0]
    write_page(
        dataclasses.replace(replays[3], sample=row["sample"], own={**row, "reply": HOSTILE}), tmp_path / "r.html"
    )
    page = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;[red]who?" in page and HOSTILE not in page and "<script" not in page


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--step", "9", "--prompt", "0"), 2, "step=9: {run} has rollouts of steps 1 to 3"),
        (("--step", "0", "--prompt", "0"), 2, "step=0: steps count from 1"),
        (("--step", "1", "--prompt", "12"), 2, "prompt=12: the step has prompts 0 to 3"),
        (("--step", "1", "--prompt", "0", "--sample", "8"), 2, "sample=8: prompt 0 has drafts 0 to 7"),
        (("--step", "1", "--prompt", "0", "--tokens", "-1"), 2, "tokens=-1"),
        (("--step", "1", "--prompt", "0", "--output", "x.txt"), 2, "ends in .json or .html"),
        (("--step", "1", "--prompt", "0", "--output", "{run}/x.json"), 2, "leaves the run directory as it is"),
        (("--step", "1", "--prompt", "0", "--output", "{run}/no/x.json"), 2, "there is no folder"),
    ],
)
def test_what_cannot_be_replayed_is_told_with_what_can(run, capsys, words, code, says):
    given = [word.format(run=run.path) for word in words]
    found, out, err = command(capsys, run.path, *given)
    assert (found, out) == (code, "") and says.format(run=run.path) in err


def test_a_folder_without_a_run_or_without_rollouts_is_told(copy, tmp_path, capsys):
    code, _, err = command(capsys, tmp_path / "nowhere", "--step", "1", "--prompt", "0")
    assert code == 3 and "no run directory" in err
    shutil.rmtree(copy.rollouts)
    code, _, err = command(capsys, copy.path, "--step", "1", "--prompt", "0")
    assert code == 3 and "holds no rollouts" in err


def test_damaged_or_missing_rollouts_are_named(copy):
    copy.rollout_file(1).unlink()
    with pytest.raises(MissingInputError, match=r"rollouts of step 1 are missing"):
        replay(ReplayRequest(copy.path, 2, "0"))
    copy.rollout_file(3).write_bytes(copy.rollout_file(3).read_bytes()[:-20])
    with pytest.raises(DataError, match=r"step_000003.jsonl.gz is damaged"):
        replay(ReplayRequest(copy.path, 3, "0"))


def test_a_run_without_checkpoints_is_repeated_from_its_beginning(copy):
    shutil.rmtree(copy.checkpoints)
    assert open_past(copy.path).start_before(3) == 0
    assert not copy.checkpoints.exists()


def test_other_data_are_told_before_anything_is_repeated(copy):
    change_setting(copy, "limit: 64", "limit: 63")
    with pytest.raises(DataError, match=r"prompt \d of step 3 was hitom/.* and would be hitom/.* now"):
        replay(ReplayRequest(copy.path, 3, "0"))


def test_a_policy_that_is_gone_is_told(copy, policy_folder):
    change_setting(copy, str(policy_folder), f"{policy_folder}-gone")
    with pytest.raises(MissingInputError, match="no such folder"):
        replay(ReplayRequest(copy.path, 1, "0"))


def test_other_weights_give_differences_down_to_the_first_token_and_exit_code_4(copy, policy_folder, tmp_path, capsys):
    other = Path(shutil.copytree(policy_folder, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: value * 1.1 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    change_setting(copy, str(policy_folder), str(other))
    code, out, err = command(capsys, copy.path, "--step", "1", "--prompt", "0")
    assert code == 4 and "was not regenerated bit for bit" in err
    assert "first at position" in out and "tokens" in out and "log-probs of equal tokens up to" in out
    found = replay(ReplayRequest(copy.path, 2, "0"))
    assert not found.reached and not found.is_exact and found.repeated == (1,) and not found.regenerated
    recorded = {(row["prompt_index"], row["role"], row["sample"]): row for row in copy.read_rollouts(1)}
    for one in found.different:
        if one.token is not None and one.token.then is not None:
            row = recorded[one.prompt, one.role, one.sample]
            assert row["tokens"][one.token.transcript][one.token.position] == one.token.then != one.token.now


def test_another_environment_is_told_beside_the_result(copy, capsys):
    facts = json.loads((copy.path / "env.json").read_text())
    facts["packages"]["jax"], facts["devices"] = "0.0.1", ["tpu:v9"]
    (copy.path / "env.json").write_text(json.dumps(facts))
    told = open_past(copy.path).environment_differences()
    assert set(told) == {"jax", "devices"} and told["jax"][0] == "0.0.1" and told["devices"][0] == ["tpu:v9"]


def test_rows_differ_by_their_first_token_and_missing_rows_are_differences_too():
    row = {"prompt_index": 0, "prompt_id": "a/1", "sample": 0, "role": "draft", "score": 1.0, "shadow": None}
    row |= {"tokens": {"policy": [1, 2, 3]}, "logprobs": {"policy": [0.0, -1.0, -2.0]}}
    same = {**row, "shadow": {"score": 0.5}, "new_field": 1}
    assert differences(1, [row], [same]) == []
    [one] = differences(1, [row], [{**row, "tokens": {"policy": [1, 2]}, "logprobs": {"policy": [0.0, -1.25]}}])
    assert one.fields == ("tokens", "logprobs") and one.logprob == 0.25
    assert one.token is not None and (one.token.position, one.token.then, one.token.now) == (2, 3, None)
    [gone, new] = differences(1, [row], [{**row, "sample": 1}])
    assert (gone.sample, gone.fields) == (0, ("only in the record",))
    assert (new.sample, new.fields) == (1, ("not in the record",))
