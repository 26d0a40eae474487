"""Processes hear each other's answers whenever they come, and are told when nobody can be heard any more."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator

import pytest

from ditto_jax.errors import ClusterError, JudgeUnavailableError
from ditto_jax.judge.division import DividedJudge, DividedPort
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import AuxiliaryFailure
from ditto_jax.team.post import Post
from ditto_jax.types import FinishReason, Outcome, Reply, Verdict
from tests.judge.quiz import DRAFT, EXAMPLE, Quiz, QuizOptions

TASK = Quiz(QuizOptions())
KEYS = [SampleId(0, 1, f"quiz/{prompt}", sample, "draft") for prompt in range(12) for sample in range(3)]


class Store:
    """A key-value store as the coordination service has it, shared by threads instead of processes."""

    def __init__(self):
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()
        self.is_down = False

    def key_value_set(self, key: str, value: str) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        give_up = time.monotonic() + timeout_in_ms / 1000
        with self._changed:
            while key not in self._values:
                if self.is_down:
                    raise RuntimeError("UNAVAILABLE: the service is gone\nmore")
                if time.monotonic() >= give_up:
                    raise RuntimeError("DEADLINE_EXCEEDED: nothing yet")
                self._changed.wait(0.005)
            return self._values[key]

    def key_value_delete(self, key: str) -> None:
        self._values.pop(key, None)


@contextlib.contextmanager
def posts(count: int, store: Store, leader_asks: bool = False) -> Iterator[list[Post]]:
    opened = [Post(number, count, store, leader_asks) for number in range(count)]
    try:
        yield opened
    finally:
        for post in opened:
            post.close()


class Asked:
    """A judge that answers after a random while, and notes whom it was asked about."""

    identity = "asked"

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self.about: list[SampleId] = []
        self.error: Exception | None = None

    async def score(self, task, example, conversation, key: SampleId) -> Verdict:
        self.about.append(key)
        await asyncio.sleep(self._random.uniform(0.0, 0.02))
        if self.error is not None:
            raise self.error
        return Verdict(Outcome.OK, score=key.sample_index / 3, dimensions={"wit": 1 / 3}, judge="asked")


async def scored(judges: list[DividedJudge]) -> list[list[Verdict | BaseException]]:
    """Returns what every process hears about every sample."""

    async def process(judge: DividedJudge) -> list[Verdict | BaseException]:
        asked = (judge.score(TASK, EXAMPLE, DRAFT, key) for key in KEYS)
        return await asyncio.gather(*asked, return_exceptions=True)

    return await asyncio.gather(*(process(judge) for judge in judges))


@pytest.mark.parametrize("leader_asks", [False, True])
def test_each_sample_is_asked_about_once_and_all_hear_the_same(leader_asks: bool):
    judges = [Asked(seed) for seed in range(3)]
    with posts(3, Store(), leader_asks) as opened:
        heard = asyncio.run(scored([DividedJudge(*pair, "judge") for pair in zip(judges, opened, strict=True)]))
    assert heard[0] == heard[1] == heard[2]
    assert [verdict.score for verdict in heard[0]] == [key.sample_index / 3 for key in KEYS]  # type: ignore[union-attr]
    assert sorted(str(key) for judge in judges for key in judge.about) == sorted(map(str, KEYS))
    by_process = [len(judge.about) for judge in judges]
    assert by_process == [len(KEYS), 0, 0] if leader_asks else min(by_process) > 0
    assert all(len({key.prompt_id for key in judge.about}) * 3 == len(judge.about) for judge in judges)


def test_what_the_owner_met_is_raised_on_all():
    judges = [Asked(seed) for seed in range(2)]
    judges[1].error = JudgeUnavailableError("no such model")
    with posts(2, Store()) as opened:
        heard = asyncio.run(scored([DividedJudge(*pair, "judge") for pair in zip(judges, opened, strict=True)]))
    failed = [[isinstance(one, JudgeUnavailableError) for one in process] for process in heard]
    assert failed[0] == failed[1] == [opened[1].is_mine(key) for key in KEYS]


class Partner:
    def __init__(self):
        self.turns = 0

    async def reply(self, chat) -> Reply:
        self.turns += 1
        if self.turns == 3:
            raise AuxiliaryFailure("narrator: timed_out", Outcome.TIMED_OUT)
        return Reply(f"reply {self.turns}", FinishReason.STOP)


def test_a_partner_says_the_same_turn_by_turn_to_all_and_fails_for_all():
    partners = [Partner(), Partner()]

    async def process(post: Post, partner: Partner) -> list[str]:
        port = DividedPort(partner, post, "narrator", KEYS[0])
        said = [(await port.reply([])).text for _ in range(2)]
        with pytest.raises(AuxiliaryFailure, match="narrator: timed_out") as failure:
            await port.reply([])
        return [*said, failure.value.outcome]

    async def both(opened: list[Post]) -> list[list[str]]:
        return await asyncio.gather(*map(process, opened, partners))

    with posts(2, Store()) as opened:
        heard = asyncio.run(both(opened))
    assert heard[0] == heard[1] == ["reply 1", "reply 2", Outcome.TIMED_OUT]
    assert sorted(partner.turns for partner in partners) == [0, 3]


def test_whoever_waits_is_told_when_the_others_cannot_be_heard():
    store = Store()

    async def wait(post: Post) -> None:
        asyncio.get_running_loop().call_later(0.05, setattr, store, "is_down", True)
        for _ in range(2):  # while waiting, and after that
            with pytest.raises(ClusterError, match="cannot be heard: UNAVAILABLE: the service is gone; run the same"):
                await post.receive("anything")

    with posts(2, store) as (post, _):
        asyncio.run(wait(post))
