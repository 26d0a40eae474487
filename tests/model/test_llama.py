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

# Prompts: (group, prefix length, suffix lengths, lane of each suffix). The first group holds two prompts, whose rows
# share a lane. Prefixes and lanes are wider than needed: padding.
LAYOUT = ((0, 5, (6, 7), (0, 1)), (0, 4, (4,), (0,)), (1, 5, (5, 3, 6), (1, 0, 0)))
GROUPS, ROWS, PREFIX_WIDTH, LANE_WIDTH, LANES, SUFFIX_WIDTH = 2, 3, 10, 12, 2, 8


def whole_rows() -> list[np.ndarray]:
    """Each row's whole sequence: the prefix of its prompt, then its suffix."""
    rows = []
    for number, (_, prefix, suffixes, _) in enumerate(LAYOUT):
        shared = some_ids(100 + number, prefix)
        rows += [np.concatenate([shared, some_ids(10 * number + s, length)]) for s, length in enumerate(suffixes)]
    return rows


def packed_rows() -> GroupedIds:
    """The same rows with their suffixes side by side in lanes."""
    prefixes = np.zeros((3, GROUPS, PREFIX_WIDTH), np.int32)
    lanes = np.zeros((4, GROUPS, LANES, LANE_WIDTH), np.int32)
    row_tokens = np.zeros((GROUPS, ROWS, SUFFIX_WIDTH), np.int32)
    rows, used = iter(whole_rows()), np.zeros((GROUPS, LANES), int)
    stored, segments, numbers = np.zeros((3, GROUPS), int)
    for g, prefix, lengths, lane_of in LAYOUT:
        segments[g] += 1
        at = slice(stored[g], stored[g] + prefix)
        for length, lane in zip(lengths, lane_of, strict=True):
            row, here = next(rows), np.arange(used[g, lane], used[g, lane] + length)
            prefixes[:, g, at] = np.stack([row[:prefix], np.arange(prefix), np.full(prefix, segments[g])])
            facts = row[prefix:], np.arange(prefix, prefix + length), numbers[g] + 1, segments[g]
            lanes[:, g, lane, here] = np.stack([np.broadcast_to(fact, length) for fact in facts])
            row_tokens[g, numbers[g], :length] = lane * LANE_WIDTH + here
            used[g, lane] += length
            numbers[g] += 1
        stored[g] += prefix
    return GroupedIds(*prefixes, *lanes, row_tokens)


def pad(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, valid), right-padded."""
    width = max(map(len, rows))
    ids = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    return ids, np.arange(width) < np.array([[len(row)] for row in rows])


def suffixes_of(whole: Any) -> list[Any]:
    """What lies behind the prefix and the first suffix token of each row of float[rows, T]."""
    shapes = [(prefix, length) for _, prefix, lengths, _ in LAYOUT for length in lengths]
    return [row[prefix + 1 : prefix + length] for row, (prefix, length) in zip(whole, shapes, strict=True)]


def suffixes_of_packed(packed: Any) -> list[Any]:
    lengths = [length for _, _, lengths, _ in LAYOUT for length in lengths]
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


def start_of_suffix(ids: GroupedIds) -> np.ndarray:
    """The length of the prefix that each lane token continues; 0 of padding."""
    lengths = np.stack([(ids.prefix_segments == segment).sum(axis=1) for segment in range(3)], axis=1)
    continued = ids.lane_prefixes.reshape(GROUPS, -1)
    found = np.where(continued > 0, np.take_along_axis(lengths, continued, axis=1), 0)
    return found.reshape(ids.lane_prefixes.shape).astype(np.int32)


def positions_from_zero(ids: GroupedIds) -> GroupedIds:
    return ids._replace(lane_positions=ids.lane_positions - start_of_suffix(ids))


def positions_through_the_lane(ids: GroupedIds) -> GroupedIds:
    return ids._replace(lane_positions=(np.arange(LANE_WIDTH) + start_of_suffix(ids)).astype(np.int32))


def positions_through_the_prefixes(ids: GroupedIds) -> GroupedIds:
    through = np.broadcast_to(np.arange(PREFIX_WIDTH, dtype=np.int32), ids.prefix_positions.shape)
    return ids._replace(prefix_positions=through)


def without_the_last_prefix_token(ids: GroupedIds) -> GroupedIds:
    last = np.diff(ids.prefix_segments, axis=1, append=0) != 0
    return ids._replace(prefix_segments=np.where(last, 0, ids.prefix_segments))


def with_padding_in_the_last_prefix(ids: GroupedIds) -> GroupedIds:
    return ids._replace(prefix_segments=np.maximum.accumulate(ids.prefix_segments, axis=1))


def as_one_prefix(ids: GroupedIds) -> GroupedIds:
    """Every row sees all prefixes of its group, and each prefix those before it."""
    return ids._replace(
        prefix_segments=np.minimum(ids.prefix_segments, 1), lane_prefixes=np.minimum(ids.lane_prefixes, 1)
    )


def swapped_prefixes(ids: GroupedIds) -> GroupedIds:
    """Rows of a group with two prompts see each other's."""
    two = ids.prefix_segments.max(axis=1)[:, None, None] > 1
    swapped = np.where(two & (ids.lane_prefixes > 0), 3 - ids.lane_prefixes, ids.lane_prefixes)
    return ids._replace(lane_prefixes=swapped)


BROKEN_PACKINGS = {
    "segments see each other": merged_segments,
    "positions start at zero": positions_from_zero,
    "positions run on through the lane": positions_through_the_lane,
    "positions run on through the prefixes": positions_through_the_prefixes,
    "the last prefix token is hidden": without_the_last_prefix_token,
    "prefix padding is seen": with_padding_in_the_last_prefix,
    "the prefix of the other group": lambda ids: ids._replace(prefix_ids=ids.prefix_ids[::-1].copy()),
    "the prefix of the other prompt": swapped_prefixes,
    "the prefixes of all prompts": as_one_prefix,
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
    first_rows = np.cumsum([0, *(len(suffixes) for _, _, suffixes, _ in LAYOUT)])  # any row has its prompt's prefix
    found, expected = [], []
    for (g, length, _, _), row, segment in zip(LAYOUT, first_rows, (1, 2, 1), strict=False):
        here = np.flatnonzero(packed_rows().prefix_segments[g] == segment)
        found.append(np.asarray(prefix)[g, here[1:]])
        expected.append(exact[row][: length - 1])
    assert_close(found, expected)


def test_gradients_through_a_shared_prefix_equal_those_of_separate_rows():
    assert_gradients_close(packed(packed_rows())[1], separate()[1])


@pytest.mark.parametrize("breakage", [swapped_prefixes, as_one_prefix])
def test_the_gradient_comparison_fails_if_a_row_sees_the_prefix_of_another_prompt(breakage):
    with pytest.raises(AssertionError, match="gradients differ"):
        assert_gradients_close(packed(breakage(packed_rows()))[1], separate()[1])


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
