"""What a reply must look like, as plain data: said by a task for an example and turn, kept to by whoever samples.

In: a regular expression or a pydantic model, and what may stand before it. Out: the whole pattern, the JSON schema, and
whether a reply keeps to the form. Whether forms are kept to at all is configuration (`evaluation.constrained`,
`rollout.constrained`); how is `ditto_jax.text.grammar`. Knows neither tokens nor jax.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import pydantic

from ditto_jax.errors import ConfigError

_WORDS, _FEW_WORDS = 200, 60  # characters of an answer in words of one's own: the most, and those kept room for
_META = re.compile(r"[\\.^$*+?{}\[\]|()&~#-]")


class FormError(ConfigError):
    """A form that cannot be kept to: no regular expression, an unknown schema keyword, a text without tokens."""


@dataclasses.dataclass(frozen=True)
class ReplyForm:
    """The form of one reply; exactly one of `regex` and `reply_model` says what its answer is.

    regex: what the answer must match in full, in the syntax that Python and Rust share (no look-around, no lazy
    repetition). reply_model: the answer is one JSON object of this model, fields in their order; with
    `extra="forbid"`, or it may hold more. reasoning: text without "<" may stand before the answer, whose regex then
    begins with "<". before: text that the reply begins with. thinks: the reply thinks aloud in <think></think> before
    all that. room: tokens that are kept for the answer, but for half of a reply's budget at most: where no more are
    left, thoughts and reasoning are cut short. Its characters are enough; 0: nothing is cut.

    Raises FormError for a form that contradicts itself.
    """

    regex: str = ""
    reply_model: type[pydantic.BaseModel] | None = None
    reasoning: bool = False
    before: str = ""
    room: int = 0
    thinks: bool = False

    def __post_init__(self):
        if bool(self.regex) == (self.reply_model is not None):
            raise FormError("a reply form needs either a regex, such as '<answer>[AB]</answer>', or a reply_model")
        if self.reply_model is not None and (self.reasoning or self.before):
            raise FormError("a reply form with a reply_model is one JSON object alone: drop reasoning and before")
        if self.reasoning and not self.regex.startswith("<"):
            raise FormError(
                f"reply form regex={self.regex!r}: behind reasoning it must begin with '<', which ends the reasoning, "
                "for example '<answer>[AB]</answer>'"
            )
        try:
            re.compile(self.regex)
        except re.error as error:
            raise FormError(f"reply form regex={self.regex!r}: no regular expression: {error}") from None

    @property
    def pattern(self) -> str:
        """The regular expression of the whole reply without thoughts; "" for JSON."""
        if self.reply_model is not None:
            return ""
        return f"{literal(self.before)}{'[^<]*' if self.reasoning else ''}{self._answer}"

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the whole reply without thoughts; None for a regex."""
        return None if self.reply_model is None else self.reply_model.model_json_schema()

    def holds(self, reply: str) -> bool:
        """Returns whether a reply has the form; `reply` is what is visible, without thoughts and white space around."""
        if self.reply_model is None:
            return re.fullmatch(self.pattern, reply) is not None
        try:
            self.reply_model.model_validate_json(reply)
        except pydantic.ValidationError:
            return False
        return True

    @property
    def _answer(self) -> str:
        return f"({self.regex})" if "|" in self.regex else self.regex


@dataclasses.dataclass(frozen=True)
class HeldTo:
    """What one reply was held to: its form, the `budget` of tokens it had, and whether it began inside a thought that
    its prompt had opened. With the reply's tokens this decides which others each of them was chosen among.
    """

    form: ReplyForm
    budget: int
    in_thought: bool = False


def literal(text: str) -> str:
    """Returns the regular expression that matches a text and nothing else."""
    return _META.sub(lambda found: "\\" + found.group(), text).replace("\n", "\\n")


def tagged(answers: Iterable[str], before: str = "", after: str = "") -> ReplyForm:
    """Returns the form of tasks that read an answer tag: reasoning, then one of `answers` in the tag.

    before, after: tags around the reasoning, where the prompt asks for them.
    """
    texts = list(answers)
    if not texts:
        raise FormError("a reply form of tagged answers needs at least one, for example ['A', 'B']")
    choice = "|".join(map(literal, texts))
    return _in_tag(f"({choice})", max(map(len, texts)), before, after)


def tagged_words() -> ReplyForm:
    """Returns the form of tasks that read words of the policy's own in an answer tag."""
    return _in_tag(f"[^<\\s][^<]{{0,{_WORDS - 1}}}", _FEW_WORDS)


def _in_tag(regex: str, characters: int, before: str = "", after: str = "") -> ReplyForm:
    opening, closing = f"{after}<answer>", "</answer>"
    return ReplyForm(
        regex=f"{literal(opening)}{regex}{literal(closing)}",
        reasoning=True,
        before=before,
        room=len(opening) + characters + len(closing),
    )
