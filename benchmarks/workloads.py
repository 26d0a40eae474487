"""The work that all peers do: two Llama sizes with random weights, prompts of random ids, and reply lengths.

Out: a model folder that every library reads (float32 safetensors, a tokenizer of whole words), and `Work` as plain
data for the peers. Prompts are all different, so that no peer can share a prefix. Times nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and how many rows are decoded together."""

    name: str
    config: ModelConfig
    rows: int


def _llama(vocab_size: int, hidden_size: int, num_layers: int, intermediate_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=8,
        num_kv_heads=4,
        head_dim=hidden_size // 8,
        # Tunix's Llama always rotates with this base, whatever its configuration says.
        rope_theta=1_000_000.0,
        tie_embeddings=True,
        bos_token_id=None,
        eos_token_ids=(),
    )


SIZES = {
    size.name: size
    for size in (
        Size("3.9M", _llama(4096, 256, 4, 672), rows=64),
        Size("39M", _llama(32000, 512, 8, 1344), rows=16),
        Size("tiny", _llama(128, 32, 2, 64), rows=4),
    )
}


def parameters(config: ModelConfig) -> int:
    """Returns the number of parameters, the tied embedding counted once."""
    attention = config.hidden_size * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
    return config.vocab_size * config.hidden_size + config.num_layers * layer + config.hidden_size


def export(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """Returns `folder` with freshly drawn weights and the tokenizer in it."""
    import jax

    from model.hf_io import save_params
    from model.llama import init

    params = jax.device_get(jax.jit(init, static_argnums=1)(jax.random.key(seed), config))
    save_params(folder, config, params)
    save_word_tokenizer(folder, config.vocab_size)
    return folder


def save_word_tokenizer(folder: Path, vocab_size: int) -> None:
    """Writes a tokenizer whose words are "t0", "t1", ...: any ids have a text, and it gives the same ids again."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    vocab = {f"t{i}": i for i in range(vocab_size)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


@dataclasses.dataclass(frozen=True)
class Work:
    """Prompts and how many tokens each continuation has. `rows` of them fit a batch; stop tokens play no part."""

    prompts: list[list[int]]
    new_tokens: list[int]
    rows: int

    def job(self) -> dict[str, Any]:
        """Returns the work as a message to a peer."""
        return dataclasses.asdict(self)

    def facts(self) -> dict[str, Any]:
        """Returns what a reader must know about the lengths."""
        lengths = np.asarray(self.new_tokens)
        longest = sum(max(part) * len(part) for part in batches(self.new_tokens, self.rows))
        return {
            "requests": len(lengths),
            "rows": self.rows,
            "prompt_tokens": len(self.prompts[0]),
            "new_tokens": int(lengths.sum()),
            "mean": float(lengths.mean()),
            "cv": float(lengths.std() / lengths.mean()),
            "shortest": int(lengths.min()),
            "longest": int(lengths.max()),
            # The share of row-steps that static batches spend on tokens that were asked for.
            "static_batch_utilisation": float(lengths.sum() / longest),
        }


def batches(items: list[Any], rows: int) -> list[list[Any]]:
    """Returns the items in their order, `rows` at a time: what a peer without refill decodes together."""
    return [items[start : start + rows] for start in range(0, len(items), rows)]


def random_prompts(count: int, length: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Returns distinct rows of ids from 1 up: 0 is the padding of peers that need one."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, vocab_size, (count, length)).tolist()


def equal_work(size: Size, prompt: int = 64, new: int = 128) -> Work:
    """One batch, every row with the same number of tokens."""
    return Work(random_prompts(size.rows, prompt, size.config.vocab_size), [new] * size.rows, size.rows)


def ragged_work(
    size: Size, prompt: int = 64, mean: float = 96.0, cv: float = 1.0, longest: int = 512, batches: int = 4
) -> Work:
    """`batches` times as many requests as rows, lengths log-normal with this mean and CV before the limits 1..longest.

    Lengths are those of evenly spaced quantiles in random order: four batches would otherwise depend on luck.
    """
    import scipy.stats

    count = size.rows * batches
    sigma = math.sqrt(math.log1p(cv**2))
    quantiles = (np.arange(count) + 0.5) / count
    lengths = scipy.stats.lognorm.ppf(quantiles, sigma, scale=mean * math.exp(-(sigma**2) / 2))
    lengths = np.clip(np.round(lengths), 1, longest).astype(int)
    lengths = np.random.default_rng(0).permutation(lengths)
    return Work(random_prompts(count, prompt, size.config.vocab_size), lengths.tolist(), size.rows)
