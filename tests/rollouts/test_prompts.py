"""The prompt stream is a pure function of position: any split of a run, any resumption, meets the same prompts."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ditto_jax.config import SourceConfig, TaskConfig
from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.rollouts.prompts import LoadedTask, PromptStream, load_task
from ditto_jax.setup import load_tasks
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Example

TASK = get_task("hitom", {})


def loaded(label: str, weight: float, count: int) -> LoadedTask:
    examples = [Example(task="hitom", id=str(n), payload={}, gold="") for n in range(count)]
    return LoadedTask(label, weight, TASK, examples)


mixtures = st.lists(
    st.tuples(st.floats(0.05, 20.0) | st.integers(1, 9).map(float), st.integers(1, 12)), min_size=1, max_size=6
)


def stream(mixture, seed: int = 0) -> PromptStream:
    return PromptStream([loaded(f"t{n}", weight, count) for n, (weight, count) in enumerate(mixture)], seed)


def ids(prompts) -> list[str]:
    return [prompt.id for prompt in prompts]


# Weights for which rounding shares at every count lets a task lose a prompt when the count rises (the Alabama paradox).
@example([(6.0, 3), (6.0, 3), (2.0, 3)])
@example([(5.0, 4), (5.0, 4), (3.0, 4), (1.0, 4), (1.0, 4)])
@given(mixtures)
def test_every_task_stays_within_one_prompt_of_its_share(mixture):
    total = sum(Fraction(weight) for weight, _ in mixture)
    counts: Counter[str] = Counter()
    for number, prompt in enumerate(stream(mixture).at(0, 120), start=1):
        counts[prompt.id.split("/")[0]] += 1
        for n, (weight, _) in enumerate(mixture):
            assert abs(counts[f"t{n}"] - number * Fraction(weight) / total) < 1


@example([(6.0, 3), (6.0, 3), (2.0, 3)])
@given(mixtures)
def test_every_epoch_of_a_task_shows_each_of_its_examples_once(mixture):
    seen: dict[str, list[str]] = {f"t{n}": [] for n in range(len(mixture))}
    for prompt in stream(mixture).at(0, 120):
        label, number = prompt.id.split("/")
        seen[label].append(number)
    for n, (_, count) in enumerate(mixture):
        shown = seen[f"t{n}"]
        for start in range(0, len(shown), count):
            epoch = shown[start : start + count]
            assert len(set(epoch)) == len(epoch)


@given(mixtures, st.integers(0, 80), st.integers(0, 30))
def test_prompts_depend_on_position_alone(mixture, position, count):
    whole = ids(stream(mixture).at(0, position + count))
    assert ids(stream(mixture).at(position, count)) == whole[position:]
    again = stream(mixture)
    assert ids(again.at(position, count)) == whole[position:] and ids(again.at(0, 1)) == ids(stream(mixture).at(0, 1))


@example([(1.0, 1024)] * 10, 64, 57)
@given(mixtures, st.integers(1, 40), st.integers(0, 20))
def test_every_step_is_balanced_also_after_resumption(mixture, per_step, resumed_at):
    """Within two prompts of the share (one where weights are equal), in steps that start at any position."""
    total = sum(Fraction(weight) for weight, _ in mixture)
    alike = len({weight for weight, _ in mixture}) == 1
    straight, resumed = stream(mixture), stream(mixture)
    for step in range(resumed_at, resumed_at + 3):
        prompts = resumed.at(step * per_step, per_step)
        assert ids(prompts) == ids(straight.at(step * per_step, per_step))
        counts = Counter(prompt.label for prompt in prompts)
        for n, (weight, _) in enumerate(mixture):
            off = abs(counts[f"t{n}"] - per_step * Fraction(weight) / total)
            assert off < (1 if alike else 2)


def test_epochs_and_seeds_differ_in_order():
    one = ids(stream([(1.0, 12)]).at(0, 24))
    assert sorted(one[:12]) == sorted(one[12:]) and one[:12] != one[12:]
    assert one != ids(stream([(1.0, 12)], seed=1).at(0, 24))


def test_a_prompt_names_its_task_and_example():
    [prompt] = PromptStream([loaded("mine", 1.0, 1)], 0).at(5, 1)
    assert (prompt.id, prompt.task, prompt.example.id) == ("mine/0", TASK, "0")


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(DataError, match="no task to train on"):
        PromptStream([], 0)


def test_generated_examples_are_loaded_with_the_label_and_weight_of_the_configuration():
    task = load_task(TaskConfig("hitom", weight=2.0, label="stories", source=SourceConfig(limit=3)))
    assert (task.label, task.weight, len(task.examples)) == ("stories", 2.0, 3)


@pytest.mark.parametrize("path", ["/nowhere/hitom", "$NO_SUCH_VARIABLE/hitom"])
def test_absent_data_is_an_error_that_names_it_unless_it_is_optional(path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    source = SourceConfig(kind="files", path=path, split="test")
    with pytest.raises(MissingInputError, match="nowhere|NO_SUCH_VARIABLE is not set"):
        load_task(TaskConfig("hitom", source=source))
    optional = SourceConfig(kind="files", path=path, split="test", optional=True)
    tasks, skipped = load_tasks([TaskConfig("hitom", source=optional)])
    assert not tasks and "its data is absent" in skipped["hitom"]


def test_auto_takes_the_public_files_where_they_are_and_generates_else(monkeypatch, tmp_path: Path):
    row = {"prompting_type": "CoTP", "deception": False, "story_length": 1, "question_order": 0, "sample_id": 0}
    story = "1 Ann entered the den.\n2 The pear is in the box."
    row |= {"story": story, "question": "Where is the pear?", "choices": "A. box, B. crate", "answer": "box"}
    auto = TaskConfig("hitom", source=SourceConfig(kind="auto", split="test", limit=3))
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    made = load_task(auto)
    assert made.config is not None and (made.config.source.kind, len(made.examples)) == ("generated", 3)
    (tmp_path / "hitom").mkdir()
    (tmp_path / "hitom" / "Hi-ToM_data.json").write_text(json.dumps({"data": [row]}))
    monkeypatch.setenv("SOUL_DATA_DIR", str(tmp_path))
    read = load_task(auto)
    assert read.config is not None and (read.config.source.kind, read.rows.found) == ("files", 1)


def test_auto_says_all_that_is_missing_and_trains_on_nothing_that_is_for_evaluation(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SOUL_DATA_DIR", str(tmp_path))
    source = SourceConfig(kind="auto", split="test", limit=3)
    with pytest.raises(MissingInputError, match=r"lifechoices: no such file.*task 'lifechoices' has no generator"):
        load_task(TaskConfig("lifechoices", source=source))
    with pytest.raises(MissingInputError, match=r"its files are not for training: .* its test set"):
        load_task(TaskConfig("mirrorbench", source=source), training=True)


def test_a_path_may_hold_an_environment_variable(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path / "absent"))
    with pytest.raises(MissingInputError, match=str(tmp_path)):
        load_task(TaskConfig("hitom", source=SourceConfig(kind="files", path="$SOME_FOLDER", split="test")))


@given(mixtures, st.integers(0, 60))
def test_once_each_gives_the_prompts_of_the_first_positions_without_repeats(mixture, count):
    found = ids(stream(mixture).once_each(count))
    assert sorted(found) == sorted(set(ids(stream(mixture).at(0, count))))
