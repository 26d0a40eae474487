"""Generators → a small SentencePiece vocabulary for a policy that is trained from scratch.

Byte fallback makes any text readable; turn markers are control pieces, which no text can produce; answer tags are
whole pieces. Single-threaded training on text in a fixed order, so the same configuration gives the same file.
"""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from ditto_jax.config import TaskConfig
from ditto_jax.keys import derive
from ditto_jax.rollouts.feedback import content_free_feedback
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.registry import get_task
from ditto_jax.text.chat import ROLES, MarkerChat
from ditto_jax.types import Conversation

_ANSWER_TAGS = ("<answer>", "</answer>")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """vocab_size counts the 256 byte pieces; examples: how many generated items of each task and split are read."""

    vocab_size: int = 768
    examples: int = 4000


def _corpus(config: TokenizerConfig, tasks: Sequence[TaskConfig], seed: int) -> Iterator[str]:
    rng = random.Random(derive(seed, "tokenizer"))
    for task_config in tasks:
        task = get_task(task_config.name, task_config.options)
        # Held-out words become pieces too: a policy cannot read a word whose embedding it never saw.
        for split in ("train", "test"):
            for example in task.load(Source(split=split, limit=config.examples, seed=derive(seed, split) % 2**31)):
                for message in task.opening(example):
                    yield message.content
                for careful in (True, False):
                    reply = task.demonstration(example, careful) or ""
                    yield reply
                    conversation = Conversation((), reply)
                    verdict = task.rule_score(example, conversation)
                    if verdict is not None:
                        yield task.rule_feedback(example, conversation, verdict, rng) or content_free_feedback(rng)


def train_tokenizer(config: TokenizerConfig, tasks: Sequence[TaskConfig], seed: int, path: Path) -> None:
    """Writes a SentencePiece model to `path`. Ids 0-3 are unk, bos, eos and pad; the turn markers follow."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(config, tasks, seed),
        model_writer=model,
        model_type="bpe",
        vocab_size=config.vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=[*(f"<|{role}|>" for role in ROLES), MarkerChat.END],
        user_defined_symbols=list(_ANSWER_TAGS),
        pad_id=3,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    path.write_bytes(model.getvalue())
