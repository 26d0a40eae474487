"""`ditto-jax sample`: a prompt → what the policy writes after it, on stdout.

Policies that know turns get the prompt as a user's message and their reply alone is printed. Base models continue the
prompt's own text, which is printed too. Shapes are as small as the prompt allows; nothing is trained or judged.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import tyro

from launch import environment

if TYPE_CHECKING:
    from ditto_jax.policy import Policy
    from ditto_jax.sampling.slots import Sampled


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What to sample. Without chat and no_chat, policies whose tokenizer knows turns are spoken to in turns."""

    model_name_or_path: str = ""  # folder in Hugging Face layout, name of a packaged policy, or directory of a run
    prompt: str = ""
    prompt_file: str | None = None  # read the prompt from a file instead; - is standard input
    system: str | None = None  # system message, for policies that know turns
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # draw from the k likeliest tokens; 0 = off
    top_p: float = 1.0  # draw from the likeliest tokens with this mass; 1 = off
    min_p: float = 0.0  # leave out tokens less likely than this fraction of the likeliest; 0 = off
    max_new_tokens: int = 128
    num_samples: int = 1
    seed: int = 0
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # end before this text
    chat: tyro.conf.FlagCreatePairsOff[bool] = False  # insist on turns
    no_chat: tyro.conf.FlagCreatePairsOff[bool] = (
        False  # continue the prompt as plain text, whatever the tokenizer knows
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    fsdp: int = 1  # devices to spread the weights over
    tensor: int = 1  # devices to split each layer over

    def __post_init__(self):
        from ditto_jax.errors import ConfigError

        for name in ("max_new_tokens", "num_samples", "fsdp", "tensor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.prompt and self.prompt_file is not None:
            raise ConfigError("prompt and prompt_file: give one of them")
        if self.chat and self.no_chat:
            raise ConfigError("chat and no_chat: give one of them, or neither")
        if "" in self.stop:
            raise ConfigError("stop='': an empty text would end every reply at once; leave it out")


def main(args: list[str], command: list[str]) -> int:
    """Samples and prints. Raises a DittoError for settings, models and prompts that cannot work."""
    environment.prepare_allocator()
    from launch.flags import parse

    parsed = parse(SampleConfig, args, "sample", "Print what a policy writes after a prompt.")
    environment.use_compile_cache()
    _print(sample(parsed.config))
    return 0


def sample(config: SampleConfig) -> list[str]:
    """Returns the texts: replies where there are turns, else the prompt and its continuation."""
    policy = _load(config)
    ids, sampled = _draw(policy, config)
    return [_text(policy, ids, one, config) for one in sampled]


def _load(config: SampleConfig) -> Policy:
    from ditto_jax.errors import ConfigError
    from ditto_jax.text.chat import PlainChat
    from ditto_jax.weights import policy_for_sampling

    policy, _ = policy_for_sampling(config.model_name_or_path, config.dtype, fsdp=config.fsdp, tensor=config.tensor)
    plain = isinstance(policy.chat_format, PlainChat)
    if plain and (config.chat or config.system is not None):
        raise ConfigError(
            f"{'chat' if config.chat else 'system'}: the tokenizer of {policy.folder} knows no turns; leave it out"
        )
    if config.no_chat and not plain:
        if config.system is not None:
            raise ConfigError("system: there is no system message without turns; leave out --no_chat")
        policy = dataclasses.replace(policy, chat_format=PlainChat(policy.tokenizer))
    return policy


def _draw(policy: Policy, config: SampleConfig) -> tuple[list[int], list[Sampled]]:
    """Returns the prompt's ids, and the samples in order."""
    from ditto_jax.errors import ConfigError
    from ditto_jax.keys import SampleId
    from ditto_jax.sampling.slot_shapes import SamplerShapes
    from ditto_jax.sampling.slots import SampleRequest
    from ditto_jax.types import Message
    from model.sampling import SamplingParams

    try:
        sampling = SamplingParams(config.temperature, config.top_k, config.top_p, config.min_p)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    system = [] if config.system is None else [Message("system", config.system)]
    prompt = _prompt(config)
    ids = policy.chat_format.open([*system, Message("user", prompt)])
    requests = [
        SampleRequest(
            ids=np.asarray(ids, np.int32),
            group=0,
            key=SampleId(config.seed, 0, prompt, number, "sample").key(),
            max_new_tokens=config.max_new_tokens,
        )
        for number in range(config.num_samples)
    ]
    # All but the prompt's last token is the prefix that the samples share.
    prefix = 1 << max(0, len(ids) - 2).bit_length()
    rows = min(64, config.num_samples)
    shapes = SamplerShapes(
        (prefix,), (1,), max_new_tokens=config.max_new_tokens, max_rows=rows, rows_per_prefix=(rows,), chunk=32
    )
    sampler = policy.sampler(shapes)
    results: dict[int, Sampled] = {}
    for finished in sampler.generate(policy.params, requests, sampling, config.stop):
        results.update(finished)
    return ids, [results[i] for i in range(config.num_samples)]


def _prompt(config: SampleConfig) -> str:
    from ditto_jax.errors import ConfigError, MissingInputError

    if config.prompt_file is None:
        return config.prompt
    try:
        if config.prompt_file == "-":
            return sys.stdin.read()
        return Path(config.prompt_file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInputError(f"prompt_file={config.prompt_file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt_file={config.prompt_file}: cannot be read as UTF-8 text ({error})") from None


def _text(policy: Policy, prompt_ids: Sequence[int], sampled: Sampled, config: SampleConfig) -> str:
    from ditto_jax.text.chat import PlainChat

    decode = policy.tokenizer.decode
    ids = sampled.ids.tolist()
    if ids and ids[-1] in (*policy.chat_format.stop_ids, *policy.config.eos_token_ids):
        ids = ids[:-1]
    if not isinstance(policy.chat_format, PlainChat):
        return _before_stop(decode(ids), config.stop)
    # Decoded together, so that the space between the prompt and its continuation is the tokenizer's.
    before = decode(prompt_ids)
    return before + _before_stop(decode([*prompt_ids, *ids])[len(before) :], config.stop)


def _before_stop(text: str, stop: Sequence[str]) -> str:
    ends = [text.find(one) for one in stop if one in text]
    return text[: min(ends)] if ends else text


def _print(texts: list[str]) -> None:
    """Prints one text exactly (a line end is added for a terminal only), several under numbered headings."""
    if len(texts) == 1:
        sys.stdout.write(texts[0] + ("\n" if sys.stdout.isatty() else ""))
    else:
        sys.stdout.write("".join(f"=== sample {i + 1} of {len(texts)} ===\n{text}\n" for i, text in enumerate(texts)))
    sys.stdout.flush()
