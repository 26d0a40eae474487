"""All ten tasks against malformed rows, hostile replies, endless dialogues and failing partners: no crash, no luck.

One property each, over the same made-up rows: a row is refused by name or fully usable, an episode of any replies ends
within the task's own limits and has a defined outcome, words made by rule never leak, and no hedge is worth 1.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example as also
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto_jax.errors import DataError
from ditto_jax.tasks.base import EpisodeFailure, Task
from ditto_jax.tasks.registry import get_task
from ditto_jax.tasks.released import SOUL
from ditto_jax.tasks.rows import LeftOut
from ditto_jax.types import Chat, Conversation, Example, FinishReason, Outcome, Reply
from tests.released_rows import ROWS

NAMES = tuple(SOUL)
TASKS: Mapping[str, Task[Any]] = {name: get_task(name) for name in NAMES}
MOST_TURNS = 15  # of the policy and of each partner in one episode, under default options
HOSTILE = (
    *(None, "", " ", "\ud800", "{", "[" * 5000, '{"a": ', "__import__('os')", "\x00\u202e", "x" * 100_000),
    *([], {}, [None], [[]], {"": None}, {"a": {"b": []}}, [{}], 7, -1, 10**40, 1.5, math.nan, math.inf, True, b"x"),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_TAGS = st.sampled_from(
    [
        *("<think>", "</think>", "<seed:think>", "<answer>", "</answer>", "A", "b", "(c)", "D or A"),
        *("yes", "no", "box"),
        *("<|endconversation|>", '{"action_type": "', 'leave", "argument": ""}', "speak", "[", "]", "(", "\n", ": "),
        *("Ada: ", "Next speaker: Bea", "«DATA", "»", "\u202e", "\x00", "🙂", "我", "-" * 400),
    ]
)
REPLIES = st.lists(_TAGS, max_size=8).map("".join) | st.text(max_size=40)


def read(name: str, row: Mapping[str, Any]) -> Example | None:
    """The example of a released row; None if it is refused, by name, or left out."""
    try:
        return TASKS[name].released_row(Path("f.parquet"), "row[3]", f"{name}-3", row)  # type: ignore[attr-defined]
    except (DataError, LeftOut) as error:
        why = error
    assert str(why) and (isinstance(why, LeftOut) or "f.parquet: row[3]" in str(why))
    return None


def use(task: Task[Any], example: Example) -> None:
    """Asks a task for everything that a run asks about an example before anybody has said anything."""
    for feedback in (None, "Look again."):
        for opening in task.openings(example, feedback).values():
            assert all(message.content.encode() for message in opening)
    assert all(group.encode() for group in task.groups(example))
    json.dumps(dict(task.breakdown(example))).encode()
    assert task.leak(example, "Look again at who was there.") in ("", *_LEAKS)


_LEAKS = ("gold_text", "gold_letter", "reference_ngram", "private_fact", "choice_text", "end_decision")
_LEAKS += ("states_knowledge", "states_polarity", "names_list")


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in NAMES for field in ROWS[name]])
def test_a_row_without_a_field_or_with_a_hostile_one_is_refused_by_name_or_usable(name, field):
    changed = [{key: value for key, value in ROWS[name].items() if key != field}]
    changed += [{**ROWS[name], field: value} for value in HOSTILE]
    for row in changed:
        example = read(name, row)
        if example is not None:
            use(TASKS[name], example)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything inside a structure, JSON text included."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            value = json.loads(value)
        except ValueError:
            return [path]
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same structure with one part replaced; JSON text stays JSON text."""
    if not path:
        return new
    if isinstance(value, str):
        return json.dumps(replaced(json.loads(value), path, new))
    copy = dict(value) if isinstance(value, Mapping) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_hostile_part_anywhere_inside_a_row_is_refused_by_name_or_usable(name, data):
    row = dict(ROWS[name])
    field = data.draw(st.sampled_from([*row]))
    place = data.draw(st.sampled_from(places(row[field])))
    example = read(name, {**row, field: replaced(row[field], place, data.draw(_JSON))})
    if example is not None:
        use(TASKS[name], example)


class Speaker:
    """Says its lines over and over; raises in the place of a line that is an exception, and for a chat that shrank."""

    def __init__(self, *lines: str | Exception):
        self.lines, self.calls, self.longest = lines, 0, 0

    async def reply(self, chat: Chat) -> Reply:
        line = self.lines[self.calls % len(self.lines)]
        self.calls += 1
        assert self.calls <= MOST_TURNS
        if isinstance(line, Exception):
            raise line
        return Reply(line, FinishReason.STOP)


class Company:
    """The policy and everybody else, each role with its own speaker."""

    def __init__(self, policy: list[str], others: list[str | Exception]):
        self.policy_lines, self.other_lines = policy, others
        self.speakers: dict[str, Speaker] = {}

    def policy(self, role: str = "policy") -> Speaker:
        return self.speakers.setdefault(f"policy {role}", Speaker(*self.policy_lines))

    def llm(self, role: str) -> Speaker:
        return self.speakers.setdefault(role, Speaker(*self.other_lines))


