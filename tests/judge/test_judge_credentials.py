"""Keys come from a variable, a command or a file, are obtained again when they expire, and are shown nowhere."""

from __future__ import annotations

import asyncio
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.errors import ConfigError, DittoError, JudgeUnavailableError, MissingInputError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.openai import OpenAIJudge
from ditto_jax.types import Outcome
from tests.judge.quiz import Sleeper, ask, openai_config
from tests.judge.server import fails, gives_feedback, serving


class Rotating:
    """A server that accepts only the newest token of a file, and issues another after every `uses` requests."""

    def __init__(self, file: Path, uses: int):
        self._file = file
        self._uses = uses
        self._lock = threading.Lock()
        self._accepted = 0
        self.rejected = 0
        self._issue()

    @property
    def token(self) -> str:
        return f"token-number-{self._accepted // self._uses:04d}"

    def _issue(self) -> None:
        written = self._file.with_suffix(".new")
        written.write_text(self.token + "\n")
        written.replace(self._file)  # a reader must not see half a token

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            is_known = handler.headers["Authorization"] == f"Bearer {self.token}"
            self._accepted += is_known
            self.rejected += not is_known
            self._issue()
        (gives_feedback() if is_known else fails(401, f"expired: {handler.headers['Authorization']}"))(handler)


def judge_of(base_url: str, **changes: Any) -> OpenAIJudge:
    config = openai_config(base_url, **{"api_key_env": None, "cache": "off", "max_retries": 0, **changes})
    return OpenAIJudge(config, environ={}, sleep=Sleeper())


def _command(file: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", f"print(open({str(file)!r}).read())")


@pytest.mark.parametrize("kind", ["file", "command"])
def test_a_key_that_expires_again_and_again_costs_no_call(tmp_path: Path, kind: str):
    file = tmp_path / "token"
    rotating = Rotating(file, uses=2)
    source = {"api_key_file": str(file)} if kind == "file" else {"api_key_command": _command(file)}
    with serving(rotating) as server:
        judge = judge_of(server.base_url, max_concurrent=1, **source)
        feedback = [item for _ in range(3) for item in ask(judge, times=2)]
    assert [item.outcome for item in feedback] == [Outcome.OK] * 6
    assert rotating.rejected == 2
    assert judge.counters()["retries"] == 0


def test_calls_that_are_rejected_together_obtain_one_new_key(tmp_path: Path):
    file, runs = tmp_path / "token", tmp_path / "runs"
    rotating = Rotating(file, uses=8)
    command = (sys.executable, "-c", f"open({str(runs)!r}, 'a').write('x'); print(open({str(file)!r}).read())")
    with serving(rotating) as server:
        judge = judge_of(server.base_url, max_concurrent=8, api_key_command=command)
        for _ in range(2):
            assert [item.outcome for item in ask(judge, times=8)] == [Outcome.OK] * 8
    assert 2 <= len(runs.read_text()) <= 1 + rotating.rejected
    assert rotating.rejected <= 8


def test_a_new_key_that_is_rejected_too_is_an_error_after_one_more_request(tmp_path: Path):
    counter = tmp_path / "n"
    program = f"p={str(counter)!r}; open(p, 'a').write('x'); print('token-nobody-knows-%d' % len(open(p).read()))"
    with serving(fails(401, "no")) as server:
        [feedback] = ask(judge_of(server.base_url, api_key_command=(sys.executable, "-c", program)))
        assert len(server.received) == 2
    assert feedback.outcome is Outcome.UNAVAILABLE
    assert "HTTP 401" in feedback.detail


def test_the_same_key_is_not_tried_twice(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("token-that-never-changes")
    with serving(fails(401, "no")) as server:
        ask(judge_of(server.base_url, api_key_file=str(file)))
        assert len(server.received) == 1


def test_every_key_that_was_used_is_removed_from_what_is_said(tmp_path: Path):
    file = tmp_path / "token"
    rotating = Rotating(file, uses=1)
    tokens = []

    def echoes(handler: BaseHTTPRequestHandler) -> None:
        tokens.append(handler.headers["Authorization"].removeprefix("Bearer "))
        if len(tokens) == 1:
            file.write_text("token-number-next")
            fails(401, "expired")(handler)
        else:
            fails(400, f"neither {tokens[0]} nor {tokens[1]}")(handler)

    with serving(echoes) as server:
        [feedback] = ask(judge_of(server.base_url, api_key_file=str(file)))
    assert tokens == [rotating.token, "token-number-next"]
    assert feedback.detail == "HTTP 400: neither [key] nor [key]"


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ((sys.executable, "-c", "import sys; print('sk-half-a-secret'); sys.exit(3)"), "exit code 3"),
        ((sys.executable, "-c", "pass"), "gave no key"),
        ((sys.executable, "-c", "print('sk-half-a-secret and more')"), "characters that a key cannot have"),
        (("/no/such/program",), "cannot be run"),
    ],
)
def test_a_command_that_gives_no_key_is_told_without_what_it_gave(command: tuple[str, ...], part: str):
    with serving(gives_feedback()) as server:
        judge = judge_of(server.base_url, api_key_command=command)
        [feedback] = ask(judge)
        with pytest.raises(JudgeUnavailableError) as raised:
            asyncio.run(judge.check())
        assert server.received == []
    assert feedback.outcome is Outcome.UNAVAILABLE
    for text in (feedback.detail, str(raised.value)):
        assert part in text and "judge.api_key_command" in text and "sk-half" not in text


def test_a_command_is_run_without_a_shell(tmp_path: Path):
    made = tmp_path / "made"
    with serving(gives_feedback()) as server:
        judge = judge_of(server.base_url, api_key_command=("echo", f"a-long-key;touch {made}"))
        ask(judge)
    assert not made.exists()


def test_a_key_has_one_source_and_a_file_must_be_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="set one of them"):
        JudgeConfig(api_key_env="NAME", api_key_file="token")
    config = openai_config("http://127.0.0.1:1/v1", api_key_env=None, api_key_file=str(tmp_path / "none"))
    with pytest.raises(MissingInputError, match="judge.api_key_file"):
        OpenAIJudge(config, environ={})
    (tmp_path / "none").write_bytes(b"\xff\xfe")
    with pytest.raises(DittoError, match="judge.api_key_file"):
        OpenAIJudge(config, environ={})
