"""A run that is killed as it changes its directory, four times over, ends like a straight one, and nothing that was
kept is paid for again.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from ditto_jax.runs.run_dir import RunDirectory
from tests.faults.crashes import Worker, bill, built_crash_points, can_crash_anywhere, points_passed
from tests.faults.runs import assert_learned_alike, graded_run
from tests.graded_task import grades
from tests.judge.server import serving
from tests.tiny_run import status

_DRAWN = random.Random(5)
# One after another in the life of one run, which goes on from where the one before it fell: pattern and number.
CRASHES = [
    ("*", _DRAWN.randrange(30, 200)),  # while the first step is set up, sampled and judged
    ("before fsync checkpoints/1.*", _DRAWN.randrange(2, 14)),  # in the midst of the arrays
    ("before rename checkpoints/2", 1),  # complete but for its name
    ("after write report/*", 1),
]


@pytest.mark.skipif(not can_crash_anywhere(), reason="needs Linux and a C compiler (cc)")
def test_a_run_killed_wherever_it_writes_ends_like_the_straight_one_and_pays_for_no_kept_reply_again(
    policy_folder: Path, tmp_path: Path, straight: RunDirectory
):
    at_once = 4
    run = RunDirectory(tmp_path / "tiny")
    lost = paid = 0
    with serving(grades) as server, Worker(built_crash_points(tmp_path)) as worker:
        # At a temperature every call has a key of its own, so that replies can be counted.
        settings = {"temperature": 1.0, "max_concurrent": at_once, "input_price": 1.0, "output_price": 1.0}
        config = graded_run(policy_folder, tmp_path, server.base_url, **settings)
        for pattern, number in CRASHES:
            with bill(server, run) as counts:
                output = worker.start(config, number, pattern).output
                assert worker.ended() == -signal.SIGKILL, (pattern, output.read_text())
            lost += counts["paid"] - counts["kept"]
            paid += counts["paid"]
            assert 0 <= counts["paid"] - counts["kept"] <= at_once, (pattern, points_passed(config)[-1])
        with bill(server, run) as counts:
            output = worker.start(config).output
            assert worker.ended() == 0, output.read_text()
    assert counts["paid"] == counts["kept"]
    rows = [row for step in run.rollout_steps() for row in run.read_rollouts(step)]
    assert paid + counts["paid"] == lost + len(rows) + sum(bool(row["feedback"]) for row in rows)
    assert status(run)["state"] == "finished" and run.report.is_file()
    assert_learned_alike(run, straight)
