"""What a request yields depends on its ids and its key alone, and its log-probs are those that training sees."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.rollouts.views import View
from ditto_jax.sampling.slot_shapes import bucket
from ditto_jax.sampling.slots import Sampled, SampleRequest, common_prefix_length
from ditto_jax.types import FinishReason, ViewRole
from ditto_jax.update.batch import pack
from ditto_jax.update.packing import BatchShapes
from model.logprobs import GroupedIds, grouped_logprobs
from tests.tiny_policy import (
    CONFIG,
    NEVER,
    PLAIN,
    SHAPES,
    assert_same,
    compiled_programs,
    make_sampler,
    params,
    quickly_compiled,
    request,
    sample_all,
    some_ids,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def ragged_requests() -> list[SampleRequest]:
    """Two groups that share prefixes of 9 and 4 tokens, with tails of 1 to 6, and one request of its own."""
    first, second = some_ids(1, 9), some_ids(2, 4)
    rows = [np.concatenate([first, some_ids(10 + i, length)]) for i, length in enumerate((1, 6, 3))]
    rows += [np.concatenate([second, some_ids(20 + i, length)]) for i, length in enumerate((2, 5))]
    groups = (0, 0, 0, 1, 1, 2)
    return [request(ids, group, n) for n, (ids, group) in enumerate(zip([*rows, some_ids(3, 7)], groups, strict=True))]


@functools.cache
def straight() -> list[Sampled]:
    return sample_all(ragged_requests())


def test_a_group_prefills_its_shared_prefix_once():
    sampler = make_sampler(stop_ids=NEVER)
    list(sampler.generate(params(), ragged_requests(), PLAIN))
    assert sampler.work.prefix_tokens_reused == 2 * 9 + 1 * 4


def test_a_shared_prefix_leaves_every_row_a_tail():
    same = some_ids(0, 5)
    assert common_prefix_length([same, same]) == 4
    assert common_prefix_length([same, np.append(same[:3], 1)]) == 3
    assert common_prefix_length([same[:1]]) == 0


def test_results_do_not_depend_on_batch_neighbours():
    requests = ragged_requests()
    order = [4, 0, 5, 2, 1, 3]
    assert_same(sample_all([requests[i] for i in order]), [straight()[i] for i in order])
    assert_same(sample_all(requests[1:2]), straight()[1:2])


@pytest.mark.parametrize("chunk", [1, 5])
def test_results_do_not_depend_on_the_chunk(chunk):
    assert_same(sample_all(ragged_requests(), dataclasses.replace(SHAPES, chunk=chunk)), straight())


def test_results_do_not_depend_on_how_many_rows_decode_together():
    assert_same(sample_all(ragged_requests(), dataclasses.replace(SHAPES, max_rows=1)), straight())


def test_results_do_not_depend_on_grouping():
    apart = [dataclasses.replace(r, group=n) for n, r in enumerate(ragged_requests())]
    together = [dataclasses.replace(r, group=0) for r in ragged_requests()]
    assert_same(sample_all(apart), straight())
    assert_same(sample_all(together), straight())


def test_results_depend_on_the_key():
    other = [dataclasses.replace(r, key=r.key + np.uint32(1)) for r in ragged_requests()]
    assert all((a.ids != b.ids).any() for a, b in zip(sample_all(other), straight(), strict=True))


# Sampler log-probs against training log-probs: rows as an episode leaves them, of three turns.


@functools.cache
def turns() -> list[View]:
    """Returns views of rows with three sampled stretches, observations between them, and contexts shared in part."""
    requests = ragged_requests()[:5]
    ids = [r.ids for r in requests]
    mask = [np.zeros(len(r.ids), bool) for r in requests]
    behaviour = [np.zeros(len(r.ids), np.float32) for r in requests]
    for turn in range(3):
        asked = [SampleRequest(ids[n], r.group, r.key + np.uint32(100 * turn), 3 + n) for n, r in enumerate(requests)]
        for n, sampled in enumerate(sample_all(asked)):
            seen = some_ids(50 + 10 * turn + n, 1 + (n + turn) % 3)  # an observation
            ids[n] = np.concatenate([ids[n], sampled.ids, seen])
            mask[n] = np.concatenate([mask[n], np.ones(len(sampled.ids), bool), np.zeros(len(seen), bool)])
            behaviour[n] = np.concatenate([behaviour[n], sampled.logprobs, np.zeros(len(seen), np.float32)])
    return [
        View(
            role=ViewRole.DRAFT,
            prompt=r.group,
            rollout=n,
            context=ids[n][: len(r.ids)],
            response=ids[n][len(r.ids) :],
            loss_mask=mask[n][len(r.ids) :],
            behaviour=behaviour[n][len(r.ids) :],
            reward=1.0,
            truncated=False,
            cross=False,
        )
        for n, r in enumerate(requests)
    ]


training_logprobs = quickly_compiled(lambda p, grouped: grouped_logprobs(p, CONFIG, grouped))


def gap(change=lambda grouped: grouped) -> float:
    """Returns the largest |sampler log-prob - training log-prob| over the sampled tokens."""
    shapes = BatchShapes(micro_batches=1, groups=2, rows=3, lanes=3, prefix=(16,), suffix=(48,))
    ones = np.ones(len(turns()), np.float32)
    batch = pack(turns(), [[0, 1, 2], [3, 4]], ones, ones.astype(bool), shapes)
    grouped = change(GroupedIds(*(array[0] for array in batch.grouped)))
    lp = np.asarray(training_logprobs(params(), grouped))
    assert batch.loss_mask.sum() == 3 * sum(3 + n for n in range(5))
    return float(np.max(np.abs(lp - batch.behaviour[0])[batch.loss_mask[0]]))


def test_training_gives_sampled_tokens_of_ragged_grouped_multi_turn_rows_the_logprobs_of_the_sampler():
    assert gap() <= 1e-5


BROKEN = {
    "positions are off by one": lambda g: g._replace(lane_positions=g.lane_positions + 1),
    "the prefixes lack their last token": lambda g: g._replace(
        prefix_segments=np.where(np.diff(g.prefix_segments, axis=1, append=0) != 0, 0, g.prefix_segments)
    ),
    "rows of a lane see each other": lambda g: g._replace(lane_segments=np.minimum(g.lane_segments, 1)),
    "an observation is another one": lambda g: g._replace(lane_ids=np.where(g.lane_positions == 20, 5, g.lane_ids)),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_the_logprob_comparison_notices_that(change):
    assert gap(change) > 1e-4


# When a reply ends.


def test_a_stop_token_ends_a_reply_and_is_its_last_id():
    wanted = [int(s.ids[4]) for s in straight()[:2]]
    for sampled, whole in zip(sample_all(ragged_requests(), stop_ids=wanted), straight(), strict=True):
        hits = np.flatnonzero(np.isin(whole.ids, wanted))
        end = hits[0] + 1 if len(hits) else len(whole.ids)
        np.testing.assert_array_equal(sampled.ids, whole.ids[:end])
        np.testing.assert_allclose(sampled.logprobs, whole.logprobs[:end], atol=1e-5)
        assert sampled.finish_reason is (FinishReason.STOP if len(hits) else FinishReason.LENGTH)


def test_each_request_has_a_length_limit_of_its_own():
    limits = (1, 12, 5, 4, 2, 9)
    limited = [dataclasses.replace(r, max_new_tokens=n) for r, n in zip(ragged_requests(), limits, strict=True)]
    found = sample_all(limited)
    assert [len(s.ids) for s in found] == list(limits)
    assert all(s.finish_reason is FinishReason.LENGTH for s in found)
    expected = [Sampled(s.ids[:n], s.logprobs[:n], s.finish_reason) for s, n in zip(straight(), limits, strict=True)]
    assert_same(found, expected)


def two_letters(ids) -> str:
    """Every token spells two characters that no other token has."""
    return "".join(chr(0x400 + i) + chr(0x900 + i) for i in ids)


def border(ids: np.ndarray, last: int) -> str:
    """The second character of token last - 1 and the first of token `last`."""
    return two_letters(ids)[2 * last - 1 : 2 * last + 1]


# The first token comes with the prompt, then chunks of four: tokens 0 | 1-4 | 5-8 | 9-11.
@pytest.mark.parametrize("last", [1, 3, 5, 9, 11], ids=lambda n: f"ends with token {n}")
def test_a_stop_string_across_a_token_border_ends_the_reply_at_the_token_that_completes_it(last):
    whole = straight()[0]
    stop = border(whole.ids, last)
    complete = next(n for n in range(1, 13) if stop in two_letters(whole.ids[:n]))
    [sampled] = sample_all(ragged_requests()[:1], stop_strings=[stop], decode=two_letters)
    np.testing.assert_array_equal(sampled.ids, whole.ids[:complete])
    assert len(sampled.logprobs) == complete and sampled.finish_reason is FinishReason.STOP


def test_the_earliest_of_several_stop_strings_wins_and_other_rows_go_on():
    whole = straight()
    stops = [border(whole[1].ids, 8), border(whole[1].ids, 6), "absent"]
    for n, sampled in enumerate(sample_all(ragged_requests(), stop_strings=stops, decode=two_letters)):
        complete = [k for k in range(1, 13) if any(stop in two_letters(whole[n].ids[:k]) for stop in stops)]
        assert len(sampled.ids) == (complete[0] if complete else 12)
        assert sampled.finish_reason is (FinishReason.STOP if complete else FinishReason.LENGTH)
    assert len(sample_all(ragged_requests(), stop_strings=stops, decode=two_letters)[1].ids) <= 7


def test_finished_rows_are_handed_over_at_the_chunk_boundary_where_they_end():
    limits = (1, 3, 12, 4, 1)
    requests = [dataclasses.replace(r, max_new_tokens=n) for r, n in zip(ragged_requests()[:5], limits, strict=True)]
    batches = make_sampler(stop_ids=NEVER).generate(params(), requests, PLAIN)
    assert [sorted(index for index, _ in batch) for batch in batches] == [[0, 4], [1, 3], [2]]


# More requests than slots: waiting ones take the place of finished ones.


def uneven_requests(count: int = 23) -> list[SampleRequest]:
    """Prompts of 3 to 9 tokens and replies of 1 to 12, one group each or in pairs."""
    rng = np.random.default_rng(5)
    sizes, limits = rng.integers(3, 10, count), rng.integers(1, 13, count)
    return [request(some_ids(300 + n // 2, sizes[n]), n // 2, n, int(limits[n])) for n in range(count)]


@pytest.mark.parametrize("max_rows", [2, 8, 24])
def test_results_do_not_depend_on_when_a_slot_was_free(max_rows):
    requests = uneven_requests()
    alone = [sample_all([r], dataclasses.replace(SHAPES, max_rows=1))[0] for r in requests]
    assert_same(sample_all(requests, dataclasses.replace(SHAPES, max_rows=max_rows)), alone)


def test_a_finished_row_makes_room_for_a_waiting_request_before_its_neighbours_end():
    limits = (12, 1, 1, 1)
    requests = [request(some_ids(n, 5), n, n, limit) for n, limit in enumerate(limits)]
    sampler = make_sampler(dataclasses.replace(SHAPES, max_rows=2), NEVER)
    batches = [sorted(index for index, _ in batch) for batch in sampler.generate(params(), requests, PLAIN)]
    assert batches == [[1], [2], [3], [0]]


def test_refilled_slots_waste_fewer_row_steps_than_static_batches():
    requests = [request(some_ids(n, 5), n, n, 12 if n % 4 == 0 else 2) for n in range(16)]
    sampler = make_sampler(dataclasses.replace(SHAPES, max_rows=4, chunk=2), NEVER)
    list(sampler.generate(params(), requests, PLAIN))
    assert sampler.work.live_row_steps == sum(r.max_new_tokens - 1 for r in requests)  # the first comes with the prompt
    static = 4 * 12 * 4  # four batches of four rows that each wait for a reply of twelve
    assert sampler.work.row_steps < 0.75 * static


@pytest.mark.parametrize("rows_per_prefix", [(1,), (2,)])
def test_results_do_not_depend_on_how_far_the_slots_shrink(rows_per_prefix):
    requests = uneven_requests(12)
    shapes = dataclasses.replace(SHAPES, chunk=1, rows_per_prefix=rows_per_prefix)
    samplers = [make_sampler(dataclasses.replace(shapes, shrink=shrink), NEVER) for shrink in (False, True)]
    found = []
    for sampler in samplers:
        results = dict(pair for batch in sampler.generate(params(), requests, PLAIN) for pair in batch)
        found.append([results[i] for i in range(len(requests))])
    assert_same(found[1], found[0])
    assert (
        samplers[1].work.row_steps < samplers[0].work.row_steps
        and samplers[1].work.live_row_steps == samplers[0].work.live_row_steps
    )


def test_a_copy_of_the_weights_with_every_layer_apart_draws_the_same():
    stacked, apart = (
        sample_all(ragged_requests(), dataclasses.replace(SHAPES, unstack_layers=chosen)) for chosen in (False, True)
    )
    assert_same(apart, stacked)


LONG = dataclasses.replace(SHAPES, tail=(1, 8), max_new_tokens=150, max_rows=2)


def test_results_do_not_depend_on_the_width_of_the_ring():
    # Replies of up to 150 tokens let the ring of key columns grow three times, and later ones go round it.
    limits = (150, 20, 90, 6, 130, 40)
    requests = [request(some_ids(n, 4 + n), n, n, limit) for n, limit in enumerate(limits)]
    together = sample_all(requests, LONG)
    assert [len(s.ids) for s in together] == list(limits)
    assert_same(together, [sample_all([r], dataclasses.replace(LONG, max_rows=1))[0] for r in requests])
    wide = dataclasses.replace(LONG, max_rows=6, chunk=150)  # one chunk: no ring ever grows or wraps
    assert_same(together, sample_all(requests, wide))


# What is refused.


@pytest.mark.parametrize(
    ("length", "shapes", "text"),
    [
        (250, SHAPES, "prompt of 250 tokens + max_new_tokens=12 = 262 exceeds the model's context of 256"),
        (100, SHAPES, "sampler.tail: 68 tokens do not fit the largest bucket 32; raise sampler.tail or shorten"),
        (0, SHAPES, "prompt: it has no tokens"),
        (4, dataclasses.replace(SHAPES, max_new_tokens=8), "max_new_tokens=12 exceeds the sampler's 8"),
    ],
)
def test_a_request_that_cannot_fit_is_refused_with_the_numbers(length, shapes, text):
    with pytest.raises(ConfigError, match=text.replace("+", r"\+")):
        sample_all([request(some_ids(0, length), 0, 0)], shapes)


@pytest.mark.parametrize("changes", [{"prefix": ()}, {"tail": (8, 4)}, {"chunk": 0}, {"max_rows": 0}])
def test_impossible_shapes_are_refused_by_name(changes):
    with pytest.raises(ConfigError, match=f"sampler.{next(iter(changes))}="):
        dataclasses.replace(SHAPES, **changes)


def test_a_bucket_is_the_smallest_that_holds_the_value():
    assert [bucket(n, (4, 8), "x") for n in (1, 4, 5, 8)] == [4, 4, 8, 8]


def test_no_request_is_no_work():
    assert sample_all([]) == []


# Compilation.


def lengths(prefix: int, tails: tuple[int, ...]) -> list[SampleRequest]:
    """Two groups over one prefix length, a request for each tail."""
    rows = []
    for group in range(2):
        shared = some_ids(60 + group, prefix)
        rows += [np.concatenate([shared, some_ids(70 + 10 * group + n, t)]) for n, t in enumerate(tails)]
    return [request(ids, n // len(tails), 500 + n) for n, ids in enumerate(rows)]


def test_ragged_batches_recompile_nothing_after_warm_up():
    sampler = make_sampler(stop_ids=NEVER)
    # Three groups in two slots: the third is admitted by itself.
    list(sampler.generate(params(), [*lengths(9, (1, 6, 3)), request(some_ids(7, 5), 2, 901)], PLAIN))
    with compiled_programs() as programs:
        for prefix, tails in ((3, (8, 2, 1)), (16, (5, 5, 5, 7)), (12, (1, 2, 8)), (1, (4, 4, 4))):
            sampler.release()  # as after every step
            list(sampler.generate(params(), lengths(prefix, tails), PLAIN))
        # A lone long prompt must not widen the prefix that the others share.
        sampler.release()
        alone = request(some_ids(6, 24), 2, 900)
        list(sampler.generate(params(), [*lengths(9, (1, 6, 3)), alone], PLAIN))
    assert programs == []


def test_the_compile_count_notices_a_new_bucket():
    sampler = make_sampler(stop_ids=NEVER)
    list(sampler.generate(params(), lengths(9, (1, 6, 3)), PLAIN))
    with compiled_programs() as programs:
        # As long as the largest prefix and the largest tail together allow.
        list(sampler.generate(params(), [request(some_ids(5, 64), 0, 0)], PLAIN))
    assert any("admit" in name for name in programs)
