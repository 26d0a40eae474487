"""Rows of words and of drafts under words, gates, and which refinements are kept: made of rollouts of a real engine."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from ditto_jax.config import GateConfig, TrainConfig
from ditto_jax.keys import SampleId
from ditto_jax.objective import Objective, PgClip, Pool, Refinement, Term
from ditto_jax.rollouts.contexts import Contexts
from ditto_jax.rollouts.engine import Engine
from ditto_jax.rollouts.prompt_lengths import Room
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.refinement import asked_below, second_attempts, selected
from ditto_jax.rollouts.rollout import Sampling, draft_rollouts
from ditto_jax.rollouts.views import View, views_of
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.tasks.base import JudgeRequest, Ports, Source, Task
from ditto_jax.tasks.openings import reopened
from ditto_jax.types import (
    Author,
    Chat,
    Conversation,
    Example,
    Feedback,
    FinishReason,
    Message,
    Outcome,
    Rollout,
    RolloutRole,
    Span,
    Transcript,
    Turn,
    Verdict,
    ViewRole,
)
from model.sampling import SamplingParams
from tests.tiny_policy import FIRST_LETTER, LETTERS, LetterChat, decode, make_sampler, params

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = SamplerShapes(prefix=(64,), tail=(176,), max_new_tokens=4, max_rows=8, rows_per_prefix=(2,), chunk=4)
TRAIN = TrainConfig(prefix=(256,), suffix=(256,))
EXAMPLE = Example(task="duet", id="1", payload={}, gold="")
ANYTIME = GateConfig()
ALL = tuple(ViewRole)
JOINT = (ViewRole.DRAFT, ViewRole.REFINED_PLAIN)


class AnyText(LetterChat):
    """Texts of any characters: those without a token are left out."""

    def open(self, chat: Chat) -> list[int]:
        return super().open([Message(m.role, "".join(c for c in m.content if c in LETTERS)) for m in chat])

    def reply(self, text: str) -> list[int]:
        return super().reply("".join(c for c in text if c in LETTERS))


@dataclasses.dataclass(frozen=True)
class DuetOptions:
    """voices: the roles that the policy plays, one or two; each speaks twice, the second hears the first."""

    voices: tuple[str, ...] = ("policy",)


class Duet(Task[DuetOptions]):
    name = "duet"
    version = "1"
    options_type = DuetOptions
    many_turns = True

    def load(self, source: Source) -> Sequence[Example]:
        return [EXAMPLE]

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        return next(iter(self.openings(example, feedback).values()))

    def openings(self, example: Example, feedback: str | None = None) -> Mapping[str, tuple[Message, ...]]:
        return {v: (Message("system", f"you{v}{feedback or ''}"),) for v in self.options.voices}

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        chats = {voice: list(chat) for voice, chat in self.openings(example, feedback).items()}
        heard, turns = "start", []
        for _ in range(2):
            for voice, chat in chats.items():
                chat.append(Message("user", heard))
                reply = await ports.policy(voice).reply(tuple(chat))
                chat.append(Message("assistant", reply.text))
                heard = reply.text.replace("?", "") or "nothing"
                turns.append(Turn(voice, heard, "policy"))
        return Conversation(tuple(chats[self.options.voices[-1]]), turns[-1].text, tuple(turns))

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        return None

    def rule_feedback(self, example, conversation, verdict, rng: random.Random) -> str | None:
        return None

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        raise NotImplementedError("asked about by `Coach` alone")


class Coach:
    """Scores by a table, sample → score, and has words about every draft it is asked about."""

    identity = "coach"

    def __init__(self, scores: Mapping[tuple[str, int], float]):
        self.scores = scores
        self.asked: list[tuple[str, int]] = []

    async def check(self) -> None: ...

    def counters(self) -> Mapping[str, float]:
        return {}

    async def aclose(self) -> None: ...

    async def score(self, task, example, conversation, key: SampleId) -> Verdict:
        return Verdict(Outcome.OK, score=self.scores.get((key.prompt_id, key.sample_index), 0.0), judge="coach")

    async def feedback(self, task, example, conversation, verdict, key: SampleId) -> Feedback:
        self.asked.append((key.prompt_id, key.sample_index))
        return Feedback(Outcome.OK, text=f"do{'xyz'[key.sample_index]}", judge="coach")


def prompts_of(task: Duet, gate: GateConfig = ANYTIME) -> list[Prompt]:
    return [Prompt(f"duet/{n}", task, EXAMPLE, gate) for n in (1, 2)]


def objective(roles: tuple[ViewRole, ...] = JOINT, **changes) -> Objective:
    terms = (Term(loss=PgClip(), roles=roles),)
    return Objective(name="words", pools=(Pool(roles=roles),), terms=terms, **changes)


def played(prompts: list[Prompt], coach: Coach, wanted: Objective) -> tuple[list[Rollout], Contexts]:
    """All rollouts of a step of two prompts with two drafts each, and what opens their contexts."""
    room = Room(SHAPES, context=256, reply=4, train=TRAIN, episode=100)

    async def run() -> list[Rollout]:
        engine = Engine(make_sampler(SHAPES), AnyText(), decode, 100)
        sampling = Sampling(engine, params(), SamplingParams(), 0, 1, room)
        under = wanted.refinement.draft_feedback
        drafts = await draft_rollouts(sampling, coach, prompts, 2, asked_below(wanted, 1.0), under)
        return await second_attempts(sampling, coach, prompts, drafts, wanted, 1.0)

    return asyncio.run(run()), Contexts(prompts, AnyText(), room)


def of_role(views: Sequence[View], role: ViewRole) -> list[View]:
    return [view for view in views if view.role is role]


@pytest.mark.parametrize("voices", [("policy",), ("ann", "bob")])
def test_a_draft_under_its_words_has_their_opening_and_its_own_tokens_in_every_role(voices):
    prompts = prompts_of(Duet(DuetOptions(voices)))
    rollouts, contexts = played(prompts, Coach({("duet/1", 0): 1.0}), objective())
    views = views_of(rollouts, ALL, contexts)
    plain, hinted = of_role(views, ViewRole.DRAFT), of_role(views, ViewRole.DRAFT_FB)
    assert len(plain) == 4 * len(voices) and len(hinted) == 3 * len(voices)  # one draft is right: no words, no row
    for number, draft in enumerate(rollouts[:4]):
        own = [v for v in hinted if v.rollout == number]
        assert len(own) == (len(voices) if draft.feedback else 0)
        for view, voice in zip(own, voices, strict=False):
            transcript = draft.transcripts[voice]
            heard = transcript.opening[1:]
            assert [m.role for m in heard] == ["user"]
            assert draft.feedback is not None and draft.feedback.text is not None
            chat = [Message("system", f"you{voice}{draft.feedback.text}"), *heard]
            assert view.context.tolist() == AnyText().open(chat)
            assert view.cross and view.parent == -1 and view.reward == 0.0
            np.testing.assert_array_equal(view.response, transcript.response)
            np.testing.assert_array_equal(view.loss_mask, transcript.loss_mask[transcript.context_length :])
            np.testing.assert_array_equal(view.behaviour, transcript.logprobs[transcript.context_length :])


@pytest.mark.parametrize("voices", [("policy",), ("ann", "bob")])
def test_a_critique_row_is_the_question_about_the_whole_draft_and_the_judges_words_with_their_end(voices):
    prompts = prompts_of(Duet(DuetOptions(voices)))
    rollouts, contexts = played(prompts, Coach({("duet/1", 0): 1.0}), objective())
    rows = of_role(views_of(rollouts, ALL, contexts), ViewRole.CRITIQUE)
    assert len(rows) == 3  # one a draft, however many roles
    for view in rows:
        draft = rollouts[view.rollout]
        assert draft.feedback is not None and draft.feedback.text is not None
        assert view.response.tolist() == AnyText().reply(draft.feedback.text) and view.loss_mask.all()
        assert not view.cross and not view.truncated and not view.behaviour.any()
        text = decode(view.context.tolist())
        for turn in draft.conversation.turns:
            assert turn.text in text
        assert all(f"you{voice}" in text for voice in voices) and draft.feedback.text not in text.split("start")[0]


def test_refined_rows_and_reflections_name_the_draft_they_answer_to():
    wanted = objective((*JOINT, ViewRole.REFLECTION), refinement=Refinement(words="policy"))
    rollouts, contexts = played(prompts_of(Duet(DuetOptions())), Coach({}), wanted)
    slots = {(r.prompt_index, r.sample_index): n for n, r in enumerate(rollouts) if r.role is RolloutRole.DRAFT}
    views = views_of(rollouts, ALL, contexts)
    assert of_role(views, ViewRole.REFLECTION)
    for view in views:
        rollout = rollouts[view.rollout]
        parent = -1 if rollout.role is RolloutRole.DRAFT else slots[rollout.prompt_index, rollout.sample_index]
        assert view.parent == parent
    assert not of_role(views, ViewRole.CRITIQUE)  # the policy's own words are no target


def test_without_the_means_to_open_contexts_such_rows_are_an_error():
    rollouts, _ = played(prompts_of(Duet(DuetOptions())), Coach({}), objective())
    for role in (ViewRole.DRAFT_FB, ViewRole.CRITIQUE):
        with pytest.raises(ValueError, match="need `contexts`"):
            views_of(rollouts, [role])


def test_rows_that_no_bucket_holds_are_left_out():
    rollouts, contexts = played(prompts_of(Duet(DuetOptions())), Coach({}), objective())
    room = dataclasses.replace(contexts.room, train=TrainConfig(prefix=(8,), suffix=(8,)))
    views = views_of(rollouts, ALL, dataclasses.replace(contexts, room=room))
    assert not of_role(views, ViewRole.DRAFT_FB) and not of_role(views, ViewRole.CRITIQUE)
    assert of_role(views, ViewRole.DRAFT)


def test_drafts_under_fixed_words_are_all_asked_about_and_trained_under_what_was_said():
    wanted = objective((ViewRole.DRAFT, ViewRole.DRAFT_FB), refinement=Refinement(draft_feedback="good"))
    coach = Coach({("duet/1", 0): 1.0, ("duet/2", 1): 1.0})
    prompts = prompts_of(Duet(DuetOptions()), GateConfig(below=0.5))
    rollouts, contexts = played(prompts, coach, wanted)
    assert len(rollouts) == 4 == len(coach.asked)  # nothing of this objective is attempted again
    views = views_of(rollouts, ALL, contexts)
    for view in views:
        rollout = rollouts[view.rollout]
        assert rollout.used_feedback is not None and rollout.used_feedback.text == "good"
        sampled = decode(rollout.transcripts["policy"].ids.tolist())
        assert "youpolicygood" in sampled
        assert "good" not in decode(view.context.tolist())
        assert view.cross == (view.role is not ViewRole.CRITIQUE)
    seen = [decode(view.context.tolist()) for view in of_role(views, ViewRole.DRAFT_FB)]
    assert sum("youpolicydox" in text for text in seen) == sum("youpolicydoy" in text for text in seen) == 2


def test_a_gate_for_prompts_whose_drafts_all_failed_waits_for_all_of_them():
    coach = Coach({("duet/1", 1): 1.0})
    rollouts, _ = played(prompts_of(Duet(DuetOptions()), GateConfig(all_failed=True)), coach, objective())
    assert sorted(coach.asked) == [("duet/2", 0), ("duet/2", 1)]
    assert [r.feedback is not None for r in rollouts[:4]] == [False, False, True, True]
    assert {r.prompt_index for r in rollouts[4:]} == {1}


def test_a_gate_that_is_past_its_last_step_asks_nobody():
    coach = Coach({})
    rollouts, _ = played(prompts_of(Duet(DuetOptions()), GateConfig(until_step=0)), coach, objective())
    assert not coach.asked and len(rollouts) == 4


def refined_rollout(prompt: int, sample: int, score: float | None, cut: bool = False) -> Rollout:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    spans = (Span(0, 1, Author.CONTEXT), Span(1, 2, Author.POLICY))
    ids = np.array([1, FIRST_LETTER], np.int32)
    transcript = Transcript(ids, np.zeros(2, np.float32), spans, 1, reason, plain_context=ids[:1])
    verdict = Verdict(Outcome.TIMED_OUT) if score is None else Verdict(Outcome.OK, score)
    said = Conversation((), "a")
    return Rollout(EXAMPLE, RolloutRole.REFINED, prompt, sample, {"policy": transcript}, said, verdict)


REFINED = [
    refined_rollout(0, 0, -0.5),
    refined_rollout(0, 1, None),
    refined_rollout(0, 2, -0.2),
    refined_rollout(0, 3, -0.2),
    refined_rollout(1, 0, None),
    refined_rollout(2, 0, 1.0, cut=True),
    refined_rollout(2, 1, 0.4),
]


def test_of_the_refinements_of_a_prompt_the_first_of_the_highest_score_is_kept_and_trained():
    best = objective(refinement=Refinement(keep="best"))
    kept = selected(REFINED, best)
    assert [r.kept for r in kept] == [False, False, True, False, False, False, True]
    assert [v.rollout for v in views_of(kept, JOINT)] == [2, 6]
    keeps_cut = objective(refinement=Refinement(keep="best"), truncated="keep")
    assert [r.kept for r in selected(REFINED, keeps_cut)] == [False, False, True, False, False, True, False]
    assert selected(REFINED, objective()) == REFINED


@pytest.mark.parametrize(
    ("roles", "refinement", "expected"),
    [
        ((ViewRole.DRAFT,), Refinement(), None),
        (JOINT, Refinement(), 0.7),
        (JOINT, Refinement(words="policy"), None),
        (JOINT, Refinement(words="policy", reflection_sees="words"), 0.7),
        ((ViewRole.DRAFT_FB,), Refinement(draft_feedback="good"), math.inf),
    ],
)
def test_a_judge_is_asked_for_words_below_the_gate_unless_the_objective_needs_none_or_all(roles, refinement, expected):
    assert asked_below(objective(roles, refinement=refinement), 0.7) == expected


def test_a_chat_that_did_not_begin_with_the_tasks_opening_is_not_opened_again():
    task, other = Duet(DuetOptions()), (Message("user", "abc"),)
    assert reopened(task, EXAMPLE, "policy", other, None, "h") is None
    assert reopened(task, EXAMPLE, "nobody", task.opening(EXAMPLE), None, "h") is None
    assert reopened(task, EXAMPLE, "policy", (*task.opening(EXAMPLE), *other), None, "h") == (
        *task.opening(EXAMPLE, "h"),
        *other,
    )
