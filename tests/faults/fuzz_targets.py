"""What is fuzzed: bytes → text of a judge, settings or a data row, put to the real readers, and what must hold then.

In: any bytes. Out: nothing; a target raises if a reader raised what it does not promise, or accepted what the bytes do
not say. One table for the coverage-guided fuzzer of the soak and for the short tests.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pydantic

from ditto_jax.config import RunConfig
from ditto_jax.config_io import flatten, parse_yaml, to_plain
from ditto_jax.errors import ConfigError
from ditto_jax.judge.completion import read_completion, response_failure
from ditto_jax.judge.reading import parse_completion, text_of
from ditto_jax.judge.replies import Unparsable, parse_reply
from ditto_jax.judge.retry import AttemptFailed, RefusedFailure, UnparsableFailure, retry_after_s
from ditto_jax.strict import build
from tests.released_rows import ROWS
from tests.tasks.test_hostile_input import NAMES, TASKS, places, read, replaced, use


class Grade(pydantic.BaseModel):
    grade: int = pydantic.Field(ge=0, le=10)
    why: str = pydantic.Field(max_length=40)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def judge_reply(data: bytes) -> None:
    """The text of a judge: unparsable, or what the one object after its thoughts says."""
    text = _text(data)
    try:
        reply = parse_reply(text, Grade)
    except Unparsable:
        return
    said = text.partition("</think>")[2] if "</think>" in text else text
    value, end = json.JSONDecoder().raw_decode(said, said.index("{"))
    assert reply == Grade.model_validate(value) and "{" not in said[end:]
    assert 0 <= reply.grade <= 10 and len(reply.why) <= 40


def judge_body(data: bytes) -> None:
    """The body of a response: no completion, or the first choice's words as the body holds them."""
    try:
        found = read_completion(data)
    except UnparsableFailure:
        return
    assert found.tokens_in >= 0 and found.tokens_out >= 0
    with contextlib.suppress(ValueError):  # json is stricter about control characters in texts
        assert found.text == (json.loads(data, strict=False)["choices"][0]["message"].get("content") or "")
    for asked in (functools.partial(parse_completion, reply_model=Grade), text_of):
        try:
            answer = asked(found)
        except (UnparsableFailure, RefusedFailure):
            continue
        assert not found.refusal and answer


def judge_error(data: bytes) -> None:
    """An error response: a typed failure that names the status, and a wait that can be waited."""
    status, content = 300 + (data[0] if data else 0), _text(data[1:])
    header = "retry-after-ms" if status % 2 else "retry-after"
    seconds = retry_after_s({header: content}, 0.0)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)
    failure = response_failure(status, {header: content}, content, 0.0)
    assert isinstance(failure, AttemptFailed) and failure.detail.startswith(f"HTTP {status}")


def config_text(data: bytes) -> None:
    """A file of settings: refused by name, or a config that says what the file says and survives being saved."""
    try:
        values = parse_yaml(data, "settings.yaml")
        config = build(RunConfig, values)
    except ConfigError:
        return
    plain = to_plain(config)
    assert build(RunConfig, plain) == config
    written = flatten(plain)
    for key, value in flatten(values).items():
        # Text that spells a number is read as one, and a number may be wanted as text; nothing else may change.
        for kind in (int | float, str):
            if isinstance(value, kind) and isinstance(written.get(key), kind):
                assert written[key] == value, key


def config_value(data: bytes) -> None:
    """One value for one of all settings, chosen by the first two bytes."""
    keys = _setting_names()
    parts = keys[int.from_bytes(data[:2], "big") % len(keys)].split(".")
    text = "\n".join(f"{'  ' * depth}{part}:" for depth, part in enumerate(parts))
    config_text(text.encode() + b" " + data[2:])


@functools.cache
def _setting_names() -> list[str]:
    return sorted(flatten(to_plain(RunConfig())))


def data_row(data: bytes) -> None:
    """A released row of any task with something else in one place: refused by name, or usable in full."""
    if len(data) < 3:
        return
    name = NAMES[data[0] % len(NAMES)]
    row = dict(ROWS[name])
    field = [*row][data[1] % len(row)]
    inside = places(row[field])
    try:
        value = json.loads(data[3:])
    except (ValueError, RecursionError):
        value = _text(data[3:])
    example = read(name, {**row, field: replaced(row[field], inside[data[2] % len(inside)], value)})
    if example is not None:
        use(TASKS[name], example)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "judge_reply": judge_reply,
    "judge_body": judge_body,
    "judge_error": judge_error,
    "config_text": config_text,
    "config_value": config_value,
    "data_row": data_row,
}

_GOOD = json.dumps({"grade": 7, "why": "short"})
_BODY = json.dumps(
    {
        "choices": [{"message": {"content": _GOOD, "refusal": None}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7},
    }
)
# Where a fuzzer starts from.
SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "judge_reply": (_GOOD.encode(), f"<think>so {{</think>\n```json\n{_GOOD}\n```".encode(), b'{"grade": 1e999}'),
    "judge_body": (_BODY.encode(), _BODY.replace("stop", "length").encode(), _BODY.replace("null", '"no"').encode()),
    "judge_error": (
        b'\xc8{"error": {"message": "busy", "code": "x"}}',
        b"\x811500",
        b"\xc8Sun, 22 Nov 2026 12:00:00 GMT",
    ),
    "config_text": (
        b"seed: 3\nrollout: {num_generations: 4, feedback_below: .inf}\n",
        b"tasks: [{name: hitom, source: {limit: 8, seed: 1}, judge: {kind: rules}}]\n",
        b"objective: {name: grpo}\njudge: {kind: openai, model: m, base_url: 'http://127.0.0.1:1/v1'}\n",
        b"lora: {rank: 4}\nmesh: {data: 1}\nevaluation: {every: 2, temperature: 1.0, num_samples: 2}\n",
    ),
    "config_value": (b"\x00\x073", b"\x00\x10.nan", b"\x01\x02[a, b]", b"\x00\x40off"),
    "data_row": (b"\x00\x00\x00null", b"\x03\x01\x02[1, {}]", b'\x06\x02\x01{"a": "b"}', b"\x09\x00\x00text"),
}


def kept(name: str) -> list[bytes]:
    """Returns the inputs that longer runs found worth keeping, which stand in `fuzz_corpus`, escaped, one a line."""
    file = Path(__file__).with_name("fuzz_corpus") / f"{name}.txt"
    lines = file.read_text(encoding="ascii").splitlines() if file.exists() else []
    return [line.encode("ascii").decode("unicode_escape").encode("latin-1") for line in lines]
