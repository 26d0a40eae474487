"""One whole GRPO step (sample, score, update) against TRL's GRPOTrainer: same model, prompts, lengths and reward.

64 rows (8 prompts of 64 tokens, 8 drafts each), 128 new tokens a row, float32. Rounds alternate; TRL first tries its
micro-batch sizes and keeps the fastest. Writes grpo_step.json and grpo_step.md.

    python -m benchmarks.grpo_step --output benchmark_results --trl_python PYTHON

What the interpreter of TRL needs: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import circumstances, compare, machine, table, write_results
from benchmarks.paired import Answer, Peer, Worker, play_rounds, started
from benchmarks.word_task import WordOptions, WordTask
from benchmarks.workloads import SIZES, export, parameters
from ditto_jax.tasks.base import Source

_TUNING_STEPS = 2


def peers_of(options: argparse.Namespace, folder: Path) -> list[Peer]:
    """Returns ours, and TRL once for every micro-batch size to try."""
    size = SIZES[options.size]
    common = {
        "folder": str(folder),
        "prompts": options.prompts,
        "group": options.group,
        "prompt_tokens": options.prompt,
        "new": options.new,
        "vocab_size": size.config.vocab_size,
        "examples": options.examples,
    }
    own = {"shapes": json.loads(options.shapes), "train": json.loads(options.train)}
    peers = [Peer("ours", options.ours_python, "benchmarks.peers.ours_step", {**common, **own})]
    if options.trl_python:
        for micro in options.trl_micro_batch:
            more = {"micro_batch": micro, "threads": machine()["cores"]}
            peers.append(
                Peer(f"TRL, {micro} rows", options.trl_python, "benchmarks.peers.trl_step", {**common, **more})
            )
    return peers


def fastest(workers: Mapping[str, Worker]) -> tuple[str, dict[str, float]]:
    """Returns the name of the worker with the fastest step after a first one, and the seconds of all."""
    seconds = {}
    for name, worker in workers.items():
        worker.ask("run", seed=0)
        seconds[name] = min(worker.ask("run", seed=0)["seconds"] for _ in range(_TUNING_STEPS))
    return min(seconds, key=lambda name: seconds[name]), seconds


def figures(rounds: list[dict[str, Answer]], first: Mapping[str, Answer], work: Mapping[str, int]) -> dict[str, Any]:
    """Returns steps per second and seconds a step by peer, ratios of speeds, and the part of each phase in ours."""
    names = list(rounds[0])
    result = {"unit": "steps/s", **compare([{n: 1 / r[n]["seconds"] for n in names} for r in rounds])}
    result["seconds_per_step"] = compare([{n: r[n]["seconds"] for n in names} for r in rounds])["peers"]
    result |= circumstances(rounds, first)
    splits = [r["ours"]["split"] for r in rounds]
    result["ours_split_s"] = {key: statistics.median(split[key] for split in splits) for key in splits[0]}
    for name, answer in rounds[0].items():
        if answer["tokens"] != work["new_tokens"]:
            raise SystemExit(f"{name} sampled {answer['tokens']} tokens a step and not {work['new_tokens']}")
    return result


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Returns the settings and figures of the benchmark."""
    config = SIZES[options.size].config
    folder = export(scratch / "model", config)
    task = WordTask(WordOptions(config.vocab_size, options.prompt))
    texts = [str(example.payload["words"]) for example in task.load(Source(limit=options.examples))]
    (folder / "prompts.json").write_text(json.dumps(texts))
    work = {"rows": options.prompts * options.group, "prompt_tokens": options.prompt}
    work["new_tokens"] = work["rows"] * options.new
    result: dict[str, Any] = {"parameters": parameters(config), "model": config.to_hf(), "work": work}
    with started(peers_of(options, folder), options.output / "logs", "step") as workers:
        result["versions"] = {name: worker.ask("hello") for name, worker in workers.items()}
        first = {"ours": workers["ours"].ask("run", seed=0)}
        trl = {name: worker for name, worker in workers.items() if name != "ours"}
        contestants = {"ours": workers["ours"]}
        if trl:
            best, seconds = fastest(trl)
            print(f"  {best} is the fastest of {seconds}", flush=True)
            result["chosen"] = {"TRL": best, "seconds": seconds}
            contestants["TRL"] = trl[best]
        played = list(play_rounds(contestants, {}, options.rounds, lambda text: print(text, flush=True)))
        return {**result, **figures(played, first, work)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_trl = importlib.util.find_spec("trl") is not None
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ours_python", default=sys.executable)
    parser.add_argument("--trl_python", default=sys.executable if has_trl else "", help="has torch, transformers, trl")
    parser.add_argument(
        "--trl_micro_batch", type=int, nargs="*", default=[64, 16], help="rows computed at once, to try"
    )
    parser.add_argument("--size", default="3.9M", choices=list(SIZES))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="drafts of each prompt")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of every prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens of every row")
    parser.add_argument("--examples", type=int, default=512, help="distinct prompts")
    parser.add_argument("--shapes", default="{}", help="JSON of SamplerShapes fields to set for our sampler")
    parser.add_argument("--train", default="{}", help="JSON of TrainConfig fields to set for our update")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    results: dict[str, Any] = {"benchmark": "grpo_step", "machine": machine(), "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as scratch:
        results |= measure(options, Path(scratch))
    rows = {
        "steps per second": results,
        "seconds per step": {"peers": results["seconds_per_step"], "ratios": {}},
    }
    text = table(rows, digits=2)
    write_results(options.output, "grpo_step", results, text)
    print(f"median (lowest–highest) of {options.rounds} rounds; ratios of speed within rounds\n\n{text}")


if __name__ == "__main__":
    main()
