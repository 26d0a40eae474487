"""Generated scenes of the task `sotopia`: bargaining, scheduling, secret-keeping. A stand-in for the published ones.

In: a split, a count and a seed. Out: examples whose facts rules can score. Splits share no thing that a scene is about;
names may come back.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from ditto_jax.keys import derive
from ditto_jax.tasks.option_checks import check_choice
from ditto_jax.tasks.sotopia.bargaining import Bargaining
from ditto_jax.tasks.sotopia.scene import POSITIONS, Side, scene_payload
from ditto_jax.tasks.sotopia.scheduling import Scheduling
from ditto_jax.tasks.sotopia.secret_keeping import SecretKeeping
from ditto_jax.tasks.sotopia.stand_in import Part, StandIn
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.types import Example

STAND_INS: Mapping[str, StandIn] = {kind.name: kind for kind in (Bargaining(), Scheduling(), SecretKeeping())}

_NAMES = (
    *("Alma", "Bruno", "Clara", "Dario", "Edda", "Felix", "Greta", "Henrik", "Ines", "Jonas", "Karla", "Levin"),
    *("Mira", "Nils", "Olga", "Piet", "Ruth", "Silas", "Tilda", "Urs", "Vera", "Wanda", "Yara", "Zeno"),
)
_WORK = ("baker", "nurse", "carpenter", "bus driver", "teacher", "gardener", "tailor", "librarian", "plumber", "cook")
_MANNERS = (
    *("speaks little and to the point", "likes to joke", "is patient and curious", "is easily distracted"),
    *("is proud of being fair", "worries about small things", "hates to lose time", "remembers every detail"),
)


def generate_sotopia(split: str, count: int, seed: int) -> list[Example]:
    """Returns `count` scenes, ids "sotopia-generated-<split>-<seed>-<k>", the kinds in turn. Raises ConfigError."""
    check_choice("split", split, SPLITS)
    return [_example(split, seed, k) for k in range(count)]


def _example(split: str, seed: int, k: int) -> Example:
    rng = random.Random(derive(seed, "sotopia", split, k))
    stand_in = list(STAND_INS.values())[k % len(STAND_INS)]
    own, other = rng.sample(_NAMES, 2)
    plot = stand_in.plot(rng, split, own, other)
    sides = (_side(rng, own, plot.own), _side(rng, other, plot.other))
    position = rng.choice(POSITIONS)
    payload = scene_payload(
        plot.scenario,
        plot.relationship,
        sides if position == "agent1" else (sides[1], sides[0]),
        position,
        "generated stand-in",
        group=f"{stand_in.name} {plot.thing}",
        kind=stand_in.name,
    )
    return Example(task="sotopia", id=f"sotopia-generated-{split}-{seed}-{k}", payload=payload, gold="")


def _side(rng: random.Random, name: str, part: Part) -> Side:
    background = (
        f"{name} is {rng.randint(21, 69)} years old, works as a {rng.choice(_WORK)} and {rng.choice(_MANNERS)}."
    )
    return Side(name, background, part.goal, part.secret, part.facts)
