"""Keys that the call before has run are copied, counted, and change no result: refined prompts and later turns."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ditto_jax.sampling.slots import Sampled, SampleRequest
from tests.tiny_policy import (
    CONFIG,
    NEVER,
    PLAIN,
    SHAPES,
    assert_same,
    compiled_programs,
    make_sampler,
    params,
    request,
    sample_all,
    some_ids,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def drafts_and_refined() -> tuple[list[SampleRequest], list[SampleRequest]]:
    """Two groups of three drafts each, and one or two refined prompts that leave x after 8 of its tokens."""
    xs = [some_ids(400 + group, 11) for group in range(2)]
    drafts = [request(xs[n // 3], n // 3, 600 + n) for n in range(6)]
    words = [(0, 4), (0, 6), (1, 5)]
    refined = [
        request(np.concatenate([xs[g][:8], some_ids(420 + n, length)]), g, 700 + n)
        for n, (g, length) in enumerate(words)
    ]
    return drafts, refined


def refine(sampler, weights=None, release: bool = False, shapes=SHAPES) -> list[Sampled]:
    drafts, refined = drafts_and_refined()
    list(sampler.generate(params(), drafts, PLAIN))
    if release:
        sampler.release()
    results = dict(pair for batch in sampler.generate(weights or params(), refined, PLAIN) for pair in batch)
    return [results[i] for i in range(len(refined))]


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize(("max_rows", "kept_groups"), [(8, 2), (4, 1)])  # a slot keeps its last prefix
def test_a_refined_prompt_reuses_the_keys_of_the_tokens_that_it_shares_with_its_draft(max_rows, kept_groups, shrink):
    shapes = dataclasses.replace(SHAPES, max_rows=max_rows, shrink=shrink)
    sampler = make_sampler(shapes, NEVER)
    found = refine(sampler)
    assert sampler.work.kept_tokens_reused == 8 * kept_groups
    assert_same(found, sample_all(drafts_and_refined()[1], shapes))


def test_keys_are_not_reused_after_release_or_under_other_weights():
    sampler = make_sampler(stop_ids=NEVER)
    refine(sampler, release=True)
    assert sampler.work.kept_tokens_reused == 0
    other = jax.tree.map(lambda leaf: 1.01 * leaf, params())
    sampler = make_sampler(stop_ids=NEVER)
    changed = refine(sampler, other)
    assert sampler.work.kept_tokens_reused == 0
    fresh = make_sampler(stop_ids=NEVER)
    results = dict(pair for batch in fresh.generate(other, drafts_and_refined()[1], PLAIN) for pair in batch)
    assert_same(changed, [results[i] for i in range(3)])


def test_steps_of_drafts_and_refined_prompts_recompile_nothing_after_the_first():
    sampler = make_sampler(stop_ids=NEVER)
    refine(sampler)
    with compiled_programs() as programs:
        for _ in range(3):
            sampler.release()
            refine(sampler)
    assert sampler.work.kept_tokens_reused == 4 * (8 + 8) and programs == []


def play_turns(sampler, groups: tuple[int, ...], turns: int, keep: bool, changed: int | None = None) -> list[Sampled]:
    """Plays one episode a row: every turn's prompt is all that was said, and five tokens of somebody else.

    changed: a token of the first prompt that is another one from the second turn on, as a template might do it.
    """
    said = [np.concatenate([some_ids(900 + group, 10), some_ids(920 + n, 1 + n)]) for n, group in enumerate(groups)]
    results = []
    for turn in range(turns):
        requests = [
            request(ids, group, 950 + 50 * turn + n, 6) for n, (ids, group) in enumerate(zip(said, groups, strict=True))
        ]
        drawn = dict(pair for batch in sampler.generate(params(), requests, PLAIN, keep_rows=keep) for pair in batch)
        results += [drawn[n] for n in range(len(said))]
        said = [np.concatenate([ids, drawn[n].ids, some_ids(980 + turn, 5)]) for n, ids in enumerate(said)]
        if turn == 0 and changed is not None:
            for ids in said:
                ids[changed] = (ids[changed] + 1) % CONFIG.vocab_size
    return results


TURNS = dataclasses.replace(SHAPES, tail=(1, 8, 16, 32, 48))


@pytest.mark.parametrize(("groups", "repeated"), [((0, 0, 0, 1, 1, 1), 4 * 10), ((0, 1, 2), 0)])
@pytest.mark.parametrize("max_rows", [8, 4])
def test_later_turns_go_on_from_the_keys_of_the_turns_before(groups, repeated, max_rows):
    shapes = dataclasses.replace(TURNS, max_rows=max_rows, rows_per_prefix=(1, 4))
    sampler = make_sampler(shapes, NEVER)
    assert_same(
        play_turns(sampler, groups, 3, keep=True), play_turns(make_sampler(shapes, NEVER), groups, 3, keep=False)
    )
    # All but the token drawn last, which was never run; the prefix of a group once.
    everything = sum(5 + n + 11 * turn for turn in (1, 2) for n in range(len(groups)))
    if max_rows == 8:
        assert sampler.work.kept_tokens_reused == everything - 2 * repeated
    elif repeated:
        assert 0 < sampler.work.kept_tokens_reused < everything  # one slot of the two groups was written over


def test_a_turn_whose_earlier_tokens_changed_runs_them_again():
    sampler = make_sampler(TURNS, NEVER)
    changed = play_turns(sampler, (0, 0, 0), 2, keep=True, changed=4)
    assert sampler.work.kept_tokens_reused <= 4
    assert_same(changed, play_turns(make_sampler(TURNS, NEVER), (0, 0, 0), 2, keep=False, changed=4))
