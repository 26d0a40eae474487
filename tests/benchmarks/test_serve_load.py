"""The load benchmark counts right, mixed-up and failed replies as such, and goes through every rude client."""

from __future__ import annotations

import asyncio

from benchmarks.serve_load import Load, crowd, with_rude_company
from ditto_jax.serving.ask import AskError, Piece
from tests.serving.scripted import ScriptedBackend, listening

LOAD = Load(prompts=[[1], [2], [3], [4]], new=2, rows=2, chunk=2)
EXPECTED = [f"text {number}" for number in range(4)]


def _script(ask):
    """Answers as expected, but the third prompt with another's text and the fourth not at all."""
    if ask.prompt == (4,):
        raise AskError("no", None)
    number = 0 if ask.prompt == (3,) else ask.prompt[0] - 1
    return [Piece("text "), Piece(str(number), "length", prompt_tokens=1, completion_tokens=2)]


def test_replies_are_compared_one_by_one():
    with listening(ScriptedBackend(_script)) as url, asyncio.Runner() as runner:
        found = runner.run(crowd(url, LOAD, EXPECTED, requests=40, streams=4)).figures()
    assert (found["requests"], found["right"], found["wrong"], found["failed"]) == (40, 20, 10, {"error": 10})
    assert found["first_token_p95_s"] >= found["first_token_p50_s"] > 0


def test_rude_clients_are_told_off_and_others_go_on():
    load = Load(prompts=LOAD.prompts[:2], new=2, rows=2, chunk=2)
    limits = {"read_timeout_s": 1.0, "max_body_bytes": 1_000_000}
    with listening(ScriptedBackend(_script), **limits) as url, asyncio.Runner() as runner:
        seen, told = runner.run(with_rude_company(url, load, EXPECTED[:2], requests=60, streams=4, rounds=1))
    assert (seen.right, seen.wrong, dict(seen.failed)) == (60, 0, {})
    assert told["bad JSON: 400"] == told["huge body: 413"] == told["slow body: 408"] == told["no HTTP: 400"] == 1
    assert told["left: 200"] == 4 and told["flood: answered"] == 40
