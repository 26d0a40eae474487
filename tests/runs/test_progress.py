"""Training progress: few plain lines off a terminal, a live bar on one, colours only where wanted."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from ditto_jax.runs.progress import TrainProgress, plain_line, summary_table
from tests.report_runs import metrics_row, record


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _run(seconds_a_step: float, steps: int = 30, **options) -> list[str]:
    clock, out = Clock(), io.StringIO()
    with TrainProgress(Console(file=out, width=80), clock=clock, **options) as progress:
        for step in range(1, steps + 1):
            clock.now += seconds_a_step
            progress.step(metrics_row(step, steps, True), step, steps)
    return out.getvalue().splitlines()


def test_fast_steps_print_every_logging_steps_and_the_ends():
    lines = _run(0.01, steps=30, logging_steps=10)
    assert [line.split()[1] for line in lines] == ["1/30", "11/30", "21/30", "30/30"]


def test_slow_steps_print_at_least_every_two_seconds():
    assert len(_run(2.5, steps=12, logging_steps=100)) == 12
    assert [line.split()[1] for line in _run(0.7, steps=7, logging_steps=100)] == ["1/7", "4/7", "7/7"]


def test_line_shows_rewards_gap_speed_split_and_times():
    row = {
        "reward": 0.412,
        "feedback/with_feedback_reward": 0.703,
        "tokens_per_s": 1240.4,
        "time/step_s": 0.8,
        "time/draft_s": 0.2,
        "time/refine_s": 0.1,
        "time/update_s": 0.4,
    }
    assert plain_line(row, 7, 40, 32.0, 70.4) == (
        "step  7/40  draft 0.412  with feedback 0.703  gap +0.291  tokens/s 1,240  "
        "0.80 s/step: draft 25% refine 12% update 50% other 12%  0:32 elapsed  1:10 left"
    )


def test_line_leaves_out_what_a_run_does_not_have():
    assert plain_line({"reward": 0.5, "entropy": None}, 3, 9, 3725.0, None) == "step 3/9  draft 0.500  1:02:05 elapsed"


def test_remaining_time_ignores_the_compiling_first_step():
    clock, out = Clock(), io.StringIO()
    with TrainProgress(Console(file=out, width=80), logging_steps=1, clock=clock) as progress:
        for step, seconds in enumerate((30.0, 1.0, 1.0), start=1):
            clock.now += seconds
            progress.step({}, step, 10)
    first, _, third = out.getvalue().splitlines()
    assert "left" not in first
    assert third.endswith("0:32 elapsed  0:07 left")


def test_plain_output_holds_no_escape_sequence_whatever_is_noted():
    out = io.StringIO()
    with TrainProgress(Console(file=out, width=40)) as progress:
        progress.note("judge said \x1b[2J\x07 [bold red]and[/] \ud800 " + "x" * 100)
        progress.step(metrics_row(1, 2, True), 1, 2)
        progress.summary([record("a", 0, 0.3, 50), record("a", 2, 0.4, 50)])
    assert "\x1b" not in out.getvalue() and "\x07" not in out.getvalue()
    assert "judge said ␛[2J␇ [bold red]and[/] ⟨U+D800⟩ " + "x" * 100 in out.getvalue().splitlines()
    out.getvalue().encode("utf-8")


@pytest.mark.parametrize(("no_color", "has_colour"), [(None, True), ("1", False)])
def test_terminal_gets_a_live_bar_in_colours_unless_told_not_to(monkeypatch, no_color, has_colour):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, force_jupyter=False, width=100, color_system="256")
    with TrainProgress(console) as progress:
        progress.note("evaluating [x]")
        for step in range(1, 5):
            progress.step(metrics_row(step, 4, True), step, 4)
    shown = out.getvalue()
    assert "evaluating [x]" in shown
    assert "step 4/4" in shown and "with feedback" in shown and "tokens/s" in shown and "0:00 elapsed" in shown
    assert "\x1b[?25l" in shown and "\x1b[?25h" in shown, "the cursor is hidden while live and comes back"
    assert ("\x1b[1;36m" in shown) is has_colour


def test_bar_ends_when_training_fails():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, force_jupyter=False, width=100)
    progress = TrainProgress(console)
    with pytest.raises(RuntimeError), progress:
        raise RuntimeError
    assert out.getvalue().rstrip().endswith("\x1b[?25h")


def test_summary_lists_orders_with_intervals_and_names_what_is_not_shown():
    out = io.StringIO()
    before = [record("held-out", 0, 0.255, 240, real=0.56, free=0.01), record("official-tomi", 0, 0.31, 100)]
    after = [record("held-out", 40, 0.671, 240), record("official-tomi", 40, 0.33, 100)]
    summary_table(before, after, Console(file=out, width=80))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "held-out 0 31.5 [19.7, 43.3] 73.1 [61.9, 84.3] +41.6 60" in lines
    assert "all 25.5 [20.0, 31.0] 67.1 [61.2, 73.0] +41.6 240" in lines
    assert "within the intervals, so not shown by this run alone: official-tomi" in lines
    assert "reported, not trained for: official-tomi" in lines
    assert (
        "wrong drafts fixed, held-out, step 0: 0.560 by feedback (n=150), 0.010 by content-free words (n=150)" in lines
    )


def test_summary_of_one_side_leaves_the_other_empty():
    out = io.StringIO()
    summary_table([record("held-out", 0, 0.255, 240)], [], Console(file=out, width=80))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "all 25.5 [20.0, 31.0] - 240" in lines
    summary_table([], [], Console(file=out, width=80))


def test_progress_does_not_load_jax():
    program = "import sys, ditto_jax.runs.progress; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
