"""Scoring passes give the log-probabilities of each row read alone, by the right weights and in the right context.

Rows are conversations with partners' turns, packed as an update packs them; what is expected comes from the whole
logits of one sequence at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.objective import Kl, KlRef, Mismatch, Objective, PgClip, Pool, Teacher, Term
from ditto_jax.rollouts.views import View
from ditto_jax.types import ViewRole
from ditto_jax.update.batch import Columns, TrainBatch, by_prompt, pack
from ditto_jax.update.loss import LossRows, denominators, objective_loss
from ditto_jax.update.packing import batch_shapes
from ditto_jax.update.passes import columns_of, needs_average, needs_initial
from ditto_jax.update.scoring import PassWeights, Scoring
from ditto_jax.update.train_step import UpdateConfig, make_gradient
from model.llama import apply
from model.partition import parameter_shardings, row_sharding
from tests.tiny_batch import ONE, Sizes, mesh_of
from tests.tiny_policy import CONFIG, params, some_ids

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEMPERATURE, PROMPTS, K, VOCABULARY = 0.8, 4, 4, CONFIG.vocab_size
_JOINT = (ViewRole.DRAFT, ViewRole.REFINED_PLAIN)
_LENGTHS: Any = {"lanes": 2, "prefix": (8, 16), "suffix": (24, 48)}
SHAPES = batch_shapes(PROMPTS, 4, 2, **_LENGTHS)
DIVISIBLE = batch_shapes(PROMPTS, 4, 4, **_LENGTHS)  # micro-batches that four devices can share


def objective(kl: Kl | None = None, **changes: Any) -> Objective:
    """Terms that need every pass; the teacher has the policy's weights unless told otherwise."""
    ratio = Term(loss=PgClip(), roles=_JOINT, mismatch=Mismatch())
    reference = Term(loss=KlRef(), roles=(ViewRole.DRAFT,), coef=0.1)
    teacher = Term(loss=kl or Kl(top_k=K), roles=(ViewRole.DRAFT,), coef=0.5)
    return Objective(name="all passes", pools=(Pool(roles=_JOINT),), terms=(ratio, reference, teacher), **changes)


@functools.cache
def rows() -> tuple[list[View], list[View]]:
    """(views, DRAFT_FB views): drafts and refined rollouts of three turns with two partner turns between them.

    The last prompt's draft got no words.
    """
    views, hinted = [], []
    rng = np.random.default_rng(3)
    for prompt in range(PROMPTS):
        plain = some_ids(prompt, 6 + prompt)
        advised = np.concatenate([plain[:-1], some_ids(50 + prompt, 3), plain[-1:]])
        for role, context in ((ViewRole.DRAFT, plain), (ViewRole.REFINED_PLAIN, plain)):
            turns = [3 + prompt % 2, 3, 2, 2, 4]  # policy, partner, policy, partner, policy
            mask = np.repeat([True, False, True, False, True], turns)
            view = View(
                role=role,
                prompt=prompt,
                rollout=2 * prompt + int(role),
                context=context,
                response=some_ids(90 + 2 * prompt + int(role), sum(turns)),
                loss_mask=mask,
                behaviour=np.where(mask, -rng.random(sum(turns)), 0.0).astype(np.float32),
                reward=0.0,
                truncated=False,
                cross=role is ViewRole.REFINED_PLAIN,
                sampled_under=advised if role is ViewRole.REFINED_PLAIN else None,
            )
            views.append(view)
            if role is ViewRole.DRAFT and prompt < PROMPTS - 1:
                twin = dataclasses.replace(view, role=ViewRole.DRAFT_FB, context=advised, cross=True)
                hinted.append(dataclasses.replace(twin, sampled_under=plain))
    return views, hinted


