"""Faults of the run directory and of the clock: one clear message, older state intact, and the same command goes on."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.errors import RunDirectoryError
from ditto_jax.judge.cache import FILE_NAME, KeptReply, ReplyCache
from ditto_jax.judge.meter import Journal
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.runs.run_owner import require_free, sole_owner
from tests.faults.runs import assert_learned_alike, graded_run
from tests.graded_task import grades
from tests.judge.server import serving
from tests.tiny_run import files_of, status, train_quietly

HOLD = "import sys, time\nfrom pathlib import Path\nfrom ditto_jax.runs.run_owner import sole_owner\n" + (
    "with sole_owner(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
)


@contextmanager
def another_process_in(folder: Path) -> Iterator[int]:
    """A process that holds the run directory until it is killed; yields its number."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process.pid
        finally:
            process.kill()


def test_the_second_of_two_processes_is_refused_and_a_killed_one_leaves_no_lock(
    policy_folder: Path,
    tmp_path: Path,
    straight: RunDirectory,
):
    with serving(grades) as server:
        config = graded_run(policy_folder, tmp_path, server.base_url)
        shutil.copytree(straight.path, tmp_path / "tiny")
        shutil.rmtree(tmp_path / "tiny" / "checkpoints" / "2")
        with another_process_in(tmp_path / "tiny") as pid:
            before = files_of(tmp_path)
            with pytest.raises(RunDirectoryError, match=rf"tiny is being written by process {pid} on .*; wait for it"):
                train_quietly(config)
            assert files_of(tmp_path) == before
        require_free(tmp_path / "tiny")


def test_who_comes_second_after_the_check_is_refused_as_well_and_the_first_may_come_again(tmp_path: Path):
    with sole_owner(tmp_path):
        with pytest.raises(RunDirectoryError, match=f"process {os.getpid()}"):
            require_free(tmp_path)
        with pytest.raises(RunDirectoryError, match="another --run_name"), sole_owner(tmp_path):
            pass
    require_free(tmp_path)
    require_free(tmp_path / "absent")
    with sole_owner(tmp_path):
        pass
    assert not (tmp_path / "absent").exists()


@contextmanager
def sick_disk(patch: pytest.MonkeyPatch, folder: Path, code: int) -> Iterator[None]:
    """Until the end of the block, nothing below `folder` can be opened for writing, made or renamed."""
    real_open, real_mkdir, real_replace = builtins.open, os.mkdir, os.replace

    def inside(path: Any) -> bool:
        return isinstance(path, str | Path) and Path(path).is_relative_to(folder)

    def fails(path: Any) -> OSError:
        return OSError(code, os.strerror(code), str(path))

    def sick_open(path: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if inside(path) and set(mode) & set("wax+"):
            raise fails(path)
        return real_open(path, mode, *arguments, **keywords)

    def sick_mkdir(path: Any, *arguments: Any, **keywords: Any) -> None:
        if inside(path) and not Path(path).exists():
            raise fails(path)
        real_mkdir(path, *arguments, **keywords)

    def sick_replace(source: Any, target: Any, **keywords: Any) -> None:
        if inside(target):
            raise fails(target)
        real_replace(source, target, **keywords)

    with patch.context() as sick:
        sick.setattr(builtins, "open", sick_open)
        sick.setattr(os, "mkdir", sick_mkdir)
        sick.setattr(os, "replace", sick_replace)
        yield


@pytest.mark.parametrize("is_new", [True, False])
def test_a_read_only_directory_is_told_before_a_step_is_taken(
    policy_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    straight: RunDirectory,
    is_new: bool,
):
    if not is_new:
        shutil.copytree(straight.path, tmp_path / "tiny")
        shutil.rmtree(tmp_path / "tiny" / "checkpoints" / "2")
    before = files_of(tmp_path)
    with serving(grades) as server, sick_disk(monkeypatch, tmp_path, errno.EROFS):
        with pytest.raises(RunDirectoryError, match=r"cannot write .*tiny: Read-only file system") as caught:
            train_quietly(graded_run(policy_folder, tmp_path, server.base_url))
        assert len(server.received) == 1  # the probe, and no question that would have been paid for in vain
    assert caught.value.exit_code == 2
    assert files_of(tmp_path) == before


def test_a_disk_that_fills_while_money_is_counted_ends_the_run_with_its_state_saved(
    policy_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    straight: RunDirectory,
):
    prices = {"input_price": 1.0, "output_price": 1.0}
    append, appended = Journal.append, []

    def fills(self: Journal, where: str, cost: float) -> None:
        appended.append(cost)
        if len(appended) != first + 3:
            return append(self, where, cost)
        with sick_disk(monkeypatch, tmp_path, errno.ENOSPC):
            return append(self, where, cost)

    with serving(grades) as server:
        first = _paid_in_first_step(straight)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", fills)
            with pytest.raises(RunDirectoryError, match=r"spending\.jsonl: No space left on device.*free space"):
                train_quietly(graded_run(policy_folder, tmp_path, server.base_url, **prices))
        run = RunDirectory(tmp_path / "tiny")
        assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 2)
        assert_learned_alike(train_quietly(graded_run(policy_folder, tmp_path, server.base_url, **prices)), straight)


def test_a_cache_that_has_no_room_is_told_about_once_and_answers_are_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cache = ReplyCache(tmp_path / FILE_NAME)
    reply = KeptReply("x" * 200_000, 1, 1, 1)
    cache.put("first", "m", "1", reply)
    with closing(sqlite3.connect(cache.path)) as other:
        pages = other.execute("PRAGMA page_count").fetchone()[0]
    assert cache._connection is not None
    cache._connection.execute(f"PRAGMA max_page_count={pages}")
    for number in range(3):
        cache.put(str(number), "m", "1", reply)
    assert caplog.text.count("replies are no longer kept") == 1 and "full" in caplog.text
    assert cache.get("first") is None  # not asked any more
    cache.close()
    with closing(ReplyCache(cache.path)) as again:
        assert again.get("first") == reply


def test_a_cache_that_is_deleted_costs_money_and_nothing_else(
    policy_folder: Path,
    tmp_path: Path,
    straight: RunDirectory,
):
    folder = tmp_path / "tiny"
    asked = []

    def deletes(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler)
        if len(asked) == 12:
            for file in folder.glob(f"{FILE_NAME}*"):
                file.unlink()
        grades(handler)

    with serving(deletes) as server:
        config = graded_run(policy_folder, tmp_path, server.base_url)
        assert_learned_alike(train_quietly(config), straight)
        before = len(asked)
        for file in folder.glob(f"{FILE_NAME}*"):
            file.unlink()
        shutil.rmtree(folder / "checkpoints" / "2")
        assert_learned_alike(train_quietly(config), straight)
    assert len(asked) > before + 1


def test_a_clock_that_jumps_changes_nothing_that_is_learned(
    policy_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    straight: RunDirectory,
):
    true_time, calls = time.time, []

    def jumps() -> float:
        calls.append(1)
        return true_time() + (-86_400.0, 0.0, 86_400.0)[len(calls) % 3]

    with serving(grades) as server, monkeypatch.context() as patch:
        patch.setattr(time, "time", jumps)
        run = train_quietly(graded_run(policy_folder, tmp_path, server.base_url))
    assert len(calls) > 10
    assert_learned_alike(run, straight)


def _paid_in_first_step(run: RunDirectory) -> int:
    rows = run.read_rollouts(1)
    return len(rows) + sum(bool(row["feedback"]) for row in rows)
