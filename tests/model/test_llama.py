"""One forward definition, four ways to run it: whole, packed behind a shared prefix, cached, rematerialised.

Every comparison has twins in which one thing is wrong on purpose: a tolerance that lets those through proves nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from model import llama, logprobs
from model.attention import segment_mask
from model.config import ModelConfig
from model.llama import Cache
from model.logprobs import GroupedIds, grouped_and_prefix_logprobs, grouped_logprobs, sequence_logprobs
from tests.tiny_policy import CONFIG, params, quickly_compiled, some_ids

LOGPROB_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4

# Two groups: (prefix length, suffix lengths, lane of each suffix). Prefix and lanes are wider than needed: padding.
LAYOUT = ((9, (6, 4, 7), (0, 0, 1)), (5, (5, 3, 6), (1, 0, 0)))
PREFIX_WIDTH, LANE_WIDTH, LANES, SUFFIX_WIDTH = 10, 12, 2, 8


def whole_rows() -> list[np.ndarray]:
    """Each row's whole sequence: the prefix of its group, then its suffix."""
    rows = []
    for g, (prefix, suffixes, _) in enumerate(LAYOUT):
        shared = some_ids(100 + g, prefix)
        rows += [np.concatenate([shared, some_ids(10 * g + s, length)]) for s, length in enumerate(suffixes)]
    return rows


def packed_rows() -> GroupedIds:
    """The same rows with their suffixes side by side in lanes."""
    n, s = len(LAYOUT), len(LAYOUT[0][1])
    lanes = np.zeros((3, n, LANES, LANE_WIDTH), np.int32)
    prefix_ids, row_tokens = np.zeros((n, PREFIX_WIDTH), np.int32), np.zeros((n, s, SUFFIX_WIDTH), np.int32)
    rows = iter(whole_rows())
    for g, (prefix, lengths, lane_of) in enumerate(LAYOUT):
        used = [0] * LANES
        for number, (length, lane) in enumerate(zip(lengths, lane_of, strict=True)):
            row = next(rows)
            prefix_ids[g, :prefix] = row[:prefix]
            here = np.arange(used[lane], used[lane] + length)
            lanes[:, g, lane, here] = np.stack(
                [row[prefix:], np.arange(prefix, prefix + length), np.full(length, number + 1)], axis=-1
            ).T
            row_tokens[g, number, :length] = lane * LANE_WIDTH + here
            used[lane] += length
    lengths = np.array([group[0] for group in LAYOUT], np.int32)
    ids, positions, segments = lanes
    arrays: Any = (prefix_ids, lengths, ids, positions, segments, row_tokens)
    return GroupedIds(*arrays)


