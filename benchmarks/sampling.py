"""Sampling speed against Hugging Face `generate`, the Tunix sampler and llama.cpp: same weights, prompts and lengths.

Two sizes, each with equal lengths and with ragged ones (every request its own forced length, more requests than rows).
Each peer is a process of its own; before anything is timed, all must draw the same greedy tokens. Writes
sampling.json and sampling.md.

    python -m benchmarks.sampling --output benchmark_results --hf_python PYTHON --tunix_python PYTHON

A peer without an interpreter is left out. What each interpreter needs: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import circumstances, compare, machine, table, write_results
from benchmarks.paired import Answer, Asked, Peer, play_rounds, started
from benchmarks.workloads import SIZES, Size, Work, equal_work, export, parameters, ragged_work, random_prompts

_GREEDY_TOKENS = 12
_TUNED = {"Hugging Face", "llama.cpp"}  # peers with several ways of working


def peers_of(options: argparse.Namespace, folder: Path, size: Size) -> list[Peer]:
    """Returns the contestants that have an interpreter."""
    model = {"folder": str(folder)}
    shapes = json.loads(options.shapes)
    peers = [Peer("ours", options.ours_python, "benchmarks.peers.ours_sampler", {**model, "shapes": shapes})]
    if options.hf_python:
        module, threads = "benchmarks.peers.hugging_face_sampler", machine()["cores"]
        more = {"threads": threads, "variants": options.hf_variants}
        peers.append(Peer("Hugging Face", options.hf_python, module, {**model, **more}))
    if options.tunix_python:
        peers.append(Peer("Tunix", options.tunix_python, "benchmarks.peers.tunix_sampler", model))
    if options.llama_python:
        module, more = "benchmarks.peers.llama_cpp_sampler", {"threads": machine()["cores"], "rows": size.rows}
        peers.append(Peer("llama.cpp", options.llama_python, module, {**model, **more}))
    return peers


def check_greedy(workers: Mapping[str, Asked], vocab_size: int) -> dict[str, Any]:
    """Returns each peer's share of greedy tokens that equal ours, until its first difference in a row.

    Raises SystemExit if a peer's first tokens differ: then it does not compute the same model. Later differences can
    be ties broken by rounding.
    """
    prompts = random_prompts(4, 16, vocab_size, seed=1)
    drawn = {name: w.ask("greedy", prompts=prompts, new=_GREEDY_TOKENS)["tokens"] for name, w in workers.items()}
    reference = drawn["ours"]
    shares = {name: agreement(reference, tokens) for name, tokens in drawn.items()}
    for name, share in shares.items():
        if share < 1 / _GREEDY_TOKENS:
            raise SystemExit(f"{name} draws other greedy tokens than ours: {drawn[name]} against {reference}")
    return {"agreement": shares, "distinct_tokens": len({token for row in reference for token in row})}


def agreement(reference: list[list[int]], tokens: list[list[int]]) -> float:
    """Returns the share of reference tokens that come before the first difference of their row."""
    equal = 0
    for expected, found in zip(reference, tokens, strict=True):
        for a, b in zip(expected, found, strict=True):
            if a != b:
                break
            equal += 1
    return equal / sum(map(len, reference))


class Contest:
    """The peers of one size, alive, with the settings that were chosen for them."""

    def __init__(self, workers: Mapping[str, Asked], say=print):
        self.workers = workers
        self.say = say
        self.chosen: dict[str, Any] = {}

    def tune(self, work: Work) -> None:
        """Lets peers that have several ways of working find their best one on this work."""
        for name in self.workers.keys() & _TUNED:
            found = self.workers[name].ask("tune", **work.job())
            self.chosen[name] = found
            self.say(f"  {name}: best is '{found['best']}' of {found['seconds']} (failed: {found['failed']})")

    def measure(self, work: Work, rounds: int, names: list[str]) -> dict[str, Any]:
        """Returns tokens per second by peer and round, with ratios; the first, compiling call is told apart."""
        workers = {name: _Tuned(self.workers[name], self.chosen.get(name)) for name in names}
        first = {name: worker.ask("run", seed=99, **work.job()) for name, worker in workers.items()}
        played = list(play_rounds(workers, work.job(), rounds, self.say))
        asked = sum(work.new_tokens)
        short = {name: answer["tokens"] for name, answer in played[0].items() if answer["tokens"] != asked}
        if short:
            raise SystemExit(f"peers that drew another number of tokens than the {asked} asked for: {short}")
        rates = [{name: answer["tokens"] / answer["seconds"] for name, answer in r.items()} for r in played]
        return {"work": work.facts(), "unit": "tokens/s", **compare(rates), **circumstances(played, first)}


class _Tuned:
    """A worker that is asked to run in the way that was found best."""

    def __init__(self, worker: Asked, found: Mapping[str, Any] | None):
        self._worker = worker
        self._more = {} if found is None else {"variant": found["best"]}

    def ask(self, command: str, **arguments: Any) -> Answer:
        return self._worker.ask(command, **arguments, **self._more)


def measure_size(size: Size, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Returns the figures of one size."""
    print(f"{size.name}: {parameters(size.config) / 1e6:.2f} million parameters, {size.rows} rows", flush=True)
    folder = export(scratch / size.name, size.config)
    result: dict[str, Any] = {"parameters": parameters(size.config), "model": size.config.to_hf()}
    with started(peers_of(options, folder, size), options.output / "logs", size.name) as workers:
        result["versions"] = {name: worker.ask("hello") for name, worker in workers.items()}
        result["greedy"] = check_greedy(workers, size.config.vocab_size)
        print(f"  greedy tokens equal to ours: {result['greedy']}", flush=True)
        contest = Contest(workers, lambda text: print(text, flush=True))
        works = {"equal": equal_work(size, options.prompt, options.new)}
        if not options.no_ragged:
            works["ragged"] = ragged_work(size, options.prompt, options.mean, 1.0, options.longest)
        contest.tune(works["equal"])
        result["settings"] = {"chosen": contest.chosen, "shapes": json.loads(options.shapes)}
        for kind, work in works.items():
            names = [n for n in workers if kind == "equal" or n != "llama.cpp"]
            print(f"  {kind}: {work.facts()}", flush=True)
            result[kind] = contest.measure(work, options.rounds, names)
    return result


