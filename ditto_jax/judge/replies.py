"""Text of a language model → validated reply: finds the one JSON object in it and checks it against a schema.

In: any text at all, and a pydantic model. Out: an instance of the model, or Unparsable with the reason. Never repairs,
guesses, clips a number into its range, or chooses between several objects.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import pydantic

ReplyT = TypeVar("ReplyT", bound=pydantic.BaseModel)

SCHEMA_LEAD = "Answer with one JSON object and nothing else. It must satisfy this JSON schema:\n"

# Bounds work and memory, far above any honest reply.
_MAX_CHARACTERS = 200_000

# Some chat templates open the block inside the prompt, so that the reply holds only its end.
_THOUGHTS = re.compile(r"\A(?:\s*<think>)?.*?</think>", re.DOTALL)


class Unparsable(ValueError):
    """The text is not one JSON object that satisfies the schema; the message says why."""


def parse_reply(text: str, reply_model: type[ReplyT]) -> ReplyT:
    """Returns the reply in `text`; raises Unparsable, and nothing else, if there is none.

    Prose and code fences around the object are allowed, as is one leading <think> block, which is dropped. No other
    opening brace may remain outside the object: with several objects, or one inside a broken one, text quoted from the
    policy could pose as the verdict. So could text behind a quoted end of thoughts, where a reply stands before it.
    """
    if len(text) > _MAX_CHARACTERS:
        raise Unparsable(f"reply of {len(text)} characters is longer than {_MAX_CHARACTERS}")
    thoughts = _THOUGHTS.match(text)
    if thoughts and not text.lstrip().startswith("<think>") and _holds_reply(thoughts[0], reply_model):
        raise Unparsable("a reply stands before an end of thoughts that nothing began")
    if thoughts is None and text.lstrip().startswith("<think>"):
        raise Unparsable("the thoughts have no end")
    candidate = _only_object(text[thoughts.end() :] if thoughts else text)
    try:
        return reply_model.model_validate(candidate)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "reply"
        raise Unparsable(f"{field}: {first['msg']}") from None


def schema_instruction(reply_model: type[pydantic.BaseModel]) -> str:
    """Returns the sentence that states the reply schema inside a prompt."""
    return SCHEMA_LEAD + json.dumps(reply_model.model_json_schema(), ensure_ascii=False)


def _holds_reply(text: str, reply_model: type[pydantic.BaseModel]) -> bool:
    """Whether any object in `text` satisfies the schema."""
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            reply_model.model_validate(_DECODER.raw_decode(text, start)[0])
            return True
        except (ValueError, _DuplicateKey, RecursionError):
            continue
    return False


def _only_object(text: str) -> dict[str, Any]:
    start = text.find("{")
    if start < 0:
        raise Unparsable("no JSON object in the reply")
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise Unparsable(f"broken JSON object: {error.msg}") from None
    except _DuplicateKey as error:
        raise Unparsable(f"key {str(error)[:80]!r} occurs twice in one object") from None
    except (ValueError, RecursionError) as error:  # NaN, numbers of thousands of digits, thousands of braces
        raise Unparsable(f"not plain JSON: {type(error).__name__}") from None
    if "{" in text[end:]:
        raise Unparsable("more than one JSON object in the reply")
    return value


class _DuplicateKey(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        raise _DuplicateKey(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
