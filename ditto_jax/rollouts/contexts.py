"""Contexts opened again: the chat in which a role of an episode began, under other words than it was sampled under.

rollouts → **contexts** → views. In: drafts with words about them. Out: ids of contexts that nothing was sampled in:
a draft's under (x, h), and the question whose answer would be the judge's words. What was sampled is never encoded
again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ditto_jax.rollouts.prompt_lengths import Room
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.questions import critique_question
from ditto_jax.tasks.base import Task
from ditto_jax.tasks.openings import reopened
from ditto_jax.text.chat import ChatFormat
from ditto_jax.types import Chat, Rollout


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Makes contexts of the rollouts of one step; rows that no train bucket holds are not made."""

    prompts: Sequence[Prompt]
    chat_format: ChatFormat
    room: Room

    def hinted(self, rollout: Rollout, role: str) -> np.ndarray | None:
        """Returns int32[c], the context of one role of a draft under (x, h), h being the words about the draft.

        None if there are no usable words, if the episode did not begin with the task's opening, or without room.
        """
        words, transcript = rollout.feedback, rollout.transcripts[role]
        if words is None or not words.usable:
            return None
        was = None if rollout.used_feedback is None else rollout.used_feedback.text
        chat = reopened(self._task(rollout), rollout.example, role, transcript.opening, was, words.text)
        return None if chat is None else self._fitting(chat, len(transcript.response))

    def critique(self, rollout: Rollout) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns (int32[c] the question for words about a draft, int32[t] the judge's words and their end).

        None if there are no usable words, or without room.
        """
        words = rollout.feedback
        if words is None or not words.usable or words.text is None:
            return None
        target = np.asarray(self.chat_format.reply(words.text), np.int32)
        was = None if rollout.used_feedback is None else rollout.used_feedback.text
        chat = critique_question(self._task(rollout), rollout.example, rollout.conversation, was)
        context = self._fitting(chat, len(target))
        return None if context is None else (context, target)

    def _task(self, rollout: Rollout) -> Task[Any]:
        return self.prompts[rollout.prompt_index].task

    def _fitting(self, chat: Chat, response: int) -> np.ndarray | None:
        context = np.asarray(self.chat_format.open(chat), np.int32)
        return context if self.room.holds_row(len(context), response) else None
