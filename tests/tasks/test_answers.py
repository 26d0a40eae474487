"""Scorer cases of the theory-of-mind tasks: only the answer tag counts, and it must name exactly the gold answer."""

from __future__ import annotations

import pytest

from ditto_jax.tasks.answers import answer_letter, answer_text, named_candidates, visible_text
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.hitom.files import read_choices
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Conversation, Example, Outcome, Verdict

HITOM = Example(
    "hitom",
    "h",
    {
        "story": "Ann entered the den.\nThe apple is in the red_box.",
        "question": "Where is the apple really?",
        "choices": "A. red_box, B. blue_crate, C. tan_jar",
        "gold_letter": "B",
        "deception": False,
        "story_length": 1,
        "question_order": 0,
        "set_id": "s",
    },
    gold="blue_crate",
)
TOMI = Example(
    "paratomi",
    "p",
    {
        "story": "Ann entered the den.\nThe pear is in the box.\n"
        "Ann moved the pear to the red_box.\nAnn exited the den.",
        "question": "Where is the pear really?",
        "cands": ("box", "red_box", "den"),
        "question_type": "reality",
        "question_order": 0,
        "story_type": "true_belief",
    },
    gold="red_box",
)


def _score(example: Example, reply: str) -> Verdict:
    verdict = get_task(example.task).rule_score(example, Conversation((), reply))
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("<answer>B</answer>", 1),
        ("because. <ANSWER> b\n</ANSWER> done", 1),
        ("<think>A? <answer>A</answer></think><answer>B</answer>", 1),
        ("<seed:think>A <answer>A</answer></seed:think> <answer>B</answer>", 1),
        ("opened by the template: <answer>A</answer></think><answer>B</answer>", 1),
        ("<answer>B</answer> or <answer>A</answer>", 1),
        ("<answer>A</answer> or <answer>B</answer>", 0),
        ("<answer>blue_crate</answer>", 0),
        ("<answer>B.</answer>", 0),
        ("<answer>A, B</answer>", 0),
        ("<answer>Z</answer>", 0),
        ("<answer></answer>", 0),
        ("<answer>B", 0),
        ("B", 0),
        ("", 0),
        ("<think>surely <answer>B</answer>", 0),
        ("<think>a</think> so <think><answer>B</answer>", 0),
    ],
)
def test_hitom_takes_one_letter_in_the_first_visible_answer_tag(reply: str, score: float):
    verdict = _score(HITOM, reply)
    assert (verdict.outcome, verdict.score, verdict.dimensions) == (Outcome.OK, score, {"accuracy": score})


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("<answer>red_box</answer>", 1),
        ("<answer>The Red Box.</answer>", 1),
        ("<answer>in the red-box</answer>", 1),
        ("<answer>box</answer>", 0),
        ("<answer>red_box, box</answer>", 0),
        ("<answer>red_box in the den</answer>", 0),
        ("<answer>den red_box box</answer>", 0),
        ("<answer>red_boxes</answer>", 0),
        ("<answer>tired_box</answer>", 0),
        ("<answer>red</answer>", 0),
        ("<answer> </answer>", 0),
        ("red_box", 0),
        ("<think><answer>red_box</answer>", 0),
    ],
)
def test_paratomi_takes_the_gold_candidate_alone_as_whole_words(reply: str, score: float):
    assert _score(TOMI, reply).score == score


def test_a_reply_that_lists_every_candidate_earns_nothing():
    assert _score(TOMI, f"<answer>{', '.join(TOMI.payload['cands'])}</answer>").score == 0


def test_gold_inside_a_longer_candidate_is_not_named_by_it():
    example = Example("paratomi", "q", TOMI.payload, gold="box")
    assert _score(example, "<answer>box</answer>").score == 1
    assert _score(example, "<answer>red_box</answer>").score == 0


def test_without_candidates_the_places_of_the_story_are_the_candidates():
    example = Example("paratomi", "r", {**TOMI.payload, "cands": ()}, gold="red_box")
    assert _score(example, "<answer>red_box</answer>").score == 1
    assert _score(example, "<answer>red_box or box</answer>").score == 0
    assert _score(example, "<answer>red_box in the den</answer>").score == 0


def test_helpers_return_what_they_say():
    assert visible_text("<think>x</think> y ") == "y"
    assert answer_text("no tag") is None and answer_text("<answer></answer>") == ""
    assert answer_letter("<answer>bb</answer>") is None
    assert named_candidates("the Red-Box and a box", ["box", "red_box"]) == {"box", "red box"}
    assert named_candidates("the red_box", ["box", "red_box", ""]) == {"red box"}


def test_hitom_in_words_accepts_exactly_one_option_and_no_letter():
    task = get_task("hitom", {"answer_format": "text", "prompt_style": "compact"})
    example = task.load(Source(limit=1))[0]
    other = next(t for t in read_choices(str(example.payload["choices"])).values() if t != example.gold)
    answers = {example.gold: 1.0, example.gold.replace("_", " ").upper(): 1.0, other: 0.0, "": 0.0}
    answers |= {str(example.payload["gold_letter"]): 0.0, f"{example.gold} or {other}": 0.0}
    for answer, score in answers.items():
        verdict = task.rule_score(example, Conversation((), f"so <answer>{answer}</answer>"))
        assert verdict is not None and verdict.score == score, answer
