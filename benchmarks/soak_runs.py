"""Short runs beside a judge on loopback that are killed, or whose judge is away, and what became of them.

In: the number of a try. Out: whether the run that was continued equals a straight one bit for bit, and whether the
judge was paid for a reply that was kept. Kills are SIGKILL: at a crash point (tests/faults/crash_points.c), or after a
random time. Nothing is said of power cuts, after which a disk may hold less than was written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditto_jax.config import RunConfig
from ditto_jax.runs.run_dir import RunDirectory
from tests.faults.crashes import Point, Worker, bill, points_passed
from tests.faults.runs import assert_learned_alike, graded_run
from tests.faults.test_judge_faults import Down
from tests.graded_task import grades
from tests.judge.server import serving
from tests.tiny_run import status

_AT_ONCE = 4
Outcome = dict[str, Any]
Kill = Callable[[RunConfig], int]  # starts the run and returns how its process ended

_COMPARING = threading.Lock()


class Lane:
    """One run at a time, in a folder of its own. Use it as `with Lane(...) as lane`."""

    def __init__(self, folder: Path, policy: Path, library: Path):
        self._folder = folder
        self._policy = policy
        self._worker = Worker(library, {"JAX_NUM_CPU_DEVICES": "1"})

    def __enter__(self) -> Lane:
        self._worker.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.__exit__()

    def straight(self) -> tuple[RunDirectory, list[Point], float]:
        """Returns a run that nothing disturbs, the crash points it passed, and the seconds of its process."""
        with serving(grades) as server:
            config = self._config(self._folder, server.base_url)
            self._finish(config)
            shutil.rmtree(self._folder / "tiny")
            began = time.monotonic()
            self._finish(config, fatal=0)
        return RunDirectory(self._folder / "tiny"), points_passed(config), time.monotonic() - began

    def killed_at(self, number: int, straight: RunDirectory) -> Outcome:
        """Returns what became of a run that was killed at its n-th crash point and continued. Raises AssertionError if
        it is not what it should be.
        """

        def kill(config: RunConfig) -> int:
            self._worker.start(config, number)
            code = self._worker.ended()
            last.extend(points_passed(config)[-1:])
            return code

        last: list[Point] = []
        outcome = self._killed([kill], straight)
        return {**outcome, "point": dataclasses.asdict(last[0]) if outcome["kills"] else None}

    def killed_sometime(self, rng: random.Random, kills: int, whole_s: float, straight: RunDirectory) -> Outcome:
        """The same for a run that is killed several times, each after a random part of the time of a whole run."""

        def kill(config: RunConfig) -> int:
            over = threading.Timer(rng.uniform(0.0, 0.9 * whole_s), _kill, [self._worker.start(config).process_id])
            over.start()
            code = self._worker.ended()
            over.cancel()
            over.join()
            return code

        return self._killed([kill] * kills, straight)

    def judge_away(self, seconds: float, straight: RunDirectory) -> Outcome:
        """The same for a run whose judge resets every connection for so long, from its twelfth request on."""
        shutil.rmtree(self._folder, ignore_errors=True)
        behaviour = Down(after=12, seconds=seconds)
        with serving(behaviour) as server:
            patience = {"max_retries": 20, "outage_after": 2, "max_outage_s": 10 * seconds + 60}
            config = self._config(self._folder, server.base_url, **patience)
            self._finish(config)
        assert behaviour.lost >= 2
        with _COMPARING:
            assert_learned_alike(RunDirectory(self._folder / "tiny"), straight)
        return {"refused": behaviour.lost}

    def _killed(self, kills: list[Kill], straight: RunDirectory) -> Outcome:
        shutil.rmtree(self._folder, ignore_errors=True)
        run, total, deaths = RunDirectory(self._folder / "tiny"), Counter[str](), 0
        with serving(grades) as server:
            config = self._config(self._folder, server.base_url)
            for kill in kills:
                with bill(server, run) as counts:
                    code = kill(config)
                assert code in (0, -signal.SIGKILL), f"exit code {code}: {self._words()}"
                deaths += code == -signal.SIGKILL
                lost = counts["paid"] - counts["kept"]
                assert 0 <= lost <= _AT_ONCE * (code != 0), f"{lost} replies were paid for and not kept"
                total += counts
            with bill(server, run) as counts:
                self._finish(config)
            assert counts["paid"] == counts["kept"]
            total += counts
        rows = [row for step in run.rollout_steps() for row in run.read_rollouts(step)]
        assert total["kept"] == len(rows) + sum(bool(row["feedback"]) for row in rows), "a reply was bought twice"
        assert status(run)["state"] == "finished" and run.report.is_file()
        with _COMPARING:
            assert_learned_alike(run, straight)
        return {"kills": deaths, "paid": total["paid"], "in_flight": total["paid"] - total["kept"]}

    def _config(self, folder: Path, base_url: str, **judge: Any) -> RunConfig:
        # At a temperature every call has a key of its own in the cache, so that replies can be counted.
        settings = {"temperature": 1.0, "max_concurrent": _AT_ONCE, "input_price": 1.0, "output_price": 1.0, **judge}
        return graded_run(self._policy, folder, base_url, **settings)

    def _finish(self, config: RunConfig, fatal: int | None = None) -> None:
        self._worker.start(config, fatal)
        code = self._worker.ended()
        assert code == 0, f"exit code {code}: {self._words()}"

    def _words(self) -> str:
        return (self._folder / "output.txt").read_text(errors="replace")[-2000:]


def _kill(process_id: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(process_id, signal.SIGKILL)
