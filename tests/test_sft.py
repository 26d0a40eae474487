"""The supervised warm start: rows that are a pure function of their step, and a folder that can be used and made
again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ditto_jax import sft
from ditto_jax.config import SourceConfig, TaskConfig
from ditto_jax.config_io import load_config
from ditto_jax.errors import ConfigError, RunDirectoryError
from ditto_jax.keys import SampleId
from ditto_jax.policy import load_policy
from ditto_jax.rollouts.feedback import content_free_feedback
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.sampling.slots import SampleRequest
from ditto_jax.sft import LengthBuckets, StageConfig, StageData, train_stage, views_of_stories
from ditto_jax.sft_run import SFTConfig, run_sft
from ditto_jax.tasks.base import Source, Task
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict
from model.partition import make_mesh
from model.sampling import SamplingParams
from tests.tiny_run import files_of, sft_config, story_task

CONTENT_FREE = {content_free_feedback(random.Random(seed)) for seed in range(500)}


class Drill(Task[None]):
    """Two kinds of replies, and words about every draft unless the example is a silent one."""

    name, version, options_type = "drill", "1", type(None)

    def load(self, source: Source) -> Sequence[Example]:
        assert source.limit is not None
        return [Example("drill", f"{source.seed}-{i}", {"silent": i == 0}, "gold") for i in range(source.limit)]

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        return (Message("user", feedback or "no words"),)

    def demonstration(self, example: Example, careful: bool = True) -> str:
        return "careful" if careful else "careless"

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict:
        return Verdict(Outcome.OK, score=0.0)

    def rule_feedback(self, example, conversation, verdict, rng) -> str | None:
        return None if example.payload["silent"] else f"about a {conversation.reply} draft"

    async def episode(self, example, ports, feedback=None) -> Conversation:
        raise AssertionError("nothing is played in a supervised stage")

    def feedback_request(self, example, conversation, verdict):
        raise AssertionError("nobody is asked in a supervised stage")


@pytest.fixture
def drilled(monkeypatch):
    """Returns a function from stage settings to (words, reply) of many rows of the drill."""
    monkeypatch.setattr(sft, "get_task", lambda name, options: Drill(None))

    def rows(**settings: Any) -> list[tuple[str, str]]:
        task = TaskConfig("drill", source=SourceConfig(limit=1))
        stage = StageConfig("drill", steps=1, tasks=(task,), stories_per_step=1000, questions_per_story=4, **settings)
        return [(row.chat[0].content, row.reply) for story in StageData(stage, seed=3).stories(0) for row in story]

    return rows


def share(rows: Sequence[tuple[str, str]], reply: str = "careful") -> float:
    assert len(rows) > 300
    return float(np.mean([answer == reply for _, answer in rows]))


def stage_of(**changes: Any) -> StageConfig:
    return dataclasses.replace(sft_config(Path("unused")).stages[0], **changes)


def test_rows_depend_on_seed_stage_and_step_alone():
    stage = stage_of(feedback_fraction=0.5, careful_unaided=0.5)
    first, again = StageData(stage, seed=1), StageData(stage, seed=1)
    in_order = [first.stories(step) for step in range(3)]
    assert [again.stories(step) for step in (2, 0, 1)] == [in_order[2], in_order[0], in_order[1]]
    assert in_order[0] != in_order[1]
    assert StageData(stage, seed=2).stories(0) != in_order[0]
    assert StageData(dataclasses.replace(stage, name="other"), seed=1).stories(0) != in_order[0]


def test_unaided_replies_are_careful_as_often_as_configured(drilled):
    rows = drilled(feedback_fraction=0.0, careful_unaided=0.3)
    assert {words for words, _ in rows} == {"no words"}
    assert share(rows) == pytest.approx(0.3, abs=0.03)


def test_rows_with_words_about_the_draft_show_how_reading_helps(drilled):
    rows = drilled(feedback_fraction=0.5, careful_unaided=0.1, careful_reading=0.9)
    told = [row for row in rows if row[0] != "no words"]
    assert len(told) / len(rows) == pytest.approx(0.5 * 3 / 4, abs=0.03)  # there are no words about a silent example
    assert share(told) == pytest.approx(0.9, abs=0.03)
    assert share([row for row in rows if row[0] == "no words"]) == pytest.approx(0.1, abs=0.03)


def test_rows_with_words_that_say_nothing_keep_the_careless_reply(drilled):
    rows = drilled(
        feedback_fraction=1.0,
        content_free_fraction=0.4,
        careful_reading=1.0,
        careful_content_free=0.0,
        careful_unaided=0.0,
    )
    told = [row for row in rows if row[0] != "no words"]
    empty = [row for row in told if row[0] in CONTENT_FREE]
    assert len(empty) / len(told) == pytest.approx(0.4, abs=0.03)
    assert {reply for _, reply in empty} == {"careless"}
    assert {reply for words, reply in told if words not in CONTENT_FREE} == {"careful"}


def test_words_are_mostly_about_the_shortcut_and_sometimes_about_a_slip(drilled):
    told = [row for row in drilled(feedback_fraction=1.0) if row[0] != "no words"]
    about_shortcut = np.mean([words == "about a careless draft" for words, _ in told])
    assert about_shortcut == pytest.approx(0.8, abs=0.03)


def test_a_task_without_worked_replies_is_refused(monkeypatch):
    class Silent(Drill):
        def demonstration(self, example: Example, careful: bool = True) -> None:  # type: ignore[override]
            return None

    monkeypatch.setattr(sft, "get_task", lambda name, options: Silent(None))
    with pytest.raises(ConfigError, match="task drill: has no worked replies"):
        StageData(stage_of(), seed=0).stories(0)


def test_a_stage_without_a_generator_is_refused():
    with pytest.raises(ConfigError, match=r"stages\.skill\.tasks: give at least one task with source\.kind=generated"):
        stage_of(tasks=())


def test_the_loss_is_on_the_reply_and_its_end_alone(policy_folder):
    policy = load_policy(str(policy_folder), make_mesh())
    stories = StageData(stage_of(feedback_fraction=1.0), seed=0).stories(0)
    end = policy.chat_format.stop_ids[0]
    views = views_of_stories(stories, policy.chat_format, policy.tokenizer, end)
    rows = [row for story in stories for row in story]
    for view, row in zip(views, rows, strict=True):
        assert view.context.tolist() == policy.chat_format.open(row.chat)
        assert view.response[-1] == end and view.loss_mask.all()
        assert policy.tokenizer.decode(view.response[:-1].tolist()) == row.reply
    assert [view.prompt for view in views] == [n for n, story in enumerate(stories) for _ in story]


def test_a_stage_makes_its_replies_likelier(policy_folder):
    mesh = make_mesh()
    policy = load_policy(str(policy_folder), mesh)
    noted: list[float] = []
    start = jax.tree.map(lambda leaf: np.asarray(leaf) * 0.5, policy.params)  # further from the replies than it was
    train_stage(
        start,
        stage_of(steps=8),
        policy.config,
        policy.chat_format,
        policy.tokenizer,
        mesh,
        seed=0,
        shapes=LengthBuckets(prefix=(96,), suffix=(128,), lanes=2),
        report=lambda step, nll, seconds: noted.append(float(nll)),
    )
    assert len(noted) == 8 and np.mean(noted[-2:]) < 0.9 * np.mean(noted[:2])


def test_the_saved_folder_is_a_policy_that_samples_replies(policy_folder):
    policy = load_policy(str(policy_folder), make_mesh())
    task_rows = StageData(stage_of(feedback_fraction=0.0), seed=9).stories(0)
    ids = np.asarray(policy.chat_format.open(task_rows[0][0].chat), np.int32)
    sampler = policy.sampler(SamplerShapes(prefix=(96,), tail=(1,), max_new_tokens=32, max_rows=16, chunk=32))
    requests = [SampleRequest(ids, 0, SampleId(0, 0, "p", i, "draft").key(), 32) for i in range(16)]
    batches = sampler.generate(policy.params, requests, SamplingParams(temperature=1.0))
    texts = [policy.tokenizer.decode(sampled.ids.tolist()) for batch in batches for _, sampled in batch]
    assert len(texts) == 16
    # Two short stages were enough for the form, which no random policy has.
    assert sum("<answer>" in text and "</answer>" in text for text in texts) >= 4


def test_the_folder_says_how_it_was_made(policy_folder):
    assert {"config.json", "model.safetensors", "tokenizer.model", "sft.yaml", "README.md"} <= set(
        files_of(policy_folder)
    )
    config, _ = load_config(SFTConfig, [str(policy_folder / "sft.yaml")])
    assert config == sft_config(policy_folder)
    card = (policy_folder / "README.md").read_text()
    assert "ditto-jax sft" in card and "skill" in card and "habit" in card


def test_the_same_config_gives_the_same_bytes(tmp_path):
    config = sft_config(tmp_path / "tiny", steps=2)

    def made() -> dict[str, bytes]:
        with contextlib.redirect_stdout(io.StringIO()):
            folder = run_sft(config, ["ditto-jax", "sft"])
        files = files_of(folder)
        shutil.rmtree(folder)
        return files

    first, second = made(), made()
    assert set(first) == set(second)
    assert all(first[name] == second[name] for name in first)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.txt").write_text("three years of work")
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(RunDirectoryError, match="is no earlier policy") as e:
        run_sft(sft_config(tmp_path / "tiny", steps=1), [])
    assert e.value.exit_code == 2
    assert files_of(tmp_path) == {"tiny/thesis.txt": b"three years of work"}


def test_stages_need_distinct_names():
    with pytest.raises(ConfigError, match="distinct"):
        SFTConfig(stages=(stage_of(), stage_of(tasks=(story_task(1),))))
