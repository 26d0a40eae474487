"""Runs the command line over and over, each time in a process forked from this one, which has imported everything and
computed nothing: starting a run costs no imports.

In: a JSON line {"words": arguments, "output": file, "arm": null or the four arguments of arm()} on standard input, one
run at a time. Out: a line with the run's process number, and one with how it ended (negative: by that signal).

    python -m tests.faults.crash_worker
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import threading
import traceback
from typing import Any

from launch import environment
from launch.cli import main

# What a run imports on its way, some of it late.
_IMPORTED = (
    *("launch.verbs", "ditto_jax.config", "ditto_jax.loop", "orbax.checkpoint", "scipy.stats", "scipy.special"),
    *("matplotlib.figure", "tests.graded_task"),
)


def serve() -> None:
    """Runs what standard input asks for until it ends."""
    environment.set_defaults()
    for name in _IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a process with threads cannot be forked safely"
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(job)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(job: dict[str, Any]) -> None:
    """The forked process: never returns."""
    code = 70
    try:
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if job["arm"]:
            *texts, number = job["arm"]
            ctypes.CDLL(os.environ["LD_PRELOAD"]).arm(*map(str.encode, texts), ctypes.c_long(number))
        code = main(job["words"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
