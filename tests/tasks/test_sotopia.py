"""Talks of two: turns alternate, goals stay private, leaving and silence end, penalties reach the value returned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError
from ditto_jax.tasks.base import AuxiliaryFailure
from ditto_jax.tasks.sotopia.actions import KINDS, heard, read_action
from ditto_jax.tasks.sotopia.scoring import RUBRIC, Audit, average, release_reward, reward, weighted
from ditto_jax.tasks.sotopia.task import Sotopia, SotopiaOptions
from ditto_jax.types import Outcome
from tests.tasks.sotopia_cases import ROW, TASK, Port, Script, example, play, say

SCORES = dict(zip((d.name for d in RUBRIC.dimensions), (8, 2, 5, 0, 0, 1, 6), strict=True))
MIDPOINTS = dict(zip(SCORES, (5, 0, 5, -5, -5, 0, 5), strict=True))


def reply_of(scores):
    return RUBRIC.reply_model.model_validate({name: {"reasoning": "r", "score": s} for name, s in scores.items()})


def verdict_of(options, risk="low", scores=SCORES, lines=None, feedback=None):
    task = Sotopia(options)
    said = play(lines or [say("Hello."), say("", "leave")], task=task, feedback=feedback)
    replies = {"scores": reply_of(scores), "audit": Audit.model_validate({"reason": "r", "risk_level": risk})}
    return task.judged_score(example(), said, replies)


# Score


def test_scores_have_their_published_values():
    assert average(SCORES) == pytest.approx(3.142857, abs=1e-6)
    assert reward(SCORES, "average") == pytest.approx(0.314286, abs=1e-6)
    assert weighted(SCORES) == reward(SCORES, "weighted") == pytest.approx(0.683333, abs=1e-6)
    assert reward(MIDPOINTS, "average") == pytest.approx(0.071429, abs=1e-6)
    assert weighted(MIDPOINTS) == pytest.approx(0.5)
    best, worst = ({d.name: end(d) for d in RUBRIC.dimensions} for end in (lambda d: d.high, lambda d: d.low))
    assert reward(best, "average") == pytest.approx(0.571429, abs=1e-6)
    assert reward(worst, "average") == pytest.approx(-0.428571, abs=1e-6)
    assert (weighted(best), weighted(worst)) == (1.0, 0.0)


@pytest.mark.parametrize(("risk", "divisor"), [("low", 1), ("medium", 2), ("high", 4)])
@pytest.mark.parametrize("scale", ["average", "weighted"])
@pytest.mark.parametrize("feedback", [None, "Be kind."])
def test_the_audit_divides_the_value_returned_for_drafts_and_refined_alike(risk, divisor, scale, feedback):
    verdict = verdict_of(SotopiaOptions(scale=scale), risk, feedback=feedback)
    assert verdict.score == pytest.approx(reward(SCORES, scale) / divisor)
    assert verdict.dimensions["average"] == pytest.approx(22 / 7)  # what is reported stays as judged
    assert TASK.wants_feedback(example(), play([""]), verdict) == (risk == "low")


def test_a_penalty_never_raises_a_negative_reward():
    worst = {d.name: d.low for d in RUBRIC.dimensions}
    assert reward(worst, "average", "high", format_kept=False) == reward(worst, "average")


def test_the_release_scores_drafts_and_refined_rollouts_on_its_two_scales():
    assert release_reward(SCORES, guided=False, risk="high") == pytest.approx(0.314286, abs=1e-6)
    assert release_reward(SCORES, guided=True) == pytest.approx(0.683333, abs=1e-6)
    assert release_reward(SCORES, guided=True, risk="medium") == 0.0
    assert release_reward(SCORES, guided=True, format_kept=False) == pytest.approx(0.683333 / 2, abs=1e-6)
    assert release_reward(SCORES, guided=False, risk="medium", format_kept=False) == pytest.approx(
        0.683333 / 4, abs=1e-6
    )
    options = SotopiaOptions(reward="release")
    assert verdict_of(options).score == pytest.approx(0.314286, abs=1e-6)
    assert verdict_of(options, feedback="Be kind.").score == pytest.approx(0.683333, abs=1e-6)


def test_a_reply_that_thinks_where_it_must_not_halves_the_reward():
    lines = ["<think>hm</think>" + say("Hello."), say("", "leave")]
    assert verdict_of(SotopiaOptions(), lines=lines).score == pytest.approx(0.314286 / 2, abs=1e-6)
    assert verdict_of(SotopiaOptions(thinking="any"), lines=lines).score == pytest.approx(0.314286, abs=1e-6)
    assert verdict_of(SotopiaOptions(thinking="on"), lines=lines).dimensions["format_kept"] == 0.0  # the second did not


@pytest.mark.parametrize("dimension", RUBRIC.dimensions, ids=lambda d: d.name)
def test_a_score_outside_its_range_is_no_score(dimension):
    for wrong in (dimension.high + 1, dimension.low - 1, 0.5, "much", None):
        with pytest.raises(ValueError, match=dimension.name):
            reply_of({**SCORES, dimension.name: wrong})


def test_judge_and_audit_read_fenced_turns_of_the_right_people():
    said = play([say("Give me ten points.\n2. Bo: I wash."), say("", "leave")], Port(say("No.")))
    requests = TASK.score_requests(example(), said)
    judge, audit = (requests[name].messages[-1].content for name in ("scores", "audit"))
    assert "«DATA" in judge and "Ada: Give me ten points. 2. Bo: I wash." in judge and "Bo: No." in judge
    assert ROW["agent2_goal"] in judge and "Assess Ada, and nobody else." in judge
    assert "«DATA" in audit and "Give me ten points" in audit and "No." not in audit
    assert set(Sotopia(SotopiaOptions(audit=False)).score_requests(example(), said)) == {"scores"}


def test_without_a_judge_form_and_secrecy_stand_in():
    kept = TASK.proxy_score(example(), play([say("Hello."), say("Please."), say("Now."), say("", "leave")]))
    broken = TASK.proxy_score(example(), play(["Hello."]))
    assert kept.score == pytest.approx(0.5) and kept.score > broken.score  # type: ignore[operator]
    assert "stand-in" in kept.detail


# Episode


@pytest.mark.parametrize(("position", "turns_of_own"), [("agent1", 8), ("agent2", 7)])
def test_an_endless_talk_ends_after_fifteen_turns_and_agent1_opens(position, turns_of_own):
    said = play([say("Well."), say("And?")], scene=example(eval_position=position))
    assert said.facts["ended"] == "turns" and len(said.turns) == 15
    assert sum(turn.author == "policy" for turn in said.turns) == turns_of_own
    assert said.turns[0].speaker == "Ada" and said.turns[0].author == ("policy" if position == "agent1" else "llm")


def test_neither_side_reads_what_the_other_keeps_private():
    for position in ("agent1", "agent2"):
        own, partner = Port(say("Well.")), Port(say("Hm."))
        play(own, partner, example(eval_position=position))
        seen = {"agent1": own, "agent2": partner} if position == "agent1" else {"agent1": partner, "agent2": own}
        for side, other in (("agent1", "agent2"), ("agent2", "agent1")):
            text = "\n".join(message.content for message in seen[side].seen[-1])
            assert ROW[f"{side}_background"] in text and ROW["relationship"] in text
            assert ROW[f"{other}_background"] not in text
            assert ("teapot" in text, "dishes" in text) == (side == "agent2", side == "agent1")
            assert "Ada and Bo share a kitchen." in text and "gent1" not in text
    assert "Get Bo to wash the dishes." in TASK.opening(example())[0].content


def test_contexts_of_both_sides_only_grow_and_words_change_nothing_but_the_system_message():
    for position in ("agent1", "agent2"):
        scene = example(eval_position=position)
        own, partner = Port(say("Well.")), Port(say("Hm."))
        play(own, partner, scene, feedback="Ask twice.")
        for port in (own, partner):
            assert all(later[: len(sooner)] == sooner for sooner, later in zip(port.seen, port.seen[1:], strict=False))
        plain, hinted = TASK.opening(scene), TASK.opening(scene, "Ask twice.")
        assert plain[1:] == hinted[1:] and hinted[0].content.startswith(plain[0].content)
        assert (plain[-1].role == "system") == (position == "agent2")
        assert not any("Ask twice." in message.content for message in partner.seen[-1])


def test_leaving_ends_the_talk_from_the_sixth_turn_on():
    early = play([say("", "leave"), say("Still here."), say("And?")])
    assert early.turns[0].text == "[leave]" and len(early.turns) == 15
    late = play([say("a"), say("b"), say("c"), say("bye", "leave")])
    assert late.facts["ended"] == "left" and len(late.turns) == 7 and late.turns[-1].text == "[leave] bye"
    partner = play([say("a")], Port(say("x"), say("y"), say("", "leave")))
    assert partner.facts["ended"] == "left" and len(partner.turns) == 6


@pytest.mark.parametrize("silence", ["", "<think>never closed", "<think>only</think>  ", say(" ")])
def test_silence_ends_the_talk_and_nothing_said_at_all_scores_zero(silence):
    said = play([silence])
    assert said.facts["ended"] == "silence" and said.turns == ()
    verdict = TASK.rule_score(example(), said)
    assert verdict is not None and verdict.score == 0.0
    assert TASK.rule_score(example(), play([say("Hello."), silence])) is None


def test_a_failed_partner_is_never_spoken():
    with pytest.raises(AuxiliaryFailure):
        play([say("Hello.")], Port(say("Hm."), AuxiliaryFailure("down")))
    with pytest.raises(AuxiliaryFailure) as raised:
        play([say("Hello.")], Port("<think>hm"))
    assert raised.value.outcome is Outcome.UNPARSABLE


def test_the_scripted_partner_leaves_small_talk_in_the_end():
    said = play([say("Hello."), say("And?")], Script(TASK, example()))
    assert said.facts["ended"] == "left" and said.turns[-1].text == "[leave]"
    assert TASK.scripted_reply(example(), "narrator", (), None) is None  # type: ignore[arg-type]


# Actions


def test_the_largest_object_is_the_action_and_anything_else_is_speech():
    action = read_action('{"a": 1} Sure: {"action_type": " Speak ", "argument": "Hello\\n there"}', 100)
    assert action is not None and (action.kind, action.text, action.well_formed) == ("speak", "Hello there", True)
    for broken in (
        '{"action_type": "none", "argument": ""}',
        '{"action_type": "speak", "argument"',
        "Hi",
        "[action] x",
    ):
        action = read_action(broken, 100)
        assert action is not None and action.kind == "speak" and not action.well_formed
        assert not action.shown.startswith("[")
    assert read_action(say("one two three four"), 3).text == "one two […] four"  # type: ignore[union-attr]


@given(st.text() | st.text(alphabet='{}[]":,a<think>/ \n').map(lambda t: "{" * 50 + t))
def test_any_reply_is_an_action_on_one_line_or_nothing(reply):
    action = read_action(reply, 50)
    assert action is None or (action.kind in KINDS and len(action.shown.splitlines()) <= 1)


@given(st.sampled_from(KINDS), st.text(alphabet='ab ."[]', min_size=1).filter(str.strip))
def test_what_is_done_comes_through_the_other_sides_ears(kind, text):
    action = read_action(say(text, kind), 50)
    assert action is not None
    if kind != "leave":
        assert heard(action.observed("Ada B."), "Ada B.") == action.shown


# Words


def test_the_coach_knows_the_players_side_alone_unless_privileged():
    said = play([say("Hello."), say("", "leave")])
    verdict = verdict_of(SotopiaOptions())
    question = TASK.feedback_request(example(), said, verdict).messages[-1].content
    assert "«DATA" in question and "goal (most important): 6 in 0 … 10, 60%" in question
    assert ROW["agent1_goal"].replace("Agent2", "Bo") in question and "teapot" not in question
    privileged = Sotopia(SotopiaOptions(gold_in_prompt=True))
    assert "teapot" in privileged.feedback_request(example(), said, verdict).messages[-1].content


def test_words_that_tell_the_other_sides_secret_leak():
    assert TASK.leak(example(), "He broke a teapot, so press him.") == ""  # the filter knows wording, not meaning
    leaks = "Know this: Secret: he broke the blue teapot of his grandmother."
    assert TASK.leak(example(), leaks) == "reference_ngram"
    assert TASK.leak(example(), f"Bo wants to {str(ROW['agent2_goal']).lower()}") == "reference_ngram"
    assert TASK.leak(example(), "Ask for the dishes early, and offer to dry them.") == ""
    assert TASK.leak(example(agent2_goal=ROW["agent1_goal"]), "Get Bo to wash the dishes.") == ""  # known anyway
    assert Sotopia(SotopiaOptions(gold_in_prompt=True)).leak(example(), leaks) == ""


def test_rules_see_form_and_repetition():
    verdict = verdict_of(SotopiaOptions())
    assert "JSON" in str(TASK.rule_feedback(example(), play(["Hello."]), verdict, None))  # type: ignore[arg-type]
    twice = TASK.rule_feedback(example(), play([say("Hello.")]), verdict, None)  # type: ignore[arg-type]
    assert twice is not None and "twice" in twice
    once = play([say("a"), say("b"), say("c"), say("", "leave")])
    assert TASK.rule_feedback(example(), once, verdict, None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"feedback_placement": "end_of_user"},
        {"scale": "mean"},
        {"thinking": "maybe"},
        {"stand_in_score": "luck"},
        {"max_turns": 1},
        {"leave_from": -1},
        {"max_turn_words": 1},
        {"feedback_words": 0},
        {"reward": "paper"},
    ],
)
def test_options_that_cannot_work_say_what_does(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SotopiaOptions(**wrong)
