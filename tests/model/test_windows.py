"""A sliding window is measured in positions: packed, left-padded, behind a shared prefix or cached, it is the same one.

The reference is one unpadded forward pass per row against a mask written down by hand. The model alternates: its first
layer has the window, its second sees everything and is not rotated.
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

from ditto_jax.sampling.sampler import Sampler
from model import attention, llama
from model.attention import KeyValues, Window, attend, segment_mask
from model.logprobs import GroupedIds, grouped_logprobs
from model.sampling import SamplingParams
from tests.tiny_policy import CONFIG, SHAPES, params, request, some_ids

pytestmark = pytest.mark.usefixtures("quick_compilation")

WINDOW = 4
CONFIG_W = dataclasses.replace(
    CONFIG, family="smollm3", sliding_window=WINDOW, full_attention_layers=(1,), no_rope_layers=(1,)
)
TOLERANCE = 1e-5
# Two prompts of one group: (prefix length, suffix lengths). Suffixes of a prompt lie side by side in one lane.
LAYOUT = ((9, (6, 3, 2)), (2, (5, 4, 4)))
PREFIX_WIDTH, LANE_WIDTH, SUFFIX_WIDTH = 13, 14, 6


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    """Attention [T, D] of one head over one unpadded row, token by token."""
    out = []
    for t in range(len(q)):
        first = max(0, t - window + 1)
        weights = scipy.special.softmax(k[first : t + 1] @ q[t] / np.sqrt(q.shape[-1]))
        out.append(weights @ v[first : t + 1])
    return np.stack(out)


@pytest.mark.parametrize("window", [1, 3, 7, 20])
@pytest.mark.parametrize("prefix", [0, 5])
def test_attention_over_two_sources_is_that_over_one_row_by_hand(window, prefix):
    rng = np.random.default_rng(window)
    rows, length, width = 2, 12, 8
    shared = rng.normal(size=(2, prefix, width)).astype(np.float32)
    q, k, v = rng.normal(size=(3, rows, length, width)).astype(np.float32)
    k[:, :prefix], v[:, :prefix] = shared
    expected = np.stack([by_hand(*row, window)[prefix:] for row in zip(q, k, v, strict=True)])

    own = slice(prefix, None)
    positions = np.broadcast_to(np.arange(prefix, length), (rows, length - prefix))
    mask = segment_mask(jnp.ones(positions.shape, jnp.int32))
    sources: dict[str, Any] = {"own": KeyValues(k[:, None, own], v[:, None, own]), "own_mask": mask}
    if prefix:  # one prefix for both rows, with two columns of padding
        padded = np.pad(shared, ((0, 0), (0, 2), (0, 0)), constant_values=9.0)[:, None, None]
        sources |= {"prefix": KeyValues(*padded), "prefix_valid": jnp.arange(prefix + 2)[None] < prefix}
    found = attend(q[:, own, None], **sources, window=Window(jnp.int32(window), positions, positions))
    np.testing.assert_allclose(found[:, :, 0], expected, atol=1e-5)
    if window < length - 1:
        unlimited = attend(q[:, own, None], **sources)
        assert np.max(np.abs(unlimited[:, :, 0] - expected)) > 1e-2


def whole_rows() -> list[list[np.ndarray]]:
    """Each prompt's rows: its prefix, then a suffix."""
    shared = [some_ids(50 + g, prefix) for g, (prefix, _) in enumerate(LAYOUT)]
    return [
        [np.concatenate([shared[g], some_ids(10 * g + s, length)]) for s, length in enumerate(lengths)]
        for g, (_, lengths) in enumerate(LAYOUT)
    ]


@functools.cache
def expected_logprobs(config=CONFIG_W) -> list[np.ndarray]:
    """Of each row's suffix behind its first token, from one forward pass over the row alone."""
    found = []
    for g, group in enumerate(whole_rows()):
        for row in group:
            padded = np.pad(row, (0, 16 - len(row)))
            scores = llama.apply(params(), config, padded[None], np.arange(16)[None] < len(row))[0]
            chosen = scipy.special.log_softmax(np.asarray(scores), axis=-1)[np.arange(len(row) - 1), row[1:]]
            found.append(chosen[LAYOUT[g][0] :])
    return found


def packed_rows() -> GroupedIds:
    prefixes, lanes = np.zeros((3, 1, PREFIX_WIDTH), np.int32), np.zeros((4, 1, len(LAYOUT), LANE_WIDTH), np.int32)
    row_tokens = np.zeros((1, sum(len(lengths) for _, lengths in LAYOUT), SUFFIX_WIDTH), np.int32)
    stored = number = 0
    for p, (prefix, lengths) in enumerate(LAYOUT):
        shared = whole_rows()[p][0][:prefix]
        prefixes[:, 0, stored : stored + prefix] = shared, np.arange(prefix), np.full(prefix, p + 1)
        stored += prefix
        start = 1  # the first column is padding
        for s, length in enumerate(lengths):
            here = slice(start, start + length)
            lanes[0, 0, p, here] = whole_rows()[p][s][prefix:]
            lanes[1, 0, p, here] = np.arange(prefix, prefix + length)
            lanes[2:, 0, p, here] = [[number + 1], [p + 1]]
            row_tokens[0, number, :length] = p * LANE_WIDTH + start + np.arange(length)
            start += length
            number += 1
    return GroupedIds(*prefixes, *lanes, row_tokens)


