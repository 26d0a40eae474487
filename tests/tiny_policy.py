"""A policy of two narrow layers with random weights, its letters, and helpers that several tests share.

Weights are drawn once and wide enough that positions, masks and norms all show in the logits. Nothing here is trained.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ditto_jax.sampling.sampler import Sampler
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.sampling.slots import Sampled, SampleRequest
from ditto_jax.types import Chat
from model import llama
from model.config import ModelConfig
from model.sampling import SamplingParams

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=300.0,
    max_position_embeddings=256,
)

# Tests run a program a few times and compile it once: code that is quickly made is better than quick code.
quickly_compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


END, USER, ASSISTANT, FIRST_LETTER = 0, 1, 2, 3
NEVER = (CONFIG.vocab_size,)  # a stop token that cannot be drawn: every reply runs to its limit
PLAIN = SamplingParams()
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[: CONFIG.vocab_size - FIRST_LETTER]


@functools.cache
def params() -> Any:
    """The weights as NumPy arrays, so that no test can donate or place them for another."""
    init = quickly_compiled(llama.init, static_argnums=1)
    tree = jax.tree.map(np.asarray, init(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(1)

    def widen(path, leaf):
        if path[-1].key == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return 1.5 * leaf if path[-2].key in ("q", "k", "o") else leaf

    return jax.tree_util.tree_map_with_path(widen, tree)


def encode(text: str) -> list[int]:
    return [FIRST_LETTER + LETTERS.index(letter) for letter in text]


def decode(ids: Sequence[int]) -> str:
    """Letters as they are; markers, which no text can spell, as question marks."""
    return "".join(LETTERS[i - FIRST_LETTER] if i >= FIRST_LETTER else "?" for i in ids)


class LetterChat:
    """One token a letter, a marker before each turn and one after it."""

    stop_ids = (END,)

    def open(self, chat: Chat, speaker: str = "assistant") -> list[int]:
        turns = [[USER if m.role == "user" else ASSISTANT, *encode(m.content), END] for m in chat]
        return [*(i for turn in turns for i in turn), ASSISTANT]

    def extend(self, previous: Chat, new: Chat, *, last_id: int | None) -> list[int]:
        return [*([] if last_id == END else [END]), *self.open(new)]

    def reply(self, text: str) -> list[int]:
        return [*encode(text), END]


SHAPES = SamplerShapes(prefix=(16, 32), tail=(8, 32), max_new_tokens=12, max_rows=8, chunk=4, shrink=False)


def make_sampler(shapes: SamplerShapes = SHAPES, stop_ids: Sequence[int] = (END,), decode=decode, mesh=None) -> Sampler:
    return Sampler(CONFIG, shapes, stop_ids, decode, mesh)


def request(ids: Sequence[int] | np.ndarray, group: int, number: int, max_new_tokens: int = 12) -> SampleRequest:
    """A request whose key derives from `number` alone."""
    key = np.array([7, number], np.uint32)
    return SampleRequest(np.asarray(ids, np.int32), group, key, max_new_tokens)


def some_ids(seed: int, count: int) -> np.ndarray:
    """int32[count] of letters."""
    return np.random.default_rng(seed).integers(FIRST_LETTER, CONFIG.vocab_size, count).astype(np.int32)


def sample_all(requests, shapes=SHAPES, stop_ids=NEVER, stop_strings=(), sampling=PLAIN, **settings) -> list[Sampled]:
    """Returns the results in request order, each delivered exactly once."""
    sampler = make_sampler(shapes, stop_ids, **settings)
    results: dict[int, Sampled] = {}
    for finished in sampler.generate(params(), requests, sampling, stop_strings):
        for index, sampled in finished:
            assert index not in results
            results[index] = sampled
    assert sorted(results) == list(range(len(requests)))
    return [results[i] for i in range(len(requests))]


def assert_same(found: list[Sampled], expected: list[Sampled]) -> None:
    """Equal ids and ends, and log-probs that agree within 1e-5."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        assert one.finish_reason is other.finish_reason


_COMPILED: list[str] = []


def _note_compile(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(str(kwargs.get("fun_name", "")))


jax.monitoring.register_event_duration_secs_listener(_note_compile)


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """Yields a list that holds, once the block has ended, the name of every program compiled (or loaded) in it."""
    names: list[str] = []
    before = len(_COMPILED)
    yield names
    names.extend(_COMPILED[before:])
