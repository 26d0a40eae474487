"""How much can be done to a run before something is lost? Kills, crash points, an absent judge, and fuzzed input.

Four parts: "points" kills a short run before and after every change of its directory, "kills" kills runs after random
times, several times each, "outage" takes the judge away for a minute, "fuzz" puts bytes guided by coverage to the
readers of judge replies, settings and data rows (extra `fuzz`). Every try is a line of `FOLDER/tries.jsonl`; the same
command goes on where an earlier one ended, with the same seed. Writes soak.json and soak.md. Linux with a C compiler.

    python -m benchmarks.soak --folder soak
    python -m benchmarks.soak --folder trial --kills 8 --every 100 --outage_s 3 --executions 20000    # a trial
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.figures import machine, versions, write_results
from benchmarks.paired import ROOT
from benchmarks.soak_fuzz import begin_corpus, command, kept_corpus
from launch.environment import set_defaults

PARTS = ("points", "kills", "outage", "fuzz")
_KILLS_OF_A_RUN = 8
_CHUNKS = 10
# Of all executions: readers of settings and rows are slower than those of replies.
_SHARES = {
    "judge_reply": 0.3,
    "judge_body": 0.25,
    "judge_error": 0.2,
    "data_row": 0.15,
    "config_text": 0.05,
    "config_value": 0.05,
}


class Book:
    """`tries.jsonl`: what has been tried, by part and name. A torn last line is tried again."""

    def __init__(self, file: Path):
        self._file = file
        self._lock = threading.Lock()
        self.tries: dict[tuple[str, str], dict[str, Any]] = {}
        for line in file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []:
            entry = json.loads(line)
            self.tries[entry["part"], entry["name"]] = entry

    def attempt(self, part: str, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Does the work unless it is written down, and writes down what became of it: nothing raised is a survival."""
        if (part, name) in self.tries:
            return
        began = time.monotonic()
        try:
            entry = {"survived": True, **work()}
        except Exception as error:  # whatever reading what a run left behind ends in
            entry = {"survived": False, "why": f"{type(error).__name__}: {error}"[:2000]}
        entry = {"part": part, "name": name, **entry, "seconds": round(time.monotonic() - began, 2)}
        with self._lock, open(self._file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry) + "\n")
            self.tries[part, name] = entry
        if not entry["survived"]:
            print(f"LOST {part} {name}: {entry['why']}", flush=True)

    def of(self, part: str) -> list[dict[str, Any]]:
        return [entry for (known, _), entry in self.tries.items() if known == part]


