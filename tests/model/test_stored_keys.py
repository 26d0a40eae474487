"""Keys kept in another dtype or as int8 codes: what attention and the sampler do with them, and how far that is off."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.sampling.slots import Sampled, SampleRequest
from model.attention import KeyValues, Window, attend
from model.logprobs import sequence_logprobs
from model.sampling import SamplingParams
from model.stored_keys import Codes, empty_keys, factors, store
from tests.tiny_batch import mesh_of
from tests.tiny_policy import CONFIG, SHAPES, make_sampler, params, request, some_ids

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAIN = SamplingParams()
CODES = dataclasses.replace(SHAPES, kv_dtype="int8")


def some_keys(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def read(keys: Any) -> Any:
    values, scale = factors(keys, jnp.float32)
    return values if scale is None else values * scale.swapaxes(-1, -2)


def test_an_entry_is_off_by_half_a_step_of_its_own_token_and_head_at_most():
    keys = some_keys(3, 2, 5, 8) * jnp.exp(some_keys(3, 2, 5, 1, seed=1))
    codes = store(keys, jnp.int8)
    assert isinstance(codes, Codes) and codes.values.dtype == jnp.int8 and codes.scale.shape == (3, 2, 1, 5)
    step = np.max(np.abs(keys), axis=-1, keepdims=True) / 127
    assert np.all(np.abs(read(codes) - keys) <= 0.501 * step)
    assert np.any(np.abs(read(codes) - keys) > 0.4 * step)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_empty_keys_have_the_form_of_stored_ones(dtype):
    empty, stored = empty_keys((3, 2, 5, 8), dtype), store(some_keys(3, 2, 5, 8), dtype)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), empty) == jax.tree.map(lambda x: (x.shape, x.dtype), stored)
    assert not np.any(read(empty))


def test_attention_over_codes_is_that_over_the_numbers_they_stand_for():
    q = some_keys(4, 3, 4, 8, seed=1)
    own, prefix = (
        KeyValues(*(store(some_keys(rows, 2, width, 8, seed=rows + n), jnp.int8) for n in range(2)))
        for rows, width in ((4, 6), (2, 5))
    )
    positions = jnp.broadcast_to(jnp.arange(5, 11), (4, 6))
    call: dict[str, Any] = {
        "own_mask": jnp.tril(jnp.ones((3, 6), bool), 3)[None].repeat(4, 0),
        "prefix_valid": jnp.arange(5) < jnp.array([[5], [3]]),
        "window": Window(jnp.int32(7), positions[:, 3:], positions),
    }
    found = attend(q, own, prefix=prefix, **call)
    plain = [KeyValues(read(keys.k), read(keys.v)) for keys in (own, prefix)]
    np.testing.assert_allclose(found, attend(q, plain[0], prefix=plain[1], **call), atol=1e-5)
    swapped = [KeyValues(keys.v, keys.k) for keys in plain]
    assert np.max(np.abs(found - attend(q, swapped[0], prefix=swapped[1], **call))) > 0.1


def requests(count: int = 6) -> list[SampleRequest]:
    """Groups of two over prompts of different lengths, of which a few tokens differ."""
    found = []
    for n in range(count):
        ids = np.concatenate([some_ids(n // 2, 9 + n // 2), some_ids(80 + n, 1 + n % 3)])
        found.append(request(ids, n // 2, n, 5 + n))
    return found


def run(shapes: SamplerShapes, asked: list[SampleRequest] | None = None, mesh=None) -> list[Sampled]:
    asked = requests() if asked is None else asked
    sampler = make_sampler(shapes, stop_ids=(), mesh=mesh)
    results = dict(pair for batch in sampler.generate(params(), asked, PLAIN) for pair in batch)
    return [results[i] for i in range(len(asked))]


@functools.cache
def with_codes() -> list[Sampled]:
    return run(CODES)


def assert_same(found: list[Sampled], expected: list[Sampled]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.ids, theirs.ids)
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-3)


def gap(results: list[Sampled]) -> float:
    """Mean |sampler log-prob - log-prob of the whole sequence in float32|."""
    differences = []
    for asked, drawn in zip(requests(), results, strict=True):
        ids = np.concatenate([asked.ids, drawn.ids])
        padded = np.pad(ids, (0, 32 - len(ids)))[None]
        exact = sequence_logprobs(params(), CONFIG, jnp.asarray(padded), jnp.arange(32)[None] < len(ids))[0]
        differences.append(np.abs(exact[len(asked.ids) : len(ids)] - drawn.logprobs))
    return float(np.mean(np.concatenate(differences)))


def test_the_mismatch_of_codes_is_small_and_there_and_that_of_the_compute_dtype_is_not():
    assert gap(run(SHAPES)) < 1e-5
    assert 1e-4 < gap(with_codes()) < 0.05
    assert 1e-5 < gap(run(dataclasses.replace(SHAPES, kv_dtype="bfloat16"))) < 0.02
    assert_same(run(dataclasses.replace(SHAPES, kv_dtype="float32")), run(SHAPES))


@pytest.mark.parametrize(
    "changes",
    [{"unstack_layers": False}, {"unstack_layers": True}, {"chunk": 3}, {"max_rows": 4}, {"shrink": True}],
    ids=str,
)
def test_codes_give_the_same_sample_however_rows_are_laid_out(changes):
    assert_same(run(dataclasses.replace(CODES, **changes)), with_codes())


def test_codes_go_round_a_ring_that_grows():
    limits = (150, 20, 130, 40)
    asked = [request(some_ids(n, 4 + n), n, n, limit) for n, limit in enumerate(limits)]
    shapes = dataclasses.replace(CODES, tail=(1, 8), max_new_tokens=150, max_rows=2)
    wide = dataclasses.replace(shapes, max_rows=4, chunk=150)  # one chunk: no ring grows or wraps
    assert_same(run(shapes, asked), run(wide, asked))


def test_codes_are_kept_for_the_refined_prompt():
    x = some_ids(400, 11)
    drafts = [request(x, 0, n) for n in range(2)]
    refined = [request(np.concatenate([x[:8], some_ids(420, 5)]), 0, 9)]
    for shapes in (CODES, dataclasses.replace(CODES, unstack_layers=True)):
        sampler = make_sampler(shapes, stop_ids=())
        list(sampler.generate(params(), drafts, PLAIN))
        (batch,) = [batch for batch in sampler.generate(params(), refined, PLAIN) if batch]
        assert sampler.work.kept_tokens_reused == 8
        assert np.mean(np.abs(batch[0][1].logprobs - run(SHAPES, refined)[0].logprobs)) < 0.05


def two_turns(shapes: SamplerShapes) -> tuple[list[Sampled], int]:
    """The second turn of two rows that go on from their first, and how many tokens it took from there."""
    sampler = make_sampler(shapes, stop_ids=())
    said = [some_ids(n, 9) for n in range(2)]
    found: dict[int, Sampled] = {}
    for turn in range(2):
        asked = [request(ids, n, 10 * turn + n, 6) for n, ids in enumerate(said)]
        results = sampler.generate(params(), asked, PLAIN, keep_rows=True)
        found = dict(pair for batch in results for pair in batch)
        said = [np.concatenate([ids, found[n].ids]) for n, ids in enumerate(said)]
    return [found[n] for n in range(2)], sampler.work.kept_tokens_reused


def test_the_next_turn_goes_on_from_codes():
    (stacked, reused), (apart, _) = (
        two_turns(dataclasses.replace(CODES, unstack_layers=each)) for each in (False, True)
    )
    assert_same(apart, stacked)
    assert reused > 2 * 9  # more than the prompts: replies too
    exact, _ = two_turns(SHAPES)
    assert any(np.any(a.logprobs != b.logprobs) for a, b in zip(stacked, exact, strict=True))
    assert max(np.abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(stacked, exact, strict=True)) < 0.1


def test_codes_on_a_mesh_are_those_of_one_device():
    assert_same(run(CODES, mesh=mesh_of((2, 1, 2))), with_codes())


def test_an_unknown_dtype_is_refused():
    values: Any = {"kv_dtype": "int4"}
    with pytest.raises(ConfigError, match=r"sampler.kv_dtype=int4: choose one of compute, .*int8"):
        SamplerShapes(**values)