def pad(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, valid), right-padded."""
    width = max(map(len, rows))
    ids = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    return ids, np.arange(width) < np.array([[len(row)] for row in rows])


def suffixes_of(whole: Any) -> list[Any]:
    """What lies behind the prefix and the first suffix token of each row of float[rows, T]."""
    shapes = [(prefix, length) for prefix, lengths, _ in LAYOUT for length in lengths]
    return [row[prefix + 1 : prefix + length] for row, (prefix, length) in zip(whole, shapes, strict=True)]


def suffixes_of_packed(packed: Any) -> list[Any]:
    lengths = [length for _, lengths, _ in LAYOUT for length in lengths]
    flat = packed.reshape(-1, packed.shape[-1])
    return [row[1:length] for row, length in zip(flat, lengths, strict=True)]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = LOGPROB_TOLERANCE) -> None:
    worst = max(float(np.max(np.abs(f - e))) for f, e in zip(found, expected, strict=True))
    assert worst <= tolerance, f"differ by {worst:.1e}"


def assert_gradients_close(found, expected) -> None:
    differs = jax.tree.map(lambda f, e: float(np.max(np.abs(f - e)) / np.max(np.abs(e))), found, expected)
    worst = max(jax.tree.leaves(differs))
    assert worst <= GRADIENT_TOLERANCE, f"gradients differ by {worst:.1e} of the largest entry"


def weighted(values: list) -> jax.Array:
    """A scalar to which every token contributes differently."""
    weights = np.random.default_rng(4).normal(size=sum(len(v) for v in values)).astype(np.float32)
    return jnp.sum(jnp.concatenate(values) * weights)


def make_packed(config: ModelConfig = CONFIG, **settings):
    """Returns the function GroupedIds → (log-probs, gradients of a weighted sum of those of the suffixes)."""

    def loss(p, ids):
        found = grouped_logprobs(p, config, ids, **settings)
        return weighted(suffixes_of_packed(found)), found

    compiled = quickly_compiled(jax.grad(loss, has_aux=True))

    def run(ids: GroupedIds):
        gradients, found = compiled(params(), ids)
        return np.asarray(found), jax.device_get(gradients)

    return run


packed = make_packed()


@functools.cache
def separate() -> tuple[np.ndarray, dict]:
    """The same of whole sequences, one a row: (float[rows, T], gradients)."""
    ids, valid = pad(whole_rows())

    def loss(p):
        found = sequence_logprobs(p, CONFIG, jnp.asarray(ids), jnp.asarray(valid))
        return weighted(suffixes_of(found)), found

    gradients, found = quickly_compiled(jax.grad(loss, has_aux=True))(params())
    return np.asarray(found), jax.device_get(gradients)


@functools.cache
def apply_to_six():
    return quickly_compiled(functools.partial(llama.apply, config=CONFIG))


def full_logits(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of each whole row by the reference path, at one shape for all tests."""
    ids, valid = pad(rows)
    room = ((0, 6 - len(rows)), (0, 18 - ids.shape[1]))
    scores = np.asarray(apply_to_six()(params(), ids=np.pad(ids, room), valid=np.pad(valid, room)))
    return [scores[r, : len(row)] for r, row in enumerate(rows)]


def test_rows_packed_behind_a_shared_prefix_have_the_logprobs_of_separate_sequences():
    assert_close(suffixes_of_packed(packed(packed_rows())[0]), suffixes_of(separate()[0]))


def merged_segments(ids: GroupedIds) -> GroupedIds:
    return ids._replace(lane_segments=np.minimum(ids.lane_segments, 1))


def positions_from_zero(ids: GroupedIds) -> GroupedIds:
    return ids._replace(lane_positions=ids.lane_positions - ids.prefix_length[:, None, None])


def positions_through_the_lane(ids: GroupedIds) -> GroupedIds:
    inside = np.broadcast_to(np.arange(LANE_WIDTH), ids.lane_positions.shape)
    return ids._replace(lane_positions=(inside + ids.prefix_length[:, None, None]).astype(np.int32))


BROKEN_PACKINGS = {
    "segments see each other": merged_segments,
    "positions start at zero": positions_from_zero,
    "positions run on through the lane": positions_through_the_lane,
    "the last prefix token is hidden": lambda ids: ids._replace(prefix_length=ids.prefix_length - 1),
    "prefix padding is seen": lambda ids: ids._replace(prefix_length=ids.prefix_length + 1),
    "the prefix of the other group": lambda ids: ids._replace(prefix_ids=ids.prefix_ids[::-1].copy()),
    "row tokens are off by one": lambda ids: ids._replace(row_tokens=ids.row_tokens + 1),
}


@pytest.mark.parametrize("breakage", BROKEN_PACKINGS.values(), ids=BROKEN_PACKINGS)
def test_the_packing_comparison_fails_if(breakage):
    found = packed(breakage(packed_rows()))[0]
    with pytest.raises(AssertionError, match="differ by"):
        assert_close(suffixes_of_packed(found), suffixes_of(separate()[0]))


