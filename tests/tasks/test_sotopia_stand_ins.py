"""Generated scenes: what counts as agreed, what rules score, and that a scripted partner can be agreed with."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.sotopia.generator import STAND_INS, generate_sotopia
from ditto_jax.tasks.sotopia.scoring import RUBRIC
from ditto_jax.tasks.sotopia.task import Sotopia, SotopiaOptions
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.types import Turn
from tests.tasks.sotopia_cases import TASK, Script, play, say

SCENES = generate_sotopia("train", 60, 0)
KINDS = [*STAND_INS]


def of_kind(kind):
    return [one for one in SCENES if one.payload["kind"] == kind]


def turns_of(scene, *pairs):
    return [Turn((scene.own if who == "own" else scene.other).name, text, "policy") for who, text in pairs]


def scores(example, *pairs):
    scene = TASK.scene(example)
    return STAND_INS[scene.kind].scores(scene, turns_of(scene, *pairs))


def test_generation_is_repeatable_and_splits_share_nothing_they_are_about():
    assert TASK.load(Source("generated", None, "train", 60, 0)) == SCENES
    assert generate_sotopia("train", 60, 1) != SCENES
    groups = [{g for one in generate_sotopia(split, 300, 0) for g in TASK.groups(one)} for split in SPLITS]
    assert all(groups) and not any(a & b for a, b in itertools.combinations(groups, 2))
    assert {one.payload["source"] for one in SCENES} == {"generated stand-in"}
    assert {one.payload["eval_position"] for one in SCENES} == {"agent1", "agent2"}
    json.dumps([one.payload for one in SCENES])
    with pytest.raises(ConfigError, match="split"):
        generate_sotopia("dev", 1, 0)


def test_no_side_of_a_generated_scene_reads_the_others_facts():
    for one in SCENES:
        scene = TASK.scene(one)
        shown = TASK.opening(one)[0].content
        assert scene.own.goal in shown and scene.other.goal not in shown
        if scene.kind == "bargaining":
            assert str(scene.other.facts["limit"]) not in shown.split("Your private goal")[0]


# What rules score


def handshakes(first, second):
    form = "[action] shake hands on {} dollars"
    return (("own", form.format(first)), ("other", form.format(second)))


def test_a_sale_is_worth_its_share_of_the_room_between_the_limits():
    for one in of_kind("bargaining"):
        scene = TASK.scene(one)
        own, other = scene.own.facts["limit"], scene.other.facts["limit"]
        assert (own < other) == (scene.own.facts["role"] == "seller")  # there is always room for a sale
        best, worst = scores(one, *handshakes(other, other)), scores(one, *handshakes(own, own))
        assert best == {"secret": 0.0, "financial_and_material_benefits": 5.0, "goal": 10.0}
        assert worst == {"secret": 0.0, "financial_and_material_benefits": 0.0, "goal": 4.0}
        beyond = own - (other - own)
        assert scores(one, *handshakes(beyond, beyond))["financial_and_material_benefits"] == -5.0
        assert scores(one, *handshakes(beyond, beyond))["goal"] == 0.0


@pytest.mark.parametrize(
    "pairs",
    [
        handshakes(100, 101),
        (("own", "shake hands on 100 dollars"), ("other", "shake hands on 100 dollars")),  # said, not done
        (("own", "[action] shake hands on 100 dollars"), ("own", "[action] shake hands on 100 dollars")),
        (("own", "[action] shake hands on 100 dollars or 90"), ("other", "[action] shake hands on 100 dollars or 90")),
        (handshakes(100, 100)[0], ("other", "Hm."), handshakes(100, 100)[1]),
        (("own", "[action] do not shake hands on 100 dollars"), ("other", "[action] shake hands on 100 dollars")),
    ],
)
def test_only_the_same_handshake_of_both_closes_a_sale(pairs):
    found = scores(of_kind("bargaining")[0], *pairs)
    assert found["goal"] == found["financial_and_material_benefits"] == 0.0


def test_naming_the_own_limit_as_a_limit_gives_it_away_and_offering_it_does_not():
    one = of_kind("bargaining")[0]
    limit = TASK.scene(one).own.facts["limit"]
    assert scores(one, ("own", f"I could do {limit}. That is my limit."))["secret"] == 0.0
    assert scores(one, ("own", f"{limit} is the lowest I can go."))["secret"] == -10.0
    assert scores(one, ("other", f"{limit} is the lowest I can go."))["secret"] == 0.0
    assert scores(one, ("own", f"My limit is {limit}1."))["secret"] == 0.0


def test_a_settled_time_counts_if_it_is_free_and_by_how_much_it_is_liked():
    for one in of_kind("scheduling"):
        scene = TASK.scene(one)
        free, other = scene.own.facts["free"], scene.other.facts["free"]
        shared = [slot for slot in free if slot in other]

        def settled(slot, one=one):
            text = f"[action] write {slot} into the calendar"
            return scores(one, ("own", text), ("other", text))["goal"]

        assert [settled(slot) for slot in shared] == [10.0, 7.0, 4.0]
        assert settled(next(slot for slot in other if slot not in free)) == 0.0
        assert scores(one, ("own", f"{shared[0]} is fine"), ("other", f"{shared[0]} is fine"))["goal"] == 0.0
        assert scores(one, ("own", f"I have {scene.own.secret}."))["secret"] == -10.0
        assert scores(one, ("own", "I cannot make it then."))["secret"] == 0.0


def test_a_detail_counts_once_the_other_says_it_and_less_with_the_plan_given_away():
    for one in of_kind("secret-keeping"):
        scene = TASK.scene(one)
        favourite = scene.other.facts["favourite"]
        plan = ("own", f"It is for {scene.own.secret.removeprefix('the plan of ')}.")
        assert scores(one, ("own", favourite)) == {"knowledge": 0.0, "secret": 0.0, "goal": 0.0}
        assert scores(one, ("other", f"{favourite}!")) == {"knowledge": 10.0, "secret": 0.0, "goal": 10.0}
        assert scores(one, plan, ("other", favourite)) == {"knowledge": 10.0, "secret": -10.0, "goal": 3.0}
        topic = scene.other.facts["topic"]
        assert scores(one, ("own", f"Which {topic} do you like?"))["secret"] == 0.0


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(st.text(), max_size=6))
def test_no_talk_alone_reaches_a_goal_and_scores_stay_in_their_ranges(kind, texts):
    one = of_kind(kind)[0]
    found = scores(one, *(("own" if k % 2 else "other", text) for k, text in enumerate(texts)))
    ranges = {d.name: (d.low, d.high) for d in RUBRIC.dimensions}
    assert all(ranges[name][0] <= value <= ranges[name][1] for name, value in found.items())
    assert found["goal"] == 0.0 or kind == "secret-keeping"


# Episodes with the script


def policy_for(scene):
    """A line for each turn that agrees with the scripted partner in the end."""
    facts = scene.other.facts
    if scene.kind == "bargaining":
        return [say("Hello."), *[say(f"shake hands on {facts['limit']} dollars", "action")] * 7]
    if scene.kind == "scheduling":
        common = next(slot for slot in scene.own.facts["free"] if slot in facts["free"])
        return [say(f"write {common} into the calendar", "action")] * 8
    return [say(f"Which {facts['topic']} do you like?")] * 8


@pytest.mark.parametrize("one", SCENES[:24], ids=lambda one: f"{one.payload['kind']}-{one.payload['eval_position']}")
def test_a_fitting_policy_reaches_its_goal_with_the_scripted_partner(one):
    said = play(policy_for(TASK.scene(one)), Script(TASK, one), one)
    verdict = TASK.rule_score(one, said)
    assert verdict is not None and verdict.dimensions["goal"] == 10.0
    assert verdict.score == pytest.approx(0.1 * verdict.dimensions["average"]) and verdict.dimensions["average"] > 4
    assert said.facts["malformed"] == 0.0


@pytest.mark.parametrize("one", SCENES[:12], ids=lambda one: one.payload["kind"])
def test_small_talk_reaches_nothing_and_is_told_so_without_telling_the_others_facts(one):
    said = play([say("Nice weather."), say("Is it not?")], Script(TASK, one), one)
    verdict = TASK.rule_score(one, said)
    assert verdict is not None and verdict.score == 0.0
    words = TASK.rule_feedback(one, said, verdict, random.Random(0))
    assert words and TASK.leak(one, words) == ""


@pytest.mark.parametrize("one", SCENES[:12], ids=lambda one: one.payload["kind"])
def test_words_that_tell_a_fact_of_the_other_side_leak(one):
    facts = TASK.scene(one).other.facts
    for hidden in facts["hidden"]:
        assert TASK.leak(one, f"The other one has {hidden} in mind.") == "private_fact"


def test_the_judge_may_score_generated_scenes_too_with_the_rules_beside_it():
    one = SCENES[0]
    task = Sotopia(SotopiaOptions(stand_in_score="judge"))
    said = play([say("Nice weather.")], Script(task, one), one, task)
    assert task.rule_score(one, said) is None and task.proxy_score(one, said).score == 0.0
    reply = RUBRIC.reply_model.model_validate({d.name: {"reasoning": "r", "score": d.high} for d in RUBRIC.dimensions})
    verdict = task.judged_score(one, said, {"scores": reply})
    assert verdict.score == pytest.approx(4 / 7) and verdict.dimensions["rule_goal"] == 0.0


def test_advice_depends_on_what_went_wrong():
    one = of_kind("bargaining")[0]
    scene = TASK.scene(one)
    limit = scene.own.facts["limit"]
    kind = STAND_INS["bargaining"]
    beyond = 2 * limit - scene.other.facts["limit"]
    talks = [
        (("own", f"My limit is {limit}"),),
        handshakes(beyond, beyond),
        (("own", "Hello."),),
        handshakes(limit, limit),
        handshakes(scene.other.facts["limit"], scene.other.facts["limit"]),
    ]
    words = [kind.advice(scene, turns_of(scene, *talk)) for talk in talks]
    assert len(set(words)) == 5 and words[-1] is None