@functools.cache
def other_params(seed: int) -> Any:
    """Weights near the policy's, but not the same."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (leaf * rng.uniform(0.9, 1.1, leaf.shape)).astype(leaf.dtype), params())


@functools.cache
def dense(who: str, context: bytes, response: bytes) -> np.ndarray:
    """float32[t, V]: log-softmax in the place of each response token, from one sequence alone."""
    tree = {"policy": params(), "initial": other_params(1), "average": other_params(2)}[who]
    start, ids = len(context) // 4, np.frombuffer(context + response, np.int32)
    logits = apply(tree, CONFIG, jnp.asarray(ids)[None])[0] / TEMPERATURE
    return np.asarray(jax.nn.log_softmax(logits))[start - 1 : -1]


def dense_of(who: str, context: np.ndarray | None, view: View) -> np.ndarray:
    assert context is not None
    return dense(who, context.tobytes(), view.response.tobytes())


def at(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.take_along_axis(scores, ids.reshape(len(scores), -1), axis=1).reshape(ids.shape)


def scoring(wanted: Objective, updates: int = 2, sizes: Sizes = ONE) -> Scoring:
    config = UpdateConfig(CONFIG, wanted, temperature=TEMPERATURE, logprob_chunk=16)
    shapes = SHAPES if sizes == ONE else DIVISIBLE
    return Scoring(config, columns_of(wanted, VOCABULARY, updates), shapes, mesh_of(sizes))


def filled(
    wanted: Objective,
    updates: int = 2,
    sizes: Sizes = ONE,
    live: np.ndarray | None = None,
    passes: Scoring | None = None,
) -> tuple[list[View], dict[str, float]]:
    mesh = mesh_of(sizes)
    placed = [jax.device_put(p, parameter_shardings(p, mesh)) for p in (params(), other_params(1), other_params(2))]
    views, hinted = rows()
    members = list(by_prompt(views).values())
    halves = [members[:2], members[2:]] if updates > 1 else [members]
    live = np.ones(len(views), bool) if live is None else live
    return (passes or scoring(wanted, updates, sizes)).fill(views, hinted, halves, live, PassWeights(*placed))


def close(found: np.ndarray | None, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-5)


# Which column is what.


def test_each_pass_reads_the_right_context_with_the_right_weights():
    for view in filled(objective())[0]:
        close(view.anchor, at(dense_of("policy", view.context, view), view.response))
        if view.role is ViewRole.DRAFT:
            close(view.reference, at(dense_of("initial", view.context, view), view.response))
            assert view.sample is None
        else:
            close(view.sample, at(dense_of("policy", view.sampled_under, view), view.response))
            assert np.abs(view.sample - view.anchor).max() > 0.01 and view.reference is None


@pytest.mark.parametrize("weights", ["same", "ema", "frozen"])
@pytest.mark.parametrize(
    "kl",
    [Kl(top_k=K), Kl(top_k=K, candidates="teacher"), Kl(top_k=10**6), Kl(top_k=1, sampled=True)],
    ids=["of the student", "of the teacher", "whole vocabulary", "sampled"],
)
def test_the_teacher_reads_the_draft_under_the_words_at_the_candidates(kl, weights):
    views, metrics = filled(objective(kl, teacher=Teacher(weights=weights)))
    contexts = {v.rollout: v.context for v in rows()[1]}
    who = {"same": "policy", "ema": "average", "frozen": "initial"}[weights]
    gaps = []
    for view in views:
        if view.rollout not in contexts:
            assert view.teacher_ids is None and view.teacher_lp is None
            continue
        teacher = dense_of(who, contexts[view.rollout], view)
        student = dense_of("policy", view.context, view)
        if kl.sampled:
            expected = view.response[:, None]
        else:
            likeliest = student if kl.candidates == "student" and kl.top_k < VOCABULARY else teacher
            expected = np.argsort(-likeliest, axis=1, kind="stable")[:, : kl.top_k]
        mask = view.loss_mask
        assert view.teacher_ids is not None and view.teacher_lp is not None
        np.testing.assert_array_equal(view.teacher_ids[mask], expected[mask])
        close(view.teacher_lp[mask], at(teacher, expected)[mask])
        gaps.append((at(teacher, view.response) - at(student, view.response))[mask])
    assert (metrics["teacher/rows_count"], metrics["teacher/unread_count"]) == (PROMPTS - 1, 1)
    whole = np.concatenate(gaps)
    assert metrics["teacher/gap_mean"] == pytest.approx(whole.mean(), abs=1e-5)
    assert metrics["teacher/gap_p99"] == pytest.approx(np.percentile(np.abs(whole), 99), abs=1e-5)
    assert 0.5 < metrics["teacher/gap_first_tokens_fraction"] < 1.0  # 8 of 9 or 10 tokens are among the first three


def test_rows_that_are_not_live_are_left_alone():
    live = np.ones(len(rows()[0]), bool)
    live[[0, 3]] = False
    views, metrics = filled(objective(), live=live)
    assert [view.anchor is None for view in views] == (~live).tolist()
    assert views[0].teacher_lp is None and metrics["teacher/rows_count"] == PROMPTS - 2


def test_the_anchor_is_not_read_where_it_would_repeat_the_forward_pass():
    views, _ = filled(objective(), updates=1)
    assert all(view.anchor is None for view in views)
    assert columns_of(objective(), VOCABULARY, 1) == Columns(sample=True, reference=True, teacher=K)
    assert columns_of(objective(), VOCABULARY, 2).anchor


def test_the_samplers_log_probs_stand_in_for_the_anchor_in_their_own_context_alone():
    drafts = (ViewRole.DRAFT,)
    bypass = Objective(
        name="bypass", pools=(Pool(roles=drafts),), terms=(Term(loss=PgClip(), roles=drafts),), anchor="behaviour"
    )
    for view in filled(bypass, updates=1)[0]:
        if view.cross:
            close(view.anchor, at(dense_of("policy", view.context, view), view.response))
        else:
            np.testing.assert_array_equal(view.anchor, view.behaviour)


def test_an_objective_without_passes_runs_none_and_keeps_no_weights():
    drafts = (ViewRole.DRAFT,)
    plain = Objective(name="plain", pools=(Pool(roles=drafts),), terms=(Term(loss=PgClip(), roles=drafts),))
    idle = scoring(plain, updates=1)
    assert not any(idle.columns) and not needs_initial(plain) and not needs_average(plain)
    views, metrics = idle.fill(*rows(), [[[0]]], np.ones(len(rows()[0]), bool), PassWeights(None))
    assert views == rows()[0] and metrics == {}


def test_weights_are_kept_for_the_terms_that_read_them():
    assert needs_initial(objective()) and not needs_average(objective())
    drafts = (ViewRole.DRAFT,)
    for weights in ("same", "ema", "frozen"):
        taught = Objective(
            name="taught", pools=(), terms=(Term(loss=Kl(), roles=drafts),), teacher=Teacher(weights=weights)
        )
        assert (needs_initial(taught), needs_average(taught)) == (weights == "frozen", weights == "ema")


def test_terms_with_different_candidates_are_refused():
    terms = tuple(Term(loss=Kl(top_k=k), roles=(ViewRole.DRAFT,)) for k in (4, 8))
    with pytest.raises(ConfigError, match="different candidates"):
        columns_of(Objective(name="two", pools=(), terms=terms), VOCABULARY, 1)


def test_a_sequence_that_the_same_weights_have_read_is_not_read_again():
    # The hinted rows are trained too: what the teacher reads is their anchor.
    hinted_roles = (ViewRole.DRAFT_FB,)
    terms = (
        Term(loss=PgClip(), roles=hinted_roles),
        Term(loss=Kl(top_k=1, sampled=True), roles=(ViewRole.DRAFT,)),
    )
    wanted = Objective(name="both", pools=(Pool(roles=hinted_roles),), terms=terms)
    views, hinted = rows()
    both = [*(v for v in views if v.role is ViewRole.DRAFT), *hinted]
    passes, calls = scoring(wanted), []
    program = passes.score

    def counted(weights, batch, masks):
        calls.append(int(np.asarray(batch.row_valid).sum()))
        return program(weights, batch, masks)

    passes.score = counted
    members = list(by_prompt(both).values())
    found, _ = passes.fill(both, hinted, [members], np.ones(len(both), bool), PassWeights(params()))
    assert calls == [len(both)]
    assert sum(view.teacher_lp is not None for view in found) == len(hinted)


# Alignment (feedback-methods 10, test 13).


def student_scores(views: list[View], members: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """(lp_S at the teacher's candidates, of the sampled token) per view, from the update's own forward pass."""
    from ditto_jax.update.batch import locate, read_back
    from ditto_jax.update.score_step import make_score_at

    config = UpdateConfig(CONFIG, objective(), temperature=TEMPERATURE, logprob_chunk=16)
    batch, located = locate(views, members, np.ones(len(views), bool), SHAPES, Columns(teacher=K))
    found = jax.device_get(make_score_at(config, mesh_of(ONE))(params(), batch))
    at_candidates, sampled = read_back(found.of_candidates, located), read_back(found.logprob, located)
    return [(at_candidates[i], sampled[i]) for i in range(len(views))]


def largest_misalignment(broken: Callable[[TrainBatch], TrainBatch] | None = None, shift: int = 0) -> float:
    """The largest |lp_T - lp_S| over unmasked tokens and candidates, where the teacher has the student's weights and
    context. broken: what a faulty teacher makes of its batch; shift: by how many places it is off.
    """
    views = [view for view in rows()[0] if view.role is ViewRole.DRAFT]
    twins = [dataclasses.replace(view, role=ViewRole.DRAFT_FB) for view in views]
    members = list(by_prompt(views).values())
    passes = scoring(objective())
    if broken is not None:
        program = passes._score_at
        passes._score_at = lambda weights, batch, masks: program(weights, broken(jax.device_get(batch)), masks)
    weights = PassWeights(params(), other_params(1))
    taught, _ = passes.fill(views, twins, [members], np.ones(len(views), bool), weights)
    worst = 0.0
    for view, (student, _) in zip(taught, student_scores(taught, members), strict=True):
        assert view.loss_mask.sum() >= 9 and not view.loss_mask.all() and view.teacher_lp is not None
        teacher = np.roll(view.teacher_lp, shift, axis=0)
        worst = max(worst, float(np.abs(teacher - student)[view.loss_mask].max()))
    return worst


def without_partner_turns(batch: TrainBatch) -> TrainBatch:
    """The batch for a teacher whose attention mask is the loss mask: nothing between the policy's turns is visible."""
    segments = batch.grouped.lane_segments.copy()
    for index in zip(*np.nonzero(batch.row_valid), strict=True):
        mask = batch.loss_mask[index]
        first, last = np.flatnonzero(mask)[[0, -1]]
        unseen = first + np.flatnonzero(~mask[first:last])
        micro, group, _ = index
        segments[micro, group].reshape(-1)[batch.grouped.row_tokens[index][unseen]] = 0
    return batch._replace(grouped=batch.grouped._replace(lane_segments=segments))


def test_teacher_and_student_agree_at_every_token_of_a_conversation_with_partner_turns():
    assert largest_misalignment() < 1e-5


def test_the_comparison_notices_a_teacher_that_does_not_see_the_partners_turns():
    assert largest_misalignment(without_partner_turns) > 0.05


def test_the_comparison_notices_a_teacher_that_is_one_token_off():
    assert largest_misalignment(shift=1) > 0.5


# The update.


def packed(views: list[View], columns: Columns) -> TrainBatch:
    weights = np.random.default_rng(6).normal(size=len(views)).astype(np.float32)
    members = list(by_prompt(views).values())
    return pack(views, members, weights, np.ones(len(views), bool), DIVISIBLE, columns)


def gradient_on(wanted: Objective, batch: TrainBatch, sizes: Sizes = ONE) -> tuple[float, Any]:
    config, mesh = UpdateConfig(CONFIG, wanted, temperature=TEMPERATURE, logprob_chunk=16), mesh_of(sizes)
    mask, role, valid, live, ok = (
        jnp.asarray(x).reshape(-1, *x.shape[3:])
        for x in (batch.loss_mask, batch.role, batch.row_valid, batch.row_live, batch.teacher_ok)
    )
    count = denominators(mask, role, valid, wanted, live, ok)
    weights = jax.device_put(params(), parameter_shardings(params(), mesh))
    micro = jax.device_put(jax.tree.map(lambda x: x[0], batch), row_sharding(mesh))
    return jax.device_get(make_gradient(config, mesh)(weights, micro, np.asarray(count)))


def dense_loss(wanted: Objective, views: list[View], weights: np.ndarray):
    """The loss of the same rows as a function of the parameters, every row alone and all its logits at once."""
    width = max(len(view.response) for view in views)

    def padded(arrays: list[Any], like: Any) -> Any:
        return jnp.stack([jnp.zeros((width, *np.shape(like)[1:])).at[: len(a)].set(a) for a in arrays])

    taught = [view.teacher_lp is not None for view in views]
    nothing = [np.zeros((len(view.response), K), np.float32) for view in views]
    ids = [
        nothing[i].astype(np.int32) if view.teacher_ids is None else view.teacher_ids for i, view in enumerate(views)
    ]
    table = LossRows(
        lp_anchor=padded([view.anchor for view in views], np.zeros(1)),
        loss_mask=padded([view.loss_mask for view in views], np.zeros(1)) > 0,
        weights=jnp.asarray(weights),
        role=jnp.array([int(view.role) for view in views], jnp.int32),
        cross=jnp.array([view.cross for view in views]),
        row_valid=jnp.ones(len(views), bool),
        row_live=jnp.ones(len(views), bool),
        row_weight=jnp.ones(len(views)),
        lp_behave=padded([view.behaviour for view in views], np.zeros(1)),
        lp_sample=padded([v.anchor if v.sample is None else v.sample for v in views], np.zeros(1)),
        lp_ref=padded([v.anchor if v.reference is None else v.reference for v in views], np.zeros(1)),
        teacher_lp=padded(
            [nothing[i] if v.teacher_lp is None else v.teacher_lp for i, v in enumerate(views)], nothing[0]
        ),
        teacher_ok=jnp.array(taught),
    )
    count = denominators(table.loss_mask, table.role, table.row_valid, wanted, table.row_live, table.teacher_ok)

    def loss(tree: Any) -> jax.Array:
        own, others = [], []
        for view, candidates in zip(views, ids, strict=True):
            whole = jnp.asarray(np.concatenate([view.context, view.response]))
            logp = jax.nn.log_softmax(apply(tree, CONFIG, whole[None])[0] / TEMPERATURE)[len(view.context) - 1 : -1]
            own.append(jnp.take_along_axis(logp, view.response[:, None], axis=1)[:, 0])
            others.append(jnp.take_along_axis(logp, candidates, axis=1))
        return objective_loss(padded(own, np.zeros(1)), table, wanted, count, padded(others, nothing[0]), VOCABULARY)[0]

    return loss


def test_the_gradient_of_all_terms_together_is_that_of_dense_rows():
    wanted = objective(Kl(alpha=0.5, top_k=K))
    views, _ = filled(wanted)
    # Anchors off the current weights, so that ratios and their limits take part.
    views = [
        dataclasses.replace(v, anchor=v.anchor + np.float32(0.1) * np.sin(np.arange(len(v.response), dtype=np.float32)))
        for v in views
    ]
    batch = packed(views, columns_of(wanted, VOCABULARY, 2))
    weights = np.random.default_rng(6).normal(size=len(views)).astype(np.float32)
    loss, gradients = gradient_on(wanted, batch)
    expected, dense_gradients = jax.jit(jax.value_and_grad(dense_loss(wanted, views, weights)))(params())
    assert loss == pytest.approx(float(expected), rel=1e-4)
    for mine, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(dense_gradients), strict=True):
        assert np.linalg.norm(mine - theirs) <= 1e-3 * np.linalg.norm(theirs)


# Devices.


def test_columns_loss_and_gradient_on_eight_devices_are_those_of_one():
    wanted = objective()
    (one, _), (eight, _) = filled(wanted), filled(wanted, sizes=(2, 2, 2))
    for mine, theirs in zip(eight, one, strict=True):
        for column in ("anchor", "sample", "reference"):
            assert (getattr(mine, column) is None) == (getattr(theirs, column) is None)
            if getattr(theirs, column) is not None:
                close(getattr(mine, column), getattr(theirs, column))
        if theirs.teacher_ids is not None:
            np.testing.assert_array_equal(mine.teacher_ids[mine.loss_mask], theirs.teacher_ids[theirs.loss_mask])
            close(mine.teacher_lp[mine.loss_mask], theirs.teacher_lp[theirs.loss_mask])
    batch = packed(one, columns_of(wanted, VOCABULARY, 2))
    (loss, gradients), (whole_loss, whole) = gradient_on(wanted, batch, (2, 2, 2)), gradient_on(wanted, batch)
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    for mine, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(whole), strict=True):
        assert np.linalg.norm(mine - theirs) <= 1e-4 * np.linalg.norm(theirs)
