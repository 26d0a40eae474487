"""What a plan has to assume because no configuration says it: lengths, shares, speeds, replies of judges, prices.

Each is a field that a user sets (`--assume.reply_share 0.3`) once a run has told better. The defaults are guesses, of
which no accelerator has confirmed any; prices have none.
"""

from __future__ import annotations

import dataclasses
import math

from ditto_jax.errors import ConfigError

_SHARES = (
    "refined_share",
    "prompt_share",
    "reply_share",
    "rows_in_use",
    "packed",
    "prefill_efficiency",
    "update_efficiency",
    "decode_efficiency",
    "link_efficiency",
)


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """refined_share: of the drafts that may be asked about, those that get words and a second attempt.

    prompt_share, reply_share: mean length over the largest train.prefix, and over rollout.max_completion_length.
    feedback_tokens: of the words about a draft. turns: of the policy in an episode of several. rows_in_use: of the
    sampler's rows, lengths being uneven. packed: real tokens of an update over all that are computed.
    prefill_efficiency, update_efficiency: of the chip's arithmetic that is reached (scoring as prefill);
    decode_efficiency: of its memory's bandwidth; link_efficiency: of its interconnect.
    judge_seconds: mean time of a call. judge_instructions, judge_reply: tokens of a question beside prompt and
    conversation, and of its reply, reasoning included. chip_hour_price: of a device, in any currency; None
    leaves it out.
    """

    refined_share: float = 0.5
    prompt_share: float = 0.75
    reply_share: float = 0.5
    feedback_tokens: int = 96
    turns: int = 6
    rows_in_use: float = 0.6
    packed: float = 0.9
    prefill_efficiency: float = 0.5
    update_efficiency: float = 0.4
    decode_efficiency: float = 0.65
    link_efficiency: float = 0.6
    judge_seconds: float = 5.0
    judge_instructions: int = 400
    judge_reply: int = 400
    chip_hour_price: float | None = None

    def __post_init__(self):
        for name in _SHARES:
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise ConfigError(f"assume.{name}={value}: is a share above 0, of at most 1; 0.5 works")
        for name in ("feedback_tokens", "turns", "judge_instructions", "judge_reply"):
            if getattr(self, name) < 1:
                raise ConfigError(f"assume.{name}={getattr(self, name)}: must be at least 1")
        for name in ("judge_seconds", "chip_hour_price"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f"assume.{name}={value}: must be a number of at least 0; 4.2 works")
