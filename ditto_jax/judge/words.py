"""Words about a draft → Feedback: the leak filter, the content-free control, and the random numbers of a call.

In: text from rules or from a model. Out: a Feedback that says whether the text may enter a prompt. Every judge builds
its feedback here, so that no text passes around the filter. Writes no words of its own.
"""

from __future__ import annotations

import random
from typing import Any

from ditto_jax.keys import SampleId, derive
from ditto_jax.rollouts.feedback import content_free_feedback
from ditto_jax.tasks.base import Task
from ditto_jax.types import Example, Feedback, Outcome

CONTENT_FREE = "content_free"
SHUFFLED = "shuffled"


def call_rng(key: SampleId, purpose: str) -> random.Random:
    """Returns a generator whose stream depends on `key` and `purpose` alone, the same in every process."""
    return random.Random(derive(key.seed, key.step, key.prompt_id, key.sample_index, str(key.role), purpose))


def screened_feedback(task: Task[Any], example: Example, text: str, judge: str) -> Feedback:
    """Returns `text` as Feedback, with the leak rule that it breaks, if any. `text` must hold a visible character."""
    return Feedback(Outcome.OK, text=text, judge=judge, leak=task.leak(example, text))


def content_free_control(task: Task[Any], example: Example, key: SampleId) -> Feedback:
    """Returns feedback of the control arm: words that say only that the draft is wrong."""
    return screened_feedback(task, example, content_free_feedback(call_rng(key, CONTENT_FREE)), judge=CONTENT_FREE)


def named(judge: str, content: str) -> str:
    """Returns the identity of a judge, with the control arm if its words are not what refined rollouts are told."""
    return f"{judge}+{content}" if content in (CONTENT_FREE, SHUFFLED) else judge
