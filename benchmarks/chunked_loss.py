"""Log-probs in pieces against all logits at once: memory and time of the gradient of one loss.

Each contestant is the gradient, with respect to hidden states and head, of a mean of log-probs (or entropies too).
Memory is the compiler's own account of temporaries, of programs that need not run, so that it is also told for sizes
at which all logits fit nowhere; it is taken beyond that of a gradient without any loss. Times are of one process in
alternating rounds, and ratios are of speeds within a round. Writes chunked_loss.json and chunked_loss.md.

    python -m benchmarks.chunked_loss --output benchmark_results
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.figures import circumstances, compare, machine, table, versions, write_results
from benchmarks.paired import Answer, play_rounds, timed
from model.config import ModelConfig
from model.llama import logits
from model.token_scores import token_scores

Loss = Callable[[Any, jax.Array, jax.Array], Any]
FULL = "all logits"


@dataclasses.dataclass(frozen=True)
class Size:
    """Positions, vocabulary and width of one problem; the head is trained or frozen."""

    positions: int
    vocabulary: int
    width: int
    dtype: str
    trained: bool

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=self.width,
            tie_embeddings=False,
            compute_dtype=self.dtype,
        )

    @property
    def label(self) -> str:
        head = "trained" if self.trained else "frozen"
        return f"{self.positions} x {self.vocabulary}, width {self.width}, {self.dtype}, {head} head"

    def abstract(self) -> tuple[Any, ...]:
        """Returns shapes of (head, hidden states, targets)."""
        kernel = jax.ShapeDtypeStruct((self.width, self.vocabulary), jnp.float32 if self.trained else self.dtype)
        hidden = jax.ShapeDtypeStruct((self.positions, self.width), self.dtype)
        return kernel, hidden, jax.ShapeDtypeStruct((self.positions,), jnp.int32)

    def drawn(self, seed: int) -> tuple[Any, ...]:
        """Returns arrays of those shapes."""
        kernel, hidden, _ = self.abstract()
        keys = jax.random.split(jax.random.key(seed), 3)
        return (
            jax.random.normal(keys[0], kernel.shape, kernel.dtype) * self.width**-0.5,
            jax.random.normal(keys[1], hidden.shape, hidden.dtype),
            jax.random.randint(keys[2], (self.positions,), 0, self.vocabulary, jnp.int32),
        )


def losses(config: ModelConfig, chunk: int) -> Mapping[str, Loss]:
    """Returns contestants by name, and under "none" a loss that needs no logits."""

    def full(kernel, hidden, targets):
        scores = logits({"head": {"kernel": kernel}}, config, hidden)
        chosen = jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
        return jnp.mean(chosen - jax.nn.logsumexp(scores, axis=-1))

    def pieces(kernel, hidden, targets):
        return jnp.mean(token_scores({"head": {"kernel": kernel}}, config, hidden, targets, chunk=chunk).logprob)

    def with_entropy(kernel, hidden, targets):
        found = token_scores({"head": {"kernel": kernel}}, config, hidden, targets, entropy=True, chunk=chunk)
        assert found.entropy is not None
        return jnp.mean(found.logprob), jnp.mean(found.entropy)

    def none(kernel, hidden, targets):
        trained = jnp.mean(kernel) if kernel.dtype == jnp.float32 else 0.0
        return jnp.mean(hidden.astype(jnp.float32)) + trained + 0.0 * targets[0]

    return {"ours": pieces, "ours and entropy": with_entropy, FULL: full, "none": none}


def gradient(loss: Loss, has_entropy: bool, trained: bool) -> Any:
    """Returns the jitted value and gradient; an entropy is an output and has none."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1) if trained else 1, has_aux=has_entropy))


def compiled_programs(size: Size, chunk: int) -> dict[str, Any]:
    return {
        name: gradient(loss, name == "ours and entropy", size.trained).lower(*size.abstract()).compile()
        for name, loss in losses(size.config, chunk).items()
    }


def memory(programs: Mapping[str, Any]) -> dict[str, int]:
    """Returns bytes of temporaries beyond those without a loss."""
    sizes = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    return {name: count - sizes["none"] for name, count in sizes.items() if name != "none"}


class _Contestant:
    """A compiled gradient that answers as a peer does."""

    def __init__(self, program: Any, arguments: tuple[Any, ...]):
        self._work = lambda: jax.block_until_ready(program(*arguments))

    def ask(self, command: str, **arguments: Any) -> Answer:
        """Answers "run", the only command."""
        return timed(self._work)[0]


def measured(size: Size, chunk: int, rounds: int) -> dict[str, Any]:
    """Returns memory, positions per second and their ratios of one size."""
    programs = compiled_programs(size, chunk)
    arguments = jax.block_until_ready(size.drawn(0))
    contestants = {name: _Contestant(p, arguments) for name, p in programs.items() if name != "none"}
    first = {name: contestant.ask("run") for name, contestant in contestants.items()}
    played = list(play_rounds(contestants, {}, rounds, lambda text: print(text, flush=True)))
    speeds = [{name: size.positions / answer["seconds"] for name, answer in r.items()} for r in played]
    return {
        "chunk": chunk,
        "memory_bytes": memory(programs),
        "unit": "positions/s",
        **compare(speeds),
        **circumstances(played, first),
    }


def memory_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns Markdown: MiB beyond no loss, and their share of what all logits need."""
    names = list(next(iter(results.values()))["memory_bytes"])
    lines = ["| MiB beyond no loss | pieces of | " + " | ".join(names) + f" | ours / {FULL} |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for label, result in results.items():
        found = result["memory_bytes"]
        cells = [f"{found[name] / 2**20:,.1f}" for name in names]
        lines.append(
            "| " + " | ".join([label, str(result["chunk"]), *cells, f"{found['ours'] / found[FULL]:.3f}"]) + " |"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--chunk", type=int, nargs="*", default=[64, 256])
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    timings: dict[str, Any] = {}
    for trained in (True, False):
        size = Size(options.positions, options.vocabulary, options.width, options.dtype, trained)
        for chunk in options.chunk:
            print(f"{size.label}, pieces of {chunk}", flush=True)
            timings[f"{size.label}, pieces of {chunk}"] = measured(size, chunk, options.rounds)
    # The update of an 8B policy with adapters: compiled, not run.
    large = Size(16_384, 151_936, 4096, "bfloat16", trained=False)
    compiled = {large.label: {"chunk": 1024, "memory_bytes": memory(compiled_programs(large, 1024))}}
    results = {
        "benchmark": "chunked_loss",
        "machine": machine(),
        "versions": versions("jax", "jaxlib"),
        "rounds": options.rounds,
        "run": timings,
        "compiled_only": compiled,
    }
    text = table(timings, digits=0) + "\n\n" + memory_table({**timings, **compiled})
    write_results(options.output, "chunked_loss", results, text)
    print(f"positions a second, median (lowest–highest) of {options.rounds} rounds\n\n{text}")


if __name__ == "__main__":
    main()
