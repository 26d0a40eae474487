"""Prompts → do they fit the configured shapes? Asked before anything is sampled, and again for a judge's words.

In: prompts as token counts. Out: nothing, or one ConfigError that names the longest prompt and the setting to raise.
What a prompt says, and where the shapes are filled, is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ditto_jax.config import TrainConfig
from ditto_jax.errors import ConfigError
from ditto_jax.rollouts.engine import Engine
from ditto_jax.rollouts.prompts import LoadedTask, Prompt
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.text.chat import ChatFormat


@dataclasses.dataclass(frozen=True)
class Room:
    """How long a prompt may be, in tokens.

    context: positions of the model; reply: tokens kept free behind the prompt; episode: tokens of a whole episode's
    response, observations included; train: None where nothing is trained; words: tokens that words may add to it.
    """

    sampler: SamplerShapes
    context: int
    reply: int
    train: TrainConfig | None = None
    episode: int = 0
    words: int | None = None

    def lack(self, length: int, shared: int, many_turns: bool = False) -> str:
        """Returns the setting that is too small for a prompt and the least value that works, or "" if it fits.

        shared: how many of its first tokens the other rows of its group have too; these are stored once. many_turns:
        whether the response may be as long as a whole episode.
        """
        if length + self.reply > self.context:
            return (
                f"with {self.reply} tokens for the reply they exceed the model's context of {self.context}; leave the "
                "example out, lower rollout.max_completion_length, or use a model with a longer context"
            )
        if self.words is not None and length - shared > self.words:
            return f"the words add {length - shared}; raise rollout.max_feedback_length={self.words} to that or more"
        shapes = self.sampler
        lack = _bucket_lack("sampler", "tail", length, shared, shapes.prefix[-1], shapes.tail[-1])
        if not lack and self.train is not None:
            prefix, suffix = self.train.prefix[-1], self.train.suffix[-1]
            response = max(self.reply, self.episode) if many_turns else self.reply
            lack = _bucket_lack("train", "suffix", length + response, shared, prefix, suffix)
        return lack

    def holds_row(self, context: int, response: int) -> bool:
        """Returns whether a training row fits that stands alone, under a prefix of its own."""
        if self.train is None:
            return context + response <= self.context
        lack = _bucket_lack(
            "train", "suffix", context + response, context, self.train.prefix[-1], self.train.suffix[-1]
        )
        return not lack and context + response <= self.context


def _bucket_lack(part: str, rest: str, length: int, shared: int, largest_prefix: int, largest_rest: int) -> str:
    over = length - min(shared, largest_prefix) - largest_rest
    if over <= 0:
        return ""
    holds = f"the largest {part}.prefix and {part}.{rest} hold {largest_prefix} + {largest_rest}"
    if shared > largest_prefix:
        return f"{holds}; add {largest_prefix + over} or more to {part}.prefix"
    return f"{holds}, and {shared} of them can be shared; add {largest_rest + over} or more to {part}.{rest}"


def room_of(engine: Engine, train: TrainConfig | None = None) -> Room:
    """Returns the room that an engine has, and with `train` the update too."""
    sampler = engine.sampler
    reply = min(engine.max_completion_length, sampler.shapes.max_new_tokens)
    return Room(sampler.shapes, sampler.config.max_position_embeddings, reply, train, engine.max_completion_length)


def require_room(prompts: Iterable[Prompt], chat_format: ChatFormat, room: Room, setting: str) -> None:
    """Returns nothing; raises ConfigError naming the longest prompt without room, its length and what to raise."""
    longest, worst, lacks, count = 0, None, "", 0
    for prompt in prompts:
        length, lack = _longest(prompt, chat_format, room)
        if lack:
            count += 1
            if length > longest:
                longest, worst, lacks = length, prompt, lack
    if worst is not None:
        others = f" (the longest of {count} that do not fit)" if count > 1 else ""
        raise ConfigError(f"{setting}: the prompt of example {worst.id} has {longest} tokens{others}; {lacks}")


def with_room(loaded: LoadedTask, chat_format: ChatFormat, room: Room) -> LoadedTask:
    """Returns the task without the examples that do not fit, which are counted, if its source says to skip them.

    Raises ConfigError if none fits.
    """
    if loaded.config is None or loaded.config.source.overlong != "skip":
        return loaded
    fits = [not _longest(prompt, chat_format, room)[1] for prompt in loaded.prompts]
    if not any(fits):
        require_room(loaded.prompts, chat_format, room, loaded.label)
    loaded.rows.left_out["prompt too long"] += fits.count(False)
    return dataclasses.replace(
        loaded, examples=[example for example, fit in zip(loaded.examples, fits, strict=True) if fit]
    )


def _longest(prompt: Prompt, chat_format: ChatFormat, room: Room) -> tuple[int, str]:
    """(tokens of the prompt's longest opening, the setting that it lacks or "")."""
    task = prompt.task
    length = max(len(chat_format.open(opening)) for opening in task.openings(prompt.example).values())
    return length, room.lack(length, length - 1, task.many_turns)
