"""A run directory → what a replay needs of it: settings, recorded rollouts, checkpoints, and where it was trained.

run directory → **settings and records** → the step again. Reads only; what is missing is told with what is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.runs.checkpoint import Checkpoints
from ditto_jax.runs.run_dir import RunDirectory, environment
from ditto_jax.weights import training_run

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Past:
    """A training run that has recorded rollouts."""

    run: RunDirectory
    config: RunConfig

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Returns the recorded rollouts of a step. Raises ConfigError without any, DataError if they are damaged."""
        try:
            rows = self.run.read_rollouts(step)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(f"{self.run.rollout_file(step)} is damaged ({error}); restore it from a copy") from None
        if not rows:
            raise ConfigError(f"step={step}: {self.run.path} has rollouts of {spans(self.run.rollout_steps())}")
        return rows

    def start_before(self, step: int) -> int:
        """Returns the newest checkpoint that holds the weights before `step` or earlier ones; 0: those it began with.

        Raises MissingInputError if a step from there on has no rollouts, whose verdicts it takes to repeat it.
        """
        start = max((kept for kept in self._checkpoints() if kept < step), default=0)
        missing = set(range(start + 1, step)) - set(self.run.rollout_steps())
        if missing:
            raise MissingInputError(
                f"step={step}: the newest checkpoint before it is of step {start}, and to go on from there the "
                f"rollouts of {spans(sorted(missing))} are missing in {self.run.rollouts} (log_completions was off?)"
            )
        return start

    def _checkpoints(self) -> list[int]:
        if not self.run.checkpoints.is_dir():
            return []
        with contextlib.closing(Checkpoints(self.run.checkpoints, keep=None)) as saved:
            return saved.steps()

    def seconds_of(self, steps: Sequence[int]) -> float:
        """Returns how long the run took for these steps, as far as its metrics say."""
        wanted = set(steps)
        return sum(row.get("time/step_s", 0.0) for row in self.run.read_metrics() if row.get("step") in wanted)

    def environment_differences(self) -> dict[str, tuple[Any, Any]]:
        """Returns name → (where the run began, here) for packages, devices and flags that are not the same."""
        file = self.run.path / "env.json"
        if not file.is_file():
            return {}
        then, here = (_named(facts) for facts in (json.loads(file.read_text(encoding="utf-8")), environment()))
        return {name: (then.get(name), here.get(name)) for name in {**then, **here} if then.get(name) != here.get(name)}


def open_past(folder: Path) -> Past:
    """Returns the run at `folder`. Raises MissingInputError if it is none or has no rollouts, ConfigError if its
    settings are not those of a training run.
    """
    folder = folder.expanduser()
    config = training_run(str(folder))
    if config is None:
        raise MissingInputError(f"{folder}: no run directory (no config.yaml); name one, for example runs/quickstart")
    past = Past(RunDirectory(folder), config)
    if not past.run.rollout_steps():
        raise MissingInputError(
            f"{folder} holds no rollouts: nothing was trained there, or with log_completions=false; name a run with "
            "files in rollouts/"
        )
    return past


def find_prompt(rows: Sequence[Row], prompt: str) -> int:
    """Returns the number within its step of a prompt, given as that number or as its id. Raises ConfigError."""
    numbers = {str(row["prompt_index"]): int(row["prompt_index"]) for row in rows}
    ids = {str(row["prompt_id"]): int(row["prompt_index"]) for row in reversed(rows)}
    found = numbers.get(prompt, ids.get(prompt))
    if found is None:
        first = str(rows[0]["prompt_id"])
        raise ConfigError(
            f"prompt={prompt}: the step has prompts {spans(sorted(numbers.values()), '')}; give one of these numbers, "
            f"or an id such as {first}"
        )
    return found


def find_sample(rows: Sequence[Row], prompt: int, sample: int | None) -> int:
    """Returns the draft to show: as wished, else the first with a refined rollout, else the first.

    Raises ConfigError for one that the prompt does not have.
    """
    of_prompt = [row for row in rows if row["prompt_index"] == prompt]
    drafts = [int(row["sample"]) for row in of_prompt if row["role"] == "draft"]
    if sample is None:
        return min((int(row["sample"]) for row in of_prompt if row["role"] == "refined"), default=min(drafts))
    if sample not in drafts:
        raise ConfigError(
            f"sample={sample}: prompt {prompt} has drafts {spans(sorted(drafts), '')}; choose one of these"
        )
    return sample


def spans(numbers: Sequence[int], what: str = "step") -> str:
    """Returns ascending numbers for people: "steps 1 to 4, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    named = ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
    return f"{what}{'s' if len(numbers) > 1 else ''} {named}" if what else named


def _named(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What arithmetic depends on, by name; of the devices their number too."""
    flags = {name: value for name, value in facts.get("flags", {}).items() if name != "JAX_PLATFORMS"}
    return {**facts.get("packages", {}), **flags, "devices": facts.get("devices")}
