"""A run beside a paid judge: no verdict is bought twice, money ends it with its state saved, and its key is nowhere."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import re
import shutil
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ditto_jax.errors import BudgetSpentError
from ditto_jax.runs.run_dir import RunDirectory
from tests.judge.server import fails, gives_feedback, serving
from tests.runs.test_loop_http import PROBE, WORDS, judged_by, judged_run
from tests.tiny_run import contents, files_of, learned, saved_arrays, status, train_quietly

KEY = "sk-planted-and-searched-for-0042"
# Seven tokens a reply and nothing for the prompt: the most that a request can cost is what it costs.
PRICES = {"input_price": 0.0, "output_price": 1.0, "max_tokens": 7}
ONE = 7e-6


def test_no_reply_is_bought_twice_and_a_run_out_of_money_goes_on_with_more(policy_folder: Path, tmp_path: Path):
    with serving(PROBE, gives_feedback(WORDS)) as server:

        def run_in(folder: str, **judge) -> RunDirectory:
            settings = judged_by(server.base_url, **PRICES, **judge)
            return train_quietly(judged_run(policy_folder, tmp_path / folder, settings, steps=3, save_steps=50))

        straight = run_in("a")
        bought = [
            json.loads(line)["cost"] for line in (straight.path / "spending.jsonl").read_text().split("\n") if line
        ]
        assert bought == [pytest.approx(ONE)] * (len(server.received) - 1)  # the probe came before the run
        asked_first = sum(bool(row["feedback"]) for row in straight.read_rollouts(1))

        # A probe, all of the first step, and one reply of the second.
        with pytest.raises(BudgetSpentError, match=r"larger judge.max_cost") as caught:
            run_in("b", max_cost=(asked_first + 2.5) * ONE)
        run = RunDirectory(tmp_path / "b" / "tiny")
        assert caught.value.exit_code == status(run)["exit_code"] == 5
        assert [p.name for p in run.checkpoints.iterdir()] == ["1"]
        resumed = run_in("b", max_cost=1.0)
        assert learned(resumed) == learned(straight) and contents(resumed) == contents(straight)
        for mine, theirs in zip(saved_arrays(resumed), saved_arrays(straight), strict=True):
            assert (mine == theirs).all()

        # As after a crash before the first checkpoint: everything is done again, and only the probe is sent.
        sent = len(server.received)
        shutil.rmtree(straight.path / "checkpoints")
        before = learned(straight), contents(straight)
        again = run_in("a")
        assert len(server.received) == sent + 1
        assert (learned(again), contents(again)) == before
        assert again.read_metrics()[-1]["judge/cache_hits"] > 0


def _command_lines() -> bytes:
    if not sys.platform.startswith("linux"):
        return b""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(process.read_bytes())
        except OSError:  # it has ended
            continue
    return b"\n".join(lines)


def _compressed_in(page: bytes) -> bytes:
    """Everything that a report holds as compressed text."""
    return b"\n".join(gzip.decompress(base64.b64decode(text)) for text in re.findall(rb"H4sI[A-Za-z0-9+/]+=*", page))


@pytest.mark.parametrize("source", ["variable", "command"])
def test_a_planted_key_is_in_no_artefact_log_or_process_list(
    policy_folder: Path, tmp_path: Path, monkeypatch, caplog, capfd, source: str
):
    caplog.set_level(logging.DEBUG)
    seen = []

    def watched(handler: BaseHTTPRequestHandler) -> None:
        seen.append((handler.headers["Authorization"], _command_lines()))
        # A server may say the key in an error and in an answer.
        answer = fails(400, f"bad key {KEY}") if len(seen) % 3 == 2 else gives_feedback(f"{WORDS} {KEY}")
        answer(handler)

    file = tmp_path / "secret"
    file.write_text(KEY)
    monkeypatch.setenv("PLANTED_KEY", KEY)
    command = (sys.executable, "-c", f"print(open({str(file)!r}).read())")
    settings = {"api_key_env": "PLANTED_KEY"} if source == "variable" else {"api_key_command": command}
    with serving(watched) as server:
        config = judged_run(policy_folder, tmp_path / "runs", judged_by(server.base_url, **settings), steps=2)
        run = train_quietly(config)
    assert len(seen) > 3 and all(header == f"Bearer {KEY}" for header, _ in seen)
    assert all(KEY.encode() not in lines for _, lines in seen)
    files = files_of(run.path)
    assert {"config.yaml", "judge_cache.sqlite", "metrics.jsonl", "report/index.html"} <= set(files)
    assert not [name for name, content in files.items() if KEY.encode() in content]
    rollouts = json.dumps(contents(run))  # these files are compressed
    assert KEY not in rollouts and "[key]" in rollouts
    shown = _compressed_in(files["report/index.html"])
    assert KEY.encode() not in shown and b"[key]" in shown
    out = capfd.readouterr()
    assert KEY not in caplog.text + out.out + out.err
