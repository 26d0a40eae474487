"""Replies that were bought are used again, for the same sample of the same request only, and by several processes."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.config_io import to_yaml
from ditto_jax.errors import ConfigError, JudgeUnavailableError, MissingInputError, RunDirectoryError
from ditto_jax.judge.cache import CallName, KeptReply, ReplyCache, cache_key, merge, prune, stats
from ditto_jax.judge.config import JudgeConfig, PartnerConfig
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.openai import OpenAIJudge
from ditto_jax.rollouts.partners import RoleBook
from ditto_jax.strict import build
from ditto_jax.types import Message, Outcome
from launch.cli import main
from tests.judge.quiz import DRAFT, EXAMPLE, KEY, KEY_ENV, QUIZ, ask, call_key, make_openai_judge, openai_config
from tests.judge.server import fails, gives_feedback, says, serving

REPLY = KeptReply('{"feedback": "why?"}', 11, 7, 1)
NAME = CallName(call_key(), "quiz-words-3")
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}], "temperature": 0.0}


def test_a_second_judge_on_the_same_file_asks_nobody_and_counts_the_same(tmp_path: Path):
    path = str(tmp_path / "replies.sqlite")
    with serving(says("no"), gives_feedback()) as server:
        first, second = (make_openai_judge(server.base_url, cache_path=path) for _ in range(2))
        said = ask(first), ask(second)
        assert len(server.received) == 2  # the unparsable reply, and the good one
    assert said[0] == said[1] and said[0][0].usable
    assert (first.counters()["cache_hits"], second.counters()["cache_hits"]) == (0, 1)
    for name in ("calls", "retries", "tokens_in", "tokens_out", "feedback/ok"):
        assert first.counters()[name] == second.counters()[name]
    assert second.counters()["latency_s"] == 0


def test_samples_of_a_group_have_replies_of_their_own(tmp_path: Path):
    with serving(gives_feedback()) as server:
        judge = make_openai_judge(server.base_url, cache_path=str(tmp_path / "c"))
        ask(judge, times=3)
        ask(judge, times=3)
        assert len(server.received) == 3
    assert judge.counters()["cache_hits"] == 3


@pytest.mark.parametrize("fault", [fails(400), says("no JSON"), says(None, refusal="no"), fails(503)])
def test_no_failure_is_kept(tmp_path: Path, fault):
    with serving(fault, gives_feedback()) as server:
        judge = make_openai_judge(server.base_url, cache_path=str(tmp_path / "c"), max_retries=0, unparsable_retries=0)
        assert [ask(judge)[0].usable for _ in range(3)] == [False, True, True]
        assert len(server.received) == 2


def test_a_replay_needs_no_key_and_no_server_and_ends_at_what_is_missing(tmp_path: Path):
    path = str(tmp_path / "c")
    with serving(gives_feedback()) as server:
        bought = ask(make_openai_judge(server.base_url, cache_path=path))
    config = openai_config(server.base_url, cache_path=path, cache="replay")
    replay = OpenAIJudge(config, environ={})
    asyncio.run(replay.check())
    assert ask(replay) == bought
    with pytest.raises(JudgeUnavailableError, match=r"judge.cache=replay.*sample 1.*read-write"):
        ask(replay, times=2)
    with pytest.raises(ConfigError, match="judge.cache_path"):
        OpenAIJudge(dataclasses.replace(config, cache_path=None), environ={})


def test_a_partner_is_replayed_and_a_sampled_reply_is_drawn_anew_at_a_later_step(tmp_path: Path):
    async def say(book: RoleBook, step: int) -> str:
        try:
            port = book.port("assistant", QUIZ, EXAMPLE, call_key(step=step))
            return (await port.reply((Message("user", "Hello?"),))).text
        finally:
            await book.aclose()

    for temperature, requests in ((0.0, 1), (1.0, 2)):
        with serving(says("Yes.")) as server:
            config = PartnerConfig(
                kind="openai",
                model="m",
                base_url=server.base_url,
                temperature=temperature,
                cache_path=str(tmp_path / f"c{temperature}"),
            )
            book = RoleBook(config)
            assert [asyncio.run(say(book, step)) for step in (1, 2, 1, 2)] == ["Yes."] * 4
            assert len(server.received) == requests
        assert book.counters()["cache_hits"] == 4 - requests


def test_the_key_tells_everything_apart_that_may_change_a_reply():
    keys = [cache_key("http://a/v1", BODY, NAME), cache_key("http://b/v1", BODY, NAME)]
    keys += [
        cache_key("http://a/v1", {**BODY, **change}, NAME)
        for change in (
            {"model": "n"},
            {"messages": []},
            {"max_tokens": 5},
            {"temperature": 0.1},
            {"response_format": {}},
        )
    ]
    names = [CallName(call_key(1), NAME.prompt_version), CallName(call_key(), "quiz-words-4")]
    keys += [cache_key("http://a/v1", BODY, name) for name in names]
    assert len(set(keys)) == len(keys)
    later = CallName(call_key(step=3, prompt_id="other"), NAME.prompt_version)
    assert cache_key("http://a/v1", BODY, later) == keys[0]  # at temperature 0 a step draws nothing anew
    sampled = {**BODY, "temperature": 1.0}
    assert cache_key("u", sampled, later) != cache_key("u", sampled, NAME)


@given(st.text())
def test_any_text_comes_back_as_it_was_or_not_at_all(tmp_path_factory, text: str):
    cache = ReplyCache(tmp_path_factory.getbasetemp() / "texts.sqlite")
    reply = dataclasses.replace(REPLY, text=text)
    cache.put(text.encode(errors="replace").hex(), "m", "v", reply)
    found = cache.get(text.encode(errors="replace").hex())
    cache.close()
    assert found is None or found == reply
    assert found is not None or not text.isprintable()


def test_processes_share_a_file_without_losing_a_reply(tmp_path: Path):
    path = tmp_path / "shared.sqlite"
    program = (
        "import sys; from pathlib import Path; from ditto_jax.judge.cache import *\n"
        "cache = ReplyCache(Path(sys.argv[1]))\n"
        "for n in range(100): cache.put(f'{sys.argv[2]}-{n}', 'm', 'v', KeptReply('x', 1, 2, 1))\n"
        "for n in range(100): cache.put(f'both-{n}', 'm', 'v', KeptReply('x', 1, 2, 1))\n"
        "cache.close()"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in ("a", "b", "c")]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert stats(path).rows == {("m", "v"): (400, 400, 800)}


def test_a_file_that_another_process_holds_for_a_moment_is_opened_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "c"
    monkeypatch.setattr("ditto_jax.judge.cache._BUSY_S", 0.0)  # SQLite itself does not wait for every kind of lock
    with closing(sqlite3.connect(path, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.3, other.rollback)
        release.start()
        cache = ReplyCache(path)
        cache.put("k", "m", "v", REPLY)
        release.join()
        assert cache.get("k") == REPLY
        cache.close()


def test_a_damaged_file_is_refused_with_its_path_and_left_as_it_is(tmp_path: Path):
    path = tmp_path / "c"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(RunDirectoryError, match="cache to off") as raised:
        ReplyCache(path).get("k")
    assert str(path) in str(raised.value)
    assert path.read_bytes() == b"no database" * 100


def test_a_cache_that_breaks_midway_costs_replies_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "c"
    with serving(gives_feedback()) as server:
        judge = make_openai_judge(server.base_url, cache_path=str(path))
        assert ask(judge)[0].usable
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("DROP TABLE replies")
        assert [feedback.usable for feedback in ask(judge, times=3)] == [True] * 3
    assert caplog.text.count("replies are no longer kept") == 1


def test_a_run_keeps_its_replies_in_its_own_folder_unless_told_otherwise(tmp_path: Path):
    with serving(gives_feedback()) as server:
        for settings, there in (({}, True), ({"cache": "off"}, False)):
            folder = tmp_path / str(there)
            hub = Hub(folder)
            judge = OpenAIJudge(openai_config(server.base_url, **settings), hub=hub, environ={KEY_ENV: KEY})
            ask(judge)
            hub.close()
            assert (folder / "judge_cache.sqlite").exists() == there


def test_off_without_quotes_is_off_in_yaml():
    assert build(JudgeConfig, {"cache": False}).cache == "off"
    assert "cache: 'off'" in to_yaml(JudgeConfig(cache="off"))
    with pytest.raises(ConfigError, match="judge.cache"):
        JudgeConfig(cache="sometimes")  # type: ignore[arg-type]


def _filled(path: Path, *keys: str, model: str = "m") -> Path:
    cache = ReplyCache(path)
    for key in keys:
        cache.put(key, model, "v", REPLY)
    cache.close()
    return path


def test_the_verb_shows_merges_and_prunes(tmp_path: Path, capsys: pytest.CaptureFixture):
    a, b = _filled(tmp_path / "a", "1", "2"), _filled(tmp_path / "b", "2", "3", model="n")
    assert main(["cache", "merge", str(tmp_path / "all"), str(a), str(b)]) == 0
    assert "added: 3 replies" in capsys.readouterr().out
    assert main(["cache", "stats", str(tmp_path / "all")]) == 0
    assert "m v: 2 replies, 22 tokens in, 14 tokens out\nn v: 1 replies" in capsys.readouterr().out
    assert main(["cache", "prune", str(tmp_path / "all"), "--model", "n"]) == 0
    assert main(["cache", "prune", str(tmp_path / "all"), "--older_than_days", "1"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1", "0"]
    assert stats(tmp_path / "all").rows == {("m", "v"): (2, 22, 14)}
    assert main(["cache", "prune", str(a)]) == 2
    assert main(["cache", "stats", str(tmp_path / "none")]) == 3
    assert not (tmp_path / "none").exists()
    assert main(["cache", "empty"]) == 2


def test_merging_or_pruning_changes_no_reply(tmp_path: Path):
    a = _filled(tmp_path / "a", "1")
    changed = ReplyCache(tmp_path / "b")
    changed.put("1", "m", "v", dataclasses.replace(REPLY, text="another"))
    changed.close()
    assert merge(a, [tmp_path / "b"]) == 0
    assert prune(a, older_than_s=1e6) == 0
    cache = ReplyCache(a)
    assert cache.get("1") == REPLY
    cache.close()
    with pytest.raises(MissingInputError):
        merge(tmp_path / "new", [tmp_path / "missing"])
    assert not (tmp_path / "new").exists()


def test_requests_are_not_in_the_file(tmp_path: Path):
    path = tmp_path / "c"
    with serving(gives_feedback(f"never say {KEY}")) as server:
        judge = make_openai_judge(server.base_url, cache_path=str(path))
        [feedback] = ask(judge)
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert feedback.text == "never say [key]"
    for hidden in (KEY, DRAFT.reply, server.base_url):
        assert hidden.encode() not in content
    assert b"[key]" in content
    assert feedback.outcome is Outcome.OK
