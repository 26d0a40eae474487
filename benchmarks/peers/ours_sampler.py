"""Our sampler as a peer of the sampling benchmark: started by the driver, answers it in JSON lines.

Requests go through `Sampler.generate` as they would in training: all at once, each with its own limit; rows that end
make room for those that wait. Log-probabilities are recorded, as always.
"""

from __future__ import annotations

from typing import Any

from benchmarks.paired import Link, settings, timed
from launch.environment import prepare_allocator, set_defaults


def main() -> None:
    link = Link()
    set_defaults()
    prepare_allocator()
    import jax
    import numpy as np

    from benchmarks.figures import versions
    from ditto_jax.sampling.sampler import Sampler
    from ditto_jax.sampling.slot_shapes import SamplerShapes
    from ditto_jax.sampling.slots import SampleRequest
    from model.hf_io import load_config, load_params
    from model.sampling import SamplingParams

    given = settings()
    config = load_config(given["folder"])
    params = jax.device_put(load_params(given["folder"], config))

    def sampler(rows: int, new_tokens: list[int]) -> Sampler:
        shapes = SamplerShapes(**{"max_rows": rows, "max_new_tokens": max(new_tokens), **given.get("shapes", {})})
        return Sampler(config, shapes, (), lambda ids: "")

    def requests(prompts: list[list[int]], new_tokens: list[int], seed: int) -> list[SampleRequest]:
        keys = np.random.default_rng(seed).integers(0, 2**32, (len(prompts), 2), dtype=np.uint32)
        return [
            SampleRequest(np.asarray(ids, np.int32), group, keys[group], new)
            for group, (ids, new) in enumerate(zip(prompts, new_tokens, strict=True))
        ]

    def draw(prompts, new_tokens, rows, seed, temperature) -> dict[int, list[int]]:
        drawn = {}
        asked = requests(prompts, new_tokens, seed)
        for chunk in sampler(rows, new_tokens).generate(params, asked, SamplingParams(temperature=temperature), ()):
            drawn |= {index: sampled.ids.tolist() for index, sampled in chunk}
        return drawn

    def greedy(prompts: list[list[int]], new: int) -> dict[str, Any]:
        drawn = draw(prompts, [new] * len(prompts), len(prompts), 0, 0.0)
        return {"tokens": [drawn[i] for i in range(len(prompts))]}

    def run(prompts, new_tokens, rows, seed) -> dict[str, Any]:
        spent, drawn = timed(lambda: draw(prompts, new_tokens, rows, seed, 1.0))
        return {**spent, "tokens": sum(map(len, drawn.values()))}

    link.serve({"hello": lambda: versions("jax", "jaxlib"), "greedy": greedy, "run": run})


if __name__ == "__main__":
    main()
