"""Episodes over ports: transcripts only grow, verdicts are asked at once, and nobody's latency or failure does harm."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.judge.base import Judge
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.engine import Engine
from ditto_jax.rollouts.episodes import Abandoned, Attempt, Played
from ditto_jax.rollouts.prompt_lengths import Room
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.rollout import Sampling, draft_rollouts, outcome_counts, refined_rollouts
from ditto_jax.rollouts.views import views_of
from ditto_jax.runs.metrics import rollout_metrics
from ditto_jax.sampling.slots import Sampled, SampleRequest
from ditto_jax.tasks.base import Ports, Task
from ditto_jax.types import (
    Author,
    Chat,
    Conversation,
    Example,
    Feedback,
    FinishReason,
    Message,
    Outcome,
    Reply,
    RolloutRole,
    Verdict,
    ViewRole,
)
from tests.rollouts.letters import (
    EXAMPLE,
    PLAIN,
    SHAPES,
    Company,
    Gentle,
    Letters,
    LettersOptions,
    Partner,
    make_engine,
)
from tests.tiny_policy import CONFIG, END, LetterChat, decode, params

pytestmark = pytest.mark.usefixtures("quick_compilation")


def spy(engine: Engine, monkeypatch: pytest.MonkeyPatch, see: Callable[[Sequence[SampleRequest]], Any]) -> None:
    """Shows `see` the requests of every batch that the engine samples."""
    generate = engine.sampler.generate

    def watched(weights, requests, *rest) -> Iterator[list[tuple[int, Sampled]]]:
        see(requests)
        return generate(weights, requests, *rest)

    monkeypatch.setattr(engine.sampler, "generate", watched)


def attempts(task: Task[Any], count: int) -> list[Attempt]:
    return [Attempt(task, EXAMPLE, n // 2, SampleId(0, 1, "letters/1", n, "draft")) for n in range(count)]


async def as_played(index: int, played: Played | Abandoned) -> Played | Abandoned:
    return played


def play(engine: Engine, episodes: Sequence[Attempt], judged=as_played, seconds: float = 60.0) -> list[Any]:
    """Plays to the end, or fails: no test waits for ever."""

    async def run():
        async with asyncio.timeout(seconds):
            return await engine.play(params(), PLAIN, episodes, judged)

    return asyncio.run(run())


def test_an_episode_of_one_turn_gives_text_tokens_and_logprobs():
    [played] = play(make_engine(), attempts(Letters(), 1))
    transcript = played.transcripts["policy"]
    opening = LetterChat().open([Message("user", "abc")])
    assert transcript.ids[: transcript.context_length].tolist() == opening
    np.testing.assert_array_equal(transcript.loss_mask, np.arange(len(transcript.ids)) >= len(opening))
    assert (transcript.logprobs[len(opening) :] < 0).all() and not transcript.logprobs[: len(opening)].any()
    replied = [i for i in transcript.response.tolist() if i != END]
    assert played.conversation.reply == decode(replied).strip()
    assert transcript.finish_reason is (FinishReason.STOP if transcript.ids[-1] == END else FinishReason.LENGTH)


TALK = Letters(LettersOptions(turns=3, partner="partner"))


@functools.cache
def talks() -> list[Played]:
    return play(make_engine(Partner(seed=1)), attempts(TALK, 6))


def stretches(mask: np.ndarray) -> int:
    return int(np.sum(np.diff(np.concatenate([[0], mask.astype(int)])) == 1))


def test_transcripts_are_append_only_and_only_sampled_tokens_are_trained(monkeypatch):
    asked: list[list[int]] = []
    engine = make_engine(Partner(seed=1))
    spy(engine, monkeypatch, lambda requests: asked.extend(r.ids.tolist() for r in requests))
    for played in play(engine, attempts(TALK, 6)):
        transcript = played.transcripts["policy"]
        ids, mask = transcript.ids.tolist(), transcript.loss_mask
        starts = [span.start for span in transcript.spans if span.author is Author.POLICY]
        assert len(starts) == stretches(mask) == 3
        # Every later request extended what had been sampled, token for token.
        assert [ids[:start] in asked for start in starts] == [True] * 3
        assert [(span.start, span.end) for span in transcript.spans[1:]] == [
            (before.end, span.end) for before, span in zip(transcript.spans, transcript.spans[1:], strict=False)
        ]
        np.testing.assert_array_equal(transcript.logprobs != 0, mask)
        # What the chat format would write after the reply is context, and so are the partner's words.
        spoken = [m.content for m in played.conversation.messages if m.role == "user"][1:]
        seen = "".join(decode(ids[s.start : s.end]) for s in transcript.spans[1:] if s.author is Author.CONTEXT)
        assert all(words in seen for words in spoken)


def same(one: Played, other: Played) -> bool:
    mine, theirs = one.transcripts["policy"], other.transcripts["policy"]
    equal = np.array_equal(mine.ids, theirs.ids) and np.array_equal(mine.logprobs, theirs.logprobs)
    return equal and one.conversation == other.conversation


@pytest.mark.parametrize("seed", [None, 2, 3], ids=["no delay", "delays", "other delays"])
def test_results_are_bit_equal_whatever_the_partners_latency(seed):
    again = play(make_engine(Partner(seed=seed)), attempts(TALK, 6))
    assert [same(a, b) for a, b in zip(again, talks(), strict=True)] == [True] * 6


def test_results_depend_on_what_the_partner_says():
    class Other(Partner):
        async def reply(self, chat: Chat) -> Reply:
            return Reply("zz", FinishReason.STOP)

    assert not any(same(a, b) for a, b in zip(play(make_engine(Other()), attempts(TALK, 6)), talks(), strict=True))


def test_a_batch_waits_until_every_live_episode_is_blocked_on_the_policy(monkeypatch):
    sizes: list[int] = []
    engine = make_engine(Partner(seed=4))
    spy(engine, monkeypatch, lambda requests: sizes.append(len(requests)))
    play(engine, attempts(TALK, 6))
    assert sizes == [6, 6, 6]


def test_an_episode_with_two_open_requests_does_not_stand_for_two_episodes(monkeypatch):
    async def both(ports: Ports, chat) -> Conversation:
        one, two = await asyncio.gather(ports.policy("a").reply(chat), ports.policy("b").reply(chat))
        return Conversation((), one.text + two.text)

    async def late(ports: Ports, chat) -> Conversation:
        await asyncio.sleep(0.05)
        return Conversation((), (await ports.policy().reply(chat)).text)

    sizes: list[int] = []
    engine = make_engine()
    spy(engine, monkeypatch, lambda requests: sizes.append(len(requests)))
    play(engine, [attempts(Letters(play=both), 1)[0], attempts(Letters(play=late), 2)[1]])
    assert sizes == [3]


def test_every_role_of_the_policy_has_a_transcript_of_its_own():
    [played] = play(make_engine(), attempts(Letters(LettersOptions(turns=3, other_role="guest")), 1))
    assert set(played.transcripts) == {"policy", "guest1", "guest2"}
    assert [stretches(t.loss_mask) for t in played.transcripts.values()] == [3, 1, 1]
    # The guests were asked with equal prompts only in part, and drew with keys of their own.
    assert played.transcripts["guest1"].response.tolist() != played.transcripts["guest2"].response.tolist()


def test_a_finished_episode_is_judged_while_others_still_decode():
    # An engine over a sampler whose rows finish one by one, each a moment after the other.
    log: list[str] = []

    class Slow:
        stop_ids = (END,)
        shapes = SHAPES
        config = CONFIG

        def generate(self, weights, requests: Sequence[SampleRequest], *rest):
            for index in range(len(requests)):
                log.append(f"decoded {index}")
                yield [(index, Sampled(np.array([5, END], np.int32), np.zeros(2, np.float32), FinishReason.STOP))]
                time.sleep(0.05)

    async def judged(index: int, played) -> int:
        log.append(f"judged {index}")
        return index

    assert play(make_engine(sampler=Slow()), attempts(Letters(), 3), judged) == [0, 1, 2]
    assert log == ["decoded 0", "judged 0", "decoded 1", "judged 1", "decoded 2", "judged 2"]


def test_the_token_budget_counts_the_whole_response_and_ends_the_conversation():
    [played] = play(make_engine(Partner(), max_completion_length=14), attempts(TALK, 1))
    transcript = played.transcripts["policy"]
    assert transcript.finish_reason is FinishReason.LENGTH
    assert transcript.loss_mask.sum() <= 14


# What goes wrong.


def test_a_changed_history_is_refused():
    async def forgetful(ports: Ports, chat) -> Conversation:
        reply = await ports.policy().reply(chat)
        changed = [Message("user", "zzz"), Message("assistant", reply.text), Message("user", "b")]
        return Conversation((), (await ports.policy().reply(changed)).text)

    with pytest.raises(ValueError, match="append-only"):
        play(make_engine(), attempts(Letters(play=forgetful), 2))


class Broken(Exception):
    pass


async def break_off(ports: Ports, chat) -> Conversation:
    raise Broken("in the episode")


def test_an_exception_in_an_episode_ends_the_play_and_nothing_hangs():
    waiting = attempts(Letters(LettersOptions(turns=3, partner="partner")), 3)
    with pytest.raises(Broken, match="in the episode"):
        play(make_engine(Partner(seed=5)), [*waiting, *attempts(Letters(play=break_off), 1)])


def test_an_exception_of_the_judge_ends_the_play():
    async def judged(index: int, played) -> None:
        if index == 1:
            raise Broken("in the judge")
        await asyncio.sleep(30)

    with pytest.raises(Broken, match="in the judge"):
        play(make_engine(), attempts(Letters(), 3), judged)


@pytest.mark.parametrize("after", [0, 1])
def test_a_failing_sampler_ends_the_play_and_the_engine_can_play_again(after, monkeypatch):
    engine = make_engine()
    generate = engine.sampler.generate

    def failing(weights, requests, *rest):
        chunks = generate(weights, requests, *rest)
        for _ in range(after):
            yield next(chunks)
        raise Broken("on the device")

    with monkeypatch.context() as patched:
        patched.setattr(engine.sampler, "generate", failing)
        with pytest.raises(Broken, match="on the device"):
            play(engine, attempts(Letters(), 4))
    again = play(engine, attempts(Letters(), 4))
    assert [same(a, b) for a, b in zip(again, play(make_engine(), attempts(Letters(), 4)), strict=True)] == [True] * 4


def test_a_role_without_a_model_is_a_setting_to_correct():
    with pytest.raises(ConfigError, match="needs a model for the role 'partner'; the run has no partners"):
        play(make_engine(), attempts(TALK, 1))


def test_no_attempt_is_no_work():
    assert play(make_engine(), []) == []


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_an_episode_whose_partner_failed_is_abandoned_and_the_others_end(fails_at):
    results = play(make_engine(Partner(fails_at=fails_at)), attempts(TALK, 2))
    abandoned = [r for r in results if isinstance(r, Abandoned)]
    assert len(abandoned) == 1 and abandoned[0].reason == "the partner is down"
    turns_before = 1 if fails_at <= 2 else 2
    assert stretches(abandoned[0].transcripts["policy"].loss_mask) == turns_before
    [whole] = [r for r in results if isinstance(r, Played)]
    assert stretches(whole.transcripts["policy"].loss_mask) == 3


def roll(judge: Judge, first_failure: int | None, later_failure: int | None = None, task: Letters | None = None):
    """Returns (drafts, refined) of two prompts with two samples each."""
    room = Room(SHAPES, context=256, reply=60)
    prompts = [Prompt(f"letters/{number}", task or TALK, EXAMPLE) for number in (1, 2)]

    async def run():
        async with asyncio.timeout(60):
            engine = make_engine(Partner(fails_at=first_failure))
            sampling = Sampling(engine, params(), PLAIN, 0, 1, room)
            drafts = await draft_rollouts(sampling, judge, prompts, 2, feedback_below=1.0)
            engine.partners = Company(Partner(fails_at=later_failure))
            return drafts, await refined_rollouts(sampling, judge, prompts, drafts)

    return asyncio.run(run())


def test_a_rollout_whose_partner_failed_is_counted_and_neither_judged_nor_asked_about_nor_refined():
    judge = Gentle()
    drafts, refined = roll(judge, first_failure=2)
    failed = [d for d in drafts if d.verdict.outcome is not Outcome.OK]
    assert len(drafts) == 4 and len(failed) == 1 and len(refined) == 3
    [lost] = failed
    assert lost.verdict.outcome is Outcome.UNAVAILABLE and lost.verdict.score is None and lost.feedback is None
    assert "the partner is down" in lost.verdict.detail and lost.conversation.reply == ""
    assert judge.asked == 3 + 3
    counts = outcome_counts([*drafts, *refined])
    assert counts["judge/score_unavailable_count"] == 1 and counts["judge/score_ok_count"] == 6
    views = views_of([*drafts, *refined], [ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB])
    assert [v.reward for v in views if v.rollout == drafts.index(lost)] == [None]
    metrics = rollout_metrics([*drafts, *refined], ["letters", "others"])
    assert metrics["feedback/refined_count"] == 3 and metrics["episodes/abandoned_count"] == 1
    lost_from = ("letters", "others")[lost.prompt_index]
    for label in ("letters", "others"):
        assert metrics[f"tasks/{label}/drafts_count"] == 2 and metrics[f"rewards/{label}/mean"] == 0.0
        for name in ("abandoned", "unscored"):
            assert metrics[f"tasks/{label}/{name}_count"] == (label == lost_from)
        assert metrics[f"tasks/{label}/refined_count"] == 2 - (label == lost_from)


def test_words_that_leak_and_replies_that_speak_of_the_guidance_are_counted_by_task():
    drafts, refined = roll(Gentle(), first_failure=None)
    told = dataclasses.replace(refined[0], verdict=Verdict(Outcome.REJECTED, judge="filter"))
    leaked = dataclasses.replace(drafts[-1], feedback=Feedback(Outcome.OK, text="hint", leak="answer_tag"))
    metrics = rollout_metrics([*drafts[:-1], leaked, told, *refined[1:]], ["letters", "others"])
    assert metrics["feedback/self_reference_count"] == metrics["tasks/letters/self_reference_count"] == 1
    assert metrics["judge/feedback_leaked_count"] == metrics["tasks/others/leaked_count"] == 1
    assert metrics["tasks/others/self_reference_count"] == metrics["tasks/letters/leaked_count"] == 0
    assert metrics["episodes/abandoned_count"] == 0  # a judge or a filter decided, and nothing was given up


class Telltale(Letters):
    """Speaks of the hint wherever it was given one."""

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        conversation = await super().episode(example, ports, feedback)
        return conversation if feedback is None else dataclasses.replace(conversation, reply="As the hint says, b.")


def test_refined_rollouts_that_speak_of_the_guidance_are_rejected_unjudged_masked_and_counted():
    judge = Gentle()
    drafts, refined = roll(judge, first_failure=None, task=Telltale(TALK.options))
    assert judge.asked == len(drafts) == len(refined) == 4  # the refined ones were not asked about
    assert {(r.verdict.outcome, r.verdict.score, r.verdict.judge) for r in refined} == {
        (Outcome.REJECTED, None, "filter")
    }
    assert all("guidance" in r.verdict.detail and r.used_feedback is not None for r in refined)
    counts = outcome_counts([*drafts, *refined])
    assert counts["feedback/self_reference_count"] == counts["judge/score_rejected_count"] == 4
    assert counts["episodes/abandoned_count"] == 0
    views = views_of([*drafts, *refined], (ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB))
    rewards = [view.reward for view in views]
    assert rewards == [None] * 8  # neither under x nor under (x, h)


def test_a_refined_rollout_whose_partner_failed_keeps_its_place_without_a_score():
    drafts, refined = roll(Gentle(), first_failure=None, later_failure=1)
    assert [r.role for r in refined] == [RolloutRole.REFINED] * 4
    outcomes = [r.verdict.outcome for r in refined]
    assert outcomes.count(Outcome.UNAVAILABLE) == 1 and outcomes.count(Outcome.OK) == 3
    assert [(r.prompt_index, r.sample_index) for r in refined] == [(d.prompt_index, d.sample_index) for d in drafts]
