"""After `Sampler.warm_up` no call compiles anything: refined prompts, later turns, replies of any length, a mesh."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ditto_jax.sampling.sampler import Sampler
from ditto_jax.sampling.slot_shapes import SamplerShapes, call_shapes, reachable
from ditto_jax.sampling.slots import SampleRequest, plan_slots
from model.partition import parameter_shardings
from tests.tiny_batch import mesh_of
from tests.tiny_policy import (
    NEVER,
    PLAIN,
    compiled_programs,
    make_sampler,
    params,
    request,
    some_ids,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = SamplerShapes(prefix=(24,), tail=(1, 12), max_new_tokens=13, max_rows=8, rows_per_prefix=(1, 4), chunk=4)
MEMBERS, LONGEST = 4, 36


class Steps:
    """Ragged calls of a sampler, each drawn from the numbers before it."""

    def __init__(self, sampler: Sampler, longest_reply: int, weights=None):
        self.sampler, self.longest_reply = sampler, longest_reply
        self.weights = params() if weights is None else weights
        self.rng = np.random.default_rng(0)
        self.number = 0

    def ids(self, least: int, most: int) -> np.ndarray:
        self.number += 1
        return some_ids(self.number, int(self.rng.integers(least, most + 1)))

    def sample(self, contexts: list[tuple[int, np.ndarray]], keep_rows: bool = False) -> list[np.ndarray]:
        limits = self.rng.integers(1, self.longest_reply + 1, len(contexts))
        requests = [
            request(ids, group, self.number + n, int(limit))
            for n, ((group, ids), limit) in enumerate(zip(contexts, limits, strict=True))
        ]
        found = self.sampler.generate(self.weights, requests, PLAIN, (), keep_rows)
        replies = {index: sampled.ids for finished in found for index, sampled in finished}
        return [replies[n] for n in range(len(contexts))]

    def drafts_and_refined(self) -> None:
        """Up to five groups in two slots or more; some of the drafts are asked about, in words of any length."""
        prompts = [self.ids(1, 24) for _ in range(self.rng.integers(1, 6))]
        drafts = [(group, ids) for group, ids in enumerate(prompts) for _ in range(MEMBERS)]
        self.sample(drafts)
        share = self.rng.random()
        refined = [(group, np.r_[ids, self.ids(1, 12)]) for group, ids in drafts if self.rng.random() < share]
        if refined:
            self.sample(refined)
        self.sampler.release()

    def dialogues(self) -> None:
        """Two turns of every row, the second after its own first reply and an answer to it."""
        prompts = [self.ids(2, 8) for _ in range(2)]
        rows = [(group, ids) for group, ids in enumerate(prompts) for _ in range(MEMBERS)]
        replies = self.sample(rows, keep_rows=True)
        later = [
            (group, np.r_[ids, said[:20], self.ids(1, 4)]) for (group, ids), said in zip(rows, replies, strict=True)
        ]
        self.sample(later, keep_rows=True)
        self.sampler.release()


def compiled_in(steps, count: int) -> list[str]:
    with compiled_programs() as programs:
        for _ in range(count):
            steps()
    return programs


def test_ragged_drafts_and_refined_prompts_compile_nothing_after_the_warm_up():
    sampler = make_sampler(SMALL, NEVER)
    with compiled_programs() as warmed:
        assert sampler.warm_up(params(), PLAIN, MEMBERS, LONGEST) == 4  # two sizes of groups, two of tails
    steps = Steps(sampler, SMALL.max_new_tokens)
    assert {f"jit({name})" for name in ("admit", "compact", "carry_over", "decode_chunk")} <= set(warmed)
    assert compiled_in(steps.drafts_and_refined, 12) == []
    assert sampler.work.kept_tokens_reused > 0


def test_replies_so_long_that_the_ring_grows_compile_nothing_after_the_warm_up():
    shapes = dataclasses.replace(SMALL, tail=(12,), max_new_tokens=120, max_rows=4, rows_per_prefix=(2,), chunk=40)
    sampler = make_sampler(shapes, NEVER)
    sampler.warm_up(params(), PLAIN, MEMBERS, LONGEST)
    assert len(call_shapes(2, 24, 0, 12, shapes).ring) == 3
    assert compiled_in(Steps(sampler, 120).drafts_and_refined, 4) == []


def test_later_turns_compile_nothing_after_the_warm_up():
    shapes = dataclasses.replace(SMALL, tail=(32,), max_new_tokens=24, rows_per_prefix=(4,), chunk=8, shrink=False)
    sampler = make_sampler(shapes, NEVER)
    sampler.warm_up(params(), PLAIN, MEMBERS, LONGEST, many_turns=True)
    steps = Steps(sampler, 24)
    assert compiled_in(steps.dialogues, 3) == []
    assert sampler.work.kept_tokens_reused > 0


@pytest.mark.parametrize("sizes", [(2, 1, 2), (1, 4, 2)])
def test_a_mesh_compiles_nothing_after_the_warm_up(sizes):
    mesh = mesh_of(sizes)
    weights = jax.device_put(params(), parameter_shardings(params(), mesh))
    shapes = dataclasses.replace(SMALL, tail=(12,), rows_per_prefix=(1,), max_rows=16)
    sampler = make_sampler(shapes, NEVER, mesh=mesh)
    sampler.warm_up(weights, PLAIN, MEMBERS, LONGEST)
    assert compiled_in(Steps(sampler, SMALL.max_new_tokens, weights).drafts_and_refined, 5) == []


def test_shapes_are_those_of_the_buckets_that_prompts_can_reach():
    shapes = SamplerShapes(prefix=(8, 16, 64), tail=(1, 16, 32), rows_per_prefix=(1, 2, 4, 8), max_rows=4)
    classes = reachable(shapes, members=3, longest=16, many_turns=False)
    assert {one.prefix for one in classes} == {8, 16} and {one.tail for one in classes} == {1, 16}
    assert {one.rows_per_slot for one in classes} == {1, 2, 4} and {one.history for one in classes} == {0}
    assert len(set(classes)) == len(classes) == 12
    assert {one.history for one in reachable(shapes, 8, 64, many_turns=True)} == {0, 1, 16, 32}


def test_every_plan_has_one_of_the_reachable_shapes():
    classes = reachable(SMALL, MEMBERS, LONGEST, many_turns=False)
    rng = np.random.default_rng(3)
    for trial in range(50):
        requests = []
        for group in range(rng.integers(1, 4)):
            opening = some_ids(1000 * trial + group, int(rng.integers(1, 25)))
            for _ in range(rng.integers(1, MEMBERS + 1)):
                ids = np.r_[opening, some_ids(int(rng.integers(1e6)), int(rng.integers(0, 12)))]
                requests.append(SampleRequest(ids, group, np.zeros(2, np.uint32), 1))
        assert plan_slots(requests, SMALL).shapes in classes