def test_whole_and_prefix_logprobs_agree_with_a_full_softmax():
    rows = whole_rows()
    scores = [np.asarray(scipy.special.log_softmax(row, axis=-1)) for row in full_logits(rows)]
    exact = [lp[np.arange(len(row) - 1), row[1:]] for row, lp in zip(rows, scores, strict=True)]
    assert_close([lp[1 : len(row)] for row, lp in zip(rows, separate()[0], strict=True)], exact)
    split = quickly_compiled(functools.partial(grouped_and_prefix_logprobs, config=CONFIG))
    suffix, prefix = split(params(), grouped=packed_rows())
    assert_close(suffixes_of_packed(np.asarray(suffix)), suffixes_of(separate()[0]))
    first_rows = (0, len(LAYOUT[0][1]))  # any row of a group has its prefix
    lengths = [length for length, _, _ in LAYOUT]
    found = [np.asarray(prefix)[g, 1:length] for g, length in enumerate(lengths)]
    assert_close(found, [exact[row][: length - 1] for row, length in zip(first_rows, lengths, strict=True)])


def test_gradients_through_a_shared_prefix_equal_those_of_separate_rows():
    assert_gradients_close(packed(packed_rows())[1], separate()[1])


def test_the_gradient_comparison_fails_if_the_prefix_passes_none(monkeypatch):
    through = logprobs._prefix_of
    monkeypatch.setattr(logprobs, "_prefix_of", lambda *args: jax.lax.stop_gradient(through(*args)))
    with pytest.raises(AssertionError, match="gradients differ"):
        assert_gradients_close(make_packed()(packed_rows())[1], separate()[1])


def test_recomputing_layers_and_projecting_in_chunks_change_neither_value_nor_gradient():
    # 7 does not divide the number of positions.
    found, gradients = make_packed(remat="full", chunk=7)(packed_rows())
    assert_close(suffixes_of_packed(found), suffixes_of_packed(packed(packed_rows())[0]), tolerance=1e-6)
    assert_gradients_close(gradients, packed(packed_rows())[1])


def test_bfloat16_computes_close_to_float32_with_finite_float32_gradients():
    found, gradients = make_packed(dataclasses.replace(CONFIG, compute_dtype="bfloat16"))(packed_rows())
    assert all(np.isfinite(leaf).all() and leaf.dtype == np.float32 for leaf in jax.tree.leaves(gradients))
    assert_close(suffixes_of_packed(found), suffixes_of(separate()[0]), tolerance=0.2)
    with pytest.raises(AssertionError):  # it did compute in bfloat16
        assert_close(suffixes_of_packed(found), suffixes_of(separate()[0]), tolerance=1e-4)


# Cached decoding: a prefix, left-padded tails of different lengths, then one column a step.
TAILS, WIDTH, NEW = (4, 1, 3, 2), 4, 4


def decode_ids() -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    prefixes = [some_ids(200, 6), some_ids(201, 3)]
    tails = [some_ids(210 + row, length) for row, length in enumerate(TAILS)]
    return prefixes, tails, some_ids(220, len(TAILS) * NEW).reshape(len(TAILS), NEW)


@functools.cache
def decoder():
    """Returns the jitted function → float32[rows, NEW, V]: logits after the tail and after each of NEW - 1 tokens."""

    def run(p, prefix_ids, prefix_valid, tail_ids, seen, positions, new, columns):
        prefix = llama.make_prefix(p, CONFIG, prefix_ids, prefix_valid)
        at = positions[:, :WIDTH]
        hidden, keys = llama.forward(p, CONFIG, tail_ids, at, seen.astype(jnp.int32), prefix, keep_keys=True)
        assert keys is not None
        grow = ((0, 0), (0, 0), (0, 0), (0, NEW), (0, 0))
        held = jnp.pad(jnp.where(seen, at, -1), ((0, 0), (0, NEW)), constant_values=-1)
        cache = Cache(jnp.pad(keys.k, grow), jnp.pad(keys.v, grow), held, jnp.int32(WIDTH))
        states = [hidden[:, -1]]
        for t in range(NEW - 1):
            cache = cache._replace(column=columns[t])
            column = slice(WIDTH + t, WIDTH + t + 1)
            hidden, cache = llama.extend(p, CONFIG, new[:, t, None], positions[:, column], cache, prefix)
            states.append(hidden[:, 0])
        return llama.logits(p, CONFIG, jnp.stack(states, axis=1))

    return quickly_compiled(run)


