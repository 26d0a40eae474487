"""Several commands as one: lines by process, one exit code, and none is left running."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

from launch.supervisor import supervise

# Waits until it is told to end, and says so; what it says last comes after the signal.
_SAVES = "trap 'echo saved; exit 75' TERM; echo ready; while true; do sleep 0.05; done"


def supervised(*scripts: str, grace_s: float = 60.0) -> tuple[int, list[str]]:
    out = io.StringIO()
    code = supervise([["bash", "-c", script] for script in scripts], grace_s, out)
    return code, out.getvalue().splitlines()


def test_lines_carry_the_number_of_their_process():
    code, lines = supervised("echo one; echo two >&2", "printf unended")
    assert code == 0
    assert sorted(lines) == ["[0] one", "[0] two", "[1] unended"]


def test_when_one_fails_the_others_are_stopped_and_may_save():
    code, lines = supervised(_SAVES, "sleep 0.3; exit 3", _SAVES)
    assert code == 3
    assert "[0] saved" in lines and "[2] saved" in lines
    told = next(line for line in lines if line.startswith("ditto-jax launch:"))
    assert "process 1 ended with 3" in told and "missing" in told and told.endswith("stopping processes 0, 2")


def test_one_that_does_not_stop_is_killed_after_the_grace():
    stubborn = "trap '' TERM; while true; do sleep 0.05; done"
    code, lines = supervised(stubborn, "sleep 0.2; kill -SEGV $$", grace_s=0.3)
    assert code == 128 + signal.SIGSEGV
    assert any("process 1 ended with signal 11 (SIGSEGV)" in line for line in lines)
    assert any("killed: process 0" in line for line in lines)


def test_what_a_command_started_ends_with_it(tmp_path):
    left = tmp_path / "pid"
    code, _ = supervised(f"sleep 600 & echo $! > {left}; wait", "sleep 0.3; exit 1")
    assert code == 1
    pid = int(left.read_text())
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{pid}/stat") as stat:  # ended, and waits for the system to notice
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                return
        time.sleep(0.05)
    raise AssertionError("a process was left running")


def test_a_signal_is_passed_on_and_the_codes_come_back():
    program = (
        f"import sys; from launch.supervisor import supervise; sys.exit(supervise([['bash', '-c', {_SAVES!r}]] * 2))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = {process.stdout.readline().strip() for _ in range(2)}
        assert ready == {"[0] ready", "[1] ready"}
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read().splitlines()
    assert process.returncode == 75
    assert {"[0] saved", "[1] saved"} <= set(rest)
    assert any("ended with 75 (preempted (SIGTERM): the state is saved" in line for line in rest)
