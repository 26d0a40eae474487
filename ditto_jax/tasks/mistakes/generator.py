"""Seed → arithmetic problems with buggy rules as misconceptions: a stand-in for pupils' answers, not a copy of them.

In: split, count and seed. Out: examples whose gold is what one buggy rule gives; the other options are the right answer
and what other bugs give. Example k of a seed is the same whatever the count; splits share no problem.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence

from ditto_jax.keys import derive
from ditto_jax.tasks.option_checks import check_choice
from ditto_jax.tasks.splits import SPLITS, group_name, split_of
from ditto_jax.types import Example

_MAX_ATTEMPTS = 1000
Numbers = Sequence[int]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of problem: how its numbers are drawn, how it reads, and its right answer."""

    draw: Callable[[random.Random], tuple[int, ...]]
    wording: str
    right: Callable[[Numbers], str]


@dataclasses.dataclass(frozen=True)
class Bug:
    """A buggy rule: the misconception in words, the problems it belongs to, and what it answers."""

    kind: str
    misconception: str
    answer: Callable[[Numbers], str]

    def shown_elsewhere(self, numbers: Numbers, rng: random.Random) -> str:
        """Returns one sentence that shows the rule on a problem with none of these numbers, and another answer."""
        kind, own = KINDS[self.kind], {self.answer(numbers), KINDS[self.kind].right(numbers)}
        for _ in range(_MAX_ATTEMPTS):
            other = kind.draw(rng)
            if (
                not set(other) & set(numbers)
                and self.answer(other) not in own
                and self.answer(other) != kind.right(other)
            ):
                return f"Asked for {kind.wording.format(*other)}, this pupil says {self.answer(other)}."
        raise RuntimeError(f"no other problem for {numbers}: the range of numbers is too small")


def _digits(a: int, b: int, rule: Callable[[int, int], int]) -> str:
    """Applies a rule to each column of two numbers with equally many digits."""
    return str(int("".join(str(rule(int(x), int(y))) for x, y in zip(str(a), str(b), strict=True))))


def _fraction(top: int, bottom: int) -> str:
    return f"{top}/{bottom}"


def _reduced(top: int, bottom: int) -> str:
    shared = math.gcd(top, bottom)
    return _fraction(top // shared, bottom // shared)


def _subtraction(rng: random.Random) -> tuple[int, ...]:
    b = rng.randint(111, 489)
    return (rng.randint(b + 100, 999), b)


def _fractions(rng: random.Random) -> tuple[int, ...]:
    bottoms = rng.sample((3, 4, 5, 7, 8, 9, 11), 2)
    return (rng.randint(1, bottoms[0] - 1), bottoms[0], rng.randint(1, bottoms[1] - 1), bottoms[1])


KINDS: Mapping[str, Kind] = {
    "subtraction": Kind(_subtraction, "{0} - {1}", lambda n: str(n[0] - n[1])),
    "fractions": Kind(_fractions, "{0}/{1} + {2}/{3}", lambda n: _reduced(n[0] * n[3] + n[2] * n[1], n[1] * n[3])),
    "order": Kind(
        lambda rng: (rng.randint(2, 19), rng.randint(2, 12), rng.randint(3, 12)),
        "{0} + {1} x {2}",
        lambda n: str(n[0] + n[1] * n[2]),
    ),
    "powers": Kind(
        lambda rng: (rng.randint(3, 19), rng.randint(2, 4)), "{0} to the power of {1}", lambda n: str(n[0] ** n[1])
    ),
}
BUGS: Mapping[str, Bug] = {
    "smaller_from_larger": Bug(
        "subtraction",
        "In every column, takes the smaller digit from the larger one, whichever stands on top",
        lambda n: _digits(n[0], n[1], lambda x, y: abs(x - y)),
    ),
    "zero_for_borrow": Bug(
        "subtraction",
        "Writes 0 in a column whose lower digit is larger, instead of borrowing",
        lambda n: _digits(n[0], n[1], lambda x, y: max(0, x - y)),
    ),
    "adds_instead": Bug("subtraction", "Adds two numbers although they are to be subtracted", lambda n: str(sum(n))),
    "adds_across": Bug(
        "fractions",
        "Adds the numerators and adds the denominators",
        lambda n: _fraction(n[0] + n[2], n[1] + n[3]),
    ),
    "larger_bottom": Bug(
        "fractions",
        "Adds the numerators and keeps the larger denominator",
        lambda n: _fraction(n[0] + n[2], max(n[1], n[3])),
    ),
    "multiplies_bottoms": Bug(
        "fractions",
        "Multiplies the denominators but adds the numerators as they are",
        lambda n: _fraction(n[0] + n[2], n[1] * n[3]),
    ),
    "left_to_right": Bug(
        "order", "Works from left to right, whatever the operations are", lambda n: str((n[0] + n[1]) * n[2])
    ),
    "adds_all": Bug("order", "Reads the multiplication sign as a plus sign", lambda n: str(sum(n))),
    "multiplies_all": Bug("order", "Reads the plus sign as a multiplication sign", lambda n: str(math.prod(n))),
    "times_exponent": Bug("powers", "Multiplies the base by the exponent", lambda n: str(n[0] * n[1])),
    "plus_exponent": Bug("powers", "Adds the exponent to the base", lambda n: str(n[0] + n[1])),
    "exponent_behind": Bug("powers", "Writes the exponent behind the base as another digit", lambda n: f"{n[0]}{n[1]}"),
}


def generate_mistakes(split: str, count: int, seed: int) -> list[Example]:
    """Returns `count` examples, ids "mistakes-generated-<split>-<seed>-<k>". Raises ConfigError for unknown splits."""
    check_choice("split", split, SPLITS)
    return [_example(split, seed, k) for k in range(count)]


def _example(split: str, seed: int, k: int) -> Example:
    rng = random.Random(derive(seed, "mistakes", split, k))
    for _ in range(_MAX_ATTEMPTS):
        name = rng.choice(list(BUGS))
        bug = BUGS[name]
        kind = KINDS[bug.kind]
        numbers = kind.draw(rng)
        question = f"What is {kind.wording.format(*numbers)}?"
        group = group_name("problem", f"{bug.kind} {' '.join(map(str, numbers))}")
        answers = [kind.right(numbers), *(b.answer(numbers) for b in BUGS.values() if b.kind == bug.kind)]
        if split_of(group) != split or len(set(answers)) < 4:
            continue
        rng.shuffle(answers)
        payload = {
            "question": question,
            "options": tuple(answers),
            "misconception": bug.misconception,
            "gold_letter": "ABCD"[answers.index(bug.answer(numbers))],
            "group": group,
            "source": "generated stand-in",
            "bug": name,
            "numbers": numbers,
        }
        gold = bug.answer(numbers)
        return Example(task="mistakes", id=f"mistakes-generated-{split}-{seed}-{k}", payload=payload, gold=gold)
    raise RuntimeError("no problem with four different answers in many attempts")
