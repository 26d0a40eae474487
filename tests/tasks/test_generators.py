"""Generated stories: the same for a seed, in the official grammar, disjoint between splits, of the official shape."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.tasks.belief.oracle import HITOM, TOMI, trace_belief
from ditto_jax.tasks.belief.story import Kind, Question, parse_question, parse_story, render_story
from ditto_jax.tasks.belief.words import SPLITS, VOCABULARIES, words_for
from ditto_jax.tasks.hitom.files import read_choices
from ditto_jax.tasks.hitom.generator import HiToMOptions, generate_hitom
from ditto_jax.tasks.paratomi.generator import ParaToMiOptions, generate_paratomi
from ditto_jax.types import Example

TINY = HiToMOptions(
    vocabulary="small",
    prompt_style="compact",
    agents_min=3,
    agents_max=4,
    containers_min=4,
    containers_max=5,
    rooms=1,
    chapters=(1,),
    communication=0.0,
    noise=0.0,
    orders=(0, 1, 2, 3),
    false_belief_bias=0.7,
)
TINY_TOMI = ParaToMiOptions(vocabulary="small", prompt_style="compact", noise=0.1, false_belief_bias=0.7)


def _hitom(split: str = "train", count: int = 300, seed: int = 0, **changes) -> list[Example]:
    return generate_hitom(dataclasses.replace(HiToMOptions(), **changes), split, count, seed)


def _tomi(split: str = "train", count: int = 300, seed: int = 0, **changes) -> list[Example]:
    return generate_paratomi(dataclasses.replace(ParaToMiOptions(), **changes), split, count, seed)


ALL = {
    "hitom": _hitom,
    "hitom-tiny": lambda split="train", count=300, seed=0: generate_hitom(TINY, split, count, seed),
    "paratomi": _tomi,
    "paratomi-tiny": lambda split="train", count=300, seed=0: generate_paratomi(TINY_TOMI, split, count, seed),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_seed_fixes_every_example_whatever_the_count(make):
    assert make(count=60) == make(count=200)[:60]
    assert make(count=60, seed=1) != make(count=60, seed=2)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_ids_are_unique_and_name_split_and_seed(make):
    ids = [example.id for split in SPLITS for seed in (0, 1) for example in make(split=split, count=40, seed=seed)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_training_and_held_out_words_are_disjoint(vocabulary: str):
    train, held_out = words_for(vocabulary, "train"), words_for(vocabulary, "test")
    assert words_for(vocabulary, "validation") == held_out
    for field in dataclasses.fields(train):
        ours, theirs = getattr(train, field.name), getattr(held_out, field.name)
        assert len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)
        assert not set(ours) & set(theirs)
    nouns = [set(words.objects + words.containers + words.rooms) for words in (train, held_out)]
    assert not nouns[0] & nouns[1]


def test_the_small_vocabulary_is_small_and_lower_case():
    train, held_out = words_for("small", "train"), words_for("small", "test")
    assert (len(train.names), len(train.objects), len(train.containers), len(train.rooms)) == (10, 8, 9, 3)
    assert (len(held_out.names), len(held_out.objects), len(held_out.containers)) == (6, 4, 5)
    for words in (train, held_out):
        assert all(re.fullmatch("[a-z]+", word) for word in words.objects + words.containers + words.rooms)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_splits_share_no_story_even_across_seeds(make):
    stories = {
        split: {example.payload["story"] for seed in (0, 1, 2) for example in make(split=split, count=400, seed=seed)}
        for split in SPLITS
    }
    assert not stories["train"] & (stories["validation"] | stories["test"])
    assert not stories["validation"] & stories["test"]
    words = [set(re.findall(r"[\w-]+", " ".join(stories[split]))) for split in ("train", "test")]
    shared = {word for word in words[0] & words[1] if not word.isdigit()}
    named = {
        w for s in ("train", "test") for v in VOCABULARIES for f in dataclasses.astuple(words_for(v, s)) for w in f
    }
    assert not shared & named


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_stories_are_in_the_official_grammar(make):
    for example in make():
        story = example.payload["story"]
        assert render_story(parse_story(story)) == story


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_gold_follows_from_the_text_alone(make):
    for example in make():
        rules = HITOM if example.task == "hitom" else TOMI
        question = parse_question(example.payload["question"])
        assert len(question.chain) == len(set(question.chain)) == example.payload["question_order"]
        assert trace_belief(parse_story(example.payload["story"]), question, rules).answer == example.gold


def test_hitom_options_are_letters_and_gold_is_among_them():
    letters = Counter()
    for example in _hitom(count=900):
        options = read_choices(example.payload["choices"])
        assert options is not None and len(options) == 15
        assert options[example.payload["gold_letter"]] == example.gold
        letters[example.payload["gold_letter"]] += 1
        events = parse_story(example.payload["story"])
        assert {e.place for e in events if e.kind in (Kind.PLACE, Kind.MOVE, Kind.CLAIM, Kind.TELL)} <= set(
            options.values()
        )
    assert len(letters) == 15 and max(letters.values()) < 2.5 * 900 / 15


def test_hitom_has_the_official_shape():
    examples = _hitom(count=3000)
    assert Counter(e.payload["question_order"] for e in examples) == dict.fromkeys(range(5), 600)
    stories = {e.payload["set_id"]: e for e in examples}
    assert len(stories) == 600
    lengths = Counter(e.payload["story_length"] for e in stories.values())
    assert all(150 < lengths[n] < 250 for n in (1, 2, 3))
    kinds: Counter[Kind] = Counter()
    for example in stories.values():
        events = parse_story(example.payload["story"])
        sizes = [len(e.agents) for e in events if e.kind is Kind.ENTER and e.place != "waiting_room"]
        assert sizes == [5, 3, 4][: example.payload["story_length"]]
        said = sum(e.kind in (Kind.CLAIM, Kind.TELL) for e in events)
        assert said == (0 if not example.payload["deception"] else 4 if example.payload["story_length"] == 3 else 2)
        assert parse_question(example.payload["question"]).object == next(
            e.object for e in events if e.kind is Kind.PLACE
        )
        kinds.update(e.kind for e in events)
    assert 0.45 < kinds[Kind.MOVE] / (kinds[Kind.MOVE] + kinds[Kind.STAY]) < 0.55
    assert 0.07 < kinds[Kind.NOISE] / kinds.total() < 0.13
    assert 0.4 < sum(e.payload["deception"] for e in stories.values()) / len(stories) < 0.6


def test_no_chapter_moves_an_object_to_one_container_twice():
    for example in _hitom(count=500):
        targets: set[str] = set()
        here = ""
        for event in parse_story(example.payload["story"]):
            if event.kind is Kind.PLACE:
                targets, here = set(), event.place
            elif event.kind is Kind.MOVE:
                assert event.place not in targets and event.place != here
                targets.add(event.place)
                here = event.place


def test_paratomi_has_the_official_shape():
    examples = _tomi(count=3000)
    types = Counter(e.payload["question_type"] for e in examples)
    assert types["memory"] == types["reality"] == 500
    assert sum(n for t, n in types.items() if t.startswith("first")) == 1000
    assert types["first_order_0_no_tom"] == 500  # the mover always knows
    assert types["first_order_1_tom"] > 100 and types["second_order_0_tom"] > 100
    stories = Counter(e.payload["story_type"] for e in examples)
    assert set(stories) == {"true_belief", "false_belief", "second_order_false_belief"}
    assert min(stories.values()) > 300
    for example in examples:
        assert example.gold in example.payload["cands"]
        assert set(example.payload["cands"]) == {e.place for e in parse_story(example.payload["story"]) if e.place}


@pytest.mark.parametrize("make", [ALL["hitom-tiny"], ALL["paratomi-tiny"]], ids=["hitom", "paratomi"])
def test_the_bias_makes_most_beliefs_false(make):
    rules = {"hitom": HITOM, "paratomi": TOMI}
    false = []
    for example in make(count=1000):
        question = parse_question(example.payload["question"])
        if question.chain:
            events = parse_story(example.payload["story"])
            false.append(trace_belief(events, Question(question.object), rules[example.task]).answer != example.gold)
    assert 0.7 <= sum(false) / len(false) < 0.95


def test_paraphrased_stories_name_every_event_and_keep_their_gold():
    plain, varied = _tomi(count=600), _tomi(count=600, paraphrase=True)
    for one, other in zip(plain, varied, strict=True):
        assert (one.gold, one.payload["question"]) == (other.gold, other.payload["question"])
        assert other.payload["events"] == one.payload["story"] != other.payload["story"]
        for event in parse_story(one.payload["story"]):
            for fact in (*event.agents, event.object, event.place):
                assert fact in other.payload["story"]
    openings = Counter(" ".join(e.payload["story"].split()[:2]) for e in varied)
    assert len(openings) > 20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"orders": (5,)}, "orders"),
        ({"agents_min": 2, "orders": (0, 3)}, "orders"),
        ({"agents_min": 4, "agents_max": 3}, "agents_min"),
        ({"containers_min": 3}, "containers_min"),
        ({"chapters": ()}, "chapters"),
        ({"noise": 1.5}, "noise"),
        ({"prompt_style": "short"}, "prompt_style"),
        ({"vocabulary": "tiny"}, "vocabulary"),
        ({"vocabulary": "small"}, "containers"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(changes: dict, named: str):
    with pytest.raises(ConfigError, match=named):
        _hitom(**changes)
