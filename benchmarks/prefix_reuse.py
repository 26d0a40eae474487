"""What keys that are there already save: group prefill, refined prompts, later turns; gain achieved over predicted.

Each case runs the same requests with reuse and without, alternating in one process. Predicted is the ratio of tokens
that have to be run (prompt and new ones), which the sampler counts; what costs time beside them lowers the share that
is achieved. Long prompts and few new tokens, so that prefill is what is timed. Writes prefix_reuse.json.

    python -m benchmarks.prefix_reuse --output benchmark_results
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.figures import machine, spread, text_of, versions, write_results
from benchmarks.paired import timed
from benchmarks.workloads import SIZES, parameters, random_prompts
from ditto_jax.sampling.sampler import Sampler
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.sampling.slots import SampleRequest
from launch.environment import set_defaults
from model.llama import init
from model.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class Case:
    """Requests that are timed, after `before` have been sampled; in the run without reuse, keys are given up between
    the two and every request is a group of its own.
    """

    requests: list[SampleRequest]
    before: list[SampleRequest] = dataclasses.field(default_factory=list)


def cases(prompt: int, groups: int, rows: int, vocab_size: int, new_tokens: int) -> dict[str, Case]:
    """Returns the three cases: `groups` prompts of `prompt` tokens, `rows` samples of each."""
    half = prompt // 2
    xs = np.asarray(random_prompts(groups, prompt, vocab_size), np.int32)
    hints = np.asarray(random_prompts(groups * rows, half, vocab_size, seed=1), np.int32)
    others = np.asarray(random_prompts(groups * rows, 32, vocab_size, seed=2), np.int32)

    def requests(ids: Sequence[np.ndarray], seed: int) -> list[SampleRequest]:
        keys = np.random.default_rng(seed).integers(0, 2**32, (len(ids), 2), dtype=np.uint32)
        return [SampleRequest(one, n // rows, keys[n], new_tokens) for n, one in enumerate(ids)]

    drafts = [xs[n // rows] for n in range(groups * rows)]
    said = [np.concatenate([x, hint]) for x, hint in zip(drafts, hints, strict=True)]
    return {
        "group prefill": Case(requests(drafts, 3)),
        # x and the words, which stand behind it: half as long.
        "refined prompts": Case(requests(said, 4), before=requests(drafts, 3)),
        # A transcript that differs from row to row, and the other side's 32 tokens.
        "later turns": Case(
            requests([np.concatenate([ids, other]) for ids, other in zip(said, others, strict=True)], 5),
            before=requests(said, 4),
        ),
    }


class Samplers:
    """One policy; with and without reuse."""

    def __init__(self, size: str, shapes: SamplerShapes):
        self.config = SIZES[size].config
        self.params = jax.block_until_ready(jax.jit(init, static_argnums=1)(jax.random.key(0), self.config))
        self.sampler = Sampler(self.config, shapes, (), lambda ids: "")

    def with_reuse(self, case: Case) -> Callable[[], int]:
        self.sampler.release()
        self._sample(case.before)
        return lambda: self._sample(case.requests)

    def without(self, case: Case) -> Callable[[], int]:
        self.sampler.release()
        alone = [dataclasses.replace(request, group=n) for n, request in enumerate(case.requests)]
        return lambda: self._sample(alone)

    def tokens_reused(self) -> int:
        return self.sampler.work.prefix_tokens_reused + self.sampler.work.kept_tokens_reused

    def _sample(self, requests: Sequence[SampleRequest]) -> int:
        finished = self.sampler.generate(self.params, requests, SamplingParams(), keep_rows=True)
        return sum(len(sampled.ids) for batch in finished for _, sampled in batch)


def measure(samplers: Samplers, case: Case, rounds: int) -> dict[str, Any]:
    """Returns seconds with reuse and without, their ratio round by round, and what the ratio of tokens predicts."""
    tokens = sum(len(request.ids) + request.max_new_tokens for request in case.requests)
    ways = {"with": samplers.with_reuse, "without": samplers.without}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    reused = 0
    for number in range(rounds + 1):  # the first compiles
        for way in sorted(ways, reverse=number % 2 == 1):
            work = ways[way](case)
            before = samplers.tokens_reused()
            taken, _ = timed(work)
            if way == "with":
                reused = samplers.tokens_reused() - before
            if number:
                seconds[way].append(taken["seconds"])
    predicted = tokens / (tokens - reused)
    gains = [slow / fast for slow, fast in zip(seconds["without"], seconds["with"], strict=True)]
    return {
        "tokens": tokens,
        "tokens_reused": reused,
        "predicted_gain": predicted,
        "seconds": {way: spread(values) for way, values in seconds.items()},
        "gain": spread(gains),
        "achieved_over_predicted": spread([gain / predicted for gain in gains]),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the results as Markdown."""
    lines = [
        "| | s without | s with | gain | predicted | achieved over predicted |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        without, with_reuse = (text_of(found["seconds"][way], 2) for way in ("without", "with"))
        gain, share = text_of(found["gain"], 2), text_of(found["achieved_over_predicted"], 2)
        lines.append(f"| {name} | {without} | {with_reuse} | {gain} | {found['predicted_gain']:.2f} | {share} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--size", default="39M", choices=list(SIZES))
    parser.add_argument("--prompt", type=int, default=512, help="tokens of x")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8, help="samples of each prompt, G")
    parser.add_argument("--new_tokens", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    set_defaults()
    half = options.prompt // 2
    shapes = SamplerShapes(
        prefix=(options.prompt, options.prompt + half),
        # Wide enough and not wider: what padding costs is no part of the question.
        tail=(1, 33, half + 1, options.prompt, options.prompt + half, options.prompt + half + 32),
        rows_per_prefix=(1, options.rows),
        max_new_tokens=options.new_tokens,
        max_rows=options.groups * options.rows,
    )
    samplers = Samplers(options.size, shapes)
    work = cases(options.prompt, options.groups, options.rows, samplers.config.vocab_size, options.new_tokens)
    results = {}
    for name, case in work.items():
        results[name] = measure(samplers, case, options.rounds)
        print(f"{name}: {text_of(results[name]['gain'], 2)} of {results[name]['predicted_gain']:.2f}", flush=True)
    facts = {"size": options.size, "parameters": parameters(samplers.config), "rounds": options.rounds}
    facts |= {"prompt": options.prompt, "groups": options.groups, "rows": options.rows}
    facts |= {"machine": machine(), "versions": versions("jax", "jaxlib")}
    write_results(
        options.output, "prefix_reuse", {"benchmark": "prefix_reuse", **facts, "cases": results}, table(results)
    )
    print("\n" + table(results))


if __name__ == "__main__":
    main()
