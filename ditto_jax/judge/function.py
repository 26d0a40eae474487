"""Whole group → verdicts by a Python function of the user's: `def judge(group) -> list[Verdict | float]`.

In: all conversations about one prompt, together, so that they can be compared. Out: a verdict for each; the critique of
a verdict is what is said about that draft. A function that raises or takes too long has failed, which is counted like
any failed call. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import inspect
import logging
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ditto_jax.errors import ConfigError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.counters import OutcomeCounts
from ditto_jax.judge.words import CONTENT_FREE, content_free_control, screened_feedback
from ditto_jax.keys import SampleId
from ditto_jax.own_code import from_file
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Verdict

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One conversation of a group: what was asked, what was said, and its number in the group."""

    task: str
    example: Example
    conversation: Conversation
    sample_index: int


@dataclasses.dataclass
class _Group:
    """Conversations about one prompt until all that are expected are there."""

    expected: int = 0
    members: list[tuple[Candidate, asyncio.Future[Verdict]]] = dataclasses.field(default_factory=list)


_GroupName = tuple[Task[Any], int, int, str, str]


class FunctionJudge:
    """Judges by the function that `config.function` names. Raises ConfigError or MissingInputError when made."""

    def __init__(self, config: JudgeConfig):
        place = str(config.function)
        where = f"judge.function={place!r}"
        function = from_file(place, where, "a function", "path.py:my_judge")
        if not callable(function):
            raise ConfigError(f"{where}: is no function; write def my_judge(group): ... and name it path.py:my_judge")
        self._function = function
        self._config = config
        self._is_content_free = config.feedback_content == CONTENT_FREE
        self._outcomes = OutcomeCounts()
        self._groups: dict[_GroupName, _Group] = collections.defaultdict(_Group)
        self._running: set[asyncio.Task[None]] = set()
        self._name = f"python:{place.rpartition('/')[2]}"
        self._places = asyncio.Semaphore(config.max_concurrent)

    @property
    def identity(self) -> str:
        """ "python:file.py:name", with the control arm if that is what writes the feedback."""
        return f"{self._name}+{CONTENT_FREE}" if self._is_content_free else self._name

    async def check(self) -> None:
        """Returns at once: the function was found when the judge was made."""

    def expect(self, task: Task[Any], key: SampleId) -> None:
        """Tells that a conversation will be scored, so that its group waits for it."""
        self._groups[_name_of(task, key)].expected += 1

    def withdraw(self, task: Task[Any], key: SampleId) -> None:
        """Tells that an expected conversation will not be scored after all."""
        self._groups[_name_of(task, key)].expected -= 1
        self._begin_if_complete(_name_of(task, key))

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        """Returns what the function says of this conversation, once its group is complete.

        A conversation that nobody announced is a group of its own.
        """
        name = _name_of(task, key)
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._groups[name].members.append((Candidate(task.name, example, conversation, key.sample_index), answer))
        self._begin_if_complete(name)
        return self._outcomes.verdict(await answer)

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        """Returns the verdict's critique, screened for leaks; refused if the function had nothing to say."""
        words = verdict.critique.strip()
        if not words:
            detail = "the function wrote no critique of this draft"
            return self._outcomes.feedback(Feedback(Outcome.REFUSED, judge=self._name, detail=detail))
        feedback = screened_feedback(task, example, words, judge=self._name)
        if self._is_content_free and feedback.usable:
            feedback = content_free_control(task, example, key)
        return self._outcomes.feedback(feedback)

    def counters(self) -> Mapping[str, float]:
        """Counts of outcomes since the start."""
        return self._outcomes.as_dict()

    async def aclose(self) -> None:
        """Gives up groups that are still waiting or being judged."""
        self._groups.clear()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _begin_if_complete(self, name: _GroupName) -> None:
        group = self._groups[name]
        if len(group.members) < group.expected:
            return
        del self._groups[name]
        if group.members:
            task = asyncio.ensure_future(self._judge(group))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _judge(self, group: _Group) -> None:
        members = sorted(group.members, key=lambda member: member[0].sample_index)
        try:
            verdicts = await self._verdicts([candidate for candidate, _ in members])
        except ConfigError as error:
            for _, answer in members:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), verdict in zip(members, verdicts, strict=True):
            if not answer.done():
                answer.set_result(verdict)

    async def _verdicts(self, group: Sequence[Candidate]) -> list[Verdict]:
        """One a candidate. Raises ConfigError for an answer that no function of this kind may give."""
        try:
            async with self._places, asyncio.timeout(self._config.timeout_s):
                if inspect.iscoroutinefunction(self._function):
                    answer = await self._function(group)
                else:
                    answer = await asyncio.to_thread(self._function, group)
        except TimeoutError:
            detail = f"no answer within judge.timeout_s={self._config.timeout_s:g}"
            return [Verdict(Outcome.TIMED_OUT, judge=self._name, detail=detail)] * len(group)
        except Exception as error:
            logger.warning("%s failed", self._name, exc_info=error)
            detail = f"{type(error).__name__}: {error}"
            return [Verdict(Outcome.UNAVAILABLE, judge=self._name, detail=detail)] * len(group)
        answers = list(answer) if isinstance(answer, Iterable) else []
        if len(answers) != len(group):
            raise ConfigError(
                f"judge.function={self._config.function!r}: must return a list of {len(group)} verdicts or numbers for "
                f"a group of {len(group)}; it returned {str(answer)[:80]}"
            )
        return [self._verdict(item) for item in answers]

    def _verdict(self, item: object) -> Verdict:
        if isinstance(item, Verdict):
            return dataclasses.replace(item, judge=self._name)
        if isinstance(item, numbers.Real):
            if math.isfinite(item):
                return Verdict(Outcome.OK, score=float(item), judge=self._name)
            return Verdict(Outcome.UNPARSABLE, judge=self._name, detail=f"the score {item} is not finite")
        raise ConfigError(
            f"judge.function={self._config.function!r}: each answer must be a ditto_jax.types.Verdict or a number, not "
            f"{type(item).__name__}"
        )


def _name_of(task: Task[Any], key: SampleId) -> _GroupName:
    return task, key.seed, key.step, key.prompt_id, key.role