def packed_logprobs(config=CONFIG_W) -> list[np.ndarray]:
    found = np.asarray(jax.jit(functools.partial(grouped_logprobs, config=config))(params(), grouped=packed_rows()))
    lengths = [length for _, lengths in LAYOUT for length in lengths]
    return [row[1:length] for row, length in zip(found[0], lengths, strict=True)]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    worst = max(float(np.max(np.abs(f - e))) for f, e in zip(found, expected, strict=True))
    assert worst <= TOLERANCE, f"differ by {worst:.1e}"


def test_suffixes_packed_behind_a_shared_prefix_see_the_window_of_their_own_row():
    assert_close(packed_logprobs(), expected_logprobs())


@pytest.mark.parametrize(
    "broken", [{"sliding_window": WINDOW + 1}, {"full_attention_layers": (0,)}, {"no_rope_layers": (0,)}], ids=str
)
def test_the_comparison_notices_another(broken):
    with pytest.raises(AssertionError, match="differ by"):
        assert_close(packed_logprobs(dataclasses.replace(CONFIG_W, **broken)), expected_logprobs())


def test_the_comparison_notices_a_window_measured_in_columns(monkeypatch):
    assert expected_logprobs()
    real = llama._Positions

    def columns(positions):
        return jnp.broadcast_to(jnp.arange(positions.shape[1]), positions.shape)

    monkeypatch.setattr(llama, "_Positions", lambda q, o, p: real(columns(q), columns(o), p))
    with pytest.raises(AssertionError, match="differ by"):
        assert_close(packed_logprobs(), expected_logprobs())


def test_the_comparison_notices_prefixes_whose_positions_run_on(monkeypatch):
    assert expected_logprobs()
    real = llama._Positions
    monkeypatch.setattr(llama, "_Positions", lambda q, o, p: real(q, o, None))
    with pytest.raises(AssertionError, match="differ by"):
        assert_close(packed_logprobs(), expected_logprobs())


def test_the_comparison_notices_a_prefix_without_a_window(monkeypatch):
    assert expected_logprobs()
    real = attention._within

    def only_over_own_keys(query, key, size):
        return real(query, key, 2**30 if query.shape[1] != key.shape[1] else size)

    monkeypatch.setattr(attention, "_within", only_over_own_keys)
    with pytest.raises(AssertionError, match="differ by"):
        assert_close(packed_logprobs(), expected_logprobs())


def test_scattered_padding_does_not_widen_or_narrow_the_window():
    row, where = some_ids(300, 9), np.array([1, 2, 5, 6, 7, 9, 11, 15, 17])
    ids, valid = np.zeros((1, 18), np.int32), np.zeros((1, 18), bool)
    ids[0, where], valid[0, where] = row, True
    scattered = llama.apply(params(), CONFIG_W, ids, valid)[0, where]
    dense = llama.apply(params(), CONFIG_W, np.pad(row, (0, 9))[None], np.arange(18)[None] < 9)[0, :9]
    assert_close([np.asarray(scattered)], [np.asarray(dense)])


# The sampler: shared prefixes, left-padded tails of different lengths, decoding from the cache.


def sampled_and_scored(config) -> tuple[list[np.ndarray], list[np.ndarray]]:
    groups = [(some_ids(1, 9), (1, 6, 3)), (some_ids(2, 4), (2, 5))]
    owners = [(group, tail) for group, (_, tails) in enumerate(groups) for tail in tails]
    prompts = [np.append(groups[group][0], some_ids(10 * group + tail, tail)) for group, tail in owners]
    requests = [request(ids, owners[number][0], number) for number, ids in enumerate(prompts)]
    sampler = Sampler(config, SHAPES, (CONFIG.vocab_size,), lambda ids: "")
    drawn = {}
    for finished in sampler.generate(params(), requests, SamplingParams()):
        drawn |= dict(finished)
    scored = []
    for number, prompt in enumerate(prompts):
        row = np.concatenate([prompt, drawn[number].ids])
        padded = np.pad(row, (0, 32 - len(row)))
        scores = llama.apply(params(), CONFIG_W, padded[None], np.arange(32)[None] < len(row))[0]
        chosen = scipy.special.log_softmax(np.asarray(scores), axis=-1)[np.arange(len(row) - 1), row[1:]]
        scored.append(chosen[len(prompt) - 1 :])
    return [drawn[number].logprobs for number in range(len(prompts))], scored


def test_sampled_logprobs_are_those_of_a_forward_pass_over_the_row():
    assert_close(*sampled_and_scored(CONFIG_W))


def test_the_sampling_comparison_notices_a_lost_window():
    with pytest.raises(AssertionError, match="differ by"):
        assert_close(*sampled_and_scored(dataclasses.replace(CONFIG_W, sliding_window=None, full_attention_layers=())))
