"""Views keep their tokens, packing places each of them once, and the shapes of a batch come from buckets alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError
from ditto_jax.rollouts.views import View, views_of
from ditto_jax.types import (
    Author,
    Conversation,
    Example,
    Feedback,
    FinishReason,
    Outcome,
    Rollout,
    RolloutRole,
    Span,
    Transcript,
    Verdict,
    ViewRole,
)
from ditto_jax.update.batch import TokenCounts, TrainBatch, by_prompt, pack, token_counts
from ditto_jax.update.packing import BatchShapes, batch_shapes

PROMPTS, ROWS = 4, 5

NARROW = BatchShapes(PROMPTS, 2, ROWS, 2, prefix=(4,), suffix=(12,))
SHAPES = batch_shapes(PROMPTS, ROWS, groups=2, lanes=2, prefix=(4, 12), suffix=(12, 24))


class Batch(NamedTuple):
    """Arguments of `pack`. `weights` are distinct and positive, so that a packed row tells which view it is."""

    views: list[View]
    prompts: list[list[int]]
    weights: np.ndarray
    live: np.ndarray


@st.composite
def batches(draw) -> Batch:
    """Views of up to four prompts, whose contexts share a start, and some rows that are not live."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    views: list[View] = []
    for prompt in range(draw(st.integers(0, PROMPTS))):
        shared = rng.integers(1, 90, draw(st.integers(0, 11)))
        for _ in range(draw(st.integers(1, ROWS))):
            context = np.concatenate([shared, rng.integers(1, 90, draw(st.integers(1, 3)))]).astype(np.int32)
            views.append(view(rng, prompt, context, draw(st.integers(1, 8)), len(views)))
    live = np.array(draw(st.lists(st.booleans(), min_size=len(views), max_size=len(views))), bool)
    return Batch(views, list(by_prompt(views).values()), weights_of(views), live)


def weights_of(views: Sequence[View]) -> np.ndarray:
    return np.arange(1, len(views) + 1).astype(np.float32)


def view(rng, prompt: int, context: np.ndarray, length: int, number: int) -> View:
    mask = rng.random(length) < 0.7
    return View(
        role=ViewRole(int(rng.integers(0, 3))),
        prompt=prompt,
        rollout=number,
        context=context,
        response=rng.integers(1, 90, length).astype(np.int32),
        loss_mask=mask,
        behaviour=np.where(mask, -rng.random(length), 0).astype(np.float32),
        reward=1.0,
        truncated=False,
        cross=bool(rng.random() < 0.5),
    )


def groups_of(batch: TrainBatch) -> list[TrainBatch]:
    """The groups of all micro-batches, one after the other."""
    flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), batch)
    return [jax.tree.map(lambda array, g=g: array[g], flat) for g in range(len(flat.row_valid))]


def placed(batch: Batch) -> list[tuple[TrainBatch, int, View]]:
    """Returns (its group, row in the group, view) of every valid packed row."""
    groups = groups_of(pack(batch.views, batch.prompts, batch.weights, batch.live, SHAPES))
    rows = [(group, int(row)) for group in groups for row in np.flatnonzero(group.row_valid)]
    return [(group, row, batch.views[int(group.weights[row]) - 1]) for group, row in rows]


def prefix_of(group: TrainBatch, row: int) -> np.ndarray:
    """Where in the prefix array of its group the tokens of a row's prefix lie."""
    continued = group.grouped.lane_prefixes.reshape(-1)[group.grouped.row_tokens[row, 0]]
    assert continued > 0
    return np.flatnonzero(group.grouped.prefix_segments == continued)


def suffix_length(group: TrainBatch, row: int, view: View) -> int:
    return len(view.context) + len(view.response) - len(prefix_of(group, row))


@given(batches())
def test_every_live_view_is_packed_once_and_no_other(batch):
    found = sorted(view.rollout for _, _, view in placed(batch))
    assert found == np.flatnonzero(batch.live).tolist()


