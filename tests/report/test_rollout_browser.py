"""The index and the texts of the rollout browser: items, whatever roles they have, and whole steps within the limit."""

from __future__ import annotations

import json

from ditto_jax.report.rollout_browser import RolloutIndex, block_of, embedded_rollouts, items_of, whole_index
from ditto_jax.runs.run_dir import RunDirectory
from tests.report_runs import make_run, rollout_rows


def _entry(index: RolloutIndex, at: int) -> dict:
    return {name: values[at] for name, values in index.as_dict()["columns"].items()}


def test_an_item_is_a_draft_with_all_that_was_made_of_it():
    items = items_of(rollout_rows(1, refines=True, hostile=False))
    assert [[row["role"] for row in rows] for rows in items] == [["draft", "refined"], ["draft", "refined"], ["draft"]]


def test_index_holds_rewards_outcomes_and_marks():
    items = items_of(rollout_rows(3, refines=True, hostile=False))
    items[0][1] |= {"score": None, "outcome": "timed_out"}
    items[1][0]["feedback"] |= {"leak": "names the answer"}
    items[1][1]["kept"] = False
    index = RolloutIndex()
    index.add(0, "training", 3, items)
    written = index.as_dict()
    assert written["outcomes"] == ["ok", "timed_out"] and written["roles"] == ["draft", "refined"]
    assert _entry(index, 0) | {"task": 0} == {
        "run": 0,
        "source": 0,
        "step": 3,
        "row": 0,
        "sample": 0,
        "task": 0,
        "prompt": 0,
        "before": 0.0,
        "after": None,
        "outcomes": 0b11,
        "roles": 0b11,
        "flags": 0,
    }
    assert (_entry(index, 1)["before"], _entry(index, 1)["after"], _entry(index, 1)["flags"]) == (0.0, 0.0, 0b111)
    assert (_entry(index, 2)["before"], _entry(index, 2)["after"], _entry(index, 2)["roles"]) == (1.0, None, 0b01)
    assert written["rollouts"] == 5


def test_roles_that_no_one_knew_before_are_shown_by_their_name():
    rows = rollout_rows(1, refines=True, hostile=False)
    rows.append({**rows[0], "role": "reflection", "reply": "I forgot who was there.", "score": None})
    index = RolloutIndex()
    index.add(0, "training", 1, items_of(rows))
    assert index.as_dict()["roles"] == ["draft", "refined", "reflection"]
    block = block_of(items_of(rows))
    assert [rollout["role"] for rollout in block["items"]["0.0"]] == ["draft", "refined", "reflection"]


def test_block_keeps_texts_and_numbers_but_no_tokens_and_no_prompt_twice():
    rows = rollout_rows(1, refines=True, hostile=False)
    block = block_of(items_of(rows))
    assert len(block["prompts"]) == 1
    draft, refined = block["items"]["0.0"]
    assert draft["feedback"]["text"] == refined["used_feedback"]
    assert refined["advantage"] == {"refined_plain": 1.2, "refined_fb": 0.9} and draft["score"] == 0.0
    assert "tokens" not in json.dumps(block)


def test_dialogues_keep_their_turns():
    turns = [
        {"speaker": "Ann", "text": "x" * 30_000, "author": "llm"},
        {"speaker": "Bo", "text": "b", "author": "policy"},
    ]
    row = {**rollout_rows(1, refines=False, hostile=False)[0], "turns": turns}
    shown = block_of([[row]])["items"]["0.0"][0]["turns"]
    assert [turn["speaker"] for turn in shown] == ["Ann", "Bo"]
    assert shown[0]["text"].endswith("10,000 more characters are in rollouts/.")


def test_page_holds_evenly_spaced_whole_steps_and_says_what_it_left_out(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", steps=20))
    whole = embedded_rollouts([run])
    assert whole.note == "" and len(whole.blocks) == 20 and whole.index.rollouts == 100
    part = embedded_rollouts([run], most=25)
    assert [step for _, _, step in part.blocks] == [1, 6, 11, 15, 20] and part.index.rollouts == 25
    assert "5 of 20 steps of run" in part.note and "--serve" in part.note


def test_runs_share_one_index(tmp_path):
    runs = [RunDirectory(make_run(tmp_path / name, steps=2)) for name in ("a", "b")]
    found = embedded_rollouts(runs)
    assert set(found.blocks) == {(0, 0, 1), (0, 0, 2), (1, 0, 1), (1, 0, 2)}
    assert found.index.as_dict()["columns"]["run"] == [0] * 6 + [1] * 6


def test_run_without_rollouts_has_an_empty_index(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", steps=2, rollouts=False))
    found = embedded_rollouts([run])
    assert found.index.rollouts == 0 and not found.blocks and found.note == ""


def _samples(run: RunDirectory, label: str, step: int, lines: list[str]) -> None:
    folder = run.evaluations / label
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"samples_{step:06d}.jsonl").write_text("\n".join(lines))


def test_evaluated_items_are_scenes_that_come_again(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", 2))
    for step in (0, 2):
        sample = {
            "id": "q1",
            "sample": 0,
            "prompt": [],
            "reply": f"at {step}",
            "score": float(step > 0),
            "outcome": "ok",
        }
        _samples(run, "b-tomi", step, [json.dumps(sample), '{"id": "torn'])
    found = embedded_rollouts([run])
    index = found.index.as_dict()
    assert index["sources"] == ["evaluation b-tomi", "training"]
    again = [at for at, prompt in enumerate(index["columns"]["prompt"]) if index["prompts"][prompt] == "b-tomi/q1"]
    assert [index["columns"]["step"][at] for at in again] == [0, 2]
    assert [index["columns"]["before"][at] for at in again] == [0.0, 1.0]
    assert found.blocks[0, 0, 2]["items"]["0.0"][0]["reply"] == "at 2"
    assert whole_index([run]).as_dict()["rollouts"] == found.index.rollouts


def test_index_that_is_no_longer_wanted_ends_between_two_files(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", 6))
    answers = iter([True, True, False])
    assert whole_index([run], lambda: next(answers)).as_dict()["columns"]["step"] == [1] * 3 + [2] * 3
