"""Prompts that are streamed: what a request yields does not depend on when it came, and a step not on who answers
first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ditto_jax.errors import ConfigError
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.engine import Engine
from ditto_jax.rollouts.episodes import Abandoned, Attempt, Played
from ditto_jax.sampling.sampler import OpenCall
from ditto_jax.sampling.slot_shapes import SamplerShapes, open_shapes
from ditto_jax.sampling.slots import Sampled, SampleRequest
from model.partition import parameter_shardings
from tests.rollouts.letters import EXAMPLE, Letters
from tests.tiny_batch import mesh_of
from tests.tiny_policy import (
    NEVER,
    PLAIN,
    LetterChat,
    compiled_programs,
    decode,
    make_sampler,
    params,
    request,
    sample_all,
    some_ids,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = SamplerShapes(prefix=(8, 16), tail=(1, 8), max_new_tokens=12, max_rows=8, rows_per_prefix=(1, 4), chunk=4)
OPEN = (4, 12, 6)  # members, tokens of a prompt, of words


def groups() -> list[list[SampleRequest]]:
    """Seven groups of one to four rows, of prompts of many lengths, that draw replies of many lengths."""
    numbers = itertools.count()
    found = []
    for group in range(7):
        opening = some_ids(group, 3 + group)
        rows = []
        for _ in range(1 + group % 4):
            n = next(numbers)
            ids = np.concatenate([opening, some_ids(100 + n, 1 + n % 5)])
            rows.append(request(ids, group, n, 1 + (5 * n) % 12))
        found.append(rows)
    return found


def sampled(call: OpenCall, arrivals: Mapping[int, Sequence[int]]) -> list[list[Sampled]]:
    """Returns what all groups yield where `arrivals` says before which turn of the call they come."""
    asked, results, numbers = groups(), {}, {}
    turn = 0
    while not call.is_done or any(when >= turn for when in arrivals):
        for group in arrivals.get(turn, ()):
            numbers[group] = call.add(asked[group])
        if not call.is_done:
            results |= dict(call.advance())
        turn += 1
    return [[results[n] for n in numbers[group]] for group in range(len(asked))]


def open_call(mesh: Mesh | None = None) -> OpenCall:
    weights = params() if mesh is None else jax.device_put(params(), parameter_shardings(params(), mesh))
    return make_sampler(SHAPES, NEVER, mesh=mesh).open(weights, PLAIN, *OPEN)


def assert_identical(found: list[list[Sampled]], expected: list[list[Sampled]]) -> None:
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
        assert one.finish_reason is other.finish_reason


@pytest.mark.parametrize("seed", range(4))
def test_what_a_request_yields_does_not_depend_to_the_bit_on_when_it_comes(seed):
    at_once = sampled(open_call(), {0: range(7)})
    rng = random.Random(seed)
    arrivals: dict[int, list[int]] = {}
    for group in rng.sample(range(7), 7):
        arrivals.setdefault(rng.randrange(12), []).append(group)
    assert_identical(sampled(open_call(), arrivals), at_once)


def test_an_open_call_draws_what_a_call_of_its_own_draws():
    together = sampled(open_call(), {0: range(3), 2: range(3, 7)})
    for found, asked in zip(together, groups(), strict=True):
        for one, other in zip(found, sample_all(asked), strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_on_a_mesh_arrival_changes_nothing_either():
    mesh = mesh_of((2, 2, 2))
    at_once = sampled(open_call(mesh), {0: range(7)})
    assert_identical(sampled(open_call(mesh), {0: [6, 2], 3: [5, 0, 1], 4: [3], 9: [4]}), at_once)


def test_open_calls_of_prompts_of_any_length_compile_nothing_after_their_warm_up():
    shapes = dataclasses.replace(SHAPES, prefix=(4, 8), tail=(1, 8, 16))
    sampler = make_sampler(shapes, NEVER)
    sampler.warm_up_open(params(), PLAIN, members=4, longest=16, words=6)
    with compiled_programs() as programs:
        for prompt in (4, 5, 9, 16):
            call = sampler.open(params(), PLAIN, 4, prompt, 6)
            call.add([request(some_ids(0, prompt), 0, n) for n in range(4)])
            call.advance()
            call.add([request(some_ids(n, prompt + 6), 1, n) for n in range(2)])
            while not call.is_done:
                call.advance()
    assert programs == []


def test_shapes_of_an_open_call_hold_the_longest_prompt_and_its_words():
    buckets, call = open_shapes(dataclasses.replace(SHAPES, tail=(1, 8, 16, 64)), members=3, prompt=20, words=10)
    assert (buckets.prefix, buckets.tail) == ((8, 16), (1, 8, 16))  # 4 of the prompt and 10 of the words
    assert (call.rows_per_slot, call.slots, call.ring, call.fewer_slots) == (4, 2, (16 + 12,), ())
    assert call.own_columns


# Plays of an engine that share a call.


def play_streamed(engine: Engine, plays: Sequence[Sequence[Attempt]], delays: random.Random) -> list[list[Played]]:
    """Returns the episodes of all plays, which begin at any time."""

    async def judged(index: int, played: Played | Abandoned) -> Played:
        await asyncio.sleep(delays.uniform(0.0, 0.01))
        assert isinstance(played, Played)
        return played

    async def run() -> list[list[Played]]:
        async with asyncio.timeout(60), engine.streaming(params(), PLAIN, *OPEN) as stream:

            async def one(attempts: Sequence[Attempt]) -> list[Played]:
                await asyncio.sleep(delays.uniform(0.0, 0.03))
                return await stream.play(params(), PLAIN, attempts, judged)

            return await asyncio.gather(*map(one, plays))

    return asyncio.run(run())


def attempts(group: int, count: int) -> list[Attempt]:
    return [Attempt(Letters(), EXAMPLE, group, SampleId(0, 1, f"letters/{group}", n, "draft")) for n in range(count)]


def test_plays_that_share_a_call_end_alike_whenever_they_begin():
    plays = [attempts(group, 1 + group % 4) for group in range(5)]
    engine = Engine(make_sampler(SHAPES), LetterChat(), decode, 10)
    first, second = (play_streamed(engine, plays, random.Random(seed)) for seed in (0, 1))
    for one, other in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert one.conversation == other.conversation
        mine, theirs = one.transcripts["policy"], other.transcripts["policy"]
        np.testing.assert_array_equal(mine.ids, theirs.ids)
        np.testing.assert_array_equal(mine.logprobs, theirs.logprobs)


def test_a_request_that_the_call_cannot_hold_ends_its_play_with_the_reason_and_leaves_no_task_behind():
    engine = Engine(make_sampler(dataclasses.replace(SHAPES, tail=(1, 8, 64))), LetterChat(), decode, 10)
    long = dataclasses.replace(EXAMPLE, payload={"question": "a" * 40})

    async def judged(index: int, played: Played | Abandoned) -> Played | Abandoned:
        return played

    async def run():
        async with asyncio.timeout(60), engine.streaming(params(), PLAIN, *OPEN) as stream:
            with pytest.raises(ConfigError, match="tokens do not fit the largest bucket 8"):
                await stream.play(params(), PLAIN, [dataclasses.replace(attempts(0, 1)[0], example=long)], judged)
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert asyncio.run(run()) == []
