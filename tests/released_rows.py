"""One made-up row of every task in the released schema, and the parquet files that hold such rows.

For tests of what all ten tasks have in common: one folder with two parts, laid out as `ditto-jax data fetch` leaves it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ditto_jax.tasks.released import PARTS, SOUL

_SCENE = {
    "book": "The Lamp Shop",
    "plot": {"summary": "Two sisters own a shop.", "key_characters": [{"name": "Ada", "description": "The elder."}]},
    "i_p": 3,
    "i_c": 0,
    "character_profiles": {"Ada": "Careful.", "Bea": "Quick."},
    "dialogues": [
        {"character": "Ada", "message": "You are late."},
        {"character": "Bea", "message": "I have found a buyer for the shop."},
    ],
    "speaking_characters_w_env": ["Ada", "Bea", "Environment"],
    "major_characters": ["Ada", "Bea"],
    "key_characters": [{"name": "Ada", "thought": "Hopes."}, {"name": "Bea", "thought": "Wants out."}],
    "scenario": "Evening in the shop.",
    "tag": "ood",
}
_DECISION = {
    "Scenario": "The boat leaves.",
    "Question": "What does Nell do?",
    "Options": ["A. She sails.", "B. She stays.", "C. She sings.", "D. She sleeps."],
    "Correct Answer": "B",
}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "fantom": {
        "context": "Ann: My dog is Rex.\nBob: Nice.",
        "complete_question": "What does Cid think?\n(a) The dog is Rex.\n(b) He has not heard of it.",
        "question_type": "tom:belief:inaccessible:multiple-choice",
        "tom_type": "first-order",
        "correct_answer": "1",
        "set_id": "7-0-0",
    },
    "hitom": {
        "story": "1 Ann entered the den.\n2 The pear is in the red_box.",
        "question": "Where is the pear really?",
        "choices": "A. blue_crate, B. red_box",
        "correct_answer": "red_box",
        "deception": "False",
        "story_length": "1",
        "question_order": "0",
        "set_id": 11,
    },
    "paratomi": {
        "story": "['Ann shuffled into the den.', 'The box has the pear.']",
        "question": "Where will Ann look for the pear?",
        "correct_answer": "box",
        "cands": "['box', 'den']",
        "qType": "first_order_tom",
        "qTypeRaw": "first_order_1_tom",
    },
    "coser": {"circumstance": json.dumps(_SCENE), "wo_thought": "False", "continue_from": 0},
    "lifechoices": {
        "character_name": "Nell Harrow",
        "input_text": "Nell grew up by the sea.",
        "book": "The Tide Clock",
        "Multiple Choice Question": json.dumps(_DECISION),
    },
    "sotopia": {
        "scenario": "Two people share a kitchen.",
        "agent1_name": "Ada",
        "agent2_name": "Bo",
        "agent1_background": "Ada is a cook.",
        "agent2_background": "Bo is a pilot.",
        "agent1_goal": "Get Bo to wash the dishes.",
        "agent2_goal": "Go to bed early.",
        "relationship": "flatmates",
        "eval_position": "agent1",
    },
    "mistakes": {
        "QuestionText": "2 + 3",
        "AnswerAText": "5",
        "AnswerBText": "6",
        "AnswerCText": "23",
        "AnswerDText": "1",
        "MisconceptionName": "Joins digits",
        "TargetOption": "C",
    },
    "mirrorbench": {
        "conversation_id": "c1",
        "task_description": "The person wants a soup.",
        "turns": [
            {"role": "user", "content": "soup pls"},
            {"role": "assistant", "content": "Boil leeks."},
            {"role": "user", "content": "thx"},
        ],
    },
    "userllm": {
        "source": "prism_later",
        "intent": "plan a trip",
        "conversation_history": "User: hi\nAssistant: hello",
        "is_last_turn": "False",
    },
    "twinvoice": {
        "user_id": "u7",
        "conversation_history": json.dumps(["lol no way", "brb, tea first"]),
        "anchor_post": "Who is coming tonight?",
        "answer_choices": json.dumps(["I shall attend.", "lol me, after tea", "Cannot say.", "Perhaps."]),
        "answer_idx": 1,
        "dimension": "social",
    },
}

# What makes a row of the evaluation part share no story, book, chat, question or person with the training row.
HELD_OUT: Mapping[str, Mapping[str, Any]] = {
    "fantom": {"set_id": "8-0-0"},
    "hitom": {"story": "1 Bea entered the den.\n2 The pear is in the red_box."},
    "paratomi": {"story": "['Ann walked into the den.', 'The box has the pear.']"},
    "coser": {"circumstance": json.dumps({**_SCENE, "book": "The Salt House", "scenario": "Morning in the shop."})},
    "lifechoices": {"book": "The Salt House", "character_name": "Ida Moss"},
    "sotopia": {"scenario": "Two people share a garden."},
    "mistakes": {"QuestionText": "20 + 3"},
    "mirrorbench": {"conversation_id": "c2"},
    "userllm": {"intent": "mend a chair"},
    "twinvoice": {"user_id": "u8"},
}


def write_released(file: Path, task: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows in the released envelope, numbered from 0; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    infos = [{"index": number, **row} for number, row in enumerate(rows)]
    dummy = [[{"content": "x", "role": "user"}]] * len(infos)
    table = {"prompt": dummy, "data_source": [task] * len(infos), "extra_info": infos}
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    return file


def write_part(folder: Path, part: str = "train", copies: int = 3) -> Path:
    """Writes a file of every task for one part of the release, below `folder`; returns `folder`."""
    assert part in PARTS
    for name, row in ROWS.items():
        told_apart = row if part == "train" else {**row, **HELD_OUT[name]}
        write_released(folder / part / SOUL[name].file(part), name, [told_apart] * copies)
    return folder