def rows_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the lines of the table: one for each size and kind of lengths."""
    return {
        f"{name}, {kind} lengths": figures[kind]
        for name, figures in results["sizes"].items()
        for kind in ("equal", "ragged")
        if kind in figures
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_torch = importlib.util.find_spec("torch") is not None
    has_tunix = importlib.util.find_spec("tunix") is not None
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--sizes", nargs="*", default=["3.9M", "39M"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ours_python", default=sys.executable)
    parser.add_argument("--hf_python", default=sys.executable if has_torch else "", help="has torch and transformers")
    parser.add_argument("--hf_variants", nargs="*", default=[], help="ways of calling `generate` to try; default: all")
    parser.add_argument("--tunix_python", default=sys.executable if has_tunix else "", help="3.12+, has google-tunix")
    parser.add_argument("--llama_python", default="", help="has llama-cpp-python and gguf")
    parser.add_argument("--shapes", default="{}", help="JSON of SamplerShapes fields to set for our sampler")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of every prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens of every row at equal lengths")
    parser.add_argument("--mean", type=float, default=96.0, help="mean new tokens at ragged lengths")
    parser.add_argument("--longest", type=int, default=512, help="limit of new tokens at ragged lengths")
    parser.add_argument("--no_ragged", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    results: dict[str, Any] = {"benchmark": "sampling", "machine": machine(), "rounds": options.rounds, "sizes": {}}
    text = ""
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.sizes:
            results["sizes"][name] = measure_size(SIZES[name], options, Path(scratch))
            text = table(rows_of(results), digits=0)
            write_results(options.output, "sampling", results, text)
    print(f"tokens per second, median (lowest–highest) of {options.rounds} rounds; ratios within rounds\n\n{text}")


if __name__ == "__main__":
    main()
