"""Seconds of a truncation by threshold search over those of a full sort, on the same logits, rounds interleaved.

random logits [rows, vocabulary] → **JSON and a line for each truncation**. Both keep the same tokens, which is checked.

    python -m benchmarks.truncation
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from model.sampling import SamplingParams, truncate

SETTINGS = {"top-p 0.9": SamplingParams(top_p=0.9), "top-k 50": SamplingParams(top_k=50)}


def by_sorting(logits: jax.Array, params: SamplingParams) -> jax.Array:
    """Returns bool[B, V]: the tokens that top-k, then top-p keep, from the sorted logits."""
    ordered = -jnp.sort(-logits, axis=-1)
    if params.top_k:
        return logits >= ordered[:, params.top_k - 1 : params.top_k]
    probs = jax.nn.softmax(ordered, axis=-1)
    count = jnp.sum(jnp.cumsum(probs, axis=-1) - probs < params.top_p, axis=-1, keepdims=True)
    return logits >= jnp.take_along_axis(ordered, count - 1, axis=-1)


def by_search(logits: jax.Array, params: SamplingParams) -> jax.Array:
    """Returns the same by `truncate`."""
    return truncate(logits, params) > -1e29


def measure(logits: jax.Array, params: SamplingParams, rounds: int) -> dict[str, list[float]]:
    """Returns seconds of each round by way; raises ValueError if the ways keep different tokens."""
    ways = {way.__name__: jax.jit(way, static_argnums=1) for way in (by_sorting, by_search)}
    kept = [np.asarray(way(logits, params)) for way in ways.values()]
    if np.mean(kept[0] != kept[1]) > 1e-6:  # float32 sums in another order may move a border by one token
        raise ValueError(f"{params}: the two ways keep different tokens")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way(logits, params))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Truncation by threshold search against a full sort.")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("truncation.json"))
    args = parser.parse_args()
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (args.rows, args.vocab)), jnp.float32)
    results = {name: measure(logits, params, args.rounds) for name, params in SETTINGS.items()}
    args.output.write_text(json.dumps({"jax": jax.__version__, "seconds": results}, indent=1) + "\n")
    for name, seconds in results.items():
        ratios = sorted(a / b for a, b in zip(seconds["by_sorting"], seconds["by_search"], strict=True))
        milliseconds = ", ".join(f"{way} {1e3 * median(taken):.0f} ms" for way, taken in seconds.items())
        print(f"{name}: {milliseconds}, ratio {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
