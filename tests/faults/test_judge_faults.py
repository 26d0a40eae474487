"""A judge that fails in every way: outcomes are counted exactly, no failure is learned from, and a run goes on or stops
with its state saved.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.types import Outcome
from tests.faults.drips import drips
from tests.faults.runs import assert_learned_alike, graded_run
from tests.graded_task import WORDS, graded_task, grades
from tests.judge.quiz import make_openai_judge
from tests.judge.server import (
    Behaviour,
    ScriptedServer,
    completion,
    drops_mid_body,
    fails,
    resets,
    responds,
    says,
    serving,
    waits,
)
from tests.runs.test_loop_http import judged_by, judged_run
from tests.tiny_run import contents, status, train_quietly

POISON = "OUTAGE-7731"
SLOW: dict[str, tuple[Behaviour, Outcome]] = {
    "slow loris": (drips, Outcome.TIMED_OUT),
    "never answers": (waits(60.0, fails(500, POISON)), Outcome.TIMED_OUT),
}
FAULTS: dict[str, tuple[Behaviour, Outcome]] = {
    **SLOW,
    "server error": (fails(500, POISON), Outcome.UNAVAILABLE),
    "too many requests": (fails(429, POISON, Retry_After="3600"), Outcome.UNAVAILABLE),
    "wrong model": (fails(404, f"the model {POISON} does not exist", "model_not_found"), Outcome.UNAVAILABLE),
    "wrong key": (fails(401, POISON), Outcome.UNAVAILABLE),
    "redirect": (responds(302, POISON.encode(), Location="http://127.0.0.1:9/v1"), Outcome.UNAVAILABLE),
    "reset": (resets, Outcome.UNAVAILABLE),
    "truncated stream": (drops_mid_body, Outcome.UNAVAILABLE),
    "wrong schema": (says(json.dumps({"advice": POISON})), Outcome.UNPARSABLE),
    "out of range": (says(json.dumps({"grade": 11, "feedback": ""})), Outcome.UNPARSABLE),
    "no JSON": (says(POISON), Outcome.UNPARSABLE),
    "a web page": (responds(200, f"<html>{POISON}</html>".encode()), Outcome.UNPARSABLE),
    "wrong encoding": (responds(200, completion(POISON), Content_Encoding="gzip"), Outcome.UNPARSABLE),
    "cut off": (says(json.dumps({"feedback": POISON})[:-1], finish_reason="length"), Outcome.UNPARSABLE),
    "refusal": (says(None, refusal=POISON), Outcome.REFUSED),
    "filter": (says(json.dumps({"feedback": POISON}), finish_reason="content_filter"), Outcome.REFUSED),
}


class Faulty:
    """Grades, except that three of ten requests, drawn by their text, meet the next fault in turn. met: by area."""

    def __init__(self):
        self.met: dict[str, Counter[Outcome]] = {"score": Counter(), "feedback": Counter()}
        self.kinds: list[str] = []
        self._asked = 0
        self._lock = threading.Lock()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        request = handler.received.json  # type: ignore[attr-defined]
        text = json.dumps(request["messages"])
        with self._lock:
            self._asked += 1
            behaviour = grades
            if self._asked > 1 and hashlib.sha256(text.encode()).digest()[1] % 10 < 3:  # the first is the probe
                # The slow ones once, the others in turn: waiting is not what is tried here.
                turn = len(self.kinds)
                names = list(FAULTS) if turn < len(FAULTS) else [name for name in FAULTS if name not in SLOW]
                name = names[turn % len(names)]
                behaviour, outcome = FAULTS[name]
                self.kinds.append(name)
                self.met["score" if "grade" in json.dumps(request["response_format"]) else "feedback"][outcome] += 1
        behaviour(handler)


@pytest.fixture(scope="module")
def faulty(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunDirectory, Faulty]]:
    behaviour = Faulty()
    with serving(behaviour) as server:
        judge = judged_by(server.base_url, timeout_s=5.0, max_concurrent=16)
        folder = tmp_path_factory.mktemp("faulty")
        yield train_quietly(judged_run(policy_folder, folder, judge, steps=4, tasks=(graded_task(),))), behaviour


def rows_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [row for step in contents(run).values() for row in step]


def test_three_of_ten_calls_fail_in_every_way_and_are_counted_exactly(faulty: tuple[RunDirectory, Faulty]):
    run, behaviour = faulty
    assert status(run)["state"] == "finished"
    assert set(behaviour.kinds) == set(FAULTS)
    rows = rows_of(run)
    seen = {
        "score": Counter(row["outcome"] for row in rows),
        "feedback": Counter(row["feedback"]["outcome"] for row in rows if row["feedback"]),
    }
    for area, outcomes in behaviour.met.items():
        for outcome in Outcome:
            counted = sum(metrics[f"judge/{area}_{outcome}_count"] for metrics in run.read_metrics())
            assert counted == seen[area][outcome] == run.read_metrics()[-1][f"judge/{area}/{outcome}"]
            assert outcome is Outcome.OK or counted == outcomes[outcome], (area, outcome)


def test_no_failure_is_in_any_pool_or_prompt(faulty: tuple[RunDirectory, Faulty]):
    run, _ = faulty
    rows = rows_of(run)
    failed = [row for row in rows if row["outcome"] != "ok"]
    assert failed and any(row["feedback"] and row["feedback"]["outcome"] != "ok" for row in rows)
    for row in failed:
        assert row["score"] is None and row["advantage"] == {} and row["feedback"] is None
    refined = {(row["step"], row["prompt_index"], row["sample"]) for row in rows if row["role"] == "refined"}
    for row in rows:
        words = row["feedback"]
        place = (row["step"], row["prompt_index"], row["sample"])
        assert row["role"] == "refined" or (place in refined) == bool(words and words["outcome"] == "ok")
        assert row["used_feedback"] in (None, WORDS)
        assert POISON not in json.dumps([row["prompt"], row["critique"], row["dimensions"]])
        assert not words or words["outcome"] == "ok" or words["text"] is None


class Down:
    """Grades, but for some seconds from a request on, in which every connection is reset."""

    def __init__(self, after: int, seconds: float):
        self._left, self._seconds = after, seconds
        self._until: float | None = None
        self._lock = threading.Lock()
        self.lost = 0

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._left -= 1
            if self._left < 0 and self._until is None:
                self._until = time.monotonic() + self._seconds
            is_down = self._until is not None and time.monotonic() < self._until
            self.lost += is_down
        (resets if is_down else grades)(handler)


def test_an_outage_is_waited_for_and_costs_no_call(policy_folder: Path, tmp_path: Path, straight: RunDirectory):
    behaviour = Down(after=12, seconds=1.5)
    with serving(behaviour) as server:
        run = train_quietly(
            graded_run(policy_folder, tmp_path, server.base_url, max_retries=8, outage_after=2, max_outage_s=60.0)
        )
    assert behaviour.lost >= 2
    assert_learned_alike(run, straight)


def test_a_judge_that_is_busy_without_end_stops_the_run_with_its_state_saved(
    policy_folder: Path, tmp_path: Path, straight: RunDirectory
):
    first = straight.read_rollouts(1)
    asked = 1 + len(first) + sum(bool(row["feedback"]) for row in first)
    with serving(*[grades] * asked, fails(429, POISON, Retry_After="0")) as server:
        with pytest.raises(JudgeUnavailableError, match=r"verdicts of step 2 failed \(unavailable") as caught:
            # Without the cache equal replies are asked about again, so that requests can be counted from rollouts.
            train_quietly(graded_run(policy_folder, tmp_path, server.base_url, max_retries=2, cache="off"))
        refused = len(server.received) - asked
    run = RunDirectory(tmp_path / "tiny")
    assert caught.value.exit_code == status(run)["exit_code"] == 1
    drafts = 8  # of a step: each was asked about three times, and none of them in words
    assert refused == 3 * drafts
    assert [folder.name for folder in run.checkpoints.iterdir()] == ["1"] and run.rollout_steps() == [1]
    with serving(grades) as server:
        assert_learned_alike(train_quietly(graded_run(policy_folder, tmp_path, server.base_url)), straight)


@pytest.mark.parametrize("port", ["speaks plain HTTP", "closes the connection"])
def test_an_endpoint_that_refuses_tls_is_told_before_anything_is_written(port: str):
    behaviour = grades if port == "speaks plain HTTP" else resets
    with serving(behaviour) as server:
        judge = make_openai_judge(server.base_url.replace("http:", "https:"), max_retries=2)
        with pytest.raises(JudgeUnavailableError, match=r"unavailable after 3 attempt\(s\): connection failed"):
            asyncio.run(judge.check())
        assert server.received == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make a certificate")
def test_an_endpoint_whose_certificate_nobody_vouches_for_is_sent_nothing(tmp_path: Path):
    file = str(tmp_path / "own.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", file, "-out", f"{file}.crt"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *names], check=True, capture_output=True)
    with open(file, "a") as key_and_certificate:
        key_and_certificate.write(Path(f"{file}.crt").read_text())
    server = ScriptedServer([grades])
    server.speak_tls(Path(file))
    with server.running():
        judge = make_openai_judge(server.base_url.replace("http:", "https:"), max_retries=0)
        with pytest.raises(JudgeUnavailableError, match=r"unavailable after 1 attempt\(s\): connection failed"):
            asyncio.run(judge.check())
    assert server.received == []


def test_a_server_that_asks_for_a_wait_by_the_date_cannot_hold_a_run_when_a_clock_jumps():
    tomorrow = "Sun, 22 Nov 2026 12:00:00 GMT"
    with serving(fails(429, POISON, Retry_After=tomorrow), grades) as server:
        judge = make_openai_judge(server.base_url, sleep=asyncio.sleep, now=0.0, timeout_s=0.5)
        with pytest.raises(JudgeUnavailableError, match=r"timed_out after 1 attempt\(s\)"):
            asyncio.run(judge.check())
        assert len(server.received) == 1
