"""Peers timed against each other in one run: a process for each, and rounds in which each works once.

In: how to start each peer (its own interpreter, so that their packages need not agree) and one job for all. Out: what
they answered, by round. The two sides talk in JSON lines over the peer's standard input and output; what the peer
prints goes to a log file. Uses the standard library alone, because every interpreter imports it. Figures are made of
the answers in `benchmarks.figures`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent

# Freed memory stays mapped (see launch/malloc.py). What our command line does for itself is given to every peer.
KEEP_PAGES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(64 * 1024 * 1024),
}

Answer = dict[str, Any]


class PeerFailed(Exception):
    """A peer's process ended or could not start; the message names its log."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """How to start one contestant: `module` is run by `interpreter`; `settings` go to it as they are."""

    name: str
    interpreter: str
    module: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Link:
    """The peer's side of the conversation. Made before libraries are imported: they may print."""

    def __init__(self):
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def receive(self) -> Answer | None:
        """Returns the next message, or None when there will be no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def reply(self, **values: Any) -> None:
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()

    def serve(self, handlers: Mapping[str, Callable[..., Answer]]) -> None:
        """Answers every message {"command": name, **arguments} with what the handler of that name returns."""
        while (message := self.receive()) is not None:
            self.reply(**handlers[message.pop("command")](**message))


class Asked(Protocol):
    """Whatever takes a command and gives the peer's answer."""

    def ask(self, command: str, **arguments: Any) -> Answer: ...


class Worker:
    """The driver's side: a running peer."""

    def __init__(self, peer: Peer, log: Path):
        self.peer = peer
        self._log = log
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        environment |= {**KEEP_PAGES, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        command = [peer.interpreter, "-m", peer.module, json.dumps(dict(peer.settings))]
        with log.open("w") as output:
            try:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, stderr=output, text=True
                )
            except OSError as error:
                raise PeerFailed(f"{peer.name}: cannot start {peer.interpreter}: {error.strerror}") from error

    def ask(self, command: str, **arguments: Any) -> Answer:
        """Returns the peer's answer; raises PeerFailed if its process has ended."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what follows says so
        line = self._process.stdout.readline()
        if not line:
            last = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()][-1:]
            raise PeerFailed(f"{self.peer.name}: ended during '{command}': {' '.join(last)}; see {self._log}")
        return json.loads(line)

    def close(self) -> None:
        """Closes the conversation, which ends the peer; one that is still at work after a moment is ended."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.close()
            self._process.wait(timeout=5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def started(peers: Sequence[Peer], logs: Path, label: str) -> Iterator[dict[str, Worker]]:
    """Yields name → running peer, each with a log named after `label` and itself; none outlives the block."""

    def leave(*_: object) -> None:
        sys.exit("terminated")

    logs.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        with contextlib.ExitStack() as stack:
            workers = {}
            for peer in peers:
                name = re.sub(r"\W+", "-", f"{label} {peer.name}")
                workers[peer.name] = stack.enter_context(contextlib.closing(Worker(peer, logs / f"{name}.log")))
            yield workers
    finally:
        signal.signal(signal.SIGTERM, before)


def rotation(names: Sequence[str], index: int) -> list[str]:
    """Returns the order of round number `index`: each starts, and each follows each, equally often."""
    turn = index % len(names)
    return [*names[turn:], *names[:turn]]


def play_rounds(
    workers: Mapping[str, Asked], job: Mapping[str, Any], count: int, say: Callable[[str], None]
) -> Iterator[dict[str, Answer]]:
    """Yields `count` rounds of name → answer to the command "run"; every peer runs once a round, nothing beside it."""
    for index in range(count):
        answers = {name: workers[name].ask("run", seed=index, **job) for name in rotation(list(workers), index)}
        load = os.getloadavg()[0]
        seconds = ", ".join(f"{name} {answers[name]['seconds']:.2f} s" for name in workers)
        say(f"  round {index + 1} of {count}: {seconds} (load {load:.1f})")
        yield {name: {**answers[name], "load": load} for name in workers}


def settings() -> Any:
    """Returns, in a peer's process, the settings that it was started with."""
    return json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Returns ({"seconds", "cpu_s"}, result) of work that ends only when its result is there.

    cpu_s sums over the threads of this process: more than cores x seconds is impossible, much less says that the
    process was kept waiting.
    """
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}, result
