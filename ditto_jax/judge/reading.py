"""Completion → what was asked for: a typed reply, visible text, or the completion as it stands.

In: a completion that arrived whole. Out: its reply, or a failure that says why it holds none. Sends nothing.
"""

from __future__ import annotations

from ditto_jax.judge.completion import Completion
from ditto_jax.judge.fence import printable
from ditto_jax.judge.replies import ReplyT, Unparsable, parse_reply
from ditto_jax.judge.retry import RefusedFailure, UnparsableFailure
from ditto_jax.tasks.answers import visible_text


def text_of(completion: Completion) -> str:
    """Returns the visible text of a completion; raises RefusedFailure or UnparsableFailure if it holds none."""
    if completion.refusal:
        raise RefusedFailure(completion.refusal)
    text = visible_text(printable(completion.text))
    if not text:
        raise UnparsableFailure("the reply holds no visible text")
    return text


def as_it_stands(completion: Completion) -> Completion:
    """Returns the completion, thoughts and emptiness included; raises RefusedFailure if the endpoint refused."""
    if completion.refusal:
        raise RefusedFailure(completion.refusal)
    return completion


def parse_completion(completion: Completion, reply_model: type[ReplyT], where: str = "judge") -> ReplyT:
    """Returns the reply that a completion holds; raises RefusedFailure or UnparsableFailure if it holds none."""
    if completion.refusal:
        raise RefusedFailure(completion.refusal)
    if completion.is_cut_off and "</think>" in completion.text:
        # The end of thoughts may be a quotation from the policy's text, and what follows it as well.
        raise UnparsableFailure(f"the reply was cut off among its thoughts: raise {where}.max_tokens")
    try:
        return parse_reply(completion.text, reply_model)
    except Unparsable as error:
        cut = f" (cut off by the token limit: raise {where}.max_tokens)" if completion.is_cut_off else ""
        raise UnparsableFailure(f"{error}{cut}") from None
