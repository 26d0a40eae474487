"""Scenes: who hears what, who may be next, and when a scene ends."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError
from ditto_jax.tasks.base import AuxiliaryFailure
from ditto_jax.tasks.coser.lines import END, next_speaker, own_words, without_thoughts
from ditto_jax.tasks.coser.task import CoSER, CoSEROptions
from tests.tasks.coser_cases import Port, example_of, named, play

SCENE = example_of()
TASK = CoSER(CoSEROptions())


def test_others_hear_words_and_actions_and_never_thoughts():
    ada, bea = Port("<think>hm</think>Ada: [I fear this.] (frowns) Late again."), Port("Am I?")
    said = play({"Ada": ada, "Bea": bea}, {"next_speaker": named("Bea")}, SCENE, max_rounds=2)
    assert [(turn.speaker, turn.text, turn.author) for turn in said.turns] == [
        ("Ada", "[I fear this.] (frowns) Late again.", "policy"),
        ("Bea", "Am I?", "policy"),
    ]
    assert bea.seen[0][-1].content == "The scene begins.\nAda: (frowns) Late again."
    assert said.facts["ended"] == "rounds"


def test_a_character_hears_everything_since_its_last_turn_and_its_chat_only_grows():
    ada, bea, director = Port("One.", "Two."), Port("Hm."), named("Environment", "Bea", "Ada", "Bea")
    llm = {"narrator": Port("Rain falls."), "next_speaker": director}
    said = play({"Ada": ada, "Bea": bea}, llm, SCENE, max_rounds=4)
    assert [turn.speaker for turn in said.turns] == ["Ada", "Environment", "Bea", "Ada"]
    assert ada.seen[1][-1].content == "Environment: Rain falls.\nBea: Hm."
    assert ada.seen[1][-2].content == "One."  # its own reply, as it gave it
    assert "Whose turn is next? One of: Bea, Cob, Environment" in director.seen[0][-1].content


def test_characters_open_with_their_system_message_alone_and_differ():
    openings = TASK.openings(SCENE)
    assert list(openings) == ["Ada", "Bea", "Cob"]
    assert all([message.role for message in opening] == ["system"] for opening in openings.values())
    ada, bea = openings["Ada"][0].content, openings["Bea"][0].content
    assert "The elder, who kept the shop.\n\nCareful and proud." in ada and "Hopes that Bea stays." in ada
    assert "Hopes that Bea stays." not in bea and "Wants out." in bea
    assert "square brackets" in ada
    assert "square brackets" not in TASK.openings(example_of(wo_thought=True))["Ada"][0].content
    assert "inner thoughts" in TASK.openings(example_of(wo_thought=True))["Ada"][0].content


def test_feedback_stands_in_the_private_block_of_every_character_and_changes_nothing_else():
    plain, hinted = TASK.openings(SCENE), TASK.openings(SCENE, "Ada is too mild.")
    for name in plain:
        assert hinted[name][0].content.startswith(plain[name][0].content)
        assert "Ada is too mild." in hinted[name][0].content and f"You are {name} alone." in hinted[name][0].content
    assert all("buyer for the shop" not in opening[0].content for opening in hinted.values())
    shown = CoSER(CoSEROptions(gold_in_prompt=True)).openings(SCENE, "h")["Ada"][0].content
    assert "buyer for the shop" in shown and "She will ask" not in shown


def test_drafts_and_refined_scenes_have_the_same_number_of_rounds():
    for feedback in (None, "Be brisk."):
        ports = {name: Port("Yes.") for name in ("Ada", "Bea", "Cob")}
        llm = {"next_speaker": named("Bea", "Ada"), "narrator": Port("Rain.")}
        said = play(ports, llm, SCENE, feedback, max_rounds=7)
        assert len(said.turns) == 7


def test_the_director_cannot_end_a_scene_early_and_can_end_it_later():
    ports = {name: Port("Yes.") for name in ("Ada", "Bea", "Cob")}
    llm = {"next_speaker": named(END), "narrator": Port("Rain.")}
    said = play(ports, llm, SCENE)
    assert len(said.turns) == 6 and said.facts["ended"] == "director"
    assert said.facts["drawn_speakers"] == 5.0
    assert all(a.speaker != b.speaker for a, b in zip(said.turns, said.turns[1:], strict=False))


@pytest.mark.parametrize("reply", ["random", "Ada", "Nobody", "Ada or Bea", "", "Next speaker:", "Next speaker: Ada"])
def test_an_undecided_turn_falls_to_a_main_character_or_the_environment_the_same_each_time(reply):
    """ "Nobody" is a main character of the row without a context of its own: never drawn."""
    speakers = []
    for _ in range(2):
        ports = {name: Port("Yes.") for name in ("Ada", "Bea")}
        said = play(ports, {"next_speaker": Port(reply), "narrator": Port("Rain.")}, SCENE, max_rounds=2)
        speakers.append(said.turns[1].speaker)
    assert speakers[0] == speakers[1] and speakers[0] in ("Bea", "Environment")


def test_scenes_of_one_character_go_on_with_the_environment():
    scene = example_of(speaking_characters_w_env=["Ada"], major_characters=[])
    llm = {"next_speaker": Port("?"), "narrator": Port("Rain.")}
    said = play({"Ada": Port("Yes.")}, llm, scene, max_rounds=3)
    assert [turn.speaker for turn in said.turns] == ["Ada", "Environment", "Ada"]


@pytest.mark.parametrize("silence", ["", "<think>never closed", "<think>a</think>", "Bea: I speak for you."])
def test_silence_ends_the_scene(silence):
    said = play({"Ada": Port(silence)}, {}, SCENE)
    assert said.turns == () and said.facts["ended"] == "silence"
    verdict = TASK.rule_score(SCENE, said)
    assert verdict is not None and verdict.score == 0.0
    assert TASK.wants_feedback(SCENE, said, verdict)


def test_a_silent_narrator_ends_the_scene_and_leaves_nobody_to_tell_anything():
    scene = example_of(speaking_characters_w_env=["environment", "Ada"])
    said = play({}, {"narrator": Port("")}, scene)
    verdict = TASK.rule_score(scene, said)
    assert verdict is not None and verdict.score == 0.0
    assert not TASK.wants_feedback(scene, said, verdict)


def test_thoughts_alone_are_heard_as_silence_and_a_scene_of_them_is_worth_nothing():
    ada, bea = Port("[I shall say nothing.]"), Port("[Nor shall I.")
    said = play({"Ada": ada, "Bea": bea}, {"next_speaker": named("Bea", "Ada")}, SCENE, max_rounds=3)
    assert "Ada: (says nothing)" in bea.seen[0][-1].content
    verdict = TASK.rule_score(SCENE, said)
    assert verdict is not None and verdict.score == 0.0


@pytest.mark.parametrize("role", ["narrator", "next_speaker"])
def test_a_failed_partner_ends_the_episode_and_is_never_spoken(role):
    down = Port(AuxiliaryFailure("down"))
    llm = {"narrator": Port("Rain."), "next_speaker": named("Environment"), role: down}
    with pytest.raises(AuxiliaryFailure):
        play({"Ada": Port("Yes.")}, llm, SCENE)


def test_given_lines_open_the_scene_and_are_heard_but_not_played():
    bea = Port("No.")
    said = play({"Bea": bea}, {"next_speaker": named("Bea")}, example_of(continue_from=2), max_rounds=1)
    assert [turn.author for turn in said.turns] == ["given", "given", "policy"]
    assert "Ada: (polishing a lamp)" in bea.seen[0][-1].content and "She will ask" not in bea.seen[0][-1].content
    ada = Port("No.")
    play({"Ada": ada}, {"next_speaker": named("Ada")}, example_of(continue_from=3), max_rounds=1)
    assert "[She will ask again.]" in ada.seen[0][-1].content  # its own given thought


def test_nobody_speaks_for_others():
    ada = Port("Good evening.\n**Bea:** I give up.\nAda: I have won.")
    said = play({"Ada": ada}, {"next_speaker": named("Bea")}, SCENE, max_rounds=1)
    assert said.turns[0].text == "Good evening." and said.facts["spoke_for_others"] == 1.0


def test_the_script_follows_the_book_and_then_ends():
    director = Port("Next speaker: Bea")
    play({"Ada": Port("One."), "Bea": Port("Two.")}, {"next_speaker": director}, example_of(), max_rounds=2)
    scripted = TASK.scripted_reply(SCENE, "next_speaker", director.seen[0], random.Random(0))
    assert next_speaker(scripted or "", ("Ada", "Bea")) == "Ada"  # the book's second line, after the environment's
    assert TASK.scripted_reply(SCENE, "narrator", (), random.Random(0)) == "Rain runs down the shop window."
    assert TASK.scripted_reply(SCENE, "critic", (), random.Random(0)) is None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Reasoning: x\nNext speaker: Bea", "Bea"),
        ("**Next speaker:** *Bea*.", "Bea"),
        ("next_speaker = bea", "Bea"),
        ("Next speaker: Ada\nNext speaker:\nBea", "Bea"),
        ("Bea: because she was asked", "Bea"),
        ("  «Bea»", None),
        ("Next speaker: <END CHAT>", END),
        ("end chat", END),
        ("Next speaker: Ada or Bea", None),
        ("Next speaker: the elder sister", None),
        ("<think>Next speaker: Ada", None),
    ],
)
def test_the_director_is_read_strictly(reply, expected):
    assert next_speaker(reply, ("Ada", "Bea", "Environment")) == expected


def test_thoughts_go_nested_or_unclosed():
    assert without_thoughts("[a [b] c] Hello [d] there. (waves)\n[e") == "Hello there. (waves)"


@given(st.text(alphabet="Ada Bea:<>[]*think/END\n") | st.text())
def test_any_reply_is_read_without_a_crash(reply):
    assert next_speaker(reply, ("Ada", "Bea")) in ("Ada", "Bea", END, None)
    words, _ = own_words(reply, "Ada", ("Ada", "Bea"))
    assert "Bea:" not in words.split("\n")[0][:4] and "[" not in without_thoughts(words)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_rounds": 0}, "max_rounds"),
        ({"scoring": "stars"}, "scoring"),
        ({"think_penalty": 0.5}, "think_penalty"),
        ({"feedback_placement": "end_of_user"}, "feedback_placement"),
    ],
)
def test_options_that_cannot_work_say_what_does(options, field):
    with pytest.raises(ConfigError, match=field):
        CoSEROptions(**options)
