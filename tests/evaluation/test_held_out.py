"""Held-out data stays held out: what training shares with it ends the run; too long prompts are left out, counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.config import EvalConfig, RunConfig, SourceConfig, TaskConfig
from ditto_jax.errors import ConfigError, DataError
from ditto_jax.rollouts.prompts import LoadedTask, PromptStream, load_task
from ditto_jax.setup import Parts, assemble, check_held_out, require_training_room
from ditto_jax.tasks.registry import get_task
from ditto_jax.tasks.splits import require_disjoint
from tests.released_rows import ROWS, write_released
from tests.runs.test_bad_input import long_row
from tests.tasks.test_hitom_files import ROW
from tests.tiny_run import run_config, story_task


def loaded(name: str, label: str, folder: Path, **changes: Any) -> LoadedTask:
    """A released row of a task, read as its data would be."""
    file = write_released(folder / f"{label}.parquet", name, [{**ROWS[name], **changes}])
    return load_task(TaskConfig(name, label=label, source=SourceConfig(kind="parquet", path=str(file))))


def test_a_shared_group_is_an_error_that_names_both_sides_and_the_way_on(tmp_path):
    trained, tested = (loaded("twinvoice", label, tmp_path) for label in ("mine", "theirs"))
    with pytest.raises(DataError) as caught:
        check_held_out([trained], [tested])
    for part in ("tasks.mine and evaluation.theirs", "1 group(s)", "person:u7", "evaluation.allow_overlap"):
        assert part in str(caught.value)
    check_held_out([trained], [loaded("twinvoice", "others", tmp_path, user_id="u8")])
    check_held_out([], [tested])


def test_a_novel_is_one_group_for_every_task_on_books(tmp_path):
    """Training on one task's scenes of a book would give away another task's questions about it."""
    scene = {**json.loads(ROWS["coser"]["circumstance"]), "book": "the tide clock"}
    acted = loaded("coser", "acted", tmp_path, circumstance=json.dumps(scene))
    with pytest.raises(DataError, match="book:the tide clock"):
        check_held_out([acted], [loaded("lifechoices", "decided", tmp_path)])


def test_only_the_first_shared_groups_are_listed():
    many = [f"book:{number}" for number in range(9)]
    with pytest.raises(DataError, match=r"here: 9 group\(s\) are in both \(book:0, book:1, book:2 …\)"):
        require_disjoint(many, reversed(many), "here")
    require_disjoint(many, ["book:9"], "here")


def with_evaluation(policy_folder: Path, folder: Path, task: TaskConfig, **changes: Any) -> RunConfig:
    return run_config(policy_folder, folder, evaluation=EvalConfig(tasks=(task,), bootstrap=50, **changes))


def test_a_run_on_what_it_measures_needs_a_setting_that_says_so(policy_folder, tmp_path):
    """The same stories on both sides: refused, unless evaluation.allow_overlap is true."""
    same = dataclasses.replace(story_task(4), label="same")
    config = with_evaluation(policy_folder, tmp_path, same)
    training = [load_task(story_task(4), training=True)]
    with pytest.raises(DataError, match=r"tasks\.hitom and evaluation\.same: \d+ group"):
        assemble(config, training)
    allowed = with_evaluation(policy_folder, tmp_path, same, allow_overlap=True)
    assert [task.label for task in assemble(allowed, training).evaluation] == ["same"]


def long_and_short(folder: Path, *sentences: int, overlong: Any = "skip", optional: bool = False) -> TaskConfig:
    """A file with one short story (0) or one of so many sentences for each number."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "Hi-ToM_data.json"
    file.write_text(json.dumps({"data": [long_row(count) if count else ROW for count in sentences]}))
    source = SourceConfig(kind="files", path=str(file), split="test", overlong=overlong, optional=optional)
    return TaskConfig("hitom", source=source, options={"prompt_style": "compact"})


def assembled(policy_folder: Path, folder: Path, *tasks: TaskConfig) -> Parts:
    return assemble(run_config(policy_folder, folder, evaluation=EvalConfig(tasks=tasks, bootstrap=50)))


def test_prompts_too_long_to_measure_are_left_out_and_counted(policy_folder, tmp_path):
    parts = assembled(policy_folder, tmp_path, long_and_short(tmp_path, 0, 60, 0, 40))
    [task] = parts.evaluation
    assert [example.id for example in task.examples] == ["hitom-0", "hitom-2"]
    assert (task.rows.found, dict(task.rows.left_out)) == (4, {"prompt too long": 2})
    assert task.rows.as_dict()["left_out"] == {"prompt too long": 2}


def test_an_entry_of_which_no_prompt_fits_ends_the_run_or_is_listed_if_it_is_optional(policy_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"the prompt of example hitom/hitom-1 has .* \(the longest of 2"):
        assembled(policy_folder, tmp_path, long_and_short(tmp_path, 40, 60))
    optional = dataclasses.replace(long_and_short(tmp_path, 40, 60, optional=True), label="long")
    parts = assembled(policy_folder, tmp_path, optional, story_task(2, "test"))
    assert [task.label for task in parts.evaluation] == ["hitom"]
    assert parts.skipped["long"].startswith("no prompt fits: long: the prompt of example long/hitom-1 has")
    with pytest.raises(ConfigError, match=r"evaluation\.tasks: long: no prompt fits"):
        assembled(policy_folder, tmp_path, optional)


def test_prompts_too_long_to_train_on_are_left_out_of_the_stream_and_counted(policy_folder, tmp_path):
    config = run_config(policy_folder, tmp_path, evaluation=EvalConfig())
    parts = assemble(config)
    skipping = PromptStream([load_task(long_and_short(tmp_path, 0, 60, 0))], seed=1)
    kept = require_training_room(config, parts, skipping)
    assert {prompt.example.id for prompt in kept.at(0, 6)} == {"hitom-0", "hitom-2"}
    assert kept.tasks[0].rows.left_out == {"prompt too long": 1}
    strict = PromptStream([load_task(long_and_short(tmp_path, 0, 60, 0, overlong="error"))], seed=1)
    with pytest.raises(ConfigError, match="hitom/hitom-1"):
        require_training_room(config, parts, strict)


def test_tasks_without_groups_overlap_with_nothing():
    example = Path(__file__).resolve().parents[2] / "docs/examples/last_speaker.py"
    task = get_task(f"{example}:LastSpeaker")
    alone = LoadedTask("own", 1.0, task, ())
    check_held_out([alone], [alone])
