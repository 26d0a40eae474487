"""Several commands on this machine as one: their output by process, one exit code, and all stop when one dies.

In: commands. Out: their lines, each with the number of its process, and the exit code of the first that failed.
Signals that arrive here are passed on. What the commands are is decided in `launch/targets`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from launch.failures import EXIT_CODES

_LAST_WORDS_S = 2.0  # how long output may still come after the process has ended


@dataclasses.dataclass(frozen=True)
class _Started:
    number: int
    process: subprocess.Popen[str]
    reader: threading.Thread


def supervise(commands: Sequence[Sequence[str]], grace_s: float = 60.0, out: TextIO | None = None) -> int:
    """Runs all commands to their end; returns 0, or the exit code of the first that failed (128 + N after signal N).

    The others then get SIGTERM, and SIGKILL after `grace_s` seconds; commands that save upon SIGTERM have that long.
    """
    tell = _Teller(sys.stdout if out is None else out)
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    started: list[_Started] = []
    try:
        with _signals_passed_on(started):
            for number, command in enumerate(commands):
                started.append(_start(number, command, tell, ended))
            return _until_all_end(started, ended, grace_s, tell)
    finally:
        _signal([one for one in started if one.process.poll() is None], signal.SIGKILL)
        for one in started:
            one.process.wait()


def _until_all_end(
    started: Sequence[_Started], ended: queue.SimpleQueue[tuple[int, int]], grace_s: float, tell: _Teller
) -> int:
    waiting = {one.number: one for one in started}
    result, deadline = 0, None
    while waiting:
        try:
            number, status = ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            tell.note(f"still running after {grace_s:g} s, killed: {_listed(waiting)}")
            _signal(list(waiting.values()), signal.SIGKILL)
            deadline = None
            continue
        del waiting[number]
        code = status if status >= 0 else 128 - status
        if code and not result:
            result = code
            rest = f"; stopping {_listed(waiting)}" if waiting else ""
            tell.note(f"process {number} ended with {_meaning(status)}{rest}")
            _signal(list(waiting.values()), signal.SIGTERM)
            deadline = time.monotonic() + grace_s
    return result


def _meaning(status: int) -> str:
    if status < 0:
        return f"signal {-status} ({signal.Signals(-status).name})"
    return f"{status} ({EXIT_CODES[status]})" if status in EXIT_CODES else str(status)


def _listed(waiting: dict[int, _Started]) -> str:
    return f"process{'es' if len(waiting) > 1 else ''} {', '.join(map(str, sorted(waiting)))}"


class _Teller:
    """Whole lines to one stream, from several threads."""

    def __init__(self, out: TextIO):
        self._out = out
        self._lock = threading.Lock()

    def line(self, number: int, text: str) -> None:
        self._write(f"[{number}] {text.rstrip()}\n")

    def note(self, text: str) -> None:
        self._write(f"ditto-jax launch: {text}\n")

    def _write(self, text: str) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._out.write(text)
            self._out.flush()


def _start(number: int, command: Sequence[str], tell: _Teller, ended: queue.SimpleQueue[tuple[int, int]]) -> _Started:
    """Each command has a session of its own, so that a signal reaches what it has started as well, and once."""
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for text in lines:
                tell.line(number, text)

    reader = threading.Thread(target=read, daemon=True)

    def wait() -> None:
        status = process.wait()
        reader.join(_LAST_WORDS_S)
        ended.put((number, status))

    reader.start()
    threading.Thread(target=wait, daemon=True).start()
    return _Started(number, process, reader)


def _signal(targets: Sequence[_Started], number: signal.Signals) -> None:
    for target in targets:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(target.process.pid, number)


@contextlib.contextmanager
def _signals_passed_on(started: Sequence[_Started]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT to this process are for the commands: they save, and end."""

    def pass_on(number: int, frame: object) -> None:
        _signal([one for one in started if one.process.poll() is None], signal.Signals(number))

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, pass_on)
    except ValueError:  # not the main thread: the host program decides about signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
