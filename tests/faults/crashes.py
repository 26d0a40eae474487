"""Runs that are killed: started cheaply, ended at the n-th change of their directory or from outside, and continued.

In: the configuration of a run beside a judge on loopback. Out: how its process ended, what it was doing then, and what
the judge was paid for. Linux with a C compiler: the changes are counted by `crash_points.c`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from ditto_jax.config import RunConfig
from ditto_jax.config_io import to_yaml
from ditto_jax.judge.cache import FILE_NAME
from ditto_jax.runs.run_dir import RunDirectory
from tests.judge.server import ScriptedServer

_ROOT = Path(__file__).resolve().parents[2]
_SOURCE = Path(__file__).with_name("crash_points.c")


def can_crash_anywhere() -> bool:
    """Returns whether `crash_points.c` can be built and used here."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def built_crash_points(folder: Path) -> Path:
    """Returns the library, built into `folder`."""
    library = folder / "crash_points.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE)], check=True)
    return library


@dataclasses.dataclass(frozen=True)
class Point:
    """A place at which a run can be killed. side: before or after the call; file: relative to the run directory."""

    side: str
    call: str
    file: str


@dataclasses.dataclass
class Started:
    """A run that is under way: its process, and where its words go."""

    process_id: int
    output: Path


class Worker:
    """A process of `crash_worker`: starts runs one after another. Use it as `with Worker(...) as worker`."""

    def __init__(self, library: Path, environment: Mapping[str, str] | None = None):
        """library: of `built_crash_points`. environment: beside that of this process."""
        known = {**os.environ, "PYTHONPATH": str(_ROOT), "LD_PRELOAD": str(library), **(environment or {})}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.crash_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=known,
            cwd=_ROOT,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, config: RunConfig, fatal: int | None = None, pattern: str = "*") -> Started:
        """Starts the run, or goes on with it. fatal: at the how manieth crash point of this pattern ("before rename
        rollouts/*") it is killed; 0 records the points alone, None not even these.
        """
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        settings, output, log = (folder / name for name in ("run.yaml", "output.txt", "points.txt"))
        settings.write_text(to_yaml(config), encoding="utf-8")
        log.unlink(missing_ok=True)
        armed = None if fatal is None else [str((folder / config.run_name).resolve()), str(log), pattern, fatal]
        job = {"words": ["train", "--config", str(settings)], "output": str(output), "arm": armed}
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return Started(int(self._answer()), output)

    def ended(self) -> int:
        """Returns how the run that was started has ended, when it has: its exit code, or minus the signal's number."""
        return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that starts runs has ended"
        return line


def points_passed(config: RunConfig) -> list[Point]:
    """Returns the crash points that the last start of a run came to, the fatal one last."""
    lines = (Path(config.output_dir) / "points.txt").read_text(encoding="utf-8").splitlines()
    return [Point(*line.split(" ", 2)) for line in lines]


@contextmanager
def bill(server: ScriptedServer, run: RunDirectory) -> Iterator[Counter[str]]:
    """Yields counts that are filled in at the end of the block, during which `run` has one process.

    paid: requests that arrived; probes are none. kept: replies that are in the cache and were not.
    """
    counts: Counter[str] = Counter()
    before, kept = len(server.received), replies_kept(run)
    yield counts
    arrived = -1
    while arrived < len(server.received):  # what a killed process had sent is still being read
        arrived = len(server.received)
        time.sleep(0.1)
    counts["paid"] = sum("Reply with one word" not in request.raw for request in server.received[before:])
    counts["kept"] = replies_kept(run) - kept


def replies_kept(run: RunDirectory) -> int:
    """Returns how many replies the cache of a run holds; 0 if there is none yet.

    Looks at a copy: opening the file itself would repair it before the run does.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file in run.path.glob(f"{FILE_NAME}*"):
            shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / FILE_NAME)) as connection:
            try:
                return connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0]
            except sqlite3.OperationalError:  # killed before the table was made
                return 0