def play(
    name: str, policy: list[str], others: list[str | Exception], feedback: str | None = None
) -> Conversation | EpisodeFailure:
    example = read(name, ROWS[name])
    assert example is not None
    with asyncio.Runner() as runner:
        try:
            return runner.run(TASKS[name].episode(example, Company(policy, others), feedback))
        except EpisodeFailure as failure:
            return failure


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(
    policy=st.lists(REPLIES, min_size=1, max_size=4),
    others=st.lists(REPLIES, min_size=1, max_size=3),
    feedback=st.none() | REPLIES,
)
@also(policy=[""], others=["Well."], feedback=None)
@also(policy=["<think>never closed"], others=["Well."], feedback="Look again.")
@also(policy=["word " * 20_000], others=["word " * 20_000], feedback=None)
def test_any_replies_end_in_a_finite_score_or_a_typed_failure_and_rule_made_words_never_leak(
    name, policy, others, feedback
):
    task, example = TASKS[name], read(name, ROWS[name])
    assert example is not None
    said = play(name, policy, others, feedback)
    if isinstance(said, EpisodeFailure):  # a partner said nothing visible
        assert said.outcome is not Outcome.OK and str(said)
        return
    verdict = task.rule_score(example, said)
    if verdict is None:
        requests = task.score_requests(example, said)
        assert requests and all(m.content.encode(errors="strict") for r in requests.values() for m in r.messages[:1])
        verdict = task.proxy_score(example, said)
    assert verdict is not None and verdict.score is not None and -1.0 <= verdict.score <= 1.0
    assert all(math.isfinite(value) for value in verdict.dimensions.values())
    assert task.self_reference(example, said) in (True, False)
    assert task.feedback_request(example, said, verdict).messages
    words = task.rule_feedback(example, said, verdict, random.Random(0))
    assert words is None or task.leak(example, words) == "", words


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reply", ["", "   ", "<think>B <answer>B</answer>", "<think>hm</think>", "</think>"])
def test_a_reply_without_visible_words_scores_nothing_and_asks_no_judge(name, reply):
    said = play(name, [reply], ["Next speaker: Ada"])
    assert isinstance(said, Conversation)
    verdict = TASKS[name].rule_score(read(name, ROWS[name]) or pytest.fail(name), said)
    assert verdict is not None and (verdict.outcome, verdict.score) == (Outcome.OK, 0.0)


TALKING = ("coser", "sotopia", "mirrorbench")


@pytest.mark.parametrize("name", TALKING)
@pytest.mark.parametrize("calls_before", [0, 1, 2])
def test_a_partner_that_fails_midway_ends_the_episode_with_its_outcome_or_was_not_needed(name, calls_before):
    """mirrorbench's row has one assistant turn, so that later failures never come."""
    lines: list[str | Exception] = ['{"action_type": "speak", "argument": "Well."}'] * calls_before
    if name == "coser":
        lines = ["Next speaker: Bea", "Next speaker: Ada"][:calls_before]
    failure = EpisodeFailure("down", Outcome.TIMED_OUT)
    said = play(name, ["I see.", "Please go on.", "Why?"], [*lines, failure])
    if name == "mirrorbench" and calls_before:
        assert isinstance(said, Conversation)
    else:
        assert said is failure


@pytest.mark.parametrize("name", TALKING)
def test_an_endless_dialogue_ends_by_the_tasks_own_limit(name):
    """Speakers refuse more than MOST_TURNS turns, so that ending at all is the claim."""
    others = {"coser": "Next speaker: nobody", "sotopia": "And then?", "mirrorbench": "Tell me more."}[name]
    said = play(name, [f"line {number}" for number in range(7)], [others])
    assert isinstance(said, Conversation) and said.facts["ended"] != "silence"
    assert 0 < len(said.turns) <= MOST_TURNS


def hedges(name: str, example: Example) -> list[str]:
    """Answers that name everything, in several orders."""
    every = list(example.payload.get("cands") or example.payload.get("options") or ("A", "B", "yes", "no"))
    letters = "ABCD"[: max(2, len(every))]
    lists = [*map(str, every)], list(letters), ["yes", "no"], ["(a)", "(b)"], ["maybe", "box", "den"]
    glued = [glue.join(order) for some in lists for order in (some, some[::-1]) for glue in (" ", ", ", " or ", "\n")]
    tagged = [f"<answer>{text}</answer>" for text in glued]
    return [*glued, *tagged, *(f"<answer></answer>{text}" for text in tagged)]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*TALKING, "userllm")])
def test_no_answer_that_names_everything_is_right(name):
    """Tasks that a judge scores have no gold to hedge about; userllm's choices are in its own tests."""
    example = read(name, ROWS[name])
    assert example is not None
    for reply in hedges(name, example):
        verdict = TASKS[name].rule_score(example, Conversation((), reply))
        assert verdict is not None and verdict.score == 0.0, reply
