"""The Tunix sampler as a peer of the sampling benchmark: static batches, each until its longest row ends.

Its Llama reads the same weights. Caches are exactly as long as a batch needs, a compiled sampler for each length, and
log-probabilities are off: the most that it can be given. Needs google-tunix, and so Python 3.12 or newer.
"""

# pyright: reportMissingImports=false
# This file runs in an interpreter that has the peer; the project's own need not.

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from benchmarks.paired import Link, settings, timed

_PAD = 0
_NEVER = -1  # no token has this id, so no row stops


class _NumberedPrompts:
    """Stands in for a tokenizer: a "text" is the JSON of its ids, and ids are never made text."""

    def encode(self, text: str) -> list[int]:
        return json.loads(text)

    def decode(self, ids: list[int]) -> str:
        return ""

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return _NEVER

    def pad_id(self) -> int:
        return _PAD


def main() -> None:
    link = Link()
    import jax
    import jax.numpy as jnp
    from tunix.generate.sampler import CacheConfig, Sampler
    from tunix.models.llama3.model import ModelConfig
    from tunix.models.llama3.params import create_model_from_safe_tensors

    from benchmarks.figures import versions

    folder = Path(settings()["folder"])
    hf = json.loads((folder / "config.json").read_text())
    config = ModelConfig(
        num_layers=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        embed_dim=hf["hidden_size"],
        hidden_dim=hf["intermediate_size"],
        num_heads=hf["num_attention_heads"],
        head_dim=hf["head_dim"],
        num_kv_heads=hf["num_key_value_heads"],
        rope_theta=int(hf["rope_theta"]),
        norm_eps=hf["rms_norm_eps"],
        weight_tying=True,
    )
    mesh = jax.sharding.Mesh([[jax.devices()[0]]], ("fsdp", "tp"))
    model = create_model_from_safe_tensors(str(folder), config, mesh, jnp.float32)

    @functools.cache
    def sampler(length: int) -> Sampler:
        cache = CacheConfig(length, config.num_layers, config.num_kv_heads, config.head_dim)
        return Sampler(model, _NumberedPrompts(), cache)

    def batch(prompts: list[list[int]], new: int, **options: Any) -> list[list[int]]:
        width = len(prompts[0])
        out = sampler(width + new)(
            [json.dumps(ids) for ids in prompts],
            max_generation_steps=new,
            max_prompt_length=width,
            eos_tokens=[_NEVER],
            **options,
        )
        return [ids.tolist() for ids in out.tokens]

    def greedy(prompts: list[list[int]], new: int) -> dict[str, Any]:
        return {"tokens": batch(prompts, new)}

    def run(prompts, new_tokens, rows, seed) -> dict[str, Any]:
        def work() -> int:
            drawn = 0
            for start in range(0, len(prompts), rows):
                lengths = new_tokens[start : start + rows]
                out = batch(prompts[start : start + rows], max(lengths), temperature=1.0, top_p=1.0, seed=seed)
                drawn += sum(min(len(ids), length) for ids, length in zip(out, lengths, strict=True))
            return drawn

        spent, tokens = timed(work)
        return {**spent, "tokens": tokens}

    found = versions("google-tunix", "jax", "jaxlib", "flax")
    link.serve({"hello": lambda: found, "greedy": greedy, "run": run})


if __name__ == "__main__":
    main()
