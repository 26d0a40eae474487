"""The control that shows whether the words must be about the draft: each draft gets those about another one.

draft rollout → judge → feedback → **another draft's feedback** → refined rollout. In: the drafts of a step with their
words. Out: the same drafts, the words exchanged and screened again for the example that they now stand beside. How
many words there are and what they sound like stays; what they point at does not. Asks no judge.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Sequence

from ditto_jax.judge.words import SHUFFLED, screened_feedback
from ditto_jax.keys import derive
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.rollout import Sampling, with_room
from ditto_jax.types import Feedback, Outcome, Rollout


def with_shuffled_words(sampling: Sampling, prompts: Sequence[Prompt], drafts: Sequence[Rollout]) -> list[Rollout]:
    """Returns the drafts in their order, each with the words about another draft of the step, never its own.

    The other draft is one of another prompt, except where one prompt has more than half of all words. Drafts without
    usable words take no part. Words that the leak filter rejects beside their new example are counted as leaked; a
    draft that is the only one with words gets none (refused).
    """
    shuffled = list(drafts)
    asked = [index for index, draft in enumerate(drafts) if draft.feedback is not None and draft.feedback.usable]
    rng = random.Random(derive(sampling.seed, sampling.step, SHUFFLED))
    for index, giver in _partners([drafts[index].prompt_index for index in asked], rng).items():
        draft = drafts[asked[index]]
        words = Feedback(Outcome.REFUSED, judge=SHUFFLED, detail="no other draft of this step has words")
        if giver != index:
            words = _moved(sampling, prompts[draft.prompt_index], drafts[asked[giver]].feedback)
        shuffled[asked[index]] = dataclasses.replace(draft, feedback=words)
    return shuffled


def _partners(prompts: Sequence[int], rng: random.Random) -> dict[int, int]:
    """Returns draft → whose words it gets, a permutation; `prompts` are the prompts of the drafts.

    The drafts of a prompt stand together in a ring, which is turned by as many places as the largest prompt has: with
    no prompt beyond half of the ring everybody then meets another prompt.
    """
    sizes = collections.Counter(prompts)
    order = list(sizes)
    rng.shuffle(order)
    rank = {prompt: place for place, prompt in enumerate(order)}
    ring = list(range(len(prompts)))
    rng.shuffle(ring)
    ring.sort(key=lambda index: rank[prompts[index]])
    turn = max(sizes.values(), default=0)
    if turn == len(ring):  # all of one prompt: turning by its size would give everybody their own
        turn = 1
    return {index: ring[(place + turn) % len(ring)] for place, index in enumerate(ring)}


def _moved(sampling: Sampling, prompt: Prompt, words: Feedback | None) -> Feedback:
    assert words is not None and words.text is not None
    moved = screened_feedback(prompt.task, prompt.example, words.text, judge=f"{SHUFFLED}:{words.judge}")
    return with_room(sampling, prompt, moved)