def runs(options: argparse.Namespace, book: Book) -> None:
    """The parts that need runs, over as many at once as there are workers."""
    from benchmarks.soak_runs import Lane
    from tests.faults.crashes import built_crash_points
    from tests.tiny_run import train_policy

    folder: Path = options.folder
    policy = folder / "policy"
    if not policy.exists():
        train_policy(policy)
    with ExitStack() as stack:
        library = built_crash_points(folder)
        first = stack.enter_context(Lane(folder / "straight", policy, library))
        straight, points, whole_s = first.straight()
        print(f"a run passes {len(points)} crash points and takes {whole_s:.1f} s", flush=True)
        free: SimpleQueue[Lane] = SimpleQueue()
        for number in range(options.workers):
            free.put(stack.enter_context(Lane(folder / f"lane-{number}", policy, library)))

        def on_a_lane(part: str, name: str, work: Callable[[Lane], dict[str, Any]]) -> None:
            lane = free.get()
            try:
                book.attempt(part, name, lambda: work(lane))
            finally:
                free.put(lane)

        def killed(number: int, lane: Lane) -> dict[str, Any]:
            rng = random.Random(f"{options.seed} {number}")
            return lane.killed_sometime(rng, _KILLS_OF_A_RUN, whole_s, straight)

        with ThreadPoolExecutor(options.workers) as pool:
            work: list[tuple[str, str, Callable[[Lane], dict[str, Any]]]] = []
            if "outage" in options.parts:
                work.append(("outage", "0", lambda lane: lane.judge_away(options.outage_s, straight)))
            if "kills" in options.parts:
                numbers = range(-(-options.kills // _KILLS_OF_A_RUN))
                work += [("kills", str(n), lambda lane, n=n: killed(n, lane)) for n in numbers]
            if "points" in options.parts:
                numbers = range(1, len(points) + 1, options.every)
                work += [("points", str(n), lambda lane, n=n: lane.killed_at(n, straight)) for n in numbers]
            for done in [pool.submit(on_a_lane, *job) for job in work]:
                done.result()


def fuzz(options: argparse.Namespace, book: Book) -> None:
    """Every target in chunks, each a process; several at once."""

    def chunk(name: str, number: int, count: int) -> dict[str, Any]:
        findings = options.folder / "findings"
        findings.mkdir(exist_ok=True)
        limits = (f"-runs={count}", f"-seed={options.seed * _CHUNKS + number + 1}")
        words = command(name, findings, *limits, str(options.folder / "corpus" / name))
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, errors="replace")
        assert ended.returncode == 0, f"exit code {ended.returncode}: {(ended.stdout + ended.stderr)[-1800:]}"
        done = re.search(r"Done (\d+) runs", ended.stderr)
        assert done is not None, ended.stderr[-500:]
        return {"executions": int(done[1])}

    def target(name: str) -> None:
        begin_corpus(name, options.folder / "corpus")
        count = -(-int(options.executions * _SHARES[name]) // _CHUNKS)
        for number in range(_CHUNKS):
            book.attempt("fuzz", f"{name} {number}", lambda number=number: chunk(name, number, count))

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(target, _SHARES))
    if options.keep_corpus:
        for name in _SHARES:
            options.keep_corpus.mkdir(exist_ok=True)
            text = kept_corpus(name, options.folder / "corpus")
            (options.keep_corpus / f"{name}.txt").write_text(text, encoding="ascii")


def summary(book: Book) -> dict[str, Any]:
    """Returns tried, survived and lost of every part, and what was counted."""
    parts: dict[str, Any] = {}
    for part in PARTS:
        entries = book.of(part)
        if not entries:
            continue
        lost = [entry for entry in entries if not entry["survived"]]
        sums = {name: sum(entry.get(name, 0) for entry in entries) for name in ("kills", "in_flight", "executions")}
        parts[part] = {
            "tried": len(entries),
            "survived": len(entries) - len(lost),
            "lost": lost,
            "seconds": round(sum(entry["seconds"] for entry in entries)),
            **{name: value for name, value in sums.items() if value},
        }
    if "points" in parts:
        reached = [entry["point"] for entry in book.of("points") if entry.get("point")]
        parts["points"]["reached"] = len(reached)
        parts["points"]["by_call"] = dict(Counter(f"{point['side']} {point['call']}" for point in reached))
        parts["points"]["by_place"] = dict(Counter(_place(point["file"]) for point in reached))
    return parts


def _place(file: str) -> str:
    """The file or folder of the run directory that a path is about."""
    top = file.split("/")[0]
    return re.sub(r"^\.(.*)\.tmp$", r"\1", top)


def _table(parts: dict[str, Any]) -> str:
    lines = ["| part | tried | survived | lost | counted |", "|---|---|---|---|---|"]
    for part, found in parts.items():
        counted = ", ".join(f"{found[key]:,} {key}" for key in ("kills", "in_flight", "executions") if key in found)
        lines.append(f"| {part} | {found['tried']:,} | {found['survived']:,} | {len(found['lost'])} | {counted} |")
    return "\n".join(lines)


def main(arguments: Iterable[str] | None = None) -> int:
    """Returns 0 if nothing was lost, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where tries, runs and the corpus are kept")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kills", type=int, default=400, help="at random times")
    parser.add_argument("--every", type=int, default=1, help="of how many crash points one is tried")
    parser.add_argument("--outage_s", type=float, default=60.0)
    parser.add_argument("--executions", type=int, default=1_000_000, help="of the fuzzer, over all targets")
    parser.add_argument("--keep_corpus", type=Path, help="write the inputs that cover the most into this folder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(None if arguments is None else list(arguments))
    set_defaults()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    book = Book(options.folder / "tries.jsonl")
    if set(options.parts) - {"fuzz"}:
        runs(options, book)
    if "fuzz" in options.parts:
        fuzz(options, book)
    parts = summary(book)
    settings = {"seed": options.seed, "workers": options.workers, "every": options.every}
    about = {"settings": settings, "machine": machine(), "versions": versions("jax", "orbax-checkpoint", "atheris")}
    write_results(options.output, "soak", {**about, "parts": parts}, _table(parts))
    print(_table(parts))
    return int(any(part["lost"] for part in parts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