@given(batches())
def test_every_row_reads_back_token_for_token_with_positions_from_zero(batch):
    for group, row, view in placed(batch):
        prefix, grouped = prefix_of(group, row), group.grouped
        where = grouped.row_tokens[row, : suffix_length(group, row, view)]
        ids = np.concatenate([grouped.prefix_ids[prefix], grouped.lane_ids.reshape(-1)[where]])
        positions = np.concatenate([grouped.prefix_positions[prefix], grouped.lane_positions.reshape(-1)[where]])
        np.testing.assert_array_equal(ids, np.concatenate([view.context, view.response]))
        np.testing.assert_array_equal(positions, np.arange(len(ids)))


@given(batches())
def test_suffixes_are_segments_of_one_lane_that_do_not_overlap(batch):
    used: dict[int, np.ndarray] = {}
    for group, row, view in placed(batch):
        segments = group.grouped.lane_segments.reshape(-1)
        taken = used.setdefault(id(group), np.zeros(len(segments), int))
        where = group.grouped.row_tokens[row, : suffix_length(group, row, view)]
        np.testing.assert_array_equal(where, where[0] + np.arange(len(where)))
        taken[where] += 1
        assert set(segments[where].tolist()) == {row + 1}
        assert len(set((where // group.grouped.lane_ids.shape[1]).tolist())) == 1
        assert len(set(group.grouped.lane_prefixes.reshape(-1)[where].tolist())) == 1
        assert taken.max() == 1


@given(batches())
def test_every_packed_token_belongs_to_a_row(batch):
    for group in groups_of(pack(batch.views, batch.prompts, batch.weights, batch.live, SHAPES)):
        valid = group.row_valid
        rows = [(int(row), batch.views[int(group.weights[row]) - 1]) for row in np.flatnonzero(valid)]
        lengths = [suffix_length(group, row, view) for row, view in rows]
        assert (group.grouped.lane_segments > 0).sum() == sum(lengths)
        assert not group.loss_mask[~valid].any() and not group.weights[~valid].any()
        prefixes = {prefix_of(group, row).tobytes(): len(prefix_of(group, row)) for row, _ in rows}
        assert (group.grouped.prefix_segments > 0).sum() == sum(prefixes.values())


@given(batches())
def test_masks_logprobs_and_row_facts_stand_at_the_tokens_that_they_are_about(batch):
    for group, row, view in placed(batch):
        start = len(view.context) - len(prefix_of(group, row))
        assert start >= 1  # the first token of a suffix has no log-prob
        here = slice(start, start + len(view.response))
        np.testing.assert_array_equal(group.loss_mask[row, here], view.loss_mask)
        np.testing.assert_array_equal(group.behaviour[row, here], view.behaviour)
        assert group.loss_mask[row].sum() == view.loss_mask.sum()
        assert (group.role[row], group.cross[row]) == (int(view.role), view.cross)


@given(batches())
def test_shapes_depend_on_the_configuration_and_length_buckets_alone(batch):
    result = pack(batch.views, batch.prompts, batch.weights, batch.live, SHAPES)
    leading = (SHAPES.micro_batches, SHAPES.groups)
    prefix, suffix = result.grouped.prefix_ids.shape[-1], result.grouped.lane_ids.shape[-1]
    assert prefix in SHAPES.prefix and suffix in SHAPES.suffix
    assert result.grouped.prefix_ids.shape == (*leading, prefix)
    assert result.grouped.lane_ids.shape == (*leading, SHAPES.lanes, suffix)
    assert result.loss_mask.shape == result.grouped.row_tokens.shape == (*leading, SHAPES.rows, suffix)
    assert result.row_valid.shape == (*leading, SHAPES.rows)


@given(batches())
def test_the_shared_prefix_of_a_prompt_is_the_longest_that_a_bucket_holds_and_that_leaves_a_token(batch):
    for group, row, view in placed(batch):
        length = len(prefix_of(group, row))
        rows = [batch.views[i] for i in batch.prompts[view.prompt] if batch.live[i]]
        longest = min(SHAPES.prefix[-1], *(len(row.context) - 1 for row in rows))
        longer = {row.context[: length + 1].tobytes() for row in rows}
        assert length == longest or (length < longest and len(longer) > 1)


def test_shapes_have_room_for_every_prompt_even_if_each_row_fills_a_lane():
    rng = np.random.default_rng(3)
    context = np.array([1, 2], np.int32)
    views = [view(rng, n // ROWS, context, 22, n) for n in range(PROMPTS * ROWS)]
    batch = Batch(views, list(by_prompt(views).values()), weights_of(views), np.ones(len(views), bool))
    assert len(placed(batch)) == PROMPTS * ROWS


def test_a_step_without_any_live_row_still_packs():
    rng = np.random.default_rng(0)
    views = [view(rng, 0, np.array([3, 4], np.int32), 5, n) for n in range(2)]
    for batch in (
        Batch(views, [[0, 1]], weights_of(views), np.zeros(2, bool)),
        Batch([], [], weights_of([]), np.zeros(0, bool)),
    ):
        empty = pack(batch.views, batch.prompts, batch.weights, batch.live, SHAPES)
        assert not empty.row_valid.any() and not empty.loss_mask.any()


def test_rows_are_packed_side_by_side_as_far_as_the_lane_goes():
    rng = np.random.default_rng(1)
    context = np.array([1, 2, 3], np.int32)
    views = [view(rng, 0, context, length, n) for n, length in enumerate((8, 7, 4, 3))]
    batch = pack(views, [[0, 1, 2, 3]], weights_of(views), np.ones(4, bool), NARROW)
    # Suffixes of 9, 8, 5 and 4 tokens, the first of them context, in lanes of 12: 9; 8 + 4; 5 in another group.
    valid = batch.row_valid.reshape(-1, NARROW.rows)
    assert valid.sum(axis=1)[:2].tolist() == [3, 1] and batch.grouped.lane_ids.shape[-1] == 12
    stored = (batch.grouped.prefix_segments > 0).sum(axis=-1).reshape(-1)
    assert stored[:3].tolist() == [2, 2, 0]


def test_real_tokens_are_counted_over_all_that_are_computed():
    rng = np.random.default_rng(1)
    context = np.array([1, 2, 3], np.int32)
    views = [view(rng, 0, context, length, n) for n, length in enumerate((8, 7, 4, 3))]
    counts = token_counts(pack(views, [[0, 1, 2, 3]], weights_of(views), np.ones(4, bool), NARROW))
    # Two groups with a prefix of 2 tokens each, one micro-batch of two groups; the other micro-batches are skipped.
    assert counts == TokenCounts(2 * 2, 2 * 4, 9 + 8 + 5 + 4, 2 * 2 * 12)
    assert counts.real_fraction == (4 + 26) / (8 + 48)
    assert token_counts(pack([], [], weights_of([]), np.zeros(0, bool), SHAPES)).real_fraction == 0


def test_prompts_share_a_group_where_its_prefixes_and_lanes_have_room():
    rng = np.random.default_rng(4)
    lengths = {0: (3, 4), 1: (5,), 2: (2, 2)}
    contexts = {prompt: np.arange(10 * prompt + 1, 10 * prompt + 5, dtype=np.int32) for prompt in lengths}
    views = [
        view(rng, p, contexts[p], length, 10 * p + n) for p, own in lengths.items() for n, length in enumerate(own)
    ]
    batch = pack(views, list(by_prompt(views).values()), weights_of(views), np.ones(5, bool), SHAPES)
    [first, *others] = groups_of(batch)
    assert first.row_valid.sum() == 5 and not any(group.row_valid.any() for group in others)
    assert [(first.grouped.prefix_segments == segment).sum() for segment in (1, 2, 3)] == [3, 3, 3]


@given(batches())
def test_groups_are_never_more_than_if_each_prompt_had_its_own(batch):
    packed = pack(batch.views, batch.prompts, batch.weights, batch.live, SHAPES)
    alone = [[i for i in rows if batch.live[i]] for rows in batch.prompts]
    assert packed.row_valid.any(axis=-1).sum() <= sum(-(-len(rows) // SHAPES.lanes) for rows in alone)


def ragged_views(seed: int, prompts: int, group: int) -> list[View]:
    """Drafts, and refined replies under two contexts, of log-normal lengths with a coefficient of variation of 1.

    Stories of about 700 tokens, replies of about 120 and at most 256, feedback of about 80.
    """
    rng = np.random.default_rng(seed)

    def length(mean: float, sigma: float, limit: int) -> int:
        return int(np.clip(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma), 8, limit))

    views: list[View] = []
    for prompt in range(prompts):
        story = rng.integers(1, 90, length(700, 0.47, 2000)).astype(np.int32)
        for _ in range(group):
            hint = rng.integers(1, 90, length(80, 0.47, 300)).astype(np.int32)
            draft, refined = length(120, 0.83, 256), length(120, 0.83, 256)
            for words, reply in ((hint[:0], draft), (hint[:0], refined), (hint, refined)):
                context = np.concatenate([story, words, [99]]).astype(np.int32)
                views.append(view(rng, prompt, context, reply, len(views)))
    return views


@pytest.mark.parametrize(("seed", "share"), [(0, 0.95), (1, 0.95), (2, 0.92)])
def test_ragged_rows_fill_lanes_and_prefixes(seed, share):
    # The third step has a story of 2,000 tokens, for which all prefix arrays are made.
    views = ragged_views(seed, prompts=8, group=16)
    shapes = batch_shapes(8, 48, 1, 8, prefix=tuple(range(64, 4097, 64)), suffix=tuple(range(64, 1537, 64)))
    batch = pack(views, list(by_prompt(views).values()), weights_of(views), np.ones(len(views), bool), shapes)
    counts = token_counts(batch)
    assert counts.real_fraction >= share
    apart = sum(len(one.context) + len(one.response) - 1 for one in views)  # every row with a prompt of its own
    assert apart >= 4.5 * (counts.prefix_computed + counts.lanes_computed)


def test_rows_of_one_prompt_whose_openings_have_nothing_in_common_stand_under_prefixes_of_their_own():
    rng = np.random.default_rng(7)
    openings = [rng.integers(0, 100, 12).astype(np.int32), rng.integers(100, 200, 12).astype(np.int32)]
    views = [
        view(rng, 0, openings[n % 2], 20, n) for n in range(4)
    ]  # 32 tokens: together, no lane of 24 would hold one
    weights = np.arange(1, 5, dtype=np.float32)
    batch = pack(views, [[0, 1, 2, 3]], weights, np.ones(4, bool), SHAPES)
    assert sorted(batch.weights[batch.row_valid].tolist()) == weights.tolist()
    found = {int(row[0]) for row in batch.grouped.prefix_ids.reshape(-1, batch.grouped.prefix_ids.shape[-1])}
    assert {int(opening[0]) for opening in openings} <= found


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(2)
    long = [view(rng, 0, np.arange(1, 40, dtype=np.int32), 24, 0)]
    with pytest.raises(ConfigError, match=r"train\.(prefix|suffix): \d+ tokens do not fit the largest bucket"):
        pack(long, [[0]], weights_of(long), np.ones(1, bool), SHAPES)
    many = [view(rng, 0, np.array([1, 2], np.int32), 22, n) for n in range(60)]
    with pytest.raises(ValueError, match="1 prompts with up to 60 rows do not fit"):
        pack(many, [list(range(60))], weights_of(many), np.ones(60, bool), SHAPES)


# Views.

X, H = [1, 10, 11, 2], [1, 10, 11, 30, 31, 2]


def transcript(context: Sequence[int], response: Sequence[int], sampled: Sequence[bool], reason=FinishReason.STOP):
    ids = np.array([*context, *response], np.int32)
    spans = [Span(0, len(context), Author.CONTEXT)]
    for offset, own in enumerate(sampled):
        at = len(context) + offset
        spans.append(Span(at, at + 1, Author.POLICY if own else Author.CONTEXT))
    lp = np.where([*[False] * len(context), *sampled], -0.1 - 0.01 * np.arange(len(ids)), 0).astype(np.float32)
    return Transcript(ids, lp, tuple(spans), len(context), reason)


def rollout(role: RolloutRole, tokens: Transcript, verdict: Verdict, sample: int = 0) -> Rollout:
    example = Example(task="t", id="e", payload={}, gold="g")
    words = Feedback(Outcome.OK, text="h") if role is RolloutRole.REFINED else None
    return Rollout(example, role, 3, sample, {"policy": tokens}, Conversation((), "r"), verdict, used_feedback=words)


DRAFT = rollout(RolloutRole.DRAFT, transcript(X, [40, 41], [True, True]), Verdict(Outcome.OK, score=0.0))
REFINED = rollout(
    RolloutRole.REFINED, transcript(H, [50, 51, 52, 53], [True, False, True, True]), Verdict(Outcome.OK, score=1.0)
)
ALL = list(ViewRole)


def test_a_refined_rollout_is_trained_under_the_drafts_context_and_under_its_own():
    draft, plain, hinted = views_of([DRAFT, REFINED], ALL)
    assert [v.role for v in (draft, plain, hinted)] == [ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB]
    assert [v.context.tolist() for v in (draft, plain, hinted)] == [X, X, H]
    assert [v.cross for v in (draft, plain, hinted)] == [False, True, False]
    assert [v.rollout for v in (draft, plain, hinted)] == [0, 1, 1] and {v.prompt for v in (draft, plain, hinted)} == {
        3
    }
    assert [v.reward for v in (draft, plain, hinted)] == [0.0, 1.0, 1.0]


def test_views_of_one_rollout_share_ids_masks_and_logprobs_token_for_token():
    _, plain, hinted = views_of([DRAFT, REFINED], ALL)
    assert plain.response.tolist() == [50, 51, 52, 53] and plain.loss_mask.tolist() == [True, False, True, True]
    for name in ("response", "loss_mask", "behaviour"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(hinted, name))
    np.testing.assert_array_equal(plain.behaviour, REFINED.transcripts["policy"].logprobs[len(H) :])


def test_a_refined_rollout_belongs_to_the_draft_with_its_sample_index():
    other = rollout(RolloutRole.DRAFT, transcript([1, 77, 2], [42], [True]), Verdict(Outcome.OK, score=0.0), sample=1)
    child = rollout(RolloutRole.REFINED, REFINED.transcripts["policy"], Verdict(Outcome.OK, score=1.0), sample=1)
    [plain] = views_of([DRAFT, other, child], [ViewRole.REFINED_PLAIN])
    assert plain.context.tolist() == [1, 77, 2]


def test_feedback_without_tokens_makes_no_view_cross():
    same = rollout(RolloutRole.REFINED, transcript(X, [50], [True]), Verdict(Outcome.OK, score=1.0))
    [plain] = views_of([DRAFT, same], [ViewRole.REFINED_PLAIN])
    assert not plain.cross


def test_only_the_roles_of_the_objective_are_built():
    assert [v.role for v in views_of([DRAFT, REFINED], [ViewRole.DRAFT])] == [ViewRole.DRAFT]
    assert [v.role for v in views_of([DRAFT, REFINED], [ViewRole.REFINED_FB])] == [ViewRole.REFINED_FB]


def test_a_failed_verdict_is_no_reward_a_cut_rollout_is_truncated_and_an_empty_one_gives_no_view():
    failed = rollout(RolloutRole.DRAFT, DRAFT.transcripts["policy"], Verdict(Outcome.TIMED_OUT))
    cut = rollout(
        RolloutRole.DRAFT, transcript(X, [40], [True], FinishReason.LENGTH), Verdict(Outcome.OK, score=0.5), sample=1
    )
    empty = rollout(RolloutRole.DRAFT, transcript(X, [], []), Verdict(Outcome.OK, score=0.5), sample=2)
    views = views_of([failed, cut, empty], ALL)
    assert [(v.reward, v.truncated, v.rollout) for v in views] == [(None, False, 0), (0.5, True, 1)]