def cached_logits(*, hide_padding: bool = True, position_shift: int = 0, columns=(0, 1, 2)) -> np.ndarray:
    prefixes, tails, new = decode_ids()
    prefix_ids, prefix_valid = pad(prefixes)
    own_start = np.repeat([len(p) for p in prefixes], len(TAILS) // len(prefixes))
    offset = np.arange(WIDTH + NEW) - (WIDTH - np.array(TAILS))[:, None]
    tail_ids = np.stack([np.pad(tail, (WIDTH - len(tail), 0)) for tail in tails])
    seen = (offset >= 0)[:, :WIDTH] | (not hide_padding)
    positions = (own_start[:, None] + np.maximum(offset, 0) + position_shift).astype(np.int32)
    at = np.array(columns, np.int32) + WIDTH
    return np.asarray(decoder()(params(), prefix_ids, prefix_valid, tail_ids, seen, positions, new, at))


def uncached_logits() -> np.ndarray:
    """The same by one forward pass over each whole row, without prefix, padding on the left or cache."""
    prefixes, tails, new = decode_ids()
    per_group = len(TAILS) // len(prefixes)
    rows = [np.concatenate([prefixes[r // per_group], tail, new[r]]) for r, tail in enumerate(tails)]
    return np.stack([scores[-NEW - 1 : -1] for scores in full_logits(rows)])


def test_cached_decoding_behind_left_padded_tails_equals_the_full_forward_pass():
    assert_close([cached_logits()], [uncached_logits()])


BROKEN_DECODES = {
    "padding is seen": {"hide_padding": False},
    "positions are off by one against the prefix": {"position_shift": 1},
    "a column is written twice": {"columns": (0, 0, 1)},
}


@pytest.mark.parametrize("breakage", BROKEN_DECODES.values(), ids=BROKEN_DECODES)
def test_the_decoding_comparison_fails_if(breakage):
    with pytest.raises(AssertionError, match="differ by"):
        assert_close([cached_logits(**breakage)], [uncached_logits()])


def test_padding_sits_anywhere_and_changes_nothing():
    row, where = some_ids(300, 7), np.array([1, 2, 5, 6, 7, 9, 11])
    ids, valid = np.zeros((6, 18), np.int32), np.zeros((6, 18), bool)
    ids[0, where], valid[0, where] = row, True
    scattered = np.asarray(apply_to_six()(params(), ids=ids, valid=valid))[0, where]
    assert_close([scattered], full_logits([row]))


def test_the_segment_mask_is_causal_within_a_segment_and_blind_to_padding():
    seen = np.asarray(segment_mask(jnp.array([[1, 1, 0, 2, 1]])))[0]
    expected = {0: [0], 1: [0, 1], 2: [], 3: [3], 4: [0, 1, 4]}
    assert {t: np.flatnonzero(row).tolist() for t, row in enumerate(seen)} == expected


def test_init_makes_activations_of_order_one_and_the_head_that_the_config_asks_for():
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)

    def scores(key, ids):
        tree = llama.init(key, tied)
        return llama.apply(tree, tied, ids), tree

    found, tree = quickly_compiled(scores)(jax.random.key(3), some_ids(400, 20)[None])
    assert found.dtype == jnp.float32 and 0.3 < np.std(found) < 3.0
    untied = jax.eval_shape(lambda key: llama.init(key, CONFIG), jax.random.key(3))
    assert "head" not in tree and untied["head"]["kernel"].shape == (CONFIG.hidden_size, CONFIG.vocab_size)
