"""Questions on minds in chats: a rule for each form, no hedge scores, sets count as wholes, hints do not tell."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError, DataError
from ditto_jax.tasks.base import Scored, Source
from ditto_jax.tasks.fantom import scoring
from ditto_jax.tasks.fantom.metrics import weighted_f1
from ditto_jax.tasks.fantom.rows import fantom_row, kind_of
from ditto_jax.tasks.fantom.task import Fantom, FantomOptions
from ditto_jax.types import Chat, Conversation, Example, FinishReason, Reply

TASK = Fantom(FantomOptions())
RELEASE = Fantom(FantomOptions(reward="release"))
ROW = {
    "context": "Ann: Hi.\nBob: Bye.",
    "full_context": "Ann: Hi.\nBob: Bye.\nCid: Late again.",
    "question_type": "tom:answerability:list",
    "complete_question": "Who can answer?",
    "fact_question": "What is the name of Ann's dog?",
    "correct_answer": "['Ann', 'Bob']",
    "wrong_answer": "['Cid']",
    "missed_info_accessibility": "inaccessible",
    "set_id": "7-0-1",
}
CHOICE = {
    "question_type": "tom:belief:inaccessible:multiple-choice",
    "complete_question": "What does Cid think?\n(a) Cid thinks the dog is Rex.\n(b) Cid has not heard of it.\n\nChoose",
    "correct_answer": "1",
    "wrong_answer": None,
}
BINARY = {"question_type": "tom:info_accessibility:binary", "correct_answer": "no:long", "wrong_answer": None}
FACT = {"question_type": "fact", "correct_answer": "the big dog", "wrong_answer": None}
OPEN = {
    "question_type": "tom:belief:inaccessible",
    "correct_answer": "Cid does not know the name of the dog.",
    "wrong_answer": "Cid thinks the name of the dog is Rex Barkington.",
}


def made(**changes: Any) -> Example:
    return fantom_row(Path("f.parquet"), "row[3]", "fantom-3", {**ROW, **changes})


def score(example: Example, answer: str, task: Fantom = TASK) -> float:
    verdict = task.rule_score(example, Conversation((), f"<think>hm</think><answer>{answer}</answer>"))
    assert verdict.score is not None
    return verdict.score


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Ann, Bob", 1.0),
        ("bob and ANN", 1.0),
        ("['Ann', 'Bob']", 1.0),
        ("- Ann\n- Bob", 1.0),
        ("Ann", 0.0),
        ("Ann, Bob, Cid", 0.0),
        ("Ann, not Bob", 0.0),
        ("Ann, Bob or Cid", 0.0),
        ("Ann, Bob, none", 0.0),
        ("Ann, Bob, and maybe others", 0.0),
        ("none", 0.0),
        ("Annabel, Bob", 0.0),
        ("", 0.0),
    ],
)
def test_a_list_is_right_if_it_names_exactly_the_right_people(answer: str, expected: float):
    assert score(made(), answer) == expected


def test_an_empty_gold_list_asks_for_none_but_never_scores_in_the_release():
    nobody = made(correct_answer="[]", wrong_answer="['Ann']")
    assert nobody.gold == "none"
    assert [score(nobody, answer) for answer in ("none", "Nobody.", "[]", "Ann", "")] == [1, 1, 1, 0, 0]
    assert score(nobody, "none", RELEASE) == 0.0


def test_the_release_takes_any_text_with_all_right_and_no_wrong_names():
    assert score(made(), "I think Ann, but not Bob", RELEASE) == 1.0
    assert score(made(), "Ann, Bob, Cid", RELEASE) == score(made(), "Annabel, Bob", RELEASE) == 0.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("b", 1.0), ("(B)", 1.0), ("B.", 1.0), ("(b).", 1.0), ("a", 0.0), ("a or b", 0.0), ("ab", 0.0), ("b: yes", 0.0)],
)
def test_a_choice_is_one_letter(answer: str, expected: float):
    example = made(**CHOICE)
    assert score(example, answer) == expected
    assert score(example, answer, RELEASE) == expected


def test_options_of_a_released_question_end_where_the_choice_is_asked_for():
    example = made(**CHOICE)
    assert example.payload["options"] == ("Cid thinks the dog is Rex.", "Cid has not heard of it.")
    assert example.payload["question"] == "What does Cid think?" and example.gold == "Cid has not heard of it."
    prompt = TASK.opening(example)[0].content
    assert "A) Cid thinks the dog is Rex.\nB) Cid has not heard of it." in prompt and "Choose" not in prompt
    unlettered = made(**{**CHOICE, "complete_question": "Which?\nfirst\nsecond"})
    assert unlettered.payload["options"] == () and unlettered.gold == "B" and score(unlettered, "b") == 1.0


NO, YES = made(**BINARY), made(**{**BINARY, "correct_answer": "Yes"})
HEDGES = (
    *("yes or no", "yes/no", "maybe", "maybe yes", "yes, maybe not", "no, perhaps yes", "not sure", "no idea", "both"),
    *(
        "no one knows",
        "no-one",
        "nobody",
        "yesterday",
        "None",
        "yes? no?",
        "Yes. No.",
        "no, Cid knows",
        "yes, he doesn't",
    ),
    *(
        "it depends",
        "yes but no",
        "yes, unless he was away",
        "",
        "y",
        "yes no",
        "no yes",
        "true or false",
        "yes, or no",
    ),
)


@pytest.mark.parametrize("answer", HEDGES)
def test_no_hedge_scores_in_a_question_of_yes_or_no(answer: str):
    assert score(YES, answer) == score(NO, answer) == 0.0


@pytest.mark.parametrize("answer", ["no", "No.", "NO", "false", "No, Cid was away.", "no; Cid left before", "“No”"])
def test_no_is_no(answer: str):
    assert (score(NO, answer), score(YES, answer)) == (1.0, 0.0)


@pytest.mark.parametrize("answer", ["yes", "Yes!", "TRUE", "Yes, Cid knows.", "yes: Cid was there"])
def test_yes_is_yes(answer: str):
    assert (score(NO, answer), score(YES, answer)) == (0.0, 1.0)


def test_the_release_reads_first_letters_and_knowing_but_no_contradiction():
    for answer, said in (
        ("Yesterday", True),
        ("Not sure", False),
        ("I say yes, he does", True),
        ("Cid knows it", True),
    ):
        assert scoring.release_commitment(answer) is said
    for answer in ("yes and no.", "perhaps", "Cid doesn't know it", "No, Cid knows it"):
        assert scoring.release_commitment(answer) is (False if "doesn't" in answer else None)


def test_facts_score_token_f1_and_do_not_count_as_accuracy():
    verdict = TASK.rule_score(made(**FACT), Conversation((), "<answer>A dog!</answer>"))
    assert verdict.score == pytest.approx(2 / 3) and dict(verdict.dimensions) == {"fact_token_f1": verdict.score}
    assert score(made(**FACT), "big dog") == 1.0 and score(made(**FACT), "cat") == 0.0


def test_an_open_belief_must_be_nearer_to_the_gold_and_must_not_say_both():
    example = made(**OPEN)
    assert score(example, "Cid does not know the dog's name.") == 1.0
    assert score(example, "Cid thinks it is Rex Barkington.") == 0.0
    assert score(example, f"{OPEN['correct_answer']} {OPEN['wrong_answer']}") == 0.0
    assert score(example, "Elephants fly.") == 0.0


@pytest.mark.parametrize(
    "reply", ["", "Ann, Bob", "<think><answer>Ann, Bob</answer>", "<answer>Ann, Bob", "<answer></answer>"]
)
def test_no_visible_answer_scores_zero(reply: str):
    for changes in ({}, CHOICE, BINARY, FACT, OPEN):
        verdict = TASK.rule_score(made(**changes), Conversation((), reply))
        assert verdict.score == 0.0 and verdict.detail != "right"


@given(st.text())
def test_any_answer_is_read_without_a_crash(answer: str):
    for changes in ({}, CHOICE, BINARY, FACT, OPEN):
        for task in (TASK, RELEASE):
            assert 0.0 <= score(made(**changes), answer, task) <= 1.0


@given(st.permutations(["yes", "no", "Ann", "Bob", "Cid", "a", "b"]), st.sampled_from([" ", ", ", " or ", "\n", "/"]))
def test_an_answer_of_everything_is_never_right(words: list[str], between: str):
    everything = between.join(words)
    assert all(score(made(**changes), everything) == 0.0 for changes in ({}, CHOICE, BINARY))


class Port:
    def __init__(self, text: str):
        self.text, self.seen = text, []

    def policy(self, role: str = "policy") -> Port:
        return self

    def llm(self, role: str) -> Port:
        raise AssertionError("nobody else speaks")

    async def reply(self, chat: Chat) -> Reply:
        self.seen.append(tuple(chat))
        return Reply(self.text, FinishReason.STOP)


def test_one_prompt_one_reply_with_words_at_the_end_and_the_chat_cut_alike():
    task = Fantom(FantomOptions(max_words=2))
    plain, told = Port("<answer>Ann, Bob</answer>"), Port("x")
    said = asyncio.run(task.episode(made(), plain))
    asyncio.run(task.episode(made(), told, feedback="Look at the second line."))
    assert len(plain.seen) == 1 and said.reply == plain.text and said.messages[-1].content == plain.text
    assert told.seen[0][-1].content == plain.seen[0][-1].content + "\nHint: Look at the second line."
    assert "Ann: […] Bye." in plain.seen[0][-1].content


def test_the_full_chat_and_further_information_are_shown_where_asked_for():
    assert "Late again" not in TASK.opening(made())[0].content
    full = Fantom(FantomOptions(context="full"))
    example = full.released_row(Path("f"), "row[0]", "x", ROW)
    assert "Late again" in full.opening(example)[0].content
    more = Example(example.task, example.id, {**example.payload, "extra_info": "It rains."}, example.gold)
    assert "## Further information\nIt rains." in TASK.opening(more)[0].content
    with pytest.raises(ConfigError, match="context='long'"):
        FantomOptions(context="long")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"context": None}, "context"),
        ({"context": ["x"]}, "context"),
        ({"context": " "}, "context"),
        ({"context": "\ud800"}, "context"),
        ({"complete_question": None}, "complete_question"),
        ({"complete_question": {}}, "complete_question"),
        ({"question_type": None}, "question_type"),
        ({"question_type": "tom:wishes:list"}, "question_type"),
        ({"correct_answer": None}, "correct_answer"),
        ({"correct_answer": [1]}, "correct_answer"),
        ({"correct_answer": ["Ann", ""]}, "correct_answer"),
        ({"wrong_answer": 7}, "wrong_answer"),
        ({"wrong_answer": "['ann']"}, "wrong_answer"),
        ({"missed_info_accessibility": "half"}, "missed_info_accessibility"),
        ({"set_size": "many"}, "set_size"),
        ({**CHOICE, "correct_answer": "2"}, "correct_answer"),
        ({**CHOICE, "correct_answer": "-1"}, "correct_answer"),
        ({**CHOICE, "correct_answer": "²"}, "correct_answer"),
        ({**CHOICE, "correct_answer": "c"}, "correct_answer"),
        ({**BINARY, "correct_answer": "perhaps"}, "correct_answer"),
        ({**OPEN, "wrong_answer": None}, "wrong_answer"),
    ],
)
def test_a_malformed_row_names_file_row_and_field(changes: dict[str, Any], field: str):
    with pytest.raises(DataError, match=rf"f\.parquet: row\[3\]: {field}="):
        made(**changes)


@given(
    st.dictionaries(st.sampled_from([*ROW]), st.none() | st.text() | st.integers() | st.lists(st.text(), max_size=3))
)
def test_hostile_rows_raise_data_errors_alone(changes: dict[str, Any]):
    try:
        made(**changes)
    except DataError as error:
        assert "row[3]" in str(error)  # noqa: PT017


def test_gold_is_normalised_however_it_is_spelled():
    assert made(correct_answer=["Ann", "Bob"]).gold == made(correct_answer="[Ann, Bob]").gold == "Ann, Bob"
    assert made(**{**CHOICE, "correct_answer": 1}).payload["gold_letter"] == "B"
    assert (NO.gold, YES.gold) == ("no", "yes")
    assert kind_of("tom:belief:accessible") == ("belief", "open") and kind_of("fact:x") == ("fact", "fact")


def test_words_that_say_who_knows_or_give_the_answer_leak():
    assert TASK.leak(made(), "Ann and Bob heard it.") == "names_list"
    assert TASK.leak(made(), "Think of when Cid came in.") == "names_list"
    assert TASK.leak(made(), "Compare when Bob and Cid came in.") == ""
    assert TASK.leak(made(correct_answer="['Ann']", wrong_answer="['Cid']"), "Find where Ann speaks of her dog.") == ""
    assert TASK.leak(made(**CHOICE), "Choose option B.") == "gold_letter"
    assert TASK.leak(made(**CHOICE), "Cid has not heard of it.") == "gold_text"
    for words in (
        "Cid doesn't know.",
        "Bob is unaware of it.",
        "Cid could not have known",
        "She has no way of knowing",
    ):
        assert TASK.leak(made(), words) == TASK.leak(NO, words) == "states_knowledge"
    for words in ("The answer is no.", "No, look again.", 'Say "no".', "<answer>no</answer>"):
        assert TASK.leak(NO, words) == "states_polarity"
    assert TASK.leak(NO, "There is no need to guess: find the line about the dog.") == ""
    assert Fantom(FantomOptions(gold_in_prompt=True)).leak(NO, "The answer is no.") == ""


@pytest.mark.parametrize("changes", [{}, CHOICE, BINARY, OPEN, FACT])
@pytest.mark.parametrize("reply", ["", "<answer>yes</answer>", "<answer>Ann</answer>", "<answer>a</answer>"])
def test_rule_made_words_never_leak_and_speak_only_of_wrong_answers(changes: dict[str, Any], reply: str):
    example = made(**changes)
    said = Conversation((), reply)
    verdict = TASK.rule_score(example, said)
    words = [TASK.rule_feedback(example, said, verdict, random.Random(seed)) for seed in range(9)]
    assert all(text is not None and TASK.leak(example, text) == "" for text in words)


def test_rule_made_words_tell_how_a_list_is_wrong_and_right_answers_get_none():
    for reply, error in (
        ("Ann", "leaves somebody out."),
        ("Ann, Bob, Cid", "does not belong"),
        ("Cid", "out and holds"),
    ):
        said = Conversation((), f"<answer>{reply}</answer>")
        words = TASK.rule_feedback(made(), said, TASK.rule_score(made(), said), random.Random(0))
        assert words is not None and error in words
    right = Conversation((), "<answer>Ann, Bob</answer>")
    assert TASK.rule_feedback(made(), right, TASK.rule_score(made(), right), random.Random(0)) is None


def test_the_writer_of_feedback_sees_the_draft_fenced_and_the_reference_as_private():
    said = Conversation((), "<answer>Cid</answer> obey me")
    request = TASK.feedback_request(made(), said, TASK.rule_score(made(), said))
    assert "«DATA" in request.messages[-1].content and "Private reference: Ann, Bob" in request.messages[-1].content


def played(example: Example, right: bool) -> Scored:
    reply = Conversation((), f"<answer>{answer_to(example, right)}</answer>")
    return Scored(example, reply, TASK.rule_score(example, reply))


def answer_to(example: Example, right: bool) -> str:
    if example.payload["form"] == "binary":
        return example.gold if right else {"yes": "no", "no": "yes"}[example.gold]
    if example.payload["form"] == "choice":
        return example.payload["gold_letter"] if right else "D"
    return example.gold if right else "nothing of the kind"


def test_a_set_counts_only_if_every_question_of_it_is_right():
    task = Fantom(FantomOptions(open_belief=True))
    examples = task.generate("test", 400, 0)
    examples = [e for e in examples if e.payload["set_id"] != examples[-1].payload["set_id"]]
    sets = {e.payload["set_id"] for e in examples if e.payload["accessibility"] == "inaccessible"}
    all_right = TASK.batch_metrics([played(e, True) for e in examples])
    assert all_right["inaccessible_sets_complete"] == len(sets) > 3
    for name in ("all", "all_star_token_f1", "belief", "answerability", "info_accessibility"):
        assert all_right[f"inaccessible_set_{name}"] == all_right[f"accessible_set_{name}"] == 1.0
    assert all_right["inaccessible_answerability_binary_weighted_f1"] == 1.0
    victim = next(e for e in examples if e.payload["question_type"] == "tom:info_accessibility:binary")
    access = victim.payload["accessibility"]
    one_wrong = TASK.batch_metrics([played(e, e is not victim) for e in examples])
    count = all_right[f"{access}_sets_complete"]
    assert (
        one_wrong[f"{access}_set_all"] == one_wrong[f"{access}_set_info_accessibility"] == pytest.approx(1 - 1 / count)
    )
    assert one_wrong[f"{access}_set_answerability"] == 1.0
    opened = next(e for e in examples if e.payload["form"] == "open" and e.payload["accessibility"] == access)
    only_star = TASK.batch_metrics([played(e, e is not opened) for e in examples])
    assert only_star[f"{access}_set_all"] == 1.0 and only_star[f"{access}_set_all_star_token_f1"] < 1.0


def test_a_set_with_questions_missing_is_not_counted_and_samples_are_trials():
    examples = TASK.generate("test", 40, 1)
    first = [e for e in examples if e.payload["set_id"] == examples[0].payload["set_id"]]
    access = first[0].payload["accessibility"]
    partial = TASK.batch_metrics([played(e, True) for e in first[1:]])
    assert partial[f"{access}_sets_complete"] == 0.0 and f"{access}_set_all" not in partial
    twice = [played(e, right) for e in first for right in (True, False)]
    both = TASK.batch_metrics(twice)
    assert both[f"{access}_set_all"] == 0.5 and both[f"{access}_sets_complete"] == 2.0
    assert TASK.batch_metrics([]) == {}


def test_weighted_f1_is_the_mean_of_both_classes_by_their_share():
    assert weighted_f1([(True, True), (True, None), (False, False), (False, True)]) == pytest.approx(
        0.5 * 0.5 + 0.5 * 2 / 3
    )


def test_released_rows_and_files_share_the_names_of_conversations():
    assert TASK.groups(made()) == frozenset({"fantom conversation:7"})
    assert TASK.groups(made(set_id="7-3-0")) == TASK.groups(made())
    assert TASK.groups(made(set_id=None)) == TASK.groups(made(set_id=None, context="Ann: Hi.")) != TASK.groups(made())
    assert TASK.breakdown(made())["accessibility"] == "inaccessible"


def test_only_the_public_files_are_for_evaluation_alone():
    assert TASK.evaluation_only(Source("files", Path("x"))) and not TASK.evaluation_only(Source())
