"""The leak filter rejects what gives the answer away, and lets ordinary words pass."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto_jax.tasks.data_files import find_file, read_text
from ditto_jax.tasks.leak import leak_rule, mentions_guidance, reference_ngram
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Conversation, Example

LETTERS = st.sampled_from(string.ascii_uppercase)
CONSONANT_WORDS = st.lists(st.text("bcdfghjklm", min_size=2, max_size=8), min_size=1, max_size=20)
COLOURS, CONTAINERS = ("red", "green", "blue"), ("drawer", "crate", "treasure_chest", "box")

NAMING = (
    "option {}",
    "the answer is {}",
    "The answer is {} because he left first.",
    "Answer: {}",
    "answer = ({})",
    "the correct choice must be '{}'.",
    "You should choose {}.",
    "Go with {}!",
    "Options C or {} fit",
    "look again ({})",
    "look again at [{}]",
    "<answer>{}</answer>",
    "<answer> ({}) </answer>",
    "{} is the right answer.",
    "So {} is correct",
    "{}. some_container",
    "Think.\n{}\n",
    "letter **{}**",
)
INNOCENT = (
    "Think about a container that Anna saw before a move; the answer is a matter of who left first.",
    "Choose a place that she knows. I would start where I saw the answer I gave.",
    "Answer: A character who left cannot see a later move.",
    "The option I took was wrong; so did I. It is a trap, and I was right to say a choice is a choice.",
    "Isabella left; a claim made later does not reach her, as I said (a) she was away and (b) nobody told her.",
    "The option's wording and the t-shirt's place do not matter; I'd pick up where B.C. ended.",
)


@pytest.mark.parametrize("template", NAMING)
def test_every_way_of_naming_the_gold_letter_is_a_leak(template):
    for letter in string.ascii_uppercase:
        assert leak_rule(template.format(letter), "yellow_kettle", letter) == "gold_letter", letter


@pytest.mark.parametrize("template", NAMING)
def test_naming_another_letter_is_no_leak(template):
    for letter in "BDGKZ":
        assert leak_rule(template.format(letter), "yellow_kettle", "M") == ""


@pytest.mark.parametrize("text", INNOCENT)
def test_articles_pronouns_and_enumerations_name_no_letter(text):
    for letter in string.ascii_uppercase:
        assert leak_rule(text, "yellow_kettle", letter) == "", letter


@pytest.mark.parametrize(
    "text", ["option b", "the answer is (b)", "pick b.", "answer: b", "<answer>b</answer>", "it is (b)"]
)
def test_small_letters_name_options_too(text):
    assert leak_rule(text, "yellow_kettle", "b") == "gold_letter"


@given(CONSONANT_WORDS)
def test_words_without_single_letters_never_name_a_letter(words):
    text = " ".join(words)
    assert all(leak_rule(text, "yellow_kettle", letter) == "" for letter in "ABIO")


@given(CONSONANT_WORDS, st.sampled_from(COLOURS), st.sampled_from(CONTAINERS), st.randoms(use_true_random=False))
def test_gold_text_is_found_in_any_case_and_separators(words, colour, container, rng: random.Random):
    gold = f"{colour}_{container}"
    written = "".join(rng.choice((c.upper(), c.lower())) for c in gold).replace("_", rng.choice((" ", "-", "_", " ")))
    written += rng.choice(("", "s", ".", "!", "'s place"))
    place = rng.randrange(len(words) + 1)
    feedback = " ".join([*words[:place], written, *words[place:]])
    assert leak_rule(feedback, gold, None) == "gold_text"


@given(CONSONANT_WORDS, st.sampled_from(COLOURS), st.sampled_from(CONTAINERS))
def test_feedback_without_the_words_of_the_gold_passes(words, colour, container):
    assert leak_rule(" ".join(words), f"{colour}_{container}", None) == ""


@pytest.mark.parametrize(
    ("feedback", "gold", "rule"),
    [
        ("It is the crate that is green.", "green_crate", "gold_text"),  # both content words
        ("Mind the colour green.", "green_crate", ""),  # one of two
        ("It waits in the greencrate", "green_crate", "gold_text"),  # joined
        ("Look into the box again", "in the box", "gold_text"),  # leading preposition ignored
        ("She boxed it", "box", ""),  # not a whole word
        ("four of five: ships sail north past Dover", "ships sailed north past Dover", "gold_text"),  # 4/5
        ("ships past Dover: three of five", "ships sailed north past Dover", ""),  # 3/5
        ("What do you think of that?", "I think so", ""),  # one content word inside a phrase
        ("I THINK, so...", "I think so", "gold_text"),
        ("the slope is -4 here", "-4", "gold_text"),
        ("the range 3-4 is too small", "-4", ""),
        ("x = 0.5", "0.5", "gold_text"),
        ("take 0.55", "0.5", ""),
        ("he said 我很喜欢吃苹果 yesterday", "喜欢吃苹果", "gold_text"),
        ("苹果很喜欢", "喜欢吃苹果", ""),
        ("anything", "", ""),
        ("anything", "...", ""),
    ],
)
def test_gold_text_rule_by_hand(feedback, gold, rule):
    assert leak_rule(feedback, gold, None) == rule


def test_the_text_rule_is_reported_before_the_letter_rule():
    assert leak_rule("The answer is B. green_crate", "green_crate", "B") == "gold_text"


@pytest.mark.parametrize("letter", ["BB", "1", "ä"])
def test_a_gold_letter_that_is_no_letter_is_an_error(letter):
    with pytest.raises(ValueError, match="one letter A-Z"):
        leak_rule("words", "gold", letter)


@settings(max_examples=50)
@given(st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=8, max_size=30), st.data())
def test_any_window_of_the_reference_is_found(reference, data):
    start = data.draw(st.integers(0, len(reference) - 8))
    window = " ".join(reference[start : start + 8]).upper()
    assert reference_ngram(f"Try this: {window}; that is all.", " ".join(reference)) == "reference_ngram"


@given(st.lists(st.text("bcdfg", min_size=2, max_size=6), min_size=0, max_size=30))
def test_seven_words_of_the_reference_pass(words):
    reference = "one two three four five six seven eight nine"
    assert reference_ngram(" ".join(["two three four five six seven eight", *words]), reference) == ""


def test_short_references_count_as_a_whole_from_half_the_size_on():
    assert reference_ngram("say: I am on my way!", "I am on my way") == "reference_ngram"
    assert reference_ngram("say: I am on the way!", "I am on my way") == ""
    assert reference_ngram("thanks a lot", "thanks a lot") == ""
    with pytest.raises(ValueError, match="at least 2"):
        reference_ngram("a", "a", n=1)


@pytest.mark.parametrize(
    "reply",
    [
        "Following the hint, Anna left before the move.",
        "As hinted, she was away.",
        "Based on the feedback, I change my mind.",
        "The reminder says that exits matter.",
        "According to the provided guidance I look at exits.",
        "Hint: look at exits. <answer>B</answer>",
        "The reference response chooses otherwise.",
        "I was reminded that Anna left.",
        "Given this coaching, I count the exits.",
        "A reminder was given to me.",
    ],
)
def test_replies_that_speak_of_their_guidance_are_found(reply):
    assert mentions_guidance(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "Anna left before the crate was moved. <answer>B</answer>",
        "A hint of mint would help this soup.",
        "The story hints that she lied.",
        "I would love your feedback on my essay.",
        "Just a quick reminder that we meet at five.",
        "I coach a team; my coaching job starts at six.",
        "For reference, the answer to your letter came on Monday.",
        "That reminds me of home.",
        "Based on your advice I bought the blue one.",
    ],
)
def test_ordinary_replies_pass(reply):
    assert not mentions_guidance(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "Following the hint, I shall be colder to him.",
        "(following the private note, she sits)",
        "As coached, I raise my price.",
        "The feedback says that I should ask twice. Will you?",
        "Hint: ask about the price first.",
        "Private note: be kind.\nGood morning.",
        "I was given feedback, so I will be brief.",
        "My coaching notes want me to leave now.",
        "This matches the reference dialogue.",
    ],
)
def test_characters_who_speak_of_words_from_outside_the_scene_are_found(reply):
    assert mentions_guidance(reply, in_character=True)


@pytest.mark.parametrize(
    "reply",
    [
        "He took the hint, and soon began to speak of the house.",
        "Your hint was plain enough, sir.",
        "I am reminded of your mother.",
        "Can you set the reminder for nine?",
        "any hints?",
        "Following the advice of my aunt, I refuse.",
        "According to the hint of smoke on the horizon, we are close.",
        "Given your reminder, I have brought the letter.",
    ],
)
def test_hints_reminders_and_advice_of_other_people_are_fiction(reply):
    assert not mentions_guidance(reply, in_character=True)


def test_no_paragraph_of_two_novels_speaks_of_guidance_in_character(soul_data_dir):
    """The common filter would discard eleven of them: "he took the hint" is enough for it."""
    found = {False: 0, True: 0}
    for name in ("pride_and_prejudice.txt", "moby-dick.txt"):
        for paragraph in read_text(find_file(soul_data_dir / "novels", (name,), "a novel")).split("\n\n"):
            for in_character in found:
                found[in_character] += mentions_guidance(paragraph, in_character)
    assert found[True] == 0 < found[False]


@pytest.mark.parametrize("name", ["coser", "sotopia", "mirrorbench", "userllm", "hitom", "twinvoice"])
def test_tasks_that_play_somebody_use_the_filter_for_characters(name):
    task, said = get_task(name), Conversation((), "He took the hint, and left.")
    example = Example(name, "x", {}, "")
    assert task.self_reference(example, said) == (name in ("hitom", "twinvoice"))
    assert task.self_reference(example, Conversation((), "Following the hint, I leave."))
